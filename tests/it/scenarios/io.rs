//! Bytes to and from a container.

use std::{
    fs::{self, File},
    io::{ErrorKind, Read, Write},
    os::unix::fs::{OpenOptionsExt, PermissionsExt, chown},
    path::{Path, PathBuf},
    thread,
    time::{Duration, Instant},
};

use containerd_shim_protos::{
    api::{
        CloseIORequest, CreateTaskRequest, CreateTaskResponse, DeleteRequest, DeleteResponse, Empty, StartRequest,
        StartResponse, WaitRequest, WaitResponse,
    },
    protobuf::{Message, MessageField, well_known_types::any::Any},
    shim::oci,
};
use nix::{
    libc,
    sched::{CpuSet, sched_getaffinity, sched_setaffinity},
    sys::stat::Mode,
    unistd::{Pid, mkfifo},
};
use serde_json::json;

use super::{Scenario, protocol};
use crate::{
    case::RuntimeCase,
    lab::{Lab, PATIENCE, shim::Shim},
};

pub const SCENARIOS: &[Scenario] = &[
    ("700 kB of input arrive as they are, and their end with them", input),
    ("8 MB of output arrive to the last byte", much_output),
    ("the last words of a container that exits at once arrive, 30 times of 30", last_words),
    ("an exec's input and output are its own", exec_input),
    ("an exec that leaves its output open to another process ends all the same", left_open),
    ("a process in a user namespace can open its standard output again", reopened),
];

/// What only ours does, or what only a shim that is called directly shows.
pub const OURS: &[Scenario] = &[
    ("last words arrive on a single CPU as well", one_cpu),
    ("what a container wrote waits for a reader that comes after its end", late_reader),
    ("a reader that goes and comes back loses nothing", coming_reader),
    ("an input whose writer goes and comes back ends when it is closed", coming_writer),
    ("each stream has a place of its own: a fifo, a file, or none", places),
    ("every user in a user namespace can open its standard output again", reopened_by_user),
];

/// Numbers of seven digits, a line each: they show when a piece is lost, doubled or moved.
fn numbers(bytes: usize) -> Vec<u8> {
    (1_000_000..).take(bytes.div_ceil(8)).flat_map(|number: u32| format!("{number}\n").into_bytes()).collect()
}

/// Where two byte strings first differ, for a message that is shorter than they are.
fn assert_same(found: &[u8], expected: &[u8]) {
    let differ = found.iter().zip(expected).position(|(found, expected)| found != expected);
    assert_eq!((found.len(), differ), (expected.len(), None), "length and first difference");
}

fn input(lab: &Lab, case: &RuntimeCase) {
    let daemon = lab.daemon(case.daemon());
    let bytes = numbers(700_000);
    let cat = || lab.container(&daemon, "input").run_with(case, &[], &["cat"], &bytes).success().stdout;
    // Go's shim may close the input before all of it is through; ours may not, ever.
    let tries = if case.ours { 1 } else { 5 };
    let found = (0..tries).map(|_| cat()).find(|found| *found == bytes);
    assert_same(&found.unwrap_or_else(cat), &bytes);
}

fn much_output(lab: &Lab, case: &RuntimeCase) {
    let daemon = lab.daemon(case.daemon());
    let container = lab.container(&daemon, "much");
    let output = container.run(case, &[], &["sh", "-c", "seq 1000000 1999999"]).success();
    assert_same(&output.stdout, &numbers(8_000_000));
}

fn last_words(lab: &Lab, case: &RuntimeCase) {
    let daemon = lab.daemon(case.daemon());
    let lost: Vec<_> = (0..30)
        .filter(|_| {
            let output = lab
                .container(&daemon, "tail")
                .run(case, &[], &["sh", "-c", "echo first; seq 1 500; echo last"])
                .success();
            !output.text().starts_with("first\n1\n") || !output.text().ends_with("500\nlast\n")
        })
        .collect();
    assert!(lost.is_empty(), "incomplete in runs {lost:?}");
}

