//! Docker on a shim, as its users see it. Docker's own runc, which is containerd's Go shim, is the measure.

use std::{fs, sync::Arc, thread};

use libtest_mimic::{Failed, Trial};
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use serde_json::Value;

use crate::{
    case::{self, DockerCase},
    lab::{
        House, Lab, PATIENCE,
        docker::{Container, Docker},
        eventually,
        process::Process,
    },
};

type Scenario = (&'static str, fn(&Lab, &DockerCase));

/// What every shim has to do, on every containerd.
const EVERYWHERE: &[Scenario] = &[
    ("docker run gives output apart by stream, all of it, and the exit code", run),
    ("docker run of a program that cannot be run has a shell's code and names the program, once", cannot_run),
    ("docker run and docker exec on a terminal have one, with the client's size", terminal),
    ("docker exec gives output, input and the exit code, and the container goes on", exec),
    ("docker stop ends a container by SIGTERM, and one that will not by SIGKILL", stop),
    ("a restart policy brings a container back: as often as it says after a failure, always after a kill", policy),
    ("docker stats tells memory and processes", stats),
    ("a container that runs out of memory is known to have been killed for it", out_of_memory),
    ("containerd hears of everything that happens to Docker's container, in order", events),
    ("a container outlives restarts of dockerd, and what it wrote and its end are known", dockerd_away),
    ("a container outlives a restart of containerd under Docker", containerd_away),
];

/// What is between Docker and the shim alone: shown on one containerd.
const ONCE: &[Scenario] = &[
    ("docker run takes its standard input to the end", input),
    ("docker run gives a container what it was told to", settings),
    ("docker run of eight containers at once gives each its own answer", burst),
    ("docker run --init has an init that passes the exit code on", init),
    ("docker attach gives the rest of the output, takes input, and ends with the container's code", attach),
    ("docker logs has both streams, whatever the driver", logs),
    ("docker kill sends the signal that it is told to", signal),
    ("docker pause stops everything in a container until docker unpause", pause),
    ("docker restart gives a new process to a container that runs, and to one that has ended", restart),
    ("a health check is run, and what it says is the container's health", health),
    ("docker rm --force leaves nothing of a container that runs or is paused", remove),
    ("a container whose shim is killed has ended, as far as Docker knows, and can be started again", shim_killed),
];

/// What needs a runtime whose containers are the host's processes.
const RUNC: &[Scenario] = &[
    ("docker top lists the processes of a container", top),
    ("docker update changes the limits of a container that runs", update),
    ("a container in another's pid namespace sees that one's processes, and ends without them", join_pids),
];

/// What only ours has: it asks the node's configuration, and the container's annotations.
const NODE: &[Scenario] = &[
    ("a shim that Docker is told of by its name alone does what the node's configuration says", by_name),
    ("an annotation moves a Docker container into gVisor", annotation),
];

const IDLE: &[&str] = &["sleep", "1000"];

/// Says when it listens; ends with 7 on TERM and with 9 on USR1.
const LISTENER: &[&str] =
    &["sh", "-c", "trap 'echo TERM; exit 7' TERM; trap 'exit 9' USR1; echo ready; while :; do sleep 0.05; done"];

/// Every scenario with every case that it is for.
pub fn trials(house: &Arc<House>) -> Vec<Trial> {
    let mut trials = Vec::new();
    let cases = case::docker();
    let mut add = |scenarios: &[Scenario], meant: fn(&DockerCase) -> bool| {
        for scenario in scenarios {
            trials.extend(cases.iter().filter(|case| meant(case)).map(|case| trial(house, case, *scenario)));
        }
    };
    add(EVERYWHERE, |_| true);
    add(ONCE, |case| case.is_first);
    add(RUNC, |case| case.is_first && case.is_runc);
    add(NODE, |case| case.is_first && case.ours && case.is_runc);
    trials
}

fn trial(house: &Arc<House>, case: &DockerCase, (sentence, show): Scenario) -> Trial {
    let (house, case) = (Arc::clone(house), case.clone());
    Trial::test(format!("{}::{sentence}", case.name), move || {
        Lab::trial(&house, case.ours, |lab| show(lab, &case)).map_err(Failed::from)
    })
}

fn container(lab: &Lab, case: &DockerCase, purpose: &str) -> Container {
    Container::new(&lab.docker(case), case, lab.id(purpose))
}

fn on(docker: &Arc<Docker>, lab: &Lab, case: &DockerCase, purpose: &str) -> Container {
    Container::new(docker, case, lab.id(purpose))
}

fn is_gone(pid: i32) -> bool {
    !Process::find(pid).is_some_and(|process| process.is_alive())
}

fn run(lab: &Lab, case: &DockerCase) {
    let script = "echo out; echo err >&2; exit 5";
    let output = container(lab, case, "run").run(&[], &["sh", "-c", script]).exit(5);
    assert_eq!((output.text().as_str(), output.errors().as_str()), ("out\n", "err\n"));

    const MUCH: usize = 3_000_000;
    let output = container(lab, case, "much").run(&[], &["head", "-c", &MUCH.to_string(), "/dev/zero"]).success();
    assert_eq!(output.stdout.len(), MUCH);

    let kernel = container(lab, case, "kernel").run(&[], &["cat", "/proc/version"]).success();
    assert_eq!(kernel.text() == fs::read_to_string("/proc/version").unwrap(), case.is_runc);
}

fn cannot_run(lab: &Lab, case: &DockerCase) {
    for (program, code) in [("no-such-program", 127), ("/no/such/program", 127), ("/etc/passwd", 126)] {
        let refused = container(lab, case, "cannot");
        let output = refused.run(&[], &[program]).exit(code).failure(&[program]);
        // What the runtime itself wrote is not the container's output.
        assert!(output.stdout.is_empty() && output.errors().starts_with("docker: Error response"), "{output:?}");
        assert!(!refused.exists(), "{program} left its container");
    }
}

fn input(lab: &Lab, case: &DockerCase) {
    let text = "line\n".repeat(100_000);
    let output = container(lab, case, "input").run_with(&[], &["cat"], text.as_bytes()).success();
    assert!(output.text() == text, "{} of {} bytes", output.stdout.len(), text.len());
}

fn settings(lab: &Lab, case: &DockerCase) {
    let dir = lab.dir("settings");
    fs::write(dir.join("note"), "kept").unwrap();
    let volume = format!("--volume={}:/data:ro", dir.display());
    let options =
        ["--user=65534:65534", "--read-only", "--tmpfs=/tmp", &volume, "--cap-drop=ALL", "--hostname=elsewhere"];
    let script = "echo $(id -u) $COLOUR $(hostname) $(pwd) $(cat /data/note)
        touch /tmp/x && ! touch /x /data/x 2>/dev/null && grep CapEff /proc/self/status";
    let output = container(lab, case, "settings")
        .run(&[&options[..], &["--env=COLOUR=green", "--workdir=/tmp"]].concat(), &["sh", "-c", script])
        .success();
    assert_eq!(output.text(), "65534 green elsewhere /tmp kept\nCapEff:\t0000000000000000\n");
}

fn burst(lab: &Lab, case: &DockerCase) {
    let containers: Vec<_> = (0..8).map(|_| container(lab, case, "burst")).collect();
    thread::scope(|scope| {
        for container in &containers {
            scope.spawn(|| {
                let output = container.run(&[], &["echo", container.name()]).success();
                assert_eq!(output.text(), format!("{}\n", container.name()));
            });
        }
    });
}

fn init(lab: &Lab, case: &DockerCase) {
    let script = "cat /proc/1/comm; sh -c 'sleep 0.01 &'; exit 3";
    let output = container(lab, case, "init").run(&["--init"], &["sh", "-c", script]).exit(3);
    assert_eq!(output.text(), "docker-init\n");
}

fn terminal(lab: &Lab, case: &DockerCase) {
    const SIZE: &str = "stty rows 33 cols 101";
    // Docker sets the size after the start, so the process waits for it.
    const IS_TERMINAL: &str = "for i in $(seq 100); do test \"$(stty size)\" = '33 101' && break; sleep 0.05; done
        test -t 0 && test -t 1 && test -t 2 && echo terminal $(stty size); exit 5";
    let tty = container(lab, case, "tty");
    let output = tty.run_on_terminal(SIZE, &["sh", "-c", IS_TERMINAL]).exit(5);
    assert!(output.text().contains("terminal 33 101"), "{output:?}");
    tty.detach(&[], IDLE);
    let output = tty.exec_on_terminal(SIZE, &["sh", "-c", IS_TERMINAL]).exit(5);
    assert!(output.text().contains("terminal 33 101"), "{output:?}");
}

fn attach(lab: &Lab, case: &DockerCase) {
    let container = container(lab, case, "attach");
    let script =
        "while :; do echo waiting; sleep 0.1; done & read word; kill $!; echo got $word; read word; exit $word";
    container.detach(&["--interactive"], &["sh", "-c", script]);
    let watching = container.attach(None);
    // What is said before a client is there, it never sees.
    watching.until_it_says("waiting");
    // Docker shows a client nothing more once its input has ended.
    let typing = container.attach(Some(b"this\n"));
    watching.until_it_says("got this");
    container.attach(Some(b"6\n")).finish(PATIENCE).exit(6);
    watching.finish(PATIENCE).exit(6);
    typing.finish(PATIENCE).exit(6);
}

fn exec(lab: &Lab, case: &DockerCase) {
    let container = container(lab, case, "exec");
    container.detach(&[], IDLE);
    for code in [0, 3, 255] {
        let script = format!("echo out{code}; echo err{code} >&2; exit {code}");
        let output = container.exec(&[], &["sh", "-c", &script]).exit(code);
        assert_eq!((output.text(), output.errors()), (format!("out{code}\n"), format!("err{code}\n")));
    }
    let options = ["--user=65534", "--env=COLOUR=green", "--workdir=/tmp"];
    let output = container.exec(&options, &["sh", "-c", "echo $(id -u) $COLOUR $(pwd)"]).success();
    assert_eq!(output.text(), "65534 green /tmp\n");
    let text = "line\n".repeat(10_000);
    let output = container.exec_with(&["--interactive"], &["cat"], text.as_bytes()).success();
    assert!(output.text() == text, "{} of {} bytes", output.stdout.len(), text.len());
    let unknown = container.exec(&[], &["no-such-program"]);
    assert!(format!("{unknown:?}").contains("no-such-program"), "{unknown:?}");
    assert!(unknown.code == 126 && unknown.stderr.is_empty(), "{unknown:?}");
    assert_eq!(container.inspect("{{.State.Status}} {{.RestartCount}}"), "running 0");
}

fn logs(lab: &Lab, case: &DockerCase) {
    for driver in ["json-file", "local"] {
        let container = container(lab, case, "logs");
        let script = "seq 1000; echo err >&2; printf end";
        container.detach(&["--log-driver", driver], &["sh", "-c", script]);
        container.until_state("exited", 0);
        let logs = container.verb("logs", &[]).success();
        let numbers: String = (1..=1000).map(|number| format!("{number}\n")).collect();
        assert!(logs.text() == format!("{numbers}end"), "{logs:?}");
        assert_eq!(logs.errors(), "err\n");
        assert_eq!(container.verb("logs", &["--tail", "1"]).success().text(), "end");
    }
}

fn stop(lab: &Lab, case: &DockerCase) {
    let listener = container(lab, case, "stop");
    listener.detach(&[], LISTENER);
    eventually("the listener", || (listener.logs() == "ready\n").then_some(()));
    listener.verb("stop", &[]).success();
    listener.until_state("exited", 7);
    assert_eq!(listener.logs(), "ready\nTERM\n");

    let deaf = container(lab, case, "deaf");
    deaf.detach(&[], &["sh", "-c", "trap '' TERM; echo ready; while :; do sleep 0.05; done"]);
    eventually("the deaf one", || (deaf.logs() == "ready\n").then_some(()));
    deaf.verb("stop", &["--time", "1"]).success();
    deaf.until_state("exited", 137);
}

fn signal(lab: &Lab, case: &DockerCase) {
    let container = container(lab, case, "signal");
    container.detach(&[], LISTENER);
    eventually("the listener", || (container.logs() == "ready\n").then_some(()));
    container.verb("kill", &["--signal", "USR1"]).success();
    container.until_state("exited", 9);
    container.verb("kill", &[]).failure(&["is not running"]);
    container.verb("start", &[]).success();
    container.verb("kill", &[]).success();
    container.until_state("exited", 137);
    assert_eq!(container.inspect("{{.State.OOMKilled}}"), "false");
}

fn pause(lab: &Lab, case: &DockerCase) {
    let container = container(lab, case, "pause");
    container.detach(&[], &["sh", "-c", "while :; do echo tick; sleep 0.02; done"]);
    eventually("a tick", || (!container.logs().is_empty()).then_some(()));
    container.verb("pause", &[]).success();
    container.until("{{.State.Status}}", "paused");
    container.exec(&[], &["true"]).failure(&["paused"]);
    // What was on its way when it stopped still arrives.
    thread::sleep(std::time::Duration::from_millis(200));
    let said = container.logs().len();
    thread::sleep(std::time::Duration::from_millis(300));
    assert_eq!(container.logs().len(), said, "it went on while it was paused");
    container.verb("unpause", &[]).success();
    container.until("{{.State.Status}}", "running");
    eventually("further output", || (container.logs().len() > said).then_some(()));
    container.exec(&[], &["true"]).success();
}

fn restart(lab: &Lab, case: &DockerCase) {
    let container = container(lab, case, "restart");
    let begins =
        |times| eventually("a beginning", || (container.logs() == "begun\n".repeat(times)).then(|| container.pid()));
    container.detach(&[], &["sh", "-c", "trap 'exit 0' TERM; echo begun; while :; do sleep 0.05; done"]);
    let first = begins(1);
    container.verb("restart", &[]).success();
    let second = begins(2);
    assert!(first != second && is_gone(first), "{first}, then {second}");
    container.verb("kill", &[]).success();
    container.until_state("exited", 137);
    container.verb("restart", &[]).success();
    begins(3);
    container.exec(&[], &["true"]).success();
}

fn policy(lab: &Lab, case: &DockerCase) {
    let failing = container(lab, case, "failing");
    failing.detach(&["--restart=on-failure:2"], &["sh", "-c", "echo round; exit 3"]);
    let always = container(lab, case, "always");
    always.detach(&["--restart=always"], IDLE);
    let first = always.pid();
    kill(Pid::from_raw(first), Signal::SIGKILL).unwrap();
    always.until("{{.RestartCount}} {{.State.Status}}", "1 running");
    assert_ne!(always.pid(), first);
    always.exec(&[], &["true"]).success();
    always.verb("stop", &["--time", "0"]).success();
    always.until("{{.State.Status}}", "exited");

    failing.until("{{.RestartCount}} {{.State.Status}} {{.State.ExitCode}}", "2 exited 3");
    assert_eq!(failing.logs(), "round\n".repeat(3));
}

fn stats(lab: &Lab, case: &DockerCase) {
    let container = container(lab, case, "stats");
    container.detach(&["--memory=300m"], IDLE);
    let line = container.verb("stats", &["--no-stream", "--format", "{{json .}}"]).success().text();
    let stats: Value = serde_json::from_str(&line).unwrap();
    let field = |name: &str| stats[name].as_str().unwrap_or_default();
    assert!(field("PIDs").parse::<u32>().is_ok_and(|pids| pids >= 1), "{line}");
    assert!(!field("MemUsage").starts_with("0B") && field("MemUsage").ends_with("300MiB"), "{line}");
    assert!(field("CPUPerc").ends_with('%'), "{line}");
}

fn top(lab: &Lab, case: &DockerCase) {
    let container = container(lab, case, "top");
    container.detach(&[], &["sh", "-c", "sleep 1001 & exec sleep 1002"]);
    let list = eventually("both processes", || {
        let list = container.verb("top", &[]).success().text();
        (list.contains("sleep 1001") && list.contains("sleep 1002")).then_some(list)
    });
    // Under a heading.
    assert_eq!(list.lines().count(), 3, "{list}");
}

fn health(lab: &Lab, case: &DockerCase) {
    let container = container(lab, case, "health");
    let options = ["--health-cmd=test -e /tmp/well", "--health-interval=100ms", "--health-retries=1"];
    container.detach(&options, IDLE);
    container.until("{{.State.Health.Status}}", "unhealthy");
    container.exec(&[], &["touch", "/tmp/well"]).success();
    container.until("{{.State.Health.Status}}", "healthy");
}

fn out_of_memory(lab: &Lab, case: &DockerCase) {
    let container = container(lab, case, "oom");
    // A sandbox needs some of the limit for itself.
    let limit = if case.is_runc { "24m" } else { "200m" };
    let options = ["--memory", limit, "--memory-swap", limit];
    container.detach(&options, &["sh", "-c", "exec tail /dev/zero"]);
    container.until_state("exited", 137);
    // Go's shim sends that and the exit from different places, and Docker may have seen the end first.
    if case.ours {
        assert_eq!(container.inspect("{{.State.OOMKilled}}"), "true");
    }
}

fn update(lab: &Lab, case: &DockerCase) {
    let container = container(lab, case, "update");
    container.detach(&["--memory=64m"], IDLE);
    container.verb("update", &["--memory=80m", "--memory-swap=80m"]).success();
    let limit = "cat /sys/fs/cgroup/memory.max /sys/fs/cgroup/memory/memory.limit_in_bytes 2>/dev/null || true";
    let output = container.exec(&[], &["sh", "-c", limit]).success();
    assert_eq!(output.text(), format!("{}\n", 80 << 20));
}

fn join_pids(lab: &Lab, case: &DockerCase) {
    let (host, guest) = (container(lab, case, "pids"), container(lab, case, "guest"));
    host.detach(&[], &["sleep", "1003"]);
    let shared = format!("--pid=container:{}", host.name());
    // What it leaves in the namespace that is not its own ends with it all the same.
    let script = "ps | grep -c '[s]leep 1003'; sleep 1004 & exit 4";
    let output = guest.run(&[&shared], &["sh", "-c", script]).exit(4);
    assert_eq!(output.text(), "1\n");
    let list = host.exec(&[], &["ps"]).success().text();
    assert!(list.contains("sleep 1003") && !list.contains("sleep 1004"), "{list}");
}

fn remove(lab: &Lab, case: &DockerCase) {
    for pause in [false, true] {
        let container = container(lab, case, "remove");
        container.detach(&[], IDLE);
        let (pid, id) = (container.pid(), container.inspect("{{.Id}}"));
        let containerd = Arc::clone(lab.docker(case).containerd());
        assert!(containerd.bundle(&id).exists());
        if pause {
            container.verb("pause", &[]).success();
        }
        container.verb("rm", &["--force"]).success();
        assert!(!container.exists() && is_gone(pid));
        eventually("the end of the shim", || containerd.shim(&id).is_none().then_some(()));
        assert!(!containerd.bundle(&id).exists(), "its bundle is still there");
    }
}

fn events(lab: &Lab, case: &DockerCase) {
    let container = container(lab, case, "events");
    container.detach(&[], LISTENER);
    container.exec(&[], &["sh", "-c", "exit 4"]).exit(4);
    container.verb("pause", &[]).success();
    container.verb("unpause", &[]).success();
    container.verb("kill", &[]).success();
    let (id, docker) = (container.inspect("{{.Id}}"), lab.docker(case));
    let events = docker.containerd().events();
    let mut order = vec!["create", "start", "exec-added", "exec-started", "exit", "paused", "resumed", "exit"];
    // Go's shim may be gone before it has sent its last event.
    if case.ours {
        events.wait_for(&id, "delete", |_| true);
        order.push("delete");
    }
    assert_eq!(events.exit_status(&id), 137);
    assert_eq!(events.topics(&id)[..order.len()], order);
}

fn dockerd_away(lab: &Lab, case: &DockerCase) {
    let docker = lab.own_docker(case);
    let container = on(&docker, lab, case, "away");
    let dir = lab.dir("away");
    let script = "echo before; until test -e /data/say; do sleep 0.05; done; echo away
        until test -e /data/end; do sleep 0.05; done; exit 9";
    container.detach(&[&format!("--volume={}:/data", dir.display())], &["sh", "-c", script]);
    eventually("the container", || (container.logs() == "before\n").then_some(()));
    let pid = container.pid();

    docker.end(Signal::SIGTERM);
    fs::write(dir.join("say"), "").unwrap();
    docker.resume();
    eventually("what was said meanwhile", || (container.logs() == "before\naway\n").then_some(()));
    container.exec(&[], &["sh", "-c", "exit 4"]).exit(4);
    assert_eq!(container.pid(), pid);

    docker.end(Signal::SIGKILL);
    fs::write(dir.join("end"), "").unwrap();
    eventually("the end of the container", || is_gone(pid).then_some(()));
    docker.resume();
    container.until_state("exited", 9);
}

fn containerd_away(lab: &Lab, case: &DockerCase) {
    let docker = lab.own_docker(case);
    let container = on(&docker, lab, case, "underneath");
    container.detach(&[], LISTENER);
    let pid = container.pid();
    docker.containerd().end(Signal::SIGKILL);
    docker.containerd().resume();
    eventually("an exec", || (container.exec(&[], &["true"]).code == 0).then_some(()));
    assert_eq!((container.pid(), container.logs().as_str()), (pid, "ready\n"));
    container.verb("stop", &[]).success();
    container.until_state("exited", 7);
    on(&docker, lab, case, "another").run(&[], &["true"]).success();
}

fn shim_killed(lab: &Lab, case: &DockerCase) {
    let container = container(lab, case, "orphan");
    container.detach(&[], IDLE);
    let (pid, id, docker) = (container.pid(), container.inspect("{{.Id}}"), lab.docker(case));
    let shim = docker.containerd().shim(&id).unwrap();
    let sockets = shim.socket_files();
    kill(Pid::from_raw(shim.pid), Signal::SIGKILL).unwrap();
    container.until_state("exited", 137);
    assert!(is_gone(pid), "its process still runs");
    container.verb("start", &[]).success();
    container.exec(&[], &["true"]).success();
    container.verb("rm", &["--force"]).success();
    eventually("the end of the shim", || docker.containerd().shim(&id).is_none().then_some(()));
    // Go's `delete` leaves them.
    if !case.ours {
        sockets.into_iter().for_each(|socket| drop(fs::remove_file(socket)));
    }
}

fn by_name(lab: &Lab, case: &DockerCase) {
    // Which is a gVisor pool's, unlike that of the case.
    let named = container(lab, case, "byname").under("io.containerd.beta9.v2");
    let kernel = named.run(&[], &["cat", "/proc/version"]).success();
    assert_ne!(kernel.text(), fs::read_to_string("/proc/version").unwrap());
}

fn annotation(lab: &Lab, case: &DockerCase) {
    let options = ["--annotation=run.beam.cloud/container-runtime=gvisor"];
    let kernel = container(lab, case, "annotation").run(&options, &["cat", "/proc/version"]).success();
    assert_ne!(kernel.text(), fs::read_to_string("/proc/version").unwrap());
}
