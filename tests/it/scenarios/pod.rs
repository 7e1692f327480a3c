//! Pods in gVisor: several containers in one sandbox and one shim, as CRI would have them, by ctr with CRI's annotations.

use std::{fs, sync::Arc};

use containerd_shim_protos::api::{
    CreateTaskResponse, DeleteRequest, DeleteResponse, Empty, KillRequest, StartRequest, StartResponse, StatsRequest,
    StatsResponse, UpdateTaskRequest, WaitRequest, WaitResponse,
};
use containerd_shim_protos::{
    cgroups, cgroups_v2,
    protobuf::{Message, MessageField, well_known_types::any::Any},
};
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use serde_json::{Value, json};

use super::Scenario;
use crate::{
    case::RuntimeCase,
    lab::{
        Lab, PATIENCE, bundle,
        container::Container,
        daemon::Daemon,
        eventually,
        process::Process,
        shim::{Refused, Shim},
    },
};

/// For gVisor alone: under runc a pod's containers have nothing in common but their shim.
pub const SCENARIOS: &[Scenario] = &[
    ("in a pod, containers share one sandbox and one shim, and end each with its own code", codes),
    ("in a pod, a container is restarted, and the others run on", restart),
    ("in a pod, commands run in each container, and see its files alone", exec),
    ("in a pod, containers are stopped and removed in any order", orders),
    ("in a pod, all containers end with 137 when the sandbox is killed, the sandbox's own last", killed),
    ("in a pod, the others end when the first container does", host_ends),
    ("in a pod, a container that was created and not started can be killed and deleted", created),
    ("in a pod, a container whose program is not there fails to start, and the others run on", no_program),
    ("in a pod, a container that asks for a sandbox that is not there is refused", no_sandbox),
    ("in a pod, a container that shares processes takes along those that it left running", shared_pids),
    ("in a pod, a container has a terminal", terminal),
    ("in a pod, containers share /dev/shm and emptyDirs of both media, and a hint reaches nothing else", volumes),
    ("in a pod that runs out of memory, each container is told of it, and then ends with 137", out_of_memory),
    ("in a pod, a container whose annotations want another runtime than the pod's is refused", other_runtime),
    ("in a pod, statistics are each container's own, and what runsc cannot do is said so", figures),
    ("in a pod, a pause is that of all containers, and any of them resumes it, as does a SIGKILL to any", pause),
    ("in a pod, a stuck sandbox is ended by the kill of a container that it does not answer to", stuck),
    ("in a pod whose shim is killed, nothing is left, were its sandbox stuck or not", lost_shim),
    ("in a pod, a container that is cleaned up by hand goes alone", cleaned_up),
    ("what a dead container left in runsc's root is no hindrance to a new one of its id", stale),
    ("a pool with debug has runsc's debug log in its root", debug_log),
    ("ids that are the beginning of each other are not mixed up", prefixes),
    ("a sandbox that cannot start says why", reason),
    ("a create that fails leaves no state and no cgroup, and the id is free", failed_create),
];

/// A pod: its sandbox container, and the containers in it.
struct Pod<'a> {
    lab: &'a Lab,
    case: &'a RuntimeCase,
    daemon: Arc<Daemon>,
    sandbox: Container,
}

impl<'a> Pod<'a> {
    /// Starts a pod whose sandbox container waits to be ended.
    fn start(lab: &'a Lab, case: &'a RuntimeCase) -> Self {
        Self::start_with(lab, case, &["sleep", "1000"], |_| {})
    }

    fn start_with(lab: &'a Lab, case: &'a RuntimeCase, command: &[&str], change: impl FnOnce(&mut Value)) -> Self {
        let daemon = lab.daemon(case.daemon());
        let sandbox = lab.container(&daemon, "pod");
        let pod = Self { lab, case, daemon, sandbox };
        let mut spec = pod.spec(&pod.sandbox, command);
        spec["annotations"]["io.kubernetes.cri.container-type"] = "sandbox".into();
        change(&mut spec);
        pod.sandbox.detach_spec(case, &spec, &pod.file());
        pod
    }

    /// The spec of a container in this pod.
    fn spec(&self, container: &Container, command: &[&str]) -> Value {
        let pod = self.sandbox.id();
        let cgroup = format!("/{}/pod-of-{pod}/{}", self.daemon.namespace(), container.id());
        let mut spec = bundle::spec(&self.lab.rootfs(), &cgroup, command);
        spec["annotations"] =
            json!({"io.kubernetes.cri.container-type": "container", "io.kubernetes.cri.sandbox-id": pod});
        spec
    }

    fn file(&self) -> std::path::PathBuf {
        self.lab.dir("spec").join("spec.json")
    }

