//! Restarts and deaths under pods: of the daemon, of their shim. Each trial has a daemon of its own.

use std::fs;

use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};

use super::Scenario;
use crate::{
    case::RuntimeCase,
    lab::{
        Lab,
        cri::{Cri, api::ContainerState, pod::Pod},
        eventually,
    },
};

pub const SCENARIOS: &[Scenario] = &[("pods outlive a restart of containerd, and what ends later is known", restart)];

/// With containerd 2, Go's shim stays when a pod has lost its sandbox; when it is killed it leaves sockets, and the processes of
/// the pod's containers as well (containerd #9727).
pub const OURS: &[Scenario] = &[
    ("a pod whose sandbox is killed is not ready, and is cleaned up", sandbox_killed),
    ("a pod whose shim is killed is not ready, and is cleaned up to the last process", shim_killed),
];

fn restart(lab: &Lab, case: &RuntimeCase) {
    let daemon = lab.own_daemon(&case.cri_daemon());
    let cri = Cri::of(&daemon);
    let pod = Pod::run(lab, &cri, case.handler, |_| {});
    let running = pod.start("running", &["sh", "-c", "while :; do sleep 0.05; done"]);
    let ending = pod.start("ending", &["sh", "-c", "until [ -e /dev/shm/end ]; do sleep 0.05; done; exit 17"]);
    let shim = pod.shim().pid;
    daemon.end(Signal::SIGKILL);
    daemon.resume();
    let cri = Cri::of(&daemon);
    assert!(cri.pods().iter().any(|other| other.id == pod.id()));
    assert!(pod.is_ready());
    assert_eq!(pod.shim().pid, shim);
    assert_eq!((running.state(), ending.state()), (ContainerState::Running, ContainerState::Running));
    assert_eq!(running.output(&["echo", "here"]), "here\n");
    running.shell("touch /dev/shm/end");
    assert_eq!(ending.ended().exit_code, 17);

    // Logging goes on as well.
    let later = pod.start("later", &["sh", "-c", "echo later; exit 2"]);
    assert_eq!(later.ended().exit_code, 2);
    assert_eq!(later.logged("stdout"), "later\n");
    running.stop(0).unwrap();
    assert_eq!(running.ended().exit_code, 137);
}

fn sandbox_killed(lab: &Lab, case: &RuntimeCase) {
    let cri = super::cri(lab, case);
    let pod = Pod::run(lab, &cri, case.handler, |_| {});
    let container = pod.start("main", &["sleep", "1000"]);
    let pid = fs::read_to_string(cri.daemon().bundle(pod.id()).join("init.pid")).unwrap();
    kill(Pid::from_raw(pid.trim().parse().unwrap()), Signal::SIGKILL).unwrap();
    eventually("a pod that is not ready", || (!pod.is_ready()).then_some(()));
    if case.is_runc() {
        assert_eq!(container.state(), ContainerState::Running);
    } else {
        assert_eq!(container.ended().exit_code, 137);
    }
    pod.stop().unwrap();
    assert_eq!(container.ended().exit_code, 137);
    container.remove().unwrap();
    pod.remove().unwrap();
    eventually("the end of the shim", || cri.daemon().shim(pod.id()).is_none().then_some(()));
}

fn shim_killed(lab: &Lab, case: &RuntimeCase) {
    let daemon = lab.own_daemon(&case.cri_daemon());
    let cri = Cri::of(&daemon);
    let pod = Pod::run(lab, &cri, case.handler, |_| {});
    let container = pod.start("main", &["sleep", "1000"]);
    let pids = pod.cgroup().pids();
    assert!(!pids.is_empty());
    kill(Pid::from_raw(pod.shim().pid), Signal::SIGKILL).unwrap();
    assert_ne!(container.ended().exit_code, 0);
    eventually("a pod that is not ready", || (!pod.is_ready()).then_some(()));
    eventually("the end of all processes", || pod.cgroup().pids().is_empty().then_some(()));
    pod.stop().unwrap();
    pod.remove().unwrap();
    assert!(cri.pods().is_empty());
}