fn exec_input(lab: &Lab, case: &RuntimeCase) {
    let daemon = lab.daemon(case.daemon());
    let container = lab.container(&daemon, "execinput");
    container.detach(case, &[], &["sleep", "1000"]);
    let bytes = numbers(300_000);
    thread::scope(|scope| {
        for exec in ["a", "b"] {
            let (container, bytes) = (&container, &bytes);
            scope.spawn(move || {
                let output =
                    container.exec_with(exec, &[], &["sh", "-c", &format!("cat; echo {exec} >&2")], bytes).success();
                assert_same(&output.stdout, bytes);
                assert_eq!(output.errors(), format!("{exec}\n"));
            });
        }
    });
}

fn left_open(lab: &Lab, case: &RuntimeCase) {
    let daemon = lab.daemon(case.daemon());
    let container = lab.container(&daemon, "leftopen");
    container.detach(case, &[], &["sleep", "1000"]);
    let output = container.exec("leaves", &[], &["sh", "-c", "sleep 900 & echo out; exit 6"]).exit(6);
    assert_eq!(output.text(), "out\n");
    // Two seconds for the output to end, and whatever the machine needs besides.
    assert!(output.elapsed < Duration::from_secs(15), "{output:?}");
}

const REOPEN: &str = "cat /proc/self/uid_map >/dev/stdout; echo here >/proc/self/fd/1; echo there >/dev/stderr";

fn reopened(lab: &Lab, case: &RuntimeCase) {
    // gVisor's user namespaces are its own.
    if !case.is_runc() {
        return;
    }
    let daemon = lab.daemon(case.daemon());
    // The client has one message for both, and drops a handler's other options for it or refuses.
    let case = if case.ours { case.configured_by(None) } else { case.clone() };
    let options = ["--uidmap", "0:100000:65536", "--gidmap", "0:100000:65536"];
    let output = lab.container(&daemon, "reopened").run(&case, &options, &["sh", "-c", REOPEN]).success();
    assert!(output.text().contains("100000") && output.text().ends_with("here\n"), "{output:?}");
    assert!(output.errors().contains("there\n"), "{output:?}");
}

fn reopened_by_user(lab: &Lab, case: &RuntimeCase) {
    if !case.is_runc() {
        return;
    }
    for (user, told) in [(0, false), (1234, false), (1234, true)] {
        let dir = lab.dir("fifos");
        let (stdout, stderr) = (fifo(&dir, "out"), fifo(&dir, "err"));
        let shim = protocol::shim_with(lab, case, &["sh", "-c", REOPEN], |spec| {
            let rootfs = spec["root"]["path"].as_str().unwrap().to_owned();
            chown(Path::new(&rootfs), Some(100_000), Some(200_000)).unwrap();
            spec["process"]["user"] = json!({"uid": user, "gid": user});
            let map = |first: u32| json!([{"containerID": 0, "hostID": first, "size": 65536}]);
            (spec["linux"]["uidMappings"], spec["linux"]["gidMappings"]) = (map(100_000), map(200_000));
            spec["linux"]["namespaces"].as_array_mut().unwrap().push(json!({"type": "user"}));
        });
        // The container's root passes through here.
        fs::set_permissions(shim.bundle(), fs::Permissions::from_mode(0o711)).unwrap();
        let mut create = shim.create_request();
        (create.stdout, create.stderr) = (name(&stdout), name(&stderr));
        if told {
            let options = oci::Options { io_uid: 100_000, io_gid: 200_000, ..oci::Options::default() };
            let value = options.write_to_bytes().unwrap();
            let type_url = "containerd.runc.v1.Options".into();
            create.options = MessageField::some(Any { type_url, value, ..Any::default() });
        }
        shim.call::<CreateTaskResponse>("Create", &create).unwrap();
        let start = StartRequest { id: shim.id().into(), ..StartRequest::default() };
        shim.call::<StartResponse>("Start", &start).unwrap();
        let output = read(&mut reader(&stdout), usize::MAX);
        let output = String::from_utf8(output).unwrap();
        assert!(output.contains("100000") && output.ends_with("here\n"), "{output:?}");
        assert_eq!(read(&mut reader(&stderr), usize::MAX), b"there\n");
        assert_eq!(wait(&shim), 0);
        delete(&shim);
    }
}

