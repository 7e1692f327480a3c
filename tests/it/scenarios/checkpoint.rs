//! Checkpoints: a container's memory kept on disk, and containers that go on from there. Called directly, in containerd's place,
//! since no client of containerd sends all that can be asked.

use std::{
    fs,
    path::{Path, PathBuf},
    sync::Arc,
};

use containerd_shim_protos::{
    api::{
        CheckpointTaskRequest, CreateTaskRequest, CreateTaskResponse, DeleteRequest, DeleteResponse, Empty,
        ExecProcessRequest, KillRequest, StartRequest, StartResponse, StateRequest, StateResponse, Status, WaitRequest,
        WaitResponse,
    },
    protobuf::{Message, MessageField, well_known_types::any::Any},
    shim::oci::CheckpointOptions,
};
use serde_json::{Value, json};

use super::{Scenario, faults::with_fake};
use crate::{
    case::RuntimeCase,
    lab::{
        Lab, bundle,
        daemon::Daemon,
        eventually,
        fake::Fake,
        shim::{GOS, OURS, Refused, Shim},
    },
};

pub const SCENARIOS: &[Scenario] = &[
    ("a client makes an image of a running container, and a container of that image", client),
    ("a client has a checkpoint written where it wants, and the container ended", client_paths),
];

/// What no client of containerd asks for in this way.
pub const ONCE: &[Scenario] = &[
    (
        "a checkpoint ends its container if told to, and restored ones go on from there, as many as wanted",
        end_and_go_on,
    ),
    ("a checkpoint leaves its container running", leave_running),
    ("a checkpoint that fails leaves the container running", fail),
    ("a restored container has events in order, execs, and an exit code of its own", live_on),
];

/// Where ours does more, or says more.
pub const OURS_ONCE: &[Scenario] = &[
    ("a checkpoint that fails says why, and where the log is", say_why),
    ("what is no checkpoint is not restored, and leaves nothing", restore_nothing),
    ("a container on a terminal is restored on one", terminal),
    ("runtimes are asked for checkpoints and restores in these words", words),
    ("while a runtime hangs in a checkpoint, the container is answered for, and can be killed and deleted", hang),
    ("a restore that hangs ends with a kill", hang_in_restore),
    ("in gVisor, checkpoints are as the policy says", policy),
    ("a gVisor pod is kept as a whole, and goes on as a whole", pod),
];

const FAILED_PRECONDITION: i32 = 9;

/// Counts on standard output, and remembers nothing but in its memory.
const COUNT: &[&str] = &["sh", "-c", "i=0; while :; do i=$((i+1)); echo $i; sleep 0.05; done"];

/// The daemon of a case, whose gVisor pods may be checkpointed.
fn daemon(lab: &Lab, case: &RuntimeCase) -> Arc<Daemon> {
    let mut options = case.daemon().clone();
    options.config = case.ours.then(|| config(case));
    lab.daemon(&options)
}

fn config(case: &RuntimeCase) -> String {
    format!("{}  checkpointWorkloads: native\n", case.config())
}

/// A container of the trial's own, with its shim.
struct Task {
    shim: Arc<Shim>,
    id: String,
    bundle: PathBuf,
    output: PathBuf,
    namespace: String,
}

impl Task {
    /// Nothing is created yet.
    fn new(lab: &Lab, case: &RuntimeCase, daemon: &Arc<Daemon>, command: &[&str]) -> Self {
        Self::with_spec(lab, case, daemon, command, |_, _| ())
    }

    fn with_spec(
        lab: &Lab,
        case: &RuntimeCase,
        daemon: &Arc<Daemon>,
        command: &[&str],
        change: impl FnOnce(&str, &mut Value),
    ) -> Self {
        let (id, program) = (lab.id("ckpt"), if case.ours { OURS } else { GOS });
        let mut spec = bundle::spec(&lab.rootfs(), &format!("/{}/{id}", daemon.namespace()), command);
        change(&id, &mut spec);
        let bundles = lab.dir("bundles");
        let shim = Shim::start_program(program, daemon, &id, &bundles, spec.to_string().as_bytes()).unwrap();
        // containerd makes it, for whatever has no other place.
        fs::create_dir(shim.bundle().join("work")).unwrap();
        let bundle = shim.bundle().to_owned();
        let namespace = daemon.namespace().into();
        Self { shim: Arc::new(shim), id, bundle, output: bundles.join("output"), namespace }
    }

