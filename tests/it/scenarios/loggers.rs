//! Programs that containers log through (`binary://`), and files (`file://`).

use std::{
    fs,
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
    time::Duration,
};

use containerd_shim_protos::api::{
    CreateTaskRequest, CreateTaskResponse, DeleteRequest, DeleteResponse, StartRequest, StartResponse, WaitRequest,
    WaitResponse,
};
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};

use super::{Scenario, protocol};
use crate::{
    case::RuntimeCase,
    lab::{Lab, daemon::Version, eventually, process::Process},
};

/// What every shim has to do.
pub const SCENARIOS: &[Scenario] = &[
    ("a logger has both streams, the container's names, its arguments, and no more", both_streams),
    ("an exec can have a logger of its own", exec_logger),
    ("a logger goes with the container whose creation failed", failed_creation),
    ("a logger that goes on after the end of its input is told to end, and heard out", told_to_end),
    ("a logger whose shim is killed has the end of its input, and ends", shim_killed),
    ("a file takes both streams, after what is in it, and its directories are made", file),
    ("a stream's name of an unknown kind is an error that repeats it", unknown_kind),
];

/// What only ours does.
pub const OURS: &[Scenario] = &[
    ("a logger's arguments come in the order of its name", argument_order),
    ("a logger that dies before it is ready is an error that names it, and nothing is left", dies_early),
    ("a logger that must say a word is not ready without", strict_readiness),
    ("a logger that ignores everything is killed, and the container is deleted", deaf),
    ("a container on a terminal can have a logger", terminal),
    ("a container on a terminal can have a file", terminal_file),
];

/// A logger's program and what it leaves.
struct Logger {
    dir: PathBuf,
}

impl Logger {
    /// A logger that does this in shell, between being ready (see [`READY`]) and having read everything (see [`READ`]).
    fn new(lab: &Lab, script: &str) -> Self {
        let dir = lab.dir("logger");
        let program = dir.join("logger");
        // It has no PATH.
        let script = format!(
            "#!/bin/sh\nmine=\"$2/$CONTAINER_ID\"\n/bin/cat /proc/$$/environ >\"$mine.environ\"\n\
             pwd >\"$mine.cwd\"\nprintf '%s\\n' \"$@\" >\"$mine.args\"\necho $$ >\"$mine.pid\"\n{script}\n"
        );
        fs::write(&program, script).unwrap();
        fs::set_permissions(&program, fs::Permissions::from_mode(0o755)).unwrap();
        Self { dir }
    }

    /// Its name for a stream, with more arguments.
    fn uri(&self, more: &str) -> String {
        format!("binary://{0}/logger?dir={0}{more}", self.dir.display())
    }

    /// What it has left for the process `id` so far.
    fn left(&self, id: &str, what: &str) -> String {
        fs::read_to_string(self.dir.join(format!("{id}.{what}"))).unwrap_or_default()
    }

    /// Waits until the one of process `id` is gone.
    fn until_gone(&self, id: &str) {
        let pid = self.pid(id);
        let gone = || (!Process::find(pid).is_some_and(|process| process.is_alive())).then_some(());
        eventually("the end of the logger", gone);
    }

    fn pid(&self, id: &str) -> i32 {
        eventually("the logger", || self.left(id, "pid").trim().parse().ok())
    }
}

/// Reads both streams to their ends.
const READY: &str =
    "/bin/cat <&3 >\"$mine.stdout\" 5>&- &\n/bin/cat <&4 >\"$mine.stderr\" 5>&- &\nexec 3<&- 4<&- 5>&-\n";
const READ: &str = "wait\necho done >\"$mine.end\"";

fn both_streams(lab: &Lab, case: &RuntimeCase) {
    let daemon = lab.daemon(case.daemon());
    let logger = Logger::new(lab, &format!("{READY}{READ}"));
    let container = lab.container(&daemon, "logged");
    let script = "echo out; seq 1 20000 >&2; echo last";
    container.run(case, &["--log-uri", &logger.uri("")], &["sh", "-c", script]).success();
    logger.until_gone(container.id());
    let left = |what| logger.left(container.id(), what);
    assert_eq!(left("stdout"), "out\nlast\n");
    assert_eq!(left("stderr"), (1..=20000).map(|n| format!("{n}\n")).collect::<String>());
    let mut environment: Vec<_> = left("environ").split_terminator('\0').map(String::from).collect();
    environment.sort();
    let expected = [format!("CONTAINER_ID={}", container.id()), format!("CONTAINER_NAMESPACE={}", daemon.namespace())];
    assert_eq!(environment, expected);
    assert_eq!(left("args"), format!("dir\n{}\n", logger.dir.display()));
    assert_eq!(left("cwd").trim(), daemon.bundle(container.id()).to_str().unwrap());
    if case.ours {
        // Go's sends SIGTERM at once, which may come before the last line is written.
        assert_eq!(left("end"), "done\n");
    }
}

