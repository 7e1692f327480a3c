//! Runtimes that never answer. Go's shim waits for them for ever; ours has deadlines and answers everybody else meanwhile.

use std::time::Duration;

use super::{Scenario, faults::with_fake};
use crate::{
    case::RuntimeCase,
    lab::{Lab, PATIENCE},
};

pub const SCENARIOS: &[Scenario] = &[
    ("while a runtime hangs in start, the container's state is answered at once", start),
    ("while a runtime hangs in exec, the container is answered for, and can be killed", exec),
];

/// What an answer from memory may take, a client's start included.
const AT_ONCE: Duration = Duration::from_secs(2);

fn start(lab: &Lab, case: &RuntimeCase) {
    let (daemon, fake) = with_fake(lab, case);
    fake.behave("start hang");
    let container = lab.container(&daemon, "hang");
    let running = container.start(case, &[], &["true"]);
    container.until("CREATED");
    let list = daemon.ctr(&["tasks", "list"]).success();
    assert!(list.elapsed < AT_ONCE, "{list:?}");
    fake.behave("");
    // The hanging start ends by its own deadline or by the client's going away; either way the container can be deleted.
    drop(running);
    container.task("delete", &["--force"]);
    assert_eq!(container.state(), None);
}

fn exec(lab: &Lab, case: &RuntimeCase) {
    let (daemon, fake) = with_fake(lab, case);
    let container = lab.container(&daemon, "hangexec");
    container.detach(case, &[], &["sleep", "1000"]);
    fake.behave("exec hang");
    let stuck = container.exec_start("stuck", &[], &["true"]);
    container.wait_for("exec-added", |_| true);
    let list = daemon.ctr(&["tasks", "list"]).success();
    assert!(list.elapsed < AT_ONCE, "{list:?}");
    container.kill("SIGKILL").success();
    assert_eq!(container.exit_status(), 137);
    drop(stuck);
    fake.behave("");
    container.until("STOPPED");
    let delete = container.task("delete", &[]);
    assert!(delete.elapsed < PATIENCE, "{delete:?}");
    assert_eq!(container.state(), None);
}