    /// A container of this pod that is not there yet.
    fn container(&self, purpose: &str) -> Container {
        self.lab.container(&self.daemon, purpose)
    }

    /// Starts a container in the background.
    fn detach(&self, purpose: &str, command: &[&str]) -> Container {
        let container = self.container(purpose);
        container.detach_spec(self.case, &self.spec(&container, command), &self.file());
        container
    }

    /// Runs a container to its end.
    fn run(&self, purpose: &str, command: &[&str]) -> crate::lab::command::Output {
        let container = self.container(purpose);
        container.run_spec(self.case, &self.spec(&container, command), &self.file())
    }

    /// Ends the sandbox and checks that nothing of the pod is left.
    fn end(self) {
        kill_and_remove(&self.sandbox);
        self.assert_gone();
    }

    fn assert_gone(&self) {
        let id = self.sandbox.id();
        eventually("the end of the pod's processes", || self.processes().is_empty().then_some(()));
        eventually("the end of the shim", || self.daemon.shim(id).is_none().then_some(()));
        let root = format!("/run/gvisor/{}", self.daemon.namespace());
        let left: Vec<_> = fs::read_dir(root).into_iter().flatten().flatten().map(|entry| entry.file_name()).collect();
        let names = [format!("{id}_sandbox:"), format!(":{id}.")];
        let ours: Vec<_> =
            left.iter().filter(|file| names.iter().any(|name| file.to_string_lossy().contains(name))).collect();
        assert!(ours.is_empty(), "{ours:?}");
        remove_pod_cgroup(&self.daemon, id);
    }

    /// The processes of gVisor's that belong to this pod: sandbox and gofers.
    fn processes(&self) -> Vec<Process> {
        let all = fs::read_dir("/proc").unwrap().flatten();
        let pids = all.filter_map(|entry| entry.file_name().to_str()?.parse().ok());
        let ours = |process: &Process| {
            process.command.first().is_some_and(|name| name.starts_with("runsc"))
                && process.command.iter().any(|argument| argument.contains(self.daemon.namespace()))
                && process.is_alive()
        };
        let mentions = |process: &Process| {
            process.command.iter().any(|argument| argument.split('/').any(|part| part == self.sandbox.id()))
        };
        pids.filter_map(Process::find).filter(ours).filter(mentions).collect()
    }
}

const SIGKILL: u32 = 9;
const SIGTERM: u32 = 15;
const FAILED_PRECONDITION: i32 = 9;
const UNIMPLEMENTED: i32 = 12;

/// A pod whose shim the test calls itself, in containerd's place, for states that clients pass through without a stop.
struct Direct<'a> {
    lab: &'a Lab,
    daemon: Arc<Daemon>,
    shim: Shim,
}

impl<'a> Direct<'a> {
    fn start(lab: &'a Lab, case: &RuntimeCase) -> Self {
        let mut options = case.daemon().clone();
        options.config = Some(case.config());
        let daemon = lab.daemon(&options);
        let id = lab.id("direct");
        let mut spec = Self::spec(lab, &daemon, &id, &id, &["sleep", "1000"]);
        spec["annotations"]["io.kubernetes.cri.container-type"] = "sandbox".into();
        let shim = Shim::start(&daemon, &id, &lab.dir("bundles"), spec.to_string().as_bytes()).unwrap();
        shim.call::<CreateTaskResponse>("Create", &shim.create_request()).unwrap();
        let direct = Self { lab, daemon, shim };
        direct.start_container(direct.shim.id()).unwrap();
        direct
    }

    fn spec(lab: &Lab, daemon: &Daemon, pod: &str, id: &str, command: &[&str]) -> Value {
        let cgroup = format!("/{}/pod-of-{pod}/{id}", daemon.namespace());
        let mut spec = bundle::spec(&lab.rootfs(), &cgroup, command);
        spec["annotations"] =
            json!({"io.kubernetes.cri.container-type": "container", "io.kubernetes.cri.sandbox-id": pod});
        spec
    }

    /// Creates a container in the pod.
    fn create(&self, purpose: &str, command: &[&str]) -> String {
        let id = self.lab.id(purpose);
        let spec = Self::spec(self.lab, &self.daemon, self.shim.id(), &id, command);
        let request = self.shim.further_request(&id, spec.to_string().as_bytes());
        self.shim.call::<CreateTaskResponse>("Create", &request).unwrap();
        id
    }

    fn start_container(&self, id: &str) -> Result<StartResponse, Refused> {
        self.shim.call("Start", &StartRequest { id: id.into(), ..StartRequest::default() })
    }

    fn kill(&self, id: &str, signal: u32) -> Result<Empty, Refused> {
        self.shim.call("Kill", &KillRequest { id: id.into(), signal, ..KillRequest::default() })
    }

