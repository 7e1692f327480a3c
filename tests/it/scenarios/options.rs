//! What a handler's options and its registration do: runc's options, our own, and what containerd says to `start`.

use std::{
    fs,
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
    sync::Arc,
};

use containerd_shim_protos::{
    api::{ConnectRequest, ConnectResponse},
    protobuf::{CodedOutputStream, Message, well_known_types::any::Any},
    shim::oci,
};

use nix::mount::{MntFlags, MsFlags, mount, umount2};
use serde_json::Value;

use super::Scenario;
use crate::{
    case::{RuntimeCase, shim},
    lab::{
        Lab, bundle,
        command::Output,
        daemon::{Daemon, Version},
        fake::Fake,
        packages::Suite,
        shim::Shim,
    },
};

pub const SCENARIOS: &[Scenario] = &[
    ("a shim is started in the cgroup that the handler names, and one that does not exist is an error", shim_cgroup),
    ("the message of containerd 2.3 to a start is answered in kind", message),
    ("containerd learns the features of what runs the handler's pods", features),
    (
        "what the features promise is kept: a mount is read-only with all that is mounted below it",
        recursively_read_only,
    ),
    ("the shim's path is a runtime's name, and the configuration is found", path),
    ("registered as runc's shim it has runc's options, and the configuration is found", runcs_name),
    ("a program of runc's kind runs containers from their start to their end, named by the handler", wrapper),
];

/// The handler's options as containerd up to 2.2 writes them for `start`.
fn any(options: &oci::Options) -> Any {
    let value = options.write_to_bytes().unwrap();
    Any { type_url: "containerd.runc.v1.Options".into(), value, ..Any::default() }
}

fn start(lab: &Lab, case: &RuntimeCase, input: &[u8], id: &str) -> Result<Shim, Output> {
    let daemon = lab.daemon(case.daemon());
    let spec = bundle::spec(&lab.rootfs(), &format!("/{}/{id}", daemon.namespace()), &["true"]);
    Shim::start_with(&daemon, id, &lab.dir("bundles"), spec.to_string().as_bytes(), input)
}

/// A cgroup of this name in every hierarchy that lets it have processes at once, gone with the value.
struct Cgroups(Vec<PathBuf>);

impl Cgroups {
    fn make(name: &str) -> Self {
        let top = Path::new("/sys/fs/cgroup");
        let tops = if top.join("cgroup.procs").exists() {
            vec![top.to_owned()]
        } else {
            ["memory", "pids"].iter().map(|controller| top.join(controller)).collect()
        };
        let all: Vec<_> = tops.iter().map(|top| top.join(name)).collect();
        all.iter().for_each(|directory| fs::create_dir(directory).unwrap());
        Self(all)
    }

    fn members(&self) -> impl Iterator<Item = Vec<i32>> {
        self.0.iter().map(|directory| {
            let members = fs::read_to_string(directory.join("cgroup.procs")).unwrap();
            members.lines().map(|pid| pid.parse().unwrap()).collect()
        })
    }
}

impl Drop for Cgroups {
    fn drop(&mut self) {
        for directory in &self.0 {
            let _ = fs::remove_dir(directory);
        }
    }
}

fn server(daemon: &Daemon, id: &str) -> i32 {
    daemon.shim(id).unwrap().pid
}

fn shim_cgroup(lab: &Lab, case: &RuntimeCase) {
    let (id, daemon) = (lab.id("grouped"), lab.daemon(case.daemon()));
    // The keeper removes what is left of cgroups by the namespace's prefix.
    let name = format!("{}-{id}", daemon.namespace());
    let cgroups = Cgroups::make(&name);
    let options = any(&oci::Options { shim_cgroup: format!("/{name}"), ..oci::Options::default() });
    let shim = start(lab, case, &options.write_to_bytes().unwrap(), &id).unwrap();
    let pid = server(&daemon, &id);
    for members in cgroups.members() {
        assert_eq!(members, [pid]);
    }
    shim.shut_down();

    let id = lab.id("nowhere");
    let options = any(&oci::Options { shim_cgroup: "/nowhere/at/all".into(), ..oci::Options::default() });
    let Err(output) = start(lab, case, &options.write_to_bytes().unwrap(), &id) else {
        panic!("a cgroup that does not exist was joined");
    };
    output.failure(&["ShimCgroup", "/nowhere/at/all"]);
    assert!(daemon.shim(&id).is_none());
}

