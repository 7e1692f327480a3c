//! Containers and execs on a terminal.

use super::Scenario;
use crate::{case::RuntimeCase, lab::Lab};

pub const SCENARIOS: &[Scenario] = &[
    ("a container on a terminal has one, with the client's size", run),
    ("an exec on a terminal has one, and its own code", exec),
    ("a container's terminal follows the client's when it is resized", resize),
];

/// Sets the size of the client's terminal.
const SIZE: &str = "stty rows 33 cols 101";

/// Tells whether all three streams are a terminal, and its size. ctr sets that after the start, so the process waits for it.
const IS_TERMINAL: &str = "for i in $(seq 50); do test \"$(stty size)\" = '33 101' && break; sleep 0.1; done
    test -t 0 && test -t 1 && test -t 2 && echo terminal $(stty size); exit 5";

fn run(lab: &Lab, case: &RuntimeCase) {
    let daemon = lab.daemon(case.daemon());
    let output = lab.container(&daemon, "tty").run_on_terminal(case, SIZE, &["sh", "-c", IS_TERMINAL]).exit(5);
    assert!(output.text().contains("terminal 33 101"), "{output:?}");
}

fn exec(lab: &Lab, case: &RuntimeCase) {
    let daemon = lab.daemon(case.daemon());
    let container = lab.container(&daemon, "exectty");
    container.detach(case, &[], &["sleep", "1000"]);
    let output = container.exec_on_terminal("tty", SIZE, &["sh", "-c", IS_TERMINAL]).exit(5);
    assert!(output.text().contains("terminal 33 101"), "{output:?}");
}

fn resize(lab: &Lab, case: &RuntimeCase) {
    let daemon = lab.daemon(case.daemon());
    let later = format!("{SIZE}; exec 3<&0; (sleep 2; stty rows 44 cols 122 <&3) &");
    let wait = "for i in $(seq 100); do test \"$(stty size)\" = '44 122' && exit 0; sleep 0.1; done; stty size; exit 1";
    lab.container(&daemon, "resize").run_on_terminal(case, &later, &["sh", "-c", wait]).success();
}