    fn wait(&self, id: &str) -> u32 {
        let request = WaitRequest { id: id.into(), ..WaitRequest::default() };
        self.shim.call::<WaitResponse>("Wait", &request).unwrap().exit_status
    }

    fn delete(&self, id: &str) {
        let request = DeleteRequest { id: id.into(), ..DeleteRequest::default() };
        self.shim.call::<DeleteResponse>("Delete", &request).unwrap();
    }

    /// Ends the sandbox and the shim.
    fn end(self) {
        let id = self.shim.id();
        // It may have ended already.
        let _ = self.kill(id, SIGKILL);
        self.wait(id);
        self.delete(id);
        self.shim.shut_down();
        remove_pod_cgroup(&self.daemon, id);
    }
}

/// What a kubelet does at last, and can only if there is nothing in it.
fn remove_pod_cgroup(daemon: &Daemon, pod: &str) {
    let root = std::path::PathBuf::from("/sys/fs/cgroup");
    // Of v2 it is the one hierarchy, of v1 it has one directory for each.
    let below = fs::read_dir(&root).unwrap().flatten().map(|entry| entry.path()).filter(|path| path.is_dir());
    for hierarchy in below.chain([root.clone()]) {
        let cgroup = hierarchy.join(daemon.namespace()).join(format!("pod-of-{pod}"));
        if let Err(error) = fs::remove_dir(&cgroup) {
            assert_eq!(error.kind(), std::io::ErrorKind::NotFound, "{}: {error}", cgroup.display());
        }
    }
}

fn kill_and_remove(container: &Container) {
    container.kill("SIGKILL").success();
    assert_eq!(container.exit_status(), 137);
    container.remove();
}

fn codes(lab: &Lab, case: &RuntimeCase) {
    let pod = Pod::start(lab, case);
    pod.run("three", &["sh", "-c", "echo out; echo err >&2; exit 3"]).exit(3);
    let output = pod.run("out", &["echo", "hello"]).success();
    assert_eq!(output.text(), "hello\n");
    pod.run("one", &["sh", "-c", "exit 128"]).exit(128);
    pod.run("signal", &["sh", "-c", "kill -TERM $$"]).exit(143);
    let (first, second) = (pod.detach("first", &["sleep", "1000"]), pod.detach("second", &["sleep", "1000"]));
    // All of them are in the shim of the sandbox.
    assert_eq!([&first, &second].map(|container| pod.daemon.shim(container.id()).is_some()), [false; 2]);
    assert_eq!(first.pid(), pod.sandbox.pid());
    assert_eq!(second.pid(), pod.sandbox.pid());
    first.kill("SIGTERM").success();
    first.kill("SIGKILL");
    first.exit_status();
    assert_eq!(second.state().as_deref(), Some("RUNNING"));
    first.remove();
    kill_and_remove(&second);
    pod.end();
}

fn restart(lab: &Lab, case: &RuntimeCase) {
    let pod = Pod::start(lab, case);
    let steady = pod.detach("steady", &["sleep", "1000"]);
    for code in [1, 0, 7] {
        // A kubelet gives every attempt an id of its own; here the same one returns as well.
        pod.run("attempt", &["sh", "-c", &format!("exit {code}")]).exit(code);
    }
    let again = pod.container("again");
    for code in [4, 5] {
        let spec = pod.spec(&again, &["sh", "-c", &format!("exit {code}")]);
        again.run_spec(case, &spec, &pod.file()).exit(code);
    }
    assert_eq!(steady.state().as_deref(), Some("RUNNING"));
    assert_eq!(steady.exec("alive", &[], &["echo", "yes"]).success().text(), "yes\n");
    kill_and_remove(&steady);
    pod.end();
}

fn exec(lab: &Lab, case: &RuntimeCase) {
    let pod = Pod::start(lab, case);
    let names = ["a", "b"];
    let containers = names.map(|name| pod.detach(name, &["sh", "-c", &format!("echo {name} >/name; sleep 1000")]));
    for (container, name) in containers.iter().zip(names) {
        eventually("the file", || {
            (container.exec("name", &[], &["cat", "/name"]).text() == format!("{name}\n")).then_some(())
        });
        container.exec("code", &[], &["sh", "-c", "exit 9"]).exit(9);
        container.exec("term", &[], &["sh", "-c", "kill -TERM $$"]).exit(143);
    }
    pod.sandbox.exec("pause", &[], &["sh", "-c", "exit 5"]).exit(5);
    containers.iter().for_each(kill_and_remove);
    pod.end();
}