fn one_cpu(lab: &Lab, case: &RuntimeCase) {
    // Everything that this thread starts from here on runs where it runs.
    let before = sched_getaffinity(Pid::from_raw(0)).unwrap();
    let mut one = CpuSet::new();
    one.set((0..CpuSet::count()).find(|cpu| before.is_set(*cpu).unwrap()).unwrap()).unwrap();
    sched_setaffinity(Pid::from_raw(0), &one).unwrap();
    let daemon = lab.own_daemon(case.daemon());
    let rounds = if case.is_runc() { 40 } else { 10 };
    let lost: Vec<_> = (0..rounds)
        .filter(|round| {
            let last = format!("last words {round}\n");
            let script = format!("seq 1 3000; printf '{last}'");
            let output = lab.container(&daemon, "onecpu").run(case, &[], &["sh", "-c", &script]).success();
            !output.text().ends_with(&last) || output.text().lines().count() != 3001
        })
        .collect();
    sched_setaffinity(Pid::from_raw(0), &before).unwrap();
    assert!(lost.is_empty(), "incomplete in runs {lost:?}");
}

/// Starts a container that the test itself is the client of.
fn start(lab: &Lab, case: &RuntimeCase, script: &str, streams: impl FnOnce(&mut CreateTaskRequest)) -> Shim {
    let shim = protocol::shim_with(lab, case, &["sh", "-c", script], |_| {});
    let mut create = shim.create_request();
    streams(&mut create);
    shim.call::<CreateTaskResponse>("Create", &create).unwrap();
    let start = StartRequest { id: shim.id().into(), ..StartRequest::default() };
    shim.call::<StartResponse>("Start", &start).unwrap();
    shim
}

/// Waits for the end of its process.
fn wait(shim: &Shim) -> u32 {
    let wait = WaitRequest { id: shim.id().into(), ..WaitRequest::default() };
    shim.call::<WaitResponse>("Wait", &wait).unwrap().exit_status
}

/// Deletes what has ended, and ends the shim.
fn delete(shim: &Shim) {
    let delete = DeleteRequest { id: shim.id().into(), ..DeleteRequest::default() };
    shim.call::<DeleteResponse>("Delete", &delete).unwrap();
    shim.shut_down();
}

fn fifo(dir: &Path, name: &str) -> PathBuf {
    let path = dir.join(name);
    mkfifo(&path, Mode::from_bits_truncate(0o600)).unwrap();
    path
}

fn name(path: &Path) -> String {
    path.to_str().unwrap().into()
}

/// A reader of a fifo, as containerd's are. One that nobody writes to is at its end.
fn reader(fifo: &Path) -> File {
    File::options().read(true).custom_flags(libc::O_NONBLOCK).open(fifo).unwrap()
}

/// Reads to the end, or this much at most, which must come in time.
fn read(reader: &mut File, most: usize) -> Vec<u8> {
    let (begin, mut content) = (Instant::now(), Vec::new());
    while content.len() < most {
        let mut buffer = [0; 4096];
        let room = buffer.len().min(most - content.len());
        match reader.read(&mut buffer[..room]) {
            Ok(0) => return content,
            Ok(count) => content.extend_from_slice(&buffer[..count]),
            Err(error) if error.kind() == ErrorKind::WouldBlock => {
                assert!(begin.elapsed() < PATIENCE, "no end after {} bytes", content.len());
                thread::sleep(Duration::from_millis(5));
            }
            Err(error) => panic!("{error}"),
        }
    }
    content
}