fn message(lab: &Lab, case: &RuntimeCase) {
    let (id, daemon) = (lab.id("message"), lab.daemon(case.daemon()));
    let sockets = lab.dir("sockets");
    let mut input = Vec::new();
    let mut output = CodedOutputStream::vec(&mut input);
    output.write_string(1, &id).unwrap();
    output.write_string(2, daemon.namespace()).unwrap();
    output.write_string(4, "v2.3.4").unwrap();
    output.write_string(9, sockets.to_str().unwrap()).unwrap();
    output.flush().unwrap();
    drop(output);
    let shim = start(lab, case, &input, &id).unwrap();
    assert_eq!(shim.socket().parent(), Some(sockets.as_path()));
    // Version 2, the address, and the protocol.
    let address = format!("unix://{}", shim.socket().display());
    let mut answer = vec![0x08, 2, 0x12, u8::try_from(address.len()).unwrap()];
    answer.extend(address.bytes());
    answer.extend(b"\x1a\x05ttrpc");
    assert_eq!(shim.answer(), answer);
    let connect = ConnectRequest { id: id.clone(), ..ConnectRequest::default() };
    let connected: ConnectResponse = shim.call("Connect", &connect).unwrap();
    assert_eq!(connected.shim_pid.cast_signed(), server(&daemon, &id));
    shim.shut_down();
}

fn features(lab: &Lab, case: &RuntimeCase) {
    if case.daemon().version < Version::V2_1 {
        // ctr asks since 2.0.
        return;
    }
    let daemon = configured(lab, case, &[]);
    let inspect = |runtime: &str| {
        let output = daemon.ctr(&["plugins", "inspect-runtime", &format!("--runtime={runtime}")]).success();
        serde_json::from_str::<Value>(&output.text()).unwrap()
    };
    let ours = inspect("io.containerd.beta9.v2");
    assert_eq!(ours["Name"], "io.containerd.beta9.v2");
    if case.is_runc() {
        assert_eq!(ours["Features"], inspect("io.containerd.runc.v2")["Features"]);
        let options = ours["Features"]["mountOptions"].as_array().unwrap();
        assert!(options.contains(&"rro".into()), "{options:?}");
    } else {
        // None of these runscs tells its features, and runc's are not its own.
        assert_eq!(ours["Features"], Value::Null);
    }
}

fn recursively_read_only(lab: &Lab, case: &RuntimeCase) {
    if !case.is_runc() {
        return;
    }
    let daemon = lab.daemon(case.daemon());
    let data = lab.dir("data");
    let below = data.join("below");
    fs::create_dir(&below).unwrap();
    mount(Some("below"), &below, Some("tmpfs"), MsFlags::empty(), None::<&str>).unwrap();
    let write = |option: &str| {
        let mount = format!("--mount=type=bind,src={},dst=/data,options=rbind:{option}", data.display());
        lab.container(&daemon, "rro").run(case, &[&mount], &["touch", "/data/below/file"])
    };
    // Without the `r`, what is mounted below stays as it is.
    write("ro").success();
    write("rro").failure(&["Read-only"]);
    umount2(&below, MntFlags::MNT_DETACH).unwrap();
}