fn orders(lab: &Lab, case: &RuntimeCase) {
    // As a kubelet does it: the containers first.
    let pod = Pod::start(lab, case);
    let containers = ["a", "b"].map(|name| pod.detach(name, &["sleep", "1000"]));
    containers.iter().for_each(kill_and_remove);
    pod.end();

    // The sandbox first, stopped and deleted, and then what was in it.
    let pod = Pod::start(lab, case);
    let [first, second] = ["a", "b"].map(|name| pod.detach(name, &["sleep", "1000"]));
    kill_and_remove(&pod.sandbox);
    for container in [&second, &first] {
        assert_eq!(container.exit_status(), 137);
        container.remove();
    }
    pod.assert_gone();

    // All stopped, and deleted in turn.
    let pod = Pod::start(lab, case);
    let [first, second] = ["a", "b"].map(|name| pod.detach(name, &["sleep", "1000"]));
    for container in [&first, &pod.sandbox] {
        container.kill("SIGKILL").success();
        container.exit_status();
    }
    second.exit_status();
    for container in [&second, &pod.sandbox, &first] {
        container.remove();
    }
    pod.assert_gone();
}

fn killed(lab: &Lab, case: &RuntimeCase) {
    let pod = Pod::start(lab, case);
    let [first, second] = ["a", "b"].map(|name| pod.detach(name, &["sleep", "1000"]));
    let running = first.exec_start("running", &[], &["sleep", "1000"]);
    first.wait_for("exec-started", |_| true);
    kill(Pid::from_raw(pod.sandbox.pid()), Signal::SIGKILL).unwrap();
    for container in [&first, &second, &pod.sandbox] {
        assert_eq!(container.exit_status(), 137);
    }
    let exec = first.wait_for("exit", |exit| exit.text("id") == "running");
    assert_eq!(exec.number("exit_status"), 137);
    drop(running);
    let order = pod.daemon.events().exits(&[first.id(), second.id(), pod.sandbox.id()]);
    assert!(order[2] > order[0] && order[2] > order[1], "{order:?}");
    for container in [&first, &second, &pod.sandbox] {
        container.remove();
    }
    pod.assert_gone();
}

fn host_ends(lab: &Lab, case: &RuntimeCase) {
    let pod = Pod::start_with(lab, case, &["sh", "-c", "trap 'exit 6' TERM; while :; do sleep 0.1; done"], |_| {});
    let guest = pod.detach("a", &["sleep", "1000"]);
    pod.sandbox.kill("SIGTERM").success();
    assert_eq!(pod.sandbox.exit_status(), 6);
    assert_eq!(guest.exit_status(), 137);
    guest.remove();
    pod.sandbox.remove();
    pod.assert_gone();
}

fn created(lab: &Lab, case: &RuntimeCase) {
    let direct = Direct::start(lab, case);
    for signal in [SIGTERM, SIGKILL] {
        let id = direct.create("created", &["sleep", "1000"]);
        let refused = direct.kill(&id, signal);
        if signal == SIGTERM {
            assert_eq!(refused.unwrap_err().code, FAILED_PRECONDITION);
        } else {
            refused.unwrap();
            assert_eq!(direct.wait(&id), 137);
            assert_eq!(direct.start_container(&id).unwrap_err().code, FAILED_PRECONDITION);
        }
        direct.delete(&id);
    }
    let id = direct.create("again", &["sh", "-c", "exit 3"]);
    direct.start_container(&id).unwrap();
    assert_eq!(direct.wait(&id), 3);
    direct.delete(&id);
    // One that waits for its start ends with its sandbox.
    let id = direct.create("waiting", &["sleep", "1000"]);
    direct.kill(direct.shim.id(), SIGKILL).unwrap();
    assert_eq!(direct.wait(&id), 137);
    direct.delete(&id);
    direct.end();
}

fn no_program(lab: &Lab, case: &RuntimeCase) {
    let pod = Pod::start(lab, case);
    pod.run("nothing", &["/no/such/program"]).failure(&["no/such/program"]);
    pod.run("something", &["sh", "-c", "exit 2"]).exit(2);
    pod.end();
}

fn no_sandbox(lab: &Lab, case: &RuntimeCase) {
    let pod = Pod::start(lab, case);
    pod.sandbox.kill("SIGKILL").success();
    pod.sandbox.exit_status();
    pod.run("late", &["true"]).failure(&["sandbox", "does not run"]);
    pod.sandbox.remove();
    pod.assert_gone();
}

