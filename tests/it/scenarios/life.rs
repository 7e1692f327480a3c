//! A container's states from create to delete, and the events that tell of them.

use super::Scenario;
use crate::{
    case::RuntimeCase,
    lab::{Lab, bundle, eventually, process::Process},
};

pub const SCENARIOS: &[Scenario] = &[
    ("a container is RUNNING, then STOPPED, then gone", states),
    (
        "events come in order: create, start, exec-added, exec-started, the exec's exit, the container's, delete",
        event_order,
    ),
    ("a paused container stands still, and goes on when it is resumed", pause),
    ("a container that is killed while it is paused ends", kill_paused),
    ("metrics tell what the container uses", metrics),
    ("processes are listed with the exec's among them", processes),
    ("a running container is not deleted unless by force", delete_running),
    ("a shim goes with its last container, and its bundle, mounts and socket with it", nothing_left),
    ("containers of one group share a shim until the last is gone", group),
    ("an id can be used again at once", id_again),
];

const IDLE: &[&str] = &["sleep", "1000"];

fn states(lab: &Lab, case: &RuntimeCase) {
    let daemon = lab.daemon(case.daemon());
    let container = lab.container(&daemon, "states");
    container.detach(case, &[], &["sh", "-c", "trap 'exit 3' TERM; while :; do sleep 0.05; done"]);
    assert_eq!(container.state().as_deref(), Some("RUNNING"));
    // The shell may not have come to its trap yet; as the first process it is spared until then.
    eventually("the end of the container", || {
        container.kill("SIGTERM");
        (container.state().as_deref() == Some("STOPPED")).then_some(())
    });
    assert_eq!(container.exit_status(), 3);
    container.remove();
}

fn event_order(lab: &Lab, case: &RuntimeCase) {
    let daemon = lab.daemon(case.daemon());
    let container = lab.container(&daemon, "order");
    container.detach(case, &[], IDLE);
    container.exec("e", &[], &["sh", "-c", "exit 4"]).exit(4);
    container.kill("SIGKILL").success();
    container.remove();
    let mut order = vec!["create", "start", "exec-added", "exec-started", "exit", "exit"];
    // Go's shim may be gone before it has sent its last event.
    if case.ours {
        container.wait_for("delete", |_| true);
        order.push("delete");
    }
    container.wait_for("exit", |exit| exit.text("id") == container.id());
    assert_eq!(container.topics()[..order.len()], order);
    let exits: Vec<_> = container.events().into_iter().filter(|event| event.topic == "/tasks/exit").collect();
    assert_eq!((exits[0].text("id"), exits[0].number("exit_status")), ("e", 4));
    assert_eq!((exits[1].text("id"), exits[1].number("exit_status")), (container.id(), 137));
    let start = container.wait_for("start", |_| true);
    assert_eq!(start.number("pid"), exits[1].number("pid"), "one pid in start and exit");
}

fn pause(lab: &Lab, case: &RuntimeCase) {
    let daemon = lab.daemon(case.daemon());
    let container = lab.container(&daemon, "pause");
    let running = container.start(case, &[], &["sh", "-c", "while :; do echo tick; sleep 0.02; done"]);
    running.until_it_says("tick");
    container.task("pause", &[]).success();
    container.until("PAUSED");
    // What was on its way when it stopped still arrives.
    std::thread::sleep(std::time::Duration::from_millis(200));
    let said = running.said().len();
    std::thread::sleep(std::time::Duration::from_millis(300));
    assert_eq!(running.said().len(), said, "it went on while it was paused");
    container.task("resume", &[]).success();
    container.until("RUNNING");
    eventually("further output", || (running.said().len() > said).then_some(()));
    container.wait_for("paused", |_| true);
    container.wait_for("resumed", |_| true);
}

fn kill_paused(lab: &Lab, case: &RuntimeCase) {
    let daemon = lab.daemon(case.daemon());
    let container = lab.container(&daemon, "killpaused");
    container.detach(case, &[], IDLE);
    container.task("pause", &[]).success();
    container.kill("SIGKILL").success();
    // cgroup v1 delivers a signal to a frozen process when it thaws; Go's shim leaves that to the caller.
    if !case.ours {
        container.task("resume", &[]);
    }
    assert_eq!(container.exit_status(), 137);
    container.remove();
}