    /// A container in the sandbox of this one, with the same shim.
    fn guest(&self, lab: &Lab, name: &str, command: &[&str]) -> Self {
        let (id, bundles) = (lab.id("guest"), lab.dir("bundles"));
        let mut spec = bundle::spec(&lab.rootfs(), &format!("/{}/{id}", self.namespace), command);
        spec["annotations"] = in_pod("container", &self.id, name);
        let bundle = bundles.join(&id);
        fs::create_dir_all(bundle.join("rootfs")).unwrap();
        fs::write(bundle.join("config.json"), spec.to_string()).unwrap();
        let (shim, namespace) = (Arc::clone(&self.shim), self.namespace.clone());
        Self { shim, id, bundle, output: bundles.join("output"), namespace }
    }

    fn id(&self) -> String {
        self.id.clone()
    }

    fn create(&self, checkpoint: &str) -> Result<CreateTaskResponse, Refused> {
        self.shim.call("Create", &self.request(checkpoint))
    }

    fn request(&self, checkpoint: &str) -> CreateTaskRequest {
        let output = format!("file://{}", self.output.display());
        // Both, or Go's shim panics.
        let (stdout, stderr) = (output.clone(), output);
        let (id, bundle) = (self.id(), self.bundle.to_str().unwrap().to_owned());
        CreateTaskRequest { id, bundle, stdout, stderr, checkpoint: checkpoint.into(), ..CreateTaskRequest::default() }
    }

    fn start(&self) -> Result<u32, Refused> {
        let request = StartRequest { id: self.id(), ..StartRequest::default() };
        self.shim.call::<StartResponse>("Start", &request).map(|answer| answer.pid)
    }

    /// Creates and starts it, from the beginning.
    fn run(&self) -> &Self {
        self.create("").unwrap();
        self.start().unwrap();
        self
    }

    /// Creates and starts it, from a checkpoint.
    fn go_on(&self, checkpoint: &Path) -> &Self {
        self.create(checkpoint.to_str().unwrap()).unwrap();
        assert!(self.start().unwrap() > 0);
        self
    }

    fn checkpoint(&self, image: &Path, options: CheckpointOptions) -> Result<Empty, Refused> {
        let type_url = "containerd.runc.v1.CheckpointOptions".into();
        let options = Any { type_url, value: options.write_to_bytes().unwrap(), ..Any::default() };
        let request = CheckpointTaskRequest {
            id: self.id(),
            path: image.to_str().unwrap().into(),
            options: MessageField::some(options),
            ..CheckpointTaskRequest::default()
        };
        self.shim.call("Checkpoint", &request)
    }

    fn state(&self) -> StateResponse {
        self.shim.call("State", &StateRequest { id: self.id(), ..StateRequest::default() }).unwrap()
    }

    fn kill(&self, signal: u32) -> Result<Empty, Refused> {
        self.shim.call("Kill", &KillRequest { id: self.id(), signal, ..KillRequest::default() })
    }

    fn wait(&self) -> u32 {
        let request = WaitRequest { id: self.id(), ..WaitRequest::default() };
        self.shim.call::<WaitResponse>("Wait", &request).unwrap().exit_status
    }

    /// Deletes the container, and ends the shim.
    fn remove(&self) {
        self.delete();
        self.shim.shut_down();
    }

    fn delete(&self) {
        let request = DeleteRequest { id: self.id(), ..DeleteRequest::default() };
        self.shim.call::<DeleteResponse>("Delete", &request).unwrap();
    }