fn late_reader(lab: &Lab, case: &RuntimeCase) {
    // What is in the fifo alone, and what is in the pipe before it as well.
    for (count, bytes) in [(100, 800), (12_500, 100_000)] {
        let dir = lab.dir("fifos");
        let (stdout, stderr) = (fifo(&dir, "out"), fifo(&dir, "err"));
        let script = format!("seq 1000000 {}; echo last >&2", 1_000_000 + count - 1);
        let shim = start(lab, case, &script, |create| (create.stdout, create.stderr) = (name(&stdout), name(&stderr)));
        assert_eq!(wait(&shim), 0);
        assert_same(&read(&mut reader(&stdout), usize::MAX), &numbers(bytes));
        // Deleted before anybody has asked for it.
        let begin = Instant::now();
        delete(&shim);
        assert!(begin.elapsed() < Duration::from_secs(15), "{:?}", begin.elapsed());
    }
}

fn coming_reader(lab: &Lab, case: &RuntimeCase) {
    let stdout = fifo(&lab.dir("fifos"), "out");
    let shim = start(lab, case, "seq 1000000 1124999", |create| create.stdout = name(&stdout));
    let mut found = Vec::new();
    for _ in 0..12 {
        found.extend(read(&mut reader(&stdout), 77_777));
    }
    assert_eq!(wait(&shim), 0);
    let mut last = reader(&stdout);
    found.extend(read(&mut last, usize::MAX));
    assert_same(&found, &numbers(1_000_000));
    delete(&shim);
}

fn coming_writer(lab: &Lab, case: &RuntimeCase) {
    let dir = lab.dir("fifos");
    let (stdin, stdout) = (fifo(&dir, "in"), fifo(&dir, "out"));
    let script = "while read line; do echo \"got $line\"; done; echo end; exit 9";
    let shim = start(lab, case, script, |create| (create.stdin, create.stdout) = (name(&stdin), name(&stdout)));
    let mut reader = reader(&stdout);
    for line in ["one\n", "two\n"] {
        File::options().write(true).open(&stdin).unwrap().write_all(line.as_bytes()).unwrap();
        assert_eq!(read(&mut reader, "got one\n".len()), format!("got {line}").as_bytes());
    }
    let close = CloseIORequest { id: shim.id().into(), stdin: true, ..CloseIORequest::default() };
    shim.call::<Empty>("CloseIO", &close).unwrap();
    assert_eq!(read(&mut reader, usize::MAX), b"end\n");
    assert_eq!(wait(&shim), 9);
    delete(&shim);
}

fn places(lab: &Lab, case: &RuntimeCase) {
    const SCRIPT: &str = "echo out; echo err >&2";
    let dir = lab.dir("places");
    let (pipe, made, there) = (fifo(&dir, "out"), dir.join("new/made"), dir.join("there"));
    fs::write(&there, "before\n").unwrap();

    let shim = start(lab, case, SCRIPT, |create| {
        (create.stdout, create.stderr) = (name(&pipe), format!("file://{}", made.display()));
    });
    assert_eq!(read(&mut reader(&pipe), usize::MAX), b"out\n");
    assert_eq!(wait(&shim), 0);
    delete(&shim);
    assert_eq!(fs::read(&made).unwrap(), b"err\n");

    let shim = start(lab, case, SCRIPT, |create| (create.stdout, create.stderr) = ("/dev/null".into(), name(&there)));
    assert_eq!(wait(&shim), 0);
    delete(&shim);
    assert_eq!(fs::read(&there).unwrap(), b"before\nerr\n");

    let shim = start(lab, case, SCRIPT, |create| create.stderr = format!("file:{}", there.display()));
    assert_eq!(wait(&shim), 0);
    delete(&shim);
    assert_eq!(fs::read(&there).unwrap(), b"before\nerr\nerr\n");
}