fn exec_logger(lab: &Lab, case: &RuntimeCase) {
    let daemon = lab.daemon(case.daemon());
    let logger = Logger::new(lab, &format!("{READY}{READ}"));
    let container = lab.container(&daemon, "execlogged");
    container.detach(case, &[], &["sleep", "1000"]);
    container.exec("logged", &["--log-uri", &logger.uri("")], &["sh", "-c", "echo out; echo err >&2; exit 4"]).exit(4);
    logger.until_gone("logged");
    assert_eq!((logger.left("logged", "stdout"), logger.left("logged", "stderr")), ("out\n".into(), "err\n".into()));
}

fn failed_creation(lab: &Lab, case: &RuntimeCase) {
    let daemon = lab.daemon(case.daemon());
    let logger = Logger::new(lab, &format!("{READY}{READ}"));
    let container = lab.container(&daemon, "unlogged");
    container.run(case, &["--log-uri", &logger.uri("")], &["/no/such/program"]).failure(&["/no/such/program"]);
    // runsc finds out at start; a container that was created stays until its user deletes it.
    container.task("delete", &["--force"]);
    logger.until_gone(container.id());
}

fn told_to_end(lab: &Lab, case: &RuntimeCase) {
    let daemon = lab.daemon(case.daemon());
    let linger = "trap 'sleep 0.3; echo told >\"$mine.end\"; exit' TERM\nwhile :; do sleep 0.1; done";
    let logger = Logger::new(lab, &format!("{READY}{linger}"));
    let container = lab.container(&daemon, "lingers");
    container.run(case, &["--log-uri", &logger.uri("")], &["echo", "out"]).success();
    assert_eq!(logger.left(container.id(), "end"), "told\n");
    assert_eq!(logger.left(container.id(), "stdout"), "out\n");
    logger.until_gone(container.id());
}

fn shim_killed(lab: &Lab, case: &RuntimeCase) {
    let daemon = lab.own_daemon(case.daemon());
    let logger = Logger::new(lab, &format!("{READY}{READ}"));
    let container = lab.container(&daemon, "orphanlog");
    let _client = container.start(case, &["--log-uri", &logger.uri("")], &["sh", "-c", "echo out; sleep 1000"]);
    eventually("the output", || (logger.left(container.id(), "stdout") == "out\n").then_some(()));
    kill(Pid::from_raw(container.shim().pid), Signal::SIGKILL).unwrap();
    logger.until_gone(container.id());
    assert_eq!(logger.left(container.id(), "end"), "done\n");
    eventually("the end of the bundle", || (!daemon.bundle(container.id()).exists()).then_some(()));
    // Go's `delete` leaves its sockets.
    if !case.ours {
        let sockets = fs::read_dir("/run/containerd/s").unwrap().flatten().map(|entry| entry.path());
        sockets.filter(|socket| fs::metadata(socket).is_ok()).for_each(|socket| forget_socket(&socket));
    }
}

/// Removes a socket that nobody listens on.
fn forget_socket(socket: &Path) {
    if std::os::unix::net::UnixStream::connect(socket).is_err() {
        let _ = fs::remove_file(socket);
    }
}

fn file(lab: &Lab, case: &RuntimeCase) {
    let daemon = lab.daemon(case.daemon());
    let log = lab.dir("file").join("new/a b/both.log");
    let uri = format!("file://{}", log.display()).replace(' ', "%20");
    let script = "echo out; echo err >&2; seq 1 20000; echo last";
    for _ in 0..2 {
        let container = lab.container(&daemon, "filed");
        container.run(case, &["--log-uri", &uri], &["sh", "-c", script]).success();
    }
    let content = fs::read_to_string(&log).unwrap();
    let once: usize = ["out\n", "err\n", "last\n"].iter().map(|line| line.len()).sum();
    let numbers: String = (1..=20000).map(|n| format!("{n}\n")).collect();
    assert_eq!(content.len(), 2 * (once + numbers.len()));
    for (line, count) in [("out\n", 2), ("err\n", 2), ("last\n", 2)] {
        assert_eq!(content.matches(line).count(), count, "{line}");
    }
    assert_eq!(fs::metadata(&log).unwrap().permissions().mode() & 0o777, 0o644);
}

fn unknown_kind(lab: &Lab, case: &RuntimeCase) {
    let daemon = lab.daemon(case.daemon());
    let container = lab.container(&daemon, "unknown");
    container.run(case, &["--log-uri", "carrier-pigeon:///coop"], &["true"]).failure(&["carrier-pigeon"]);
    assert!(!daemon.bundle(container.id()).exists());
}

fn argument_order(lab: &Lab, case: &RuntimeCase) {
    let daemon = lab.daemon(case.daemon());
    let logger = Logger::new(lab, &format!("{READY}{READ}"));
    let container = lab.container(&daemon, "ordered");
    let uri = logger.uri("&zebra=a+b%2Fc&-flag&ape=%22&zebra=again");
    container.run(case, &["--log-uri", &uri], &["true"]).success();
    let expected = format!("dir\n{}\nzebra\na b/c\n-flag\n\nape\n\"\n", logger.dir.display());
    assert_eq!(logger.left(container.id(), "args"), expected);
}