    /// Kills the container, and removes it.
    fn end(&self) {
        self.kill(9).unwrap();
        assert_eq!(self.wait(), 137);
        self.remove();
    }

    /// What it has counted so far.
    fn counted(&self) -> Vec<u64> {
        let text = fs::read_to_string(&self.output).unwrap_or_default();
        // The last line may be on its way.
        text.split_inclusive('\n').filter_map(|line| line.strip_suffix('\n')?.trim().parse().ok()).collect()
    }

    /// Waits until it has counted so many more.
    fn until_counted(&self, more: usize) -> Vec<u64> {
        let before = self.counted().len();
        eventually(&format!("the count of {}", self.id()), || {
            Some(self.counted()).filter(|counted| counted.len() >= before + more)
        })
    }
}

fn exit() -> CheckpointOptions {
    CheckpointOptions { exit: true, ..CheckpointOptions::default() }
}

fn stay() -> CheckpointOptions {
    CheckpointOptions::default()
}

/// Debian's older runsc, which is here with ptrace, can only checkpoint what ends with it, and only then.
fn can_stay(case: &RuntimeCase) -> bool {
    case.is_runc() || case.knows_nvproxy()
}

fn end_and_go_on(lab: &Lab, case: &RuntimeCase) {
    let (daemon, image) = (daemon(lab, case), lab.dir("image"));
    let first = Task::new(lab, case, &daemon, COUNT);
    first.run().until_counted(3);
    first.checkpoint(&image, exit()).unwrap();
    // CRIU kills what it has kept; a sandbox ends of itself.
    assert_eq!(first.wait(), if case.is_runc() { 137 } else { 0 });
    assert_eq!(first.state().status, Status::STOPPED.into());
    first.remove();
    let last = *first.counted().last().unwrap();
    for _ in 0..2 {
        let next = Task::new(lab, case, &daemon, COUNT);
        let counted = next.go_on(&image).until_counted(3);
        assert_eq!(counted[0], last + 1, "{counted:?}");
        assert_eq!(next.state().status, Status::RUNNING.into());
        next.end();
    }
}

fn leave_running(lab: &Lab, case: &RuntimeCase) {
    let (daemon, image) = (daemon(lab, case), lab.dir("image"));
    let first = Task::new(lab, case, &daemon, COUNT);
    first.run().until_counted(3);
    let result = first.checkpoint(&image, stay());
    first.until_counted(3);
    assert_eq!(first.state().status, Status::RUNNING.into());
    if !can_stay(case) {
        let refused = result.unwrap_err();
        assert_eq!(refused.code, FAILED_PRECONDITION, "{refused:?}");
        assert!(refused.message.contains("exit"), "{refused:?}");
        return first.end();
    }
    result.unwrap();
    // Beside the one that it comes from.
    let second = Task::new(lab, case, &daemon, COUNT);
    let counted = second.go_on(&image).until_counted(3);
    assert!(counted[0] > 3 && first.counted().contains(&counted[0]), "{counted:?}");
    first.end();
    second.end();
}

fn fail(lab: &Lab, case: &RuntimeCase) {
    let daemon = daemon(lab, case);
    let task = Task::new(lab, case, &daemon, COUNT);
    task.run().until_counted(1);
    let file = lab.dir("image").join("file");
    fs::write(&file, "").unwrap();
    for options in [exit(), stay()] {
        task.checkpoint(&file, options).unwrap_err();
        task.until_counted(3);
        assert_eq!(task.state().status, Status::RUNNING.into());
    }
    task.end();
}