fn metrics(lab: &Lab, case: &RuntimeCase) {
    let daemon = lab.daemon(case.daemon());
    let container = lab.container(&daemon, "metrics");
    container.detach(case, &[], IDLE);
    let table = container.task("metrics", &[]).success().text();
    let value = |name: &str| -> Option<u64> {
        table.lines().find(|line| line.starts_with(name))?.split_whitespace().nth(1)?.parse().ok()
    };
    assert!(table.contains(container.id()), "{table}");
    assert!(value("memory.usage_in_bytes").or(value("memory.usage")).is_some_and(|usage| usage > 0), "{table}");
    assert!(value("cpuacct.usage").or(value("cpu.usage_usec")).is_some_and(|usage| usage > 0), "{table}");
}

fn processes(lab: &Lab, case: &RuntimeCase) {
    let daemon = lab.daemon(case.daemon());
    let container = lab.container(&daemon, "ps");
    container.detach(case, &[], IDLE);
    let exec = container.exec_start("listed", &[], &["sh", "-c", "echo ready; sleep 1000"]);
    exec.until_it_says("ready");
    let table = container.task("ps", &[]).success().text();
    // runsc's pids are the sandbox's own, so only their number can be compared.
    if case.is_runc() {
        assert!(table.lines().any(|line| line.starts_with(&container.pid().to_string())), "{table}");
        assert!(table.contains("listed"), "{table}");
    }
    assert!(table.lines().count() > 2, "{table}");
}

fn delete_running(lab: &Lab, case: &RuntimeCase) {
    let daemon = lab.daemon(case.daemon());
    let container = lab.container(&daemon, "running");
    container.detach(case, &[], IDLE);
    container.task("delete", &[]).failure(&[]);
    assert_eq!(container.state().as_deref(), Some("RUNNING"));
    let pid = container.pid();
    container.task("delete", &["--force"]);
    assert_eq!(container.state(), None);
    assert!(!Process::find(pid).is_some_and(|process| process.is_alive()), "its process still runs");
    assert_eq!(container.exit_status(), 137);
}

fn nothing_left(lab: &Lab, case: &RuntimeCase) {
    let daemon = lab.daemon(case.daemon());
    let container = lab.container(&daemon, "nothing");
    container.detach(case, &[], IDLE);
    let (shim, bundle) = (container.shim(), daemon.bundle(container.id()));
    assert!(bundle.join("config.json").exists());
    container.kill("SIGKILL").success();
    container.remove();
    eventually("the end of the shim", || {
        (!Process::find(shim.pid).is_some_and(|process| process.is_alive())).then_some(())
    });
    assert!(!bundle.exists(), "{} is still there", bundle.display());
    assert!(crate::lab::leaks::mounts_below(&bundle).is_empty());
}

fn group(lab: &Lab, case: &RuntimeCase) {
    let daemon = lab.daemon(case.daemon());
    let (first, second) = (lab.container(&daemon, "group"), lab.container(&daemon, "group"));
    let dir = lab.dir("group");
    for container in [&first, &second] {
        let cgroup = format!("/{}/{}", daemon.namespace(), container.id());
        let mut spec = bundle::spec(&lab.rootfs(), &cgroup, IDLE);
        spec["annotations"]["io.containerd.runc.v2.group"] = first.id().into();
        container.detach_spec(case, &spec, &dir.join(container.id()));
    }
    let shim = first.shim();
    assert!(daemon.shim(second.id()).is_none(), "the second has a shim of its own");
    first.kill("SIGKILL").success();
    first.remove();
    second.exec("still", &[], &["true"]).success();
    second.kill("SIGKILL").success();
    second.remove();
    eventually("the end of the shim", || {
        (!Process::find(shim.pid).is_some_and(|process| process.is_alive())).then_some(())
    });
}

fn id_again(lab: &Lab, case: &RuntimeCase) {
    let daemon = lab.daemon(case.daemon());
    let container = lab.container(&daemon, "again");
    for round in 0..5 {
        let output = container.run(case, &[], &["echo", &round.to_string()]).success();
        assert_eq!(output.text(), format!("{round}\n"));
    }
}