/// A daemon whose environment names the case's configuration, with these programs besides.
fn configured(lab: &Lab, case: &RuntimeCase, programs: &[(&'static str, PathBuf)]) -> Arc<Daemon> {
    let mut options = case.daemon().clone();
    options.config = Some(case.config());
    options.programs.extend(programs.iter().cloned());
    if programs.is_empty() { lab.daemon(&options) } else { lab.own_daemon(&options) }
}

/// Prints the kernel as the container sees it.
const KERNEL: &[&str] = &["cat", "/proc/version"];

fn assert_runtime(case: &RuntimeCase, seen: &Output) {
    assert_eq!(seen.text() == fs::read_to_string("/proc/version").unwrap(), case.is_runc(), "{seen:?}");
}

fn path(lab: &Lab, case: &RuntimeCase) {
    let daemon = configured(lab, case, &[]);
    let runtime = format!("--runtime={}", shim().display());
    let seen = lab.container(&daemon, "path").run(&case.with_flags(&[&runtime]), &[], KERNEL).success();
    assert_runtime(case, &seen);
}

fn runcs_name(lab: &Lab, case: &RuntimeCase) {
    let fake = Fake::install(&lab.dir("fake"), &case.daemon().programs["runc"]);
    let daemon = configured(lab, case, &[("containerd-shim-runc-v2", shim())]);
    let runc = case.with_flags(&["--runtime=io.containerd.runc.v2"]);
    assert_runtime(case, &lab.container(&daemon, "plain").run(&runc, &[], KERNEL).success());

    // A handler's program for runc is none for gVisor.
    let binary = format!("--runc-binary={}", fake.program().display());
    let root = lab.dir("root");
    let options = [binary.as_str(), &format!("--runc-root={}", root.display())];
    assert_runtime(case, &lab.container(&daemon, "binary").run(&runc, &options, KERNEL).success());
    let calls = fake.calls();
    assert_eq!(calls.is_empty(), !case.is_runc(), "{calls:?}");
    let state = root.join(daemon.namespace());
    for call in &calls {
        assert!(call.iter().any(|argument| Path::new(argument) == state), "{call:?}");
    }

    fake.behave("any fail enough was seen");
    let systemd = [binary.as_str(), "--runc-systemd-cgroup", "--cgroup=machine.slice:lab:x"];
    if case.is_runc() {
        lab.container(&daemon, "systemd").run(&runc, &systemd, &["true"]).failure(&["enough was seen"]);
        let last = fake.calls().split_off(calls.len());
        assert!(last.iter().all(|call| call.contains(&"--systemd-cgroup".into())), "{last:?}");
    }
    let runsc = lab.container(&daemon, "runsc").run(&runc, &["--runc-binary=/usr/bin/runsc"], &["true"]);
    runsc.failure(&["BinaryName", "runsc is not a runc"]);
}

/// What NVIDIA's container runtime is: a program that puts a hook into the spec and hands over to runc.
const WRAPPER: &str = r#"#!/bin/sh
bundle=
for argument in "$@"; do
    [ "$previous" != --bundle ] || bundle=$argument
    previous=$argument
done
[ -z "$bundle" ] || sed -i 's/"env":\[/"env":["WRAPPED=yes",/' "$bundle/config.json"
exec RUNC "$@"
"#;

/// crun, which refuses hosts that have a second, unified tree of cgroups, without a sight of it.
const CRUN: &str = r#"#!/bin/sh
exec unshare --mount sh -c 'umount /sys/fs/cgroup/unified 2>/dev/null; exec CRUN "$@"' crun "$@"
"#;

fn wrapper(lab: &Lab, case: &RuntimeCase) {
    if !case.is_runc() {
        return;
    }
    let runc = case.daemon().programs["runc"].display().to_string();
    let wrapper = lab.dir("wrapper").join("nvidia-container-runtime");
    fs::write(&wrapper, WRAPPER.replace("RUNC", &runc)).unwrap();
    fs::set_permissions(&wrapper, fs::Permissions::from_mode(0o755)).unwrap();
    let daemon = configured(lab, case, &[("containerd-shim-runc-v2", shim())]);
    let case = case.with_flags(&["--runtime=io.containerd.runc.v2", &format!("--runc-binary={}", wrapper.display())]);
    let seen = lab.container(&daemon, "wrapped").run(&case, &[], &["sh", "-c", "echo $WRAPPED"]).success();
    assert_eq!(seen.text(), "yes\n");
    life(lab, &case, &daemon);
    for crun in [Suite::Bookworm, Suite::Trixie, Suite::Sid].iter().filter_map(|suite| suite.find("crun")) {
        let program = lab.dir("crun").join("crun");
        fs::write(&program, CRUN.replace("CRUN", crun.to_str().unwrap())).unwrap();
        fs::set_permissions(&program, fs::Permissions::from_mode(0o755)).unwrap();
        let case =
            case.with_flags(&["--runtime=io.containerd.runc.v2", &format!("--runc-binary={}", program.display())]);
        let tried = lab.container(&daemon, "crun").run(&case, &[], &["true"]);
        if tried.errors().contains("unknown version specified") {
            // Debian 12's knows no specification after 1.0, which containerd 1.7 and later write.
            assert_ne!(case.daemon().version, Version::V1_6, "{tried:?}");
            continue;
        }
        tried.success();
        life(lab, &case, &daemon);
    }
}

/// A container's life with whatever the case's flags name: exec, kill, exit code, delete, OOM, and what is missing.
fn life(lab: &Lab, case: &RuntimeCase, daemon: &Arc<Daemon>) {
    let container = lab.container(daemon, "life");
    container.detach(case, &[], &["sh", "-c", "trap 'exit 11' TERM; while :; do sleep 0.05; done"]);
    assert_eq!(container.exec("one", &[], &["sh", "-c", "echo in; exit 3"]).exit(3).text(), "in\n");
    container.exec("none", &[], &["/no/such/program"]).failure(&["/no/such/program"]);
    container.task("pause", &[]).success();
    container.until("PAUSED");
    container.task("resume", &[]).success();
    container.kill("SIGTERM").success();
    assert_eq!(container.exit_status(), 11);
    container.until("STOPPED");
    container.kill("SIGKILL").failure(&["process already finished"]);
    container.remove();
    assert!(!daemon.bundle(container.id()).exists());

    lab.container(daemon, "missing").run(case, &[], &["/no/such/program"]).failure(&["/no/such/program"]);

    let greedy = lab.container(daemon, "greedy");
    greedy.run(case, &["--memory-limit=25165824"], &["sh", "-c", "exec tail /dev/zero"]).exit(137);
    greedy.wait_for("oom", |_| true);
}