fn live_on(lab: &Lab, case: &RuntimeCase) {
    let (daemon, image) = (daemon(lab, case), lab.dir("image"));
    let trap = "trap 'exit 7' TERM; i=0; while :; do i=$((i+1)); echo $i; sleep 0.05; done";
    let first = Task::new(lab, case, &daemon, &["sh", "-c", trap]);
    first.run().until_counted(3);
    first.checkpoint(&image, exit()).unwrap();
    first.wait();
    first.remove();

    let next = Task::new(lab, case, &daemon, &["sh", "-c", trap]);
    next.go_on(&image).until_counted(1);
    let process =
        json!({"user": {"uid": 0, "gid": 0}, "args": ["sh", "-c", "exit 5"], "cwd": "/", "env": ["PATH=/bin"]});
    let spec = Any {
        value: process.to_string().into_bytes(),
        type_url: "types.containerd.io/opencontainers/runtime-spec/1/Process".into(),
        ..Any::default()
    };
    let exec = ExecProcessRequest {
        id: next.id(),
        exec_id: "e".into(),
        spec: MessageField::some(spec),
        ..ExecProcessRequest::default()
    };
    next.shim.call::<Empty>("Exec", &exec).unwrap();
    let start = StartRequest { id: next.id(), exec_id: "e".into(), ..StartRequest::default() };
    next.shim.call::<StartResponse>("Start", &start).unwrap();
    let wait = WaitRequest { id: next.id(), exec_id: "e".into(), ..WaitRequest::default() };
    assert_eq!(next.shim.call::<WaitResponse>("Wait", &wait).unwrap().exit_status, 5);
    let delete = DeleteRequest { id: next.id(), exec_id: "e".into(), ..DeleteRequest::default() };
    next.shim.call::<DeleteResponse>("Delete", &delete).unwrap();

    next.kill(15).unwrap();
    assert_eq!(next.wait(), 7);
    let pid = next.state().pid;
    next.remove();

    let events = daemon.events();
    assert_eq!(events.wait_for(&next.id(), "create", |_| true).text("checkpoint"), image.to_str().unwrap());
    assert_eq!(events.wait_for(&next.id(), "start", |_| true).number("pid"), u64::from(pid));
    assert_eq!(events.wait_for(&next.id(), "exit", |exit| exit.text("id") == next.id()).number("pid"), u64::from(pid));
    let mut order = vec!["create", "start", "exec-added", "exec-started", "exit", "exit"];
    if case.ours {
        events.wait_for(&next.id(), "delete", |_| true);
        order.push("delete");
        let kept = events.wait_for(&first.id(), "checkpointed", |_| true);
        assert_eq!(kept.text("checkpoint"), image.to_str().unwrap());
    }
    assert_eq!(events.topics(&next.id())[..order.len()], order);
}

/// Counts in a file of its memory.
const COUNT_INSIDE: &[&str] = &["sh", "-c", "i=0; while :; do i=$((i+1)); echo $i >/dev/shm/n; sleep 0.05; done"];

fn client(lab: &Lab, case: &RuntimeCase) {
    let daemon = lab.daemon(case.daemon());
    let file = lab.dir("config").join("node.yaml");
    fs::write(&file, config(case)).unwrap();
    let case = &if case.ours { case.configured_by(Some(&file)) } else { case.clone() };
    let (first, second) = (lab.container(&daemon, "origin"), lab.container(&daemon, "restored"));
    first.detach(case, &[], COUNT_INSIDE);
    let count = |container: &crate::lab::container::Container, exec: &str| -> Option<u64> {
        container.exec(exec, &[], &["cat", "/dev/shm/n"]).text().trim().parse().ok()
    };
    let mut execs = 0..;
    let mut exec = || format!("e{}", execs.next().unwrap());
    let before = eventually("a count", || count(&first, &exec()).filter(|count| *count > 3));
    let image = format!("docker.io/library/{}:latest", first.id());
    let line = ["containers", "checkpoint", "--task", "--rw", "--image", first.id(), &image];
    if !can_stay(case) {
        daemon.ctr(&line).failure(&["exit"]);
        assert_eq!(first.state().as_deref(), Some("RUNNING"));
        first.kill("SIGKILL").success();
        return first.remove();
    }
    daemon.ctr(&line).success();
    assert_eq!(first.state().as_deref(), Some("RUNNING"));
    // By its spec the other has the same cgroup, which later versions of runc do not share.
    let end = |container: &crate::lab::container::Container| {
        container.kill("SIGKILL").success();
        assert_eq!(container.exit_status(), 137);
        container.remove();
    };
    end(&first);
    daemon.ctr(&["containers", "restore", "--live", "--rw", second.id(), &image]).success();
    assert_eq!(second.state().as_deref(), Some("RUNNING"));
    let after = eventually("a count", || count(&second, &exec()));
    assert!(after >= before, "{before}, then {after}");
    end(&second);
    daemon.ctr(&["images", "delete", &image]).success();
}

