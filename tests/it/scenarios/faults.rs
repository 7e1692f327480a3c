//! Runtimes that misbehave, played by a fake: the caller gets an error, in time, and nothing is left.

use std::sync::Arc;

use super::Scenario;
use crate::{
    case::RuntimeCase,
    lab::{Lab, daemon::Daemon, fake::Fake},
};

pub const SCENARIOS: &[Scenario] = &[
    ("a runtime is called once to create and once to start, always with the same root", calls),
    ("a runtime is called in its container's bundle, where a wrapper looks for config.json", directory),
    ("a runtime that fails is an error with its own words", fails),
    ("a runtime that dies is an error, and leaves nothing", dies),
    ("a runtime that is slow is waited for", slow),
];

/// What Go's shim learned later than bookworm's.
pub const OURS: &[Scenario] =
    &[("a container whose init is killed while it is being created has ended, and says so", killed_in_create)];

/// A daemon whose shims find a fake where they look for the runtime.
pub fn with_fake(lab: &Lab, case: &RuntimeCase) -> (Arc<Daemon>, Fake) {
    let fake = Fake::install(&lab.dir("fake"), &case.runtime_program());
    let mut options = case.daemon().clone();
    options.programs.insert(case.runtime_name(), fake.program());
    (lab.own_daemon(&options), fake)
}

fn calls(lab: &Lab, case: &RuntimeCase) {
    let (daemon, fake) = with_fake(lab, case);
    lab.container(&daemon, "calls").run(case, &[], &["true"]).success();
    let calls = fake.calls();
    let count = |verb: &str| calls.iter().filter(|call| call.iter().any(|argument| argument == verb)).count();
    assert_eq!((count("create"), count("start")), (1, 1), "{calls:?}");
    assert!(count("delete") > 0, "{calls:?}");
    // `--root DIR` and `--root=DIR` are both usual.
    let root = |call: &Vec<String>| {
        let at = call.iter().position(|argument| argument.starts_with("--root"))?;
        call[at].strip_prefix("--root=").or(call.get(at + 1).map(String::as_str)).map(String::from)
    };
    let mut roots: Vec<_> = calls.iter().filter_map(root).collect();
    roots.dedup();
    assert_eq!(roots.len(), 1, "{calls:?}");
}

fn directory(lab: &Lab, case: &RuntimeCase) {
    let (daemon, fake) = with_fake(lab, case);
    let container = lab.container(&daemon, "directory");
    container.run(case, &[], &["true"]).success();
    let (calls, directories) = (fake.calls(), fake.directories());
    // Whoever asks a runtime for its version or features may do that anywhere.
    for verb in ["create", "start", "delete"] {
        let at = calls.iter().position(|call| call.iter().any(|argument| argument == verb)).unwrap();
        assert_eq!(directories[at], daemon.bundle(container.id()), "{verb}");
    }
}

fn fails(lab: &Lab, case: &RuntimeCase) {
    let (daemon, fake) = with_fake(lab, case);
    fake.behave("create fail the moon is in the wrong quarter");
    lab.container(&daemon, "fails").run(case, &[], &["true"]).failure(&["the moon is in the wrong quarter"]);
    fake.behave("");
    lab.container(&daemon, "works").run(case, &[], &["true"]).success();
}

fn dies(lab: &Lab, case: &RuntimeCase) {
    let (daemon, fake) = with_fake(lab, case);
    for behaviour in ["create crash", "start crash", "create garbage", "create crash-after"] {
        fake.behave(behaviour);
        let container = lab.container(&daemon, "dies");
        container.run(case, &[], &["true"]).failure(&[]);
        // A container whose start failed is still one that was created: it goes when its user says so.
        container.task("delete", &["--force"]);
        assert!(!daemon.bundle(container.id()).exists(), "{behaviour}: the bundle is still there");
    }
}

fn killed_in_create(lab: &Lab, case: &RuntimeCase) {
    let (daemon, fake) = with_fake(lab, case);
    fake.behave("create kill-after");
    let container = lab.container(&daemon, "killed");
    let line = container.run_line(case, &["--detach", "--null-io"], &["sleep", "1000"]);
    // It is created, and too late to be started.
    daemon.ctr(&line).failure(&[]);
    assert_eq!(container.exit_status(), 137);
    container.until("STOPPED");
    fake.behave("");
    container.remove();
    assert_eq!(container.topics(), ["create", "exit", "delete"]);
}

fn slow(lab: &Lab, case: &RuntimeCase) {
    let (daemon, fake) = with_fake(lab, case);
    fake.behave("create slow 3");
    lab.container(&daemon, "slow").run(case, &[], &["sh", "-c", "exit 8"]).exit(8);
}