fn shared_pids(lab: &Lab, case: &RuntimeCase) {
    let pod = Pod::start(lab, case);
    let container = pod.container("shared");
    let mut spec = pod.spec(&container, &["sh", "-c", "sleep 1000 & sleep 1000"]);
    let namespaces = spec["linux"]["namespaces"].as_array_mut().unwrap();
    namespaces.retain(|namespace| namespace["type"] != "pid");
    container.detach_spec(case, &spec, &pod.file());
    let running = container.exec_start("running", &[], &["sleep", "1000"]);
    container.wait_for("exec-started", |_| true);
    container.kill("SIGKILL").success();
    assert_eq!(container.exit_status(), 137);
    // The exec's end came before that of the init, and not because time was up.
    let exec = container.wait_for("exit", |exit| exit.text("id") == "running");
    assert_eq!(exec.number("exit_status"), 137);
    let exits: Vec<_> = container
        .events()
        .iter()
        .filter(|event| event.topic == "/tasks/exit")
        .map(|event| event.text("id").to_owned())
        .collect();
    assert_eq!(exits, ["running", container.id()]);
    drop(running);
    container.remove();
    pod.end();
}

/// Tells the terminal's size once the client has set it, which it does after the start.
const TERMINAL: &str = "for i in $(seq 50); do test \"$(stty size)\" = '33 101' && break; sleep 0.1; done
    test -t 0 && test -t 1 && test -t 2 && echo terminal $(stty size); exit 4";

fn terminal(lab: &Lab, case: &RuntimeCase) {
    let pod = Pod::start(lab, case);
    let container = pod.container("tty");
    let mut spec = pod.spec(&container, &["sh", "-c", TERMINAL]);
    spec["process"]["terminal"] = true.into();
    let output = container.run_spec_on_terminal(case, &spec, &pod.file(), "stty rows 33 cols 101").exit(4);
    assert!(output.text().contains("terminal 33 101"), "{output:?}");
    pod.end();
}

/// A directory of the kubelet's for a pod, as it is on every node; gone with this value.
struct Kubelet {
    uid: String,
    dir: std::path::PathBuf,
}

impl Kubelet {
    fn new(lab: &Lab, volumes: &[&str]) -> Self {
        let uid = lab.id("0b6d4e3a-1111-4222-8333");
        let dir = std::path::Path::new("/var/lib/kubelet/pods").join(&uid);
        volumes
            .iter()
            .for_each(|name| fs::create_dir_all(dir.join("volumes/kubernetes.io~empty-dir").join(name)).unwrap());
        Self { uid, dir }
    }

    fn volume(&self, name: &str) -> Value {
        self.dir.join("volumes/kubernetes.io~empty-dir").join(name).to_str().unwrap().into()
    }
}

impl Drop for Kubelet {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.dir);
        // What was not there before is empty now; what holds other pods stays.
        let parents = self.dir.ancestors().skip(1).take(2);
        parents.take_while(|parent| fs::remove_dir(parent).is_ok()).for_each(drop);
    }
}

