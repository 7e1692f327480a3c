//! Signals to a container's first process.

use super::Scenario;
use crate::{
    case::RuntimeCase,
    lab::{Lab, PATIENCE},
};

pub const SCENARIOS: &[Scenario] = &[
    ("SIGTERM reaches a process that handles it, and its own code is the container's", handled),
    ("a signal may be given by its number", by_number),
    ("a container that is killed reports 137", killed),
    ("a container that a signal ends reports 128 and the signal", unhandled),
    ("a signal to a container that has ended is refused", too_late),
];

/// Says when it listens; ends with 7 on TERM and with 9 on USR1.
const LISTENER: &[&str] = &[
    "sh",
    "-c",
    "trap 'echo TERM; exit 7' TERM; trap 'echo USR1; exit 9' USR1; echo ready; while :; do sleep 0.05; done",
];

fn signalled(lab: &Lab, case: &RuntimeCase, signal: &str, says: &str, code: i32) {
    let daemon = lab.daemon(case.daemon());
    let container = lab.container(&daemon, "signal");
    let running = container.start(case, &[], LISTENER);
    running.until_it_says("ready");
    container.kill(signal).success();
    let output = running.finish(PATIENCE).exit(code);
    assert_eq!(output.text(), format!("ready\n{says}"));
}

fn handled(lab: &Lab, case: &RuntimeCase) {
    signalled(lab, case, "SIGTERM", "TERM\n", 7);
}

fn by_number(lab: &Lab, case: &RuntimeCase) {
    signalled(lab, case, "10", "USR1\n", 9);
}

fn killed(lab: &Lab, case: &RuntimeCase) {
    signalled(lab, case, "SIGKILL", "", 137);
}

fn unhandled(lab: &Lab, case: &RuntimeCase) {
    let daemon = lab.daemon(case.daemon());
    let container = lab.container(&daemon, "unhandled");
    // The kernel spares the first process of a pid namespace what it does not handle, so it is a child that ends so.
    let running = container.start(case, &[], &["sh", "-c", "sh -c 'kill -USR2 $$'; exit $?"]);
    running.finish(PATIENCE).exit(128 + 12);
}

fn too_late(lab: &Lab, case: &RuntimeCase) {
    let daemon = lab.daemon(case.daemon());
    let container = lab.container(&daemon, "late");
    container.detach(case, &[], &["true"]);
    container.until("STOPPED");
    container.kill("SIGTERM").failure(&[]);
    container.remove();
}