fn client_paths(lab: &Lab, case: &RuntimeCase) {
    // ctr has options for containerd's own runc shim alone, so ours takes its place.
    let case = &case.in_place_of_go(&config(case));
    let daemon = lab.daemon(case.daemon());
    let (image, work) = (lab.dir("image"), lab.dir("work"));
    let container = lab.container(&daemon, "paths");
    container.detach(case, &[], COUNT_INSIDE);
    let paths = ["--image-path", image.to_str().unwrap(), "--work-path", work.to_str().unwrap()];
    container.task("checkpoint", &[&["--exit"], &paths[..]].concat()).success();
    container.exit_status();
    container.remove();
    let kept = |file: &str, dir: &Path| assert!(dir.join(file).exists(), "no {file} in {}", dir.display());
    if case.is_runc() {
        kept("inventory.img", &image);
        kept("dump.log", &work);
    } else {
        kept("checkpoint.img", &image);
    }
}

fn say_why(lab: &Lab, case: &RuntimeCase) {
    let (daemon, image) = (daemon(lab, case), lab.dir("image"));
    // A file without a name, of more than CRIU takes along.
    let nameless = format!("exec 9>/tmp/big; rm /tmp/big; dd if=/dev/zero bs=1M count=2 >&9; {}", COUNT[2]);
    let task = Task::new(lab, case, &daemon, &["sh", "-c", &nameless]);
    task.run().until_counted(3);
    if case.is_runc() {
        let refused = task.checkpoint(&image, exit()).unwrap_err();
        let log = task.shim.bundle().join("criu-dump.log");
        for word in ["criu failed", "ghost file", log.to_str().unwrap()] {
            assert!(refused.message.contains(word), "{word}: {refused:?}");
        }
        assert!(fs::read_to_string(&log).unwrap().contains("Dumping FAILED"));
        assert!(!task.shim.bundle().join("work/criu-work").exists());
        task.until_counted(3);
    } else {
        fs::write(image.join("checkpoint.img"), "").unwrap();
        let refused = task.checkpoint(&image, exit()).unwrap_err();
        assert!(refused.message.contains("file exists"), "{refused:?}");
        task.until_counted(3);
    }
    task.end();
}