fn dies_early(lab: &Lab, case: &RuntimeCase) {
    let daemon = lab.daemon(case.daemon());
    let logger = Logger::new(lab, "exit 3");
    let (container, uri) = (lab.container(&daemon, "early"), logger.uri(""));
    let program = logger.dir.join("logger");
    container.run(case, &["--log-uri", &uri], &["true"]).failure(&[program.to_str().unwrap(), "exit code 3"]);
    assert!(!daemon.bundle(container.id()).exists());
    let container = lab.container(&daemon, "missing");
    let uri = "binary:///no/such/logger";
    container.run(case, &["--log-uri", uri], &["true"]).failure(&["/no/such/logger", "No such file"]);
    // An exec whose logger fails leaves the container as it was.
    let container = lab.container(&daemon, "execearly");
    container.detach(case, &[], &["sleep", "1000"]);
    container.exec("early", &["--log-uri", &logger.uri("")], &["true"]).failure(&["exit code 3"]);
    container.exec("later", &[], &["true"]).success();
}

fn strict_readiness(lab: &Lab, case: &RuntimeCase) {
    let daemon = lab.daemon(case.daemon());
    let strict = |logger: &Logger| logger.uri("").replace("binary:", "binary-v2:");
    let silent = Logger::new(lab, &format!("{READY}{READ}"));
    let container = lab.container(&daemon, "silent");
    // containerd 2.x looks at the scheme itself, and those before 2.2 do not know this one.
    let refused = container.run(case, &["--log-uri", &strict(&silent)], &["true"]).failure(&[]);
    if refused.errors().contains("descriptor 5") {
        silent.until_gone(container.id());
        let polite = Logger::new(lab, &format!("printf x >&5\n{READY}{READ}"));
        let container = lab.container(&daemon, "polite");
        container.run(case, &["--log-uri", &strict(&polite)], &["echo", "out"]).success();
        assert_eq!(polite.left(container.id(), "stdout"), "out\n");
    } else {
        assert!(refused.errors().contains("binary-v2"), "{refused:?}");
    }
}

fn deaf(lab: &Lab, case: &RuntimeCase) {
    // Once is enough: it takes the time that a logger is given.
    if !case.is_runc() || case.daemon().version != Version::V1_6 {
        return;
    }
    let daemon = lab.daemon(case.daemon());
    let logger = Logger::new(lab, &format!("trap '' TERM\n{READY}while :; do sleep 1; done"));
    let container = lab.container(&daemon, "deaf");
    let output = container.run(case, &["--log-uri", &logger.uri("")], &["true"]).success();
    assert!(output.elapsed < Duration::from_secs(30), "{output:?}");
    logger.until_gone(container.id());
}

/// Runs a container on a terminal with this as its standard output.
fn run_on_terminal(lab: &Lab, case: &RuntimeCase, stdout: &str, script: &str) -> String {
    let shim = protocol::shim_with(lab, case, &["sh", "-c", script], |spec| spec["process"]["terminal"] = true.into());
    let id = shim.id().to_owned();
    let create = CreateTaskRequest { terminal: true, stdout: stdout.into(), ..shim.create_request() };
    shim.call::<CreateTaskResponse>("Create", &create).unwrap();
    shim.call::<StartResponse>("Start", &StartRequest { id: id.clone(), ..StartRequest::default() }).unwrap();
    let wait = WaitRequest { id: id.clone(), ..WaitRequest::default() };
    assert_eq!(shim.call::<WaitResponse>("Wait", &wait).unwrap().exit_status, 0);
    shim.call::<DeleteResponse>("Delete", &DeleteRequest { id: id.clone(), ..DeleteRequest::default() }).unwrap();
    shim.shut_down();
    id
}

const ON_TERMINAL: &str = "test -t 1 && test -t 2 && seq 1 5000 && echo err >&2";

fn on_terminal() -> String {
    (1..=5000).map(|n| format!("{n}\r\n")).chain(["err\r\n".into()]).collect()
}

fn terminal(lab: &Lab, case: &RuntimeCase) {
    let logger = Logger::new(lab, &format!("{READY}{READ}"));
    let id = run_on_terminal(lab, case, &logger.uri(""), ON_TERMINAL);
    logger.until_gone(&id);
    assert_eq!(logger.left(&id, "stdout"), on_terminal());
    assert_eq!((logger.left(&id, "stderr"), logger.left(&id, "end")), (String::new(), "done\n".into()));
}

fn terminal_file(lab: &Lab, case: &RuntimeCase) {
    let log = lab.dir("file").join("terminal.log");
    run_on_terminal(lab, case, &format!("file://{}", log.display()), ON_TERMINAL);
    assert_eq!(fs::read_to_string(&log).unwrap(), on_terminal());
}