fn volumes(lab: &Lab, case: &RuntimeCase) {
    let kubelet = Kubelet::new(lab, &["memory", "disk", "plain"]);
    let shm = lab.dir("shm");
    let bind = |destination: &str, source: &Value| json!({"destination": destination, "type": "bind", "source": source, "options": ["rbind", "rprivate", "rw"]});
    let share_shm = |spec: &mut Value| {
        let mounts = spec["mounts"].as_array_mut().unwrap();
        mounts.retain(|mount| mount["destination"] != "/dev/shm");
        mounts.push(bind("/dev/shm", &shm.to_str().unwrap().into()));
    };
    let secret = lab.dir("secret");
    fs::write(secret.join("secret"), "secret").unwrap();
    let pod = Pod::start_with(lab, case, &["sleep", "1000"], |spec| {
        share_shm(spec);
        let annotations = &mut spec["annotations"];
        annotations["io.kubernetes.cri.sandbox-uid"] = kubelet.uid.as_str().into();
        for (name, kind) in [("memory", "tmpfs"), ("disk", "bind"), ("hostile", "tmpfs")] {
            annotations[format!("dev.gvisor.spec.mount.{name}.type")] = kind.into();
            annotations[format!("dev.gvisor.spec.mount.{name}.share")] = "pod".into();
        }
        annotations["dev.gvisor.spec.mount.hostile.source"] = secret.to_str().unwrap().into();
    });
    let written = fs::read_to_string(pod.daemon.bundle(pod.sandbox.id()).join("config.json")).unwrap();
    assert!(!written.contains("hostile"), "{written}");
    let member = |purpose: &str, command: &[&str]| {
        let container = pod.container(purpose);
        let mut spec = pod.spec(&container, command);
        share_shm(&mut spec);
        let mounts = spec["mounts"].as_array_mut().unwrap();
        mounts.extend(["memory", "disk", "plain"].map(|name| bind(&format!("/{name}"), &kubelet.volume(name))));
        container.detach_spec(case, &spec, &pod.file());
        container
    };
    let places = ["/dev/shm", "/memory", "/disk", "/plain"];
    let [first, second] = ["a", "b"].map(|name| member(name, &["sleep", "1000"]));
    for place in places {
        let write = format!("echo from-a >{place}/file && mkdir {place}/dir");
        first.exec("write", &[], &["sh", "-c", &write]).success();
        let read = second.exec("read", &[], &["sh", "-c", &format!("cat {place}/file && rmdir {place}/dir")]).success();
        assert_eq!(read.text(), "from-a\n", "{place}");
        first.exec("gone", &[], &["sh", "-c", &format!("test ! -e {place}/dir")]).success();
    }
    let types = second.exec("types", &[], &["cat", "/proc/mounts"]).success().text();
    let of = |place: &str| {
        types.lines().find(|line| line.split(' ').nth(1) == Some(place)).unwrap().split(' ').nth(2).unwrap().to_owned()
    };
    assert_eq!([of("/dev/shm"), of("/memory")], ["tmpfs", "tmpfs"], "{types}");
    // Nothing of what is in memory is on the host; what is on disk is where the kubelet looks for it.
    assert_eq!(fs::read_dir(&shm).unwrap().count(), 0);
    assert!(!std::path::Path::new(kubelet.volume("memory").as_str().unwrap()).join("file").exists());
    assert!(std::path::Path::new(kubelet.volume("plain").as_str().unwrap()).join("file").exists());
    // It survives the container that wrote it.
    kill_and_remove(&first);
    let third = member("c", &["sleep", "1000"]);
    for place in places {
        assert_eq!(third.exec("read", &[], &["cat", &format!("{place}/file")]).success().text(), "from-a\n", "{place}");
    }
    [second, third].iter().for_each(kill_and_remove);
    pod.end();
    let left: Vec<_> = fs::read_dir(kubelet.volume("disk").as_str().unwrap())
        .unwrap()
        .flatten()
        .map(|entry| entry.file_name())
        .collect();
    assert!(!left.iter().any(|name| name.to_string_lossy().starts_with(".gvisor")), "{left:?}");
}

fn out_of_memory(lab: &Lab, case: &RuntimeCase) {
    let pod = Pod::start_with(lab, case, &["sleep", "1000"], |spec| {
        spec["linux"]["resources"]["memory"] = json!({"limit": 200 << 20});
    });
    let idle = pod.detach("idle", &["sleep", "1000"]);
    // One that ended before has nothing to do with it.
    let done = pod.detach("done", &["true"]);
    assert_eq!(done.exit_status(), 0);
    let greedy = pod.detach("greedy", &["dd", "if=/dev/zero", "of=/dev/null", "bs=1G", "count=1"]);
    for container in [&greedy, &idle, &pod.sandbox] {
        assert_eq!(container.exit_status(), 137);
        let topics = container.topics();
        let at = |topic: &str| topics.iter().position(|other| other == topic);
        assert!(at("oom").is_some() && at("oom") < at("exit"), "{}: {topics:?}", container.id());
    }
    assert!(!done.topics().contains(&"oom".into()), "{:?}", done.topics());
    for container in [&done, &greedy, &idle, &pod.sandbox] {
        container.remove();
    }
    pod.assert_gone();
}

fn prefixes(lab: &Lab, case: &RuntimeCase) {
    let daemon = lab.daemon(case.daemon());
    let short = lab.container(&daemon, "prefix");
    let long = Container::new(Arc::clone(&daemon), format!("{}-1", short.id()));
    long.detach(case, &[], &["sleep", "1000"]);
    short.detach(case, &[], &["sleep", "1000"]);
    for (container, exec) in [(&short, "a"), (&long, "b")] {
        container.exec(exec, &[], &["sh", "-c", "exit 4"]).exit(4);
        container.task("metrics", &[]).success();
        container.kill("SIGURG").success();
        container.task("pause", &[]).success();
        container.task("resume", &[]).success();
    }
    kill_and_remove(&short);
    assert_eq!(long.state().as_deref(), Some("RUNNING"));
    long.exec("alive", &[], &["true"]).success();
    kill_and_remove(&long);
}

fn failed_create(lab: &Lab, case: &RuntimeCase) {
    let daemon = lab.daemon(case.daemon());
    let container = lab.container(&daemon, "failed");
    let cgroup = format!("/{}/{}", daemon.namespace(), container.id());
    let mut spec = bundle::spec(&lab.rootfs(), &cgroup, &["true"]);
    spec["mounts"]
        .as_array_mut()
        .unwrap()
        .push(json!({"destination": "/x", "type": "bind", "source": "/no/such/source", "options": ["rbind"]}));
    container.try_spec(case, &spec, &lab.dir("spec").join("spec.json")).failure(&["/no/such/source"]);
    for hierarchy in fs::read_dir("/sys/fs/cgroup").unwrap().flatten() {
        let left = hierarchy.path().join(&cgroup[1..]);
        assert!(!left.exists(), "{}", left.display());
    }
    daemon.ctr_attempt(&["containers", "delete", container.id()]);
    container.run(case, &[], &["sh", "-c", "exit 3"]).exit(3);
}