fn restore_nothing(lab: &Lab, case: &RuntimeCase) {
    let (daemon, image) = (daemon(lab, case), lab.dir("image"));
    let task = Task::new(lab, case, &daemon, COUNT);
    let refused = task.create(image.to_str().unwrap()).unwrap_err();
    assert_eq!(refused.code, FAILED_PRECONDITION, "{refused:?}");
    assert!(refused.message.contains("there is no checkpoint"), "{refused:?}");

    let file = if case.is_runc() { "inventory.img" } else { "checkpoint.img" };
    fs::write(image.join(file), "nothing of the kind").unwrap();
    fs::write(image.join("descriptors.json"), r#"["", "", ""]"#).unwrap();
    task.create(image.to_str().unwrap()).unwrap();
    let refused = task.start().unwrap_err();
    assert!(refused.message.contains("restore"), "{refused:?}");
    if case.is_runc() {
        assert!(refused.message.contains("restore.log"), "{refused:?}");
        // It is as it was before.
        assert_eq!(task.state().status, Status::CREATED.into());
        assert_eq!(task.start().unwrap_err().message, refused.message);
    }
    // Killed by then, or not; a client does not know.
    let _ = task.kill(9);
    task.wait();
    task.remove();
}

fn terminal(lab: &Lab, case: &RuntimeCase) {
    let (daemon, image) = (daemon(lab, case), lab.dir("image"));
    let count = "i=0; while test -t 0 && test -t 1; do i=$((i+1)); echo $i; sleep 0.05; done; exit 1";
    let on_terminal = || {
        let task = Task::with_spec(lab, case, &daemon, &["sh", "-c", count], |_, spec| {
            spec["process"]["terminal"] = json!(true)
        });
        (CreateTaskRequest { terminal: true, ..task.request("") }, task)
    };
    let (request, first) = on_terminal();
    first.shim.call::<CreateTaskResponse>("Create", &request).unwrap();
    first.start().unwrap();
    first.until_counted(3);
    first.checkpoint(&image, exit()).unwrap();
    first.wait();
    first.remove();
    let last = *first.counted().last().unwrap();

    let (request, next) = on_terminal();
    let request = CreateTaskRequest { checkpoint: image.to_str().unwrap().into(), ..request };
    next.shim.call::<CreateTaskResponse>("Create", &request).unwrap();
    next.start().unwrap();
    let counted = next.until_counted(3);
    assert!(counted[0] > last, "{last}, then {counted:?}");
    next.end();
}

/// A daemon of the trial's own with a fake runtime.
fn faked(lab: &Lab, case: &RuntimeCase) -> (Arc<Daemon>, Fake) {
    let (_, fake) = with_fake(lab, case);
    let mut options = case.daemon().clone();
    options.programs.insert(case.runtime_name(), fake.program());
    options.config = Some(config(case));
    (lab.own_daemon(&options), fake)
}

fn words(lab: &Lab, case: &RuntimeCase) {
    let (daemon, fake) = faked(lab, case);
    let (image, work) = (lab.dir("image"), lab.dir("work"));
    let called = |verb: &str| -> Vec<String> {
        let calls = fake.calls();
        let call = calls.iter().rev().find(|call| call.iter().any(|word| word == verb)).unwrap();
        call[call.iter().position(|word| word == verb).unwrap()..].to_vec()
    };
    let first = Task::new(lab, case, &daemon, COUNT);
    first.run().until_counted(1);
    let options = CheckpointOptions { file_locks: true, work_path: work.to_str().unwrap().into(), ..exit() };
    first.checkpoint(&image, options).unwrap();
    first.wait();
    // A short id is not what runsc knows a container by.
    let name = |task: &Task| if case.is_runc() { task.id() } else { format!("{}+", task.id()) };
    let (images, works) = (image.to_str().unwrap(), work.to_str().unwrap());
    let first_name = name(&first);
    let expected = match case.is_runc() {
        true => vec!["checkpoint", "--image-path", images, "--work-path", works, "--file-locks", &first_name],
        false => vec!["checkpoint", "--image-path", images, &first_name],
    };
    assert_eq!(called("checkpoint"), expected);
    first.remove();

    let next = Task::new(lab, case, &daemon, COUNT);
    next.go_on(&image).until_counted(1);
    let file = |name: &str| next.shim.bundle().join(name).to_str().unwrap().to_owned();
    let (bundle, pid, work) = (next.shim.bundle().to_str().unwrap(), file("init.pid"), file("work"));
    let next_name = name(&next);
    let made = ["restore", "--detach", "--image-path", images, "--pid-file", &pid, "--bundle", bundle];
    let expected: Vec<&str> = match case.is_runc() {
        true => [&made[..], &["--work-path", &work, "--no-subreaper", &next_name]].concat(),
        // Into the container that was created before, or instead of creating it.
        false if can_stay(case) => [&made[..4], &[&next_name]].concat(),
        false => [&made[..], &[&next_name]].concat(),
    };
    assert_eq!(called("restore"), expected);
    next.end();
}

fn hang(lab: &Lab, case: &RuntimeCase) {
    let (daemon, fake) = faked(lab, case);
    let task = Task::new(lab, case, &daemon, COUNT);
    task.run().until_counted(1);
    fake.behave("checkpoint hang");
    let image = lab.dir("image");
    std::thread::scope(|scope| {
        let checkpoint = scope.spawn(|| task.checkpoint(&image, exit()));
        eventually("the checkpoint", || {
            fake.calls().iter().any(|call| call.iter().any(|word| word == "checkpoint")).then_some(())
        });
        assert_eq!(task.state().status, Status::RUNNING.into());
        task.until_counted(3);
        task.kill(9).unwrap();
        assert_eq!(task.wait(), 137);
        task.remove();
        checkpoint.join().unwrap().unwrap_err();
    });
}

fn hang_in_restore(lab: &Lab, case: &RuntimeCase) {
    let (daemon, fake) = faked(lab, case);
    let (first, image) = (Task::new(lab, case, &daemon, COUNT), lab.dir("image"));
    first.run().until_counted(1);
    first.checkpoint(&image, exit()).unwrap();
    first.wait();
    first.remove();

    fake.behave("restore hang");
    let next = Task::new(lab, case, &daemon, COUNT);
    next.create(image.to_str().unwrap()).unwrap();
    std::thread::scope(|scope| {
        let start = scope.spawn(|| next.start());
        eventually("the restore", || {
            fake.calls().iter().any(|call| call.iter().any(|word| word == "restore")).then_some(())
        });
        assert_eq!(next.state().status, Status::CREATED.into());
        next.kill(9).unwrap();
        assert_eq!(next.wait(), 137);
        start.join().unwrap().unwrap_err();
    });
    fake.behave("");
    next.remove();
}

/// CRI's annotations.
fn in_pod(kind: &str, pod: &str, name: &str) -> Value {
    json!({
        "io.kubernetes.cri.container-type": kind,
        "io.kubernetes.cri.sandbox-id": pod,
        "io.kubernetes.cri.container-name": name,
    })
}

fn pod(lab: &Lab, case: &RuntimeCase) {
    if case.is_runc() || !can_stay(case) {
        return;
    }
    let (daemon, image) = (daemon(lab, case), lab.dir("image"));
    let host = || {
        Task::with_spec(lab, case, &daemon, &["sleep", "1000"], |id, spec| {
            spec["annotations"] = in_pod("sandbox", id, "");
        })
    };
    let first = host();
    let guest = first.run().guest(lab, "counter", COUNT);
    guest.run().until_counted(3);
    let refused = guest.checkpoint(&image, exit()).unwrap_err();
    assert_eq!(refused.code, FAILED_PRECONDITION, "{refused:?}");
    first.checkpoint(&image, exit()).unwrap();
    guest.wait();
    first.wait();
    guest.delete();
    first.remove();
    let last = *guest.counted().last().unwrap();

    let next = host();
    next.go_on(&image);
    let guest = next.guest(lab, "counter", COUNT);
    let counted = guest.go_on(&image).until_counted(3);
    assert_eq!(counted[0], last + 1, "{counted:?}");
    guest.kill(9).unwrap();
    assert_eq!(guest.wait(), 137);
    guest.delete();
    next.end();
}

fn policy(lab: &Lab, case: &RuntimeCase) {
    if case.is_runc() {
        return;
    }
    for policy in ["runc", "reject"] {
        let mut options = case.daemon().clone();
        options.config = Some(format!("{}  checkpointWorkloads: {policy}\n", case.config()));
        let daemon = lab.daemon(&options);
        let task = Task::new(lab, case, &daemon, COUNT);
        let setting = format!("shim.checkpointWorkloads: {policy}");
        let refused = task.create("/checkpoint").unwrap_err();
        assert_eq!(refused.code, FAILED_PRECONDITION, "{refused:?}");
        assert!(refused.message.contains(&setting), "{refused:?}");
        task.run().until_counted(1);
        let refused = task.checkpoint(&lab.dir("image"), stay()).unwrap_err();
        assert_eq!(refused.code, FAILED_PRECONDITION, "{refused:?}");
        assert!(refused.message.contains(&setting), "{refused:?}");
        task.until_counted(3);
        task.end();
    }
}
