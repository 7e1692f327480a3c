//! Further processes in a running container.

use std::thread;

use super::Scenario;
use crate::{case::RuntimeCase, lab::Lab};

pub const SCENARIOS: &[Scenario] = &[
    ("an exec has its own exit code and output, apart by stream", own_code),
    ("20 execs at once each give their own answer", burst),
    ("an exec of a program that does not exist fails with its name, and the container goes on", unknown_program),
    ("an exec that is killed reports 137, and the container goes on", killed),
    ("an exec in a container that has ended is refused", too_late),
    ("two execs of one id are not possible at once", same_id),
    ("a shim holds no more descriptors after 20 execs than before", no_growth),
];

const IDLE: &[&str] = &["sleep", "1000"];

fn own_code(lab: &Lab, case: &RuntimeCase) {
    let daemon = lab.daemon(case.daemon());
    let container = lab.container(&daemon, "exec");
    container.detach(case, &[], IDLE);
    for code in [0, 1, 42, 255] {
        let output = container
            .exec(
                &format!("code{code}"),
                &[],
                &["sh", "-c", &format!("echo out{code}; echo err{code} >&2; exit {code}")],
            )
            .exit(code);
        assert_eq!((output.text(), output.errors()), (format!("out{code}\n"), format!("err{code}\n")));
    }
}

fn burst(lab: &Lab, case: &RuntimeCase) {
    let daemon = lab.daemon(case.daemon());
    let container = lab.container(&daemon, "execburst");
    container.detach(case, &[], IDLE);
    thread::scope(|scope| {
        for number in 0..20 {
            let container = &container;
            scope.spawn(move || {
                let output = container
                    .exec(&format!("e{number}"), &[], &["sh", "-c", &format!("echo {number}; exit {number}")])
                    .exit(number);
                assert_eq!(output.text(), format!("{number}\n"));
            });
        }
    });
}

fn unknown_program(lab: &Lab, case: &RuntimeCase) {
    let daemon = lab.daemon(case.daemon());
    let container = lab.container(&daemon, "execunknown");
    container.detach(case, &[], IDLE);
    container.exec("bad", &[], &["/no/such/program"]).failure(&["/no/such/program"]);
    container.exec("good", &[], &["true"]).success();
}

fn killed(lab: &Lab, case: &RuntimeCase) {
    let daemon = lab.daemon(case.daemon());
    let container = lab.container(&daemon, "execkilled");
    container.detach(case, &[], IDLE);
    let exec = container.exec_start("victim", &[], &["sh", "-c", "echo ready; sleep 1000"]);
    exec.until_it_says("ready");
    container.task("kill", &["--exec-id", "victim", "--signal", "KILL"]).success();
    exec.finish(crate::lab::PATIENCE).exit(137);
    assert_eq!(container.state().as_deref(), Some("RUNNING"));
    container.exec("after", &[], &["true"]).success();
}

fn too_late(lab: &Lab, case: &RuntimeCase) {
    let daemon = lab.daemon(case.daemon());
    let container = lab.container(&daemon, "execlate");
    container.detach(case, &[], &["true"]);
    container.until("STOPPED");
    container.exec("late", &[], &["true"]).failure(&[]);
    container.remove();
}

fn same_id(lab: &Lab, case: &RuntimeCase) {
    let daemon = lab.daemon(case.daemon());
    let container = lab.container(&daemon, "execsame");
    container.detach(case, &[], IDLE);
    let first = container.exec_start("one", &[], &["sh", "-c", "echo ready; sleep 1000"]);
    first.until_it_says("ready");
    container.exec("one", &[], &["true"]).failure(&["already exists"]);
    assert_eq!(container.state().as_deref(), Some("RUNNING"));
}

fn no_growth(lab: &Lab, case: &RuntimeCase) {
    let daemon = lab.daemon(case.daemon());
    let container = lab.container(&daemon, "execgrowth");
    container.detach(case, &[], IDLE);
    let exec = |number: i32| container.exec(&format!("g{number}"), &[], &["true"]).success();
    // The first ones fill pools and caches.
    (0..5).for_each(|number| drop(exec(number)));
    let before = container.shim();
    let (descriptors, resident) = (before.descriptors(), before.resident());
    (5..25).for_each(|number| drop(exec(number)));
    let after = container.shim();
    assert!(after.descriptors() <= descriptors + 2, "descriptors: {descriptors}, then {}", after.descriptors());
    assert!(after.resident() <= resident * 3 / 2, "resident KiB: {resident}, then {}", after.resident());
}
