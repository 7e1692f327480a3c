//! Containers that reach their limits.

use super::Scenario;
use crate::{case::RuntimeCase, lab::Lab};

pub const SCENARIOS: &[Scenario] =
    &[("a container that runs out of memory is killed: OOM first, then its exit with 137", out_of_memory)];

fn out_of_memory(lab: &Lab, case: &RuntimeCase) {
    let daemon = lab.daemon(case.daemon());
    let container = lab.container(&daemon, "oom");
    // A sandbox needs some of the limit for itself.
    let limit = format!("--memory-limit={}", if case.is_runc() { 24 << 20 } else { 200 << 20 });
    // One read into all of it: a page at a time takes gVisor half a minute.
    container.detach(case, &[&limit], &["dd", "if=/dev/zero", "of=/dev/null", "bs=1G", "count=1"]);
    assert_eq!(container.exit_status(), 137);
    container.wait_for("oom", |_| true);
    let topics = container.topics();
    let at = |topic: &str| topics.iter().position(|other| other == topic);
    // Go's shim sends the two from different places, in any order.
    if case.ours {
        assert!(at("oom") < at("exit"), "{topics:?}");
    }
    container.remove();
}
