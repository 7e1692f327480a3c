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

fn run(lab: &Lab, case: &RuntimeCase) {
    let daemon = lab.daemon(case.daemon());
    // ctr sets the size after the start, so the container waits for it.
    let wait = "tty; for i in $(seq 50); do test \"$(stty size)\" = '33 101' && break; sleep 0.1; done; stty size; exit 5";
    let output = lab.container(&daemon, "tty").run_on_terminal(case, SIZE, &["sh", "-c", wait]).exit(5);
    assert!(output.text().contains("/dev/pts/0\r\n33 101\r\n") || output.text().contains("/dev/console\r\n33 101\r\n"), "{output:?}");
}

fn exec(lab: &Lab, case: &RuntimeCase) {
    let daemon = lab.daemon(case.daemon());
    let container = lab.container(&daemon, "exectty");
    container.detach(case, &[], &["sleep", "1000"]);
    let output = container.exec_on_terminal("tty", SIZE, &["sh", "-c", "test -t 0 && test -t 1 && test -t 2 && echo terminal; exit 6"]).exit(6);
    assert_eq!(output.text(), "terminal\r\n");
}

fn resize(lab: &Lab, case: &RuntimeCase) {
    let daemon = lab.daemon(case.daemon());
    let later = format!("{SIZE}; exec 3<&0; (sleep 2; stty rows 44 cols 122 <&3) &");
    let wait = "for i in $(seq 100); do test \"$(stty size)\" = '44 122' && exit 0; sleep 0.1; done; stty size; exit 1";
    lab.container(&daemon, "resize").run_on_terminal(case, &later, &["sh", "-c", wait]).success();
}
