//! Restarts and deaths: of the daemon, of the shim. Each trial has a daemon of its own.

use std::fs;

use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};

use super::Scenario;
use crate::{
    case::RuntimeCase,
    lab::{Lab, daemon::Version, eventually, leaks, process::Process},
};

pub const SCENARIOS: &[Scenario] = &[
    ("a container outlives a restart of containerd, with its state, its execs and its exit code", restart),
    ("an exit while containerd is away is known when it is back", exit_while_away),
    ("a container whose shim is killed is cleaned up to the last process and mount", shim_killed),
    ("a shim that is killed while containerd is away is cleaned up when it is back", shim_killed_while_away),
];

/// Where an earlier containerd was, a later one comes.
pub const UPGRADE: &[Scenario] = &[("containers outlive the upgrades of containerd from 1.6 to 2.1", upgrade)];

fn restart(lab: &Lab, case: &RuntimeCase) {
    let daemon = lab.own_daemon(case.daemon());
    let container = lab.container(&daemon, "restart");
    container.detach(case, &[], &["sh", "-c", "trap 'exit 11' TERM; while :; do sleep 0.05; done"]);
    let pid = container.pid();
    container.exec("before", &[], &["true"]).success();
    for signal in [Signal::SIGTERM, Signal::SIGKILL] {
        daemon.end(signal);
        daemon.resume();
        assert_eq!((container.state().as_deref(), container.pid()), (Some("RUNNING"), pid));
        let output =
            container.exec(&format!("after{}", signal as i32), &[], &["sh", "-c", "echo here; exit 3"]).exit(3);
        assert_eq!(output.text(), "here\n");
    }
    container.kill("SIGTERM").success();
    assert_eq!(container.exit_status(), 11);
    container.remove();
}

fn exit_while_away(lab: &Lab, case: &RuntimeCase) {
    let daemon = lab.own_daemon(case.daemon());
    let container = lab.container(&daemon, "away");
    container.detach(case, &[], &["sh", "-c", "sleep 2; exit 17"]);
    let pid = container.pid();
    daemon.end(Signal::SIGKILL);
    eventually("the end of the container", || {
        (!Process::find(pid).is_some_and(|process| process.is_alive())).then_some(())
    });
    daemon.resume();
    // From 1.7 on containerd takes a shim for leaked that lists no pids, and Go's lists none of a container that has ended.
    if !case.ours && case.daemon().version != Version::V1_6 {
        return;
    }
    container.until("STOPPED");
    eventually("the exit event", || (daemon.forwarded("/tasks/exit") > 0).then_some(()));
    // The client prints the code of a task that failed.
    let delete = container.task("delete", &[]);
    assert!(delete.errors().contains("17"), "{delete:?}");
    daemon.ctr(&["containers", "delete", container.id()]).success();
    assert_eq!(
        ["/tasks/create", "/tasks/start", "/tasks/exit", "/tasks/delete"].map(|topic| daemon.forwarded(topic)),
        [1; 4]
    );
}

/// Kills the shim of a running container and checks that nothing of the container remains.
fn killed(lab: &Lab, case: &RuntimeCase, away: bool) {
    let daemon = lab.own_daemon(case.daemon());
    let container = lab.container(&daemon, "orphan");
    container.detach(case, &[], &["sleep", "1000"]);
    let (pid, shim, bundle) = (container.pid(), container.shim(), daemon.bundle(container.id()));
    let sockets = shim.socket_files();
    assert!(!sockets.is_empty());
    if away {
        daemon.end(Signal::SIGKILL);
    }
    kill(Pid::from_raw(shim.pid), Signal::SIGKILL).unwrap();
    if away {
        daemon.resume();
    }
    eventually("the end of the container's process", || {
        (!Process::find(pid).is_some_and(|process| process.is_alive())).then_some(())
    });
    eventually("the end of the task", || container.state().is_none_or(|state| state == "STOPPED").then_some(()));
    container.task("delete", &[]);
    daemon.ctr(&["containers", "delete", container.id()]).success();
    eventually("the end of the bundle", || (!bundle.exists()).then_some(()));
    assert!(leaks::mounts_below(&bundle).is_empty());
    let sockets: Vec<_> = sockets.iter().filter(|socket| socket.exists()).collect();
    if case.ours {
        assert!(sockets.is_empty(), "sockets are still there: {sockets:?}");
    } else {
        // Go's `delete` leaves them.
        sockets.into_iter().for_each(|socket| fs::remove_file(socket).unwrap());
    }
}

fn shim_killed(lab: &Lab, case: &RuntimeCase) {
    killed(lab, case, false);
}

fn shim_killed_while_away(lab: &Lab, case: &RuntimeCase) {
    killed(lab, case, true);
}

fn upgrade(lab: &Lab, case: &RuntimeCase) {
    let daemon = lab.own_daemon(case.daemon());
    let stays = lab.container(&daemon, "stays");
    stays.detach(case, &[], &["sh", "-c", "trap 'exit 11' TERM; while :; do sleep 0.05; done"]);
    let pid = stays.pid();
    for version in Version::ALL.into_iter().filter(|version| *version > case.daemon().version && version.is_here()) {
        let ends = lab.container(&daemon, "ends");
        ends.detach(case, &[], &["sleep", "1000"]);
        let dying = ends.pid();
        let exits = daemon.forwarded("/tasks/exit");
        daemon.end(Signal::SIGTERM);
        kill(Pid::from_raw(dying), Signal::SIGKILL).unwrap();
        eventually("the end of the container", || {
            (!Process::find(dying).is_some_and(|process| process.is_alive())).then_some(())
        });
        daemon.resume_as(version);

        let name = version.name();
        assert!(daemon.ctr(&["version"]).success().text().matches(name).count() >= 2, "not {name}");
        assert_eq!((stays.state().as_deref(), stays.pid()), (Some("RUNNING"), pid), "on {name}");
        let said = stays.exec(&format!("on{name}"), &[], &["sh", "-c", "echo here; exit 3"]).exit(3);
        assert_eq!(said.text(), "here\n");
        // Go's shim lists no pids of a container that has ended, and a later containerd takes it for leaked.
        if case.ours {
            ends.until("STOPPED");
            eventually("the exit event", || (daemon.forwarded("/tasks/exit") > exits).then_some(()));
            let delete = ends.task("delete", &[]);
            assert!(delete.errors().contains("137"), "{delete:?}");
            daemon.ctr(&["containers", "delete", ends.id()]).success();
            assert!(!daemon.bundle(ends.id()).exists());
        }
        assert_eq!(lab.container(&daemon, "new").run(case, &[], &["echo", "new"]).success().text(), "new\n");
    }
    stays.kill("SIGTERM").success();
    assert_eq!(stays.exit_status(), 11);
    stays.remove();
    assert!(!daemon.bundle(stays.id()).exists());
}