fn reason(lab: &Lab, case: &RuntimeCase) {
    let daemon = lab.daemon(case.daemon());
    let container = lab.container(&daemon, "reason");
    let mut spec = bundle::spec(&lab.rootfs(), &format!("/{}/{}", daemon.namespace(), container.id()), &["true"]);
    spec["process"]["capabilities"]["bounding"] = json!(["CAP_FLY"]);
    container.try_spec(case, &spec, &lab.dir("spec").join("spec.json")).failure(&["CAP_FLY"]);
    daemon.ctr_attempt(&["containers", "delete", container.id()]);
}

fn other_runtime(lab: &Lab, case: &RuntimeCase) {
    let pod = Pod::start(lab, case);
    for (annotation, value) in [("container-runtime", "runc"), ("gvisor-platform", "kvm"), ("nvproxy", "true")] {
        let container = pod.container("other");
        let mut spec = pod.spec(&container, &["true"]);
        spec["annotations"][format!("run.beam.cloud/{annotation}")] = value.into();
        container.try_spec(case, &spec, &pod.file()).failure(&[annotation, value, "first container decides"]);
    }
    pod.end();
}

fn figures(lab: &Lab, case: &RuntimeCase) {
    let direct = Direct::start(lab, case);
    let busy = direct.create("busy", &["sh", "-c", "while :; do :; done"]);
    let idle = direct.create("idle", &["sleep", "1000"]);
    [&busy, &idle].iter().for_each(|id| drop(direct.start_container(id).unwrap()));
    let cpu = |id: &str| {
        let request = StatsRequest { id: id.into(), ..StatsRequest::default() };
        let any = direct.shim.call::<StatsResponse>("Stats", &request).unwrap().stats.unwrap();
        if any.type_url == "io.containerd.cgroups.v1.Metrics" {
            let metrics = cgroups::metrics::Metrics::parse_from_bytes(&any.value).unwrap();
            assert!(metrics.memory.usage.usage > 0 && metrics.pids.current > 0, "{metrics:?}");
            metrics.cpu.usage.total
        } else {
            let metrics = cgroups_v2::metrics::Metrics::parse_from_bytes(&any.value).unwrap();
            assert!(metrics.memory.usage > 0 && metrics.pids.current > 0, "{metrics:?}");
            metrics.cpu.usage_usec
        }
    };
    eventually("the busy one's share", || (cpu(&busy) > 2 * cpu(&idle)).then_some(()));
    // The sandbox's own figures are those of all.
    assert!(cpu(direct.shim.id()) > 0);
    let resources = Any { value: br#"{"memory": {"limit": 1000000000}}"#.to_vec(), ..Any::default() };
    let update = UpdateTaskRequest {
        id: busy.clone(),
        resources: MessageField::some(resources),
        ..UpdateTaskRequest::default()
    };
    let refused = direct.shim.call::<Empty>("Update", &update).unwrap_err();
    assert_eq!(refused.code, UNIMPLEMENTED, "{refused:?}");
    for id in [&busy, &idle] {
        direct.kill(id, SIGKILL).unwrap();
        assert_eq!(direct.wait(id), 137);
        direct.delete(id);
    }
    direct.end();
}

fn pause(lab: &Lab, case: &RuntimeCase) {
    let pod = Pod::start(lab, case);
    let [mut first, second] = ["first", "second"].map(|name| pod.detach(name, &["sleep", "1000"]));
    for (paused, other) in [(&pod.sandbox, &first), (&first, &pod.sandbox), (&first, &second)] {
        let events = |topic: &str| paused.topics().iter().filter(|seen| *seen == topic).count();
        let (pauses, resumes) = (events("paused"), events("resumed"));
        paused.task("pause", &[]).success();
        for container in [&pod.sandbox, &first, &second] {
            container.until("PAUSED");
        }
        other.task("pause", &[]).failure(&["is paused already"]);
        other.task("resume", &[]).success();
        for container in [&pod.sandbox, &first, &second] {
            container.until("RUNNING");
        }
        paused.exec("after", &[], &["echo", "awake"]).success();
        eventually("the events", || (events("paused") > pauses && events("resumed") > resumes).then_some(()));
    }
    // Whose pause it is makes no difference to a SIGKILL.
    second.task("pause", &[]).success();
    kill_and_remove(&first);
    second.until("RUNNING");
    first = pod.detach("third", &["sleep", "1000"]);
    first.task("pause", &[]).success();
    kill_and_remove(&first);
    pod.sandbox.until("RUNNING");
    second.task("pause", &[]).success();
    pod.sandbox.kill("SIGKILL").success();
    for container in [&second, &pod.sandbox] {
        assert_eq!(container.exit_status(), 137);
        container.remove();
    }
    pod.assert_gone();
}

fn stuck(lab: &Lab, case: &RuntimeCase) {
    let pod = Pod::start(lab, case);
    let guest = pod.detach("a", &["sleep", "1000"]);
    kill(Pid::from_raw(pod.sandbox.pid()), Signal::SIGSTOP).unwrap();
    guest.kill("SIGKILL").success();
    for container in [&guest, &pod.sandbox] {
        assert_eq!(container.exit_status(), 137);
        container.remove();
    }
    pod.assert_gone();

    let pod = Pod::start(lab, case);
    kill(Pid::from_raw(pod.sandbox.pid()), Signal::SIGSTOP).unwrap();
    pod.end();
}

fn lost_shim(lab: &Lab, case: &RuntimeCase) {
    for stuck in [false, true] {
        let pod = Pod::start(lab, case);
        let guest = pod.detach("a", &["sleep", "1000"]);
        if stuck {
            kill(Pid::from_raw(pod.sandbox.pid()), Signal::SIGSTOP).unwrap();
        }
        kill(Pid::from_raw(pod.sandbox.shim().pid), Signal::SIGKILL).unwrap();
        for container in [&guest, &pod.sandbox] {
            assert_eq!(container.exit_status(), 137);
            container.task("delete", &["--force"]);
            eventually("the end of the task", || container.state().is_none().then_some(()));
            pod.daemon.ctr(&["containers", "delete", container.id()]).success();
        }
        pod.assert_gone();
    }
}

fn cleaned_up(lab: &Lab, case: &RuntimeCase) {
    let direct = Direct::start(lab, case);
    let [first, second] = ["first", "second"].map(|name| direct.create(name, &["sleep", "1000"]));
    [&first, &second].iter().for_each(|id| drop(direct.start_container(id).unwrap()));
    let bundle = direct.shim.bundle().with_file_name(&first);
    let mut line = direct.daemon.shim_command("containerd-shim-beta9-v2", &first);
    crate::lab::command::start(line.arg("delete").current_dir(&bundle), Some(b"")).finish(PATIENCE).success();
    assert_eq!(direct.wait(&first), 137);
    direct.delete(&first);
    // The other one is there still.
    direct.kill(&second, SIGKILL).unwrap();
    assert_eq!(direct.wait(&second), 137);
    direct.delete(&second);
    direct.end();
}

fn stale(lab: &Lab, case: &RuntimeCase) {
    let direct = Direct::start(lab, case);
    let id = direct.shim.id().to_owned();
    let spec = fs::read(direct.shim.bundle().join("config.json")).unwrap();
    let sandbox: i32 = fs::read_to_string(direct.shim.bundle().join("init.pid")).unwrap().trim().parse().unwrap();
    for pid in [direct.daemon.shim(&id).unwrap().pid, sandbox] {
        kill(Pid::from_raw(pid), Signal::SIGKILL).unwrap();
        eventually("its end", || Process::find(pid).is_none_or(|process| !process.is_alive()).then_some(()));
    }
    let shim = Shim::start(&direct.daemon, &id, &lab.dir("bundles"), &spec).unwrap();
    shim.call::<CreateTaskResponse>("Create", &shim.create_request()).unwrap();
    let again = Direct { lab, daemon: Arc::clone(&direct.daemon), shim };
    again.start_container(&id).unwrap();
    again.end();
}

fn debug_log(lab: &Lab, case: &RuntimeCase) {
    let (root, file) = (format!("/run/{}", lab.id("gvisor-debug")), lab.dir("config").join("debug.yaml"));
    let config = format!("debug: true, gvisorRoot: {root}, gvisorPlatform:");
    fs::write(&file, case.config().replace("gvisorPlatform:", &config)).unwrap();
    let daemon = lab.daemon(case.daemon());
    lab.container(&daemon, "debug").run(&case.configured_by(Some(&file)), &[], &["true"]).success();
    let log = fs::read_to_string(format!("{root}/debug.log")).unwrap();
    // Debian's older one begins it anew with each command.
    assert!(log.contains(&format!("Args: [runsc --root {root}/")), "{}", log.lines().take(5).collect::<String>());
    fs::remove_dir_all(root).unwrap();
}
