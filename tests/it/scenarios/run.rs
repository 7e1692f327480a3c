//! Containers that run to their end in the foreground.

use std::{fs, thread};

use super::Scenario;
use crate::{
    case::RuntimeCase,
    lab::{Lab, bundle, eventually},
};

pub const SCENARIOS: &[Scenario] = &[
    ("a container sees the kernel of its runtime", kernel),
    ("a container's output is what its process wrote, apart by stream", output),
    ("a container's exit code is its process's exit code", exit_code),
    ("a container that exits at once is reported with the right code, 20 times of 20", exits_at_once),
    ("20 containers at once each give their own answer", burst),
    ("an entrypoint that does not exist is an error that names it, and leaves nothing", bad_entrypoint),
    ("the longest id that containerd allows works", longest_id),
    ("a hostile id reaches nothing", hostile_ids),
    ("a spec of the client's own is run as it is", own_spec),
];

fn output(lab: &Lab, case: &RuntimeCase) {
    let daemon = lab.daemon(case.daemon());
    let output = lab.container(&daemon, "output").run(case, &[], &["sh", "-c", "echo out; echo err >&2"]).success();
    assert_eq!((output.text().as_str(), output.errors().as_str()), ("out\n", "err\n"));
}

fn kernel(lab: &Lab, case: &RuntimeCase) {
    let daemon = lab.daemon(case.daemon());
    let kernel = lab.container(&daemon, "kernel").run(case, &[], &["cat", "/proc/version"]).success();
    assert_eq!(kernel.text() == fs::read_to_string("/proc/version").unwrap(), case.is_runc());
}

fn exit_code(lab: &Lab, case: &RuntimeCase) {
    let daemon = lab.daemon(case.daemon());
    for code in [0, 1, 42, 255] {
        lab.container(&daemon, "code").run(case, &[], &["sh", "-c", &format!("exit {code}")]).exit(code);
    }
}

fn exits_at_once(lab: &Lab, case: &RuntimeCase) {
    let daemon = lab.daemon(case.daemon());
    for code in 0..20 {
        lab.container(&daemon, "once").run(case, &[], &["sh", "-c", &format!("exit {code}")]).exit(code);
    }
}

fn burst(lab: &Lab, case: &RuntimeCase) {
    let daemon = lab.daemon(case.daemon());
    let containers: Vec<_> = (0..20).map(|_| lab.container(&daemon, "burst")).collect();
    thread::scope(|scope| {
        for container in &containers {
            scope.spawn(|| {
                let output = container.run(case, &[], &["echo", container.id()]).success();
                assert_eq!(output.text(), format!("{}\n", container.id()));
            });
        }
    });
}

fn bad_entrypoint(lab: &Lab, case: &RuntimeCase) {
    let daemon = lab.daemon(case.daemon());
    let container = lab.container(&daemon, "entrypoint");
    container.run(case, &[], &["/no/such/program"]).failure(&["/no/such/program"]);
    // runsc finds out at start; a container that was created stays until its user deletes it.
    if !case.is_runc() {
        container.task("delete", &["--force"]);
    }
    eventually("the end of the shim", || daemon.shim(container.id()).is_none().then_some(()));
    assert!(!daemon.bundle(container.id()).exists(), "its bundle is still there");
}

fn longest_id(lab: &Lab, case: &RuntimeCase) {
    let daemon = lab.daemon(case.daemon());
    // containerd's identifiers.maxLength
    let container = lab.container(&daemon, &"x".repeat(76 - lab.id("").len()));
    assert_eq!(container.id().len(), 76);
    let output = container.run(case, &[], &["echo", "here"]).success();
    assert_eq!(output.text(), "here\n");
}

fn hostile_ids(lab: &Lab, case: &RuntimeCase) {
    // ctr makes a snapshot of the name before containerd refuses it, and other trials use the same names.
    let daemon = lab.own_daemon(case.daemon());
    let flags: Vec<_> = case.flags().collect();
    for id in ["../escape", "a/b", "..", ".", "a b", "a\nb", "$(reboot)", &"x".repeat(77)] {
        let line = [&["run", "--rm"], &flags[..], &[crate::lab::image::IMAGE, id, "true"]].concat();
        daemon.ctr(&line).failure(&["invalid argument"]);
    }
}

fn own_spec(lab: &Lab, case: &RuntimeCase) {
    let daemon = lab.daemon(case.daemon());
    let container = lab.container(&daemon, "spec");
    let (rootfs, dir) = (lab.rootfs(), lab.dir("spec"));
    let cgroup = format!("/{}/{}", daemon.namespace(), container.id());
    let mut spec = bundle::spec(
        &rootfs,
        &cgroup,
        &["sh", "-c", "test \"$COLOUR\" = green && test $(hostname) = elsewhere && exit 23"],
    );
    spec["process"]["env"] = serde_json::json!(["PATH=/bin", "COLOUR=green"]);
    spec["hostname"] = "elsewhere".into();
    spec["annotations"]["example.org/note"] = "kept".into();
    container.detach_spec(case, &spec, &dir.join("spec.json"));
    assert_eq!(container.exit_status(), 23);
    container.remove();
}
