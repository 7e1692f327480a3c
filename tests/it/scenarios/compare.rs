//! Ours beside Go's, on one daemon: each is told the same story, and what comes of it is compared word for word.
//!
//! What differs on purpose stands in `DIFFERENCES`, and for users in docs/differences.md.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::Path,
    sync::Arc,
};

use containerd_shim_protos::{
    api::{
        CloseIORequest, ConnectRequest, ConnectResponse, CreateTaskResponse, DeleteRequest, DeleteResponse, Empty,
        ExecProcessRequest, KillRequest, PauseRequest, PidsRequest, PidsResponse, ResizePtyRequest, ResumeRequest,
        ShutdownRequest, StartRequest, StartResponse, StateRequest, StateResponse, StatsRequest, StatsResponse,
        UpdateTaskRequest, WaitRequest, WaitResponse,
    },
    protobuf::{Message, MessageField, MessageFull, text_format, well_known_types::any::Any},
};
use serde_json::{Value, json};

use super::Scenario;
use crate::{
    case::RuntimeCase,
    lab::{
        Lab, bundle,
        command::Output,
        container::Container,
        daemon::Daemon,
        eventually,
        shim::{GOS, OURS, Shim},
    },
};

pub const SCENARIOS: &[Scenario] = &[
    ("the Task service answers as Go's does, but for the listed differences", task_service),
    ("a client sees what it sees with Go's shim, but for the listed differences", client),
];

/// The steps at which ours says something else than Go's, and why. A difference that is not listed is a failure.
const DIFFERENCES: &[(&str, &[&str])] = &[
    (
        "ours says FAILED_PRECONDITION, and in its words what to do, where Go's says UNKNOWN",
        &[
            "delete of a running exec",
            "delete when paused",
            "delete when running",
            "exec when stopped",
            "pause when created",
            "pause when paused",
            "pause when stopped",
            "resume when created",
            "resume when running",
            "resume when stopped",
            "start when running",
            "start when stopped",
            "update when stopped",
            "resume again",
            "pause of what has stopped",
            "exec in what has stopped",
        ],
    ),
    (
        "ours names the exec in the field that is for it, too",
        &[
            "state of an added exec",
            "state of an ended exec",
            "state of an exec that failed",
            "state of an exec when paused",
        ],
    ),
    (
        "what is deleted without ever having run has a time of its end",
        &["delete of an exec that failed", "delete of an exec that was never started"],
    ),
    ("a delete that is asked for again has the same answer (containerd #7496)", &["delete when deleted"]),
    ("the terminal of what has ended needs no size, and a late resize is no error", &["resize of an ended exec"]),
    ("what has ended starts nothing, known or not (so do Go's later shims)", &["start of an exec when stopped"]),
    ("the error says whose exec it is", &["a kill of an exec that is not there"]),
];

/// What was seen at each step of a story.
#[derive(Default)]
struct Diary(std::cell::RefCell<Vec<(String, String)>>);

impl Diary {
    fn note(&self, step: &str, seen: String) {
        self.0.borrow_mut().push((step.into(), seen));
    }
}

/// Fails with the steps at which the two differ and should not.
fn assert_same(go: Diary, ours: Diary) {
    let (go, ours): (BTreeMap<_, _>, BTreeMap<_, _>) =
        (go.0.into_inner().into_iter().collect(), ours.0.into_inner().into_iter().collect());
    let steps: BTreeSet<_> = go.keys().chain(ours.keys()).collect();
    let listed = |step: &str| DIFFERENCES.iter().any(|(_, steps)| steps.contains(&step));
    let differ: Vec<_> = steps
        .into_iter()
        .filter(|step| go.get(*step) != ours.get(*step) && !listed(step))
        .map(|step| format!("{step}\n  Go's: {:?}\n  ours: {:?}", go.get(step), ours.get(step)))
        .collect();
    assert!(differ.is_empty(), "{}", differ.join("\n"));
}

// What containerd sees: requests of the Task service, in every state of a container.

fn task_service(lab: &Lab, case: &RuntimeCase) {
    let daemon = lab.daemon(case.daemon());
    let [go, ours] = [GOS, OURS].map(|program| tell(lab, &daemon, program));
    assert_same(go, ours);
}

/// One shim's answers.
struct Caller<'a> {
    shim: &'a Shim,
    diary: &'a Diary,
}

impl Caller<'_> {
    fn ask<R: MessageFull>(&self, step: &str, method: &str, request: &impl Message) {
        let seen = match self.shim.call::<R>(method, request) {
            Ok(answer) => self.plain(&text_format::print_to_string(&answer)),
            Err(refused) => format!("code {}", refused.code),
        };
        self.diary.note(step, seen);
    }

    /// The text without what differs from run to run.
    fn plain(&self, text: &str) -> String {
        let directory = self.shim.bundle().parent().unwrap();
        plain(text).replace(directory.to_str().unwrap(), "DIR").replace(self.shim.id(), "ID")
    }

    fn start(&self, step: &str, exec_id: &str) {
        let request = StartRequest { id: self.id(), exec_id: exec_id.into(), ..StartRequest::default() };
        self.ask::<StartResponse>(step, "Start", &request);
    }

    fn state(&self, step: &str, exec_id: &str) {
        let request = StateRequest { id: self.id(), exec_id: exec_id.into(), ..StateRequest::default() };
        self.ask::<StateResponse>(step, "State", &request);
    }

    fn wait(&self, step: &str, exec_id: &str) {
        let request = WaitRequest { id: self.id(), exec_id: exec_id.into(), ..WaitRequest::default() };
        self.ask::<WaitResponse>(step, "Wait", &request);
    }

    fn kill(&self, step: &str, exec_id: &str, signal: u32) {
        let request = KillRequest { id: self.id(), exec_id: exec_id.into(), signal, ..KillRequest::default() };
        self.ask::<Empty>(step, "Kill", &request);
    }

    fn kill_all(&self, step: &str, exec_id: &str) {
        let request =
            KillRequest { id: self.id(), exec_id: exec_id.into(), signal: 9, all: true, ..KillRequest::default() };
        self.ask::<Empty>(step, "Kill", &request);
    }

    fn delete(&self, step: &str, exec_id: &str) {
        let request = DeleteRequest { id: self.id(), exec_id: exec_id.into(), ..DeleteRequest::default() };
        self.ask::<DeleteResponse>(step, "Delete", &request);
    }

    fn exec(&self, step: &str, exec_id: &str, spec: &Value) {
        let spec = Any { type_url: PROCESS.into(), value: spec.to_string().into_bytes(), ..Any::default() };
        let request = ExecProcessRequest {
            id: self.id(),
            exec_id: exec_id.into(),
            spec: MessageField::some(spec),
            ..ExecProcessRequest::default()
        };
        self.ask::<Empty>(step, "Exec", &request);
    }

    fn resize(&self, step: &str, exec_id: &str) {
        let request = ResizePtyRequest {
            id: self.id(),
            exec_id: exec_id.into(),
            width: 80,
            height: 24,
            ..ResizePtyRequest::default()
        };
        self.ask::<Empty>(step, "ResizePty", &request);
    }

    fn close_stdin(&self, step: &str, exec_id: &str) {
        let request =
            CloseIORequest { id: self.id(), exec_id: exec_id.into(), stdin: true, ..CloseIORequest::default() };
        self.ask::<Empty>(step, "CloseIO", &request);
    }

    fn update(&self, step: &str, resources: &str) {
        let resources = Any { type_url: RESOURCES.into(), value: resources.into(), ..Any::default() };
        let resources = MessageField::some(resources);
        let request = UpdateTaskRequest { id: self.id(), resources, ..UpdateTaskRequest::default() };
        self.ask::<Empty>(step, "Update", &request);
    }

    fn pause(&self, step: &str) {
        self.ask::<Empty>(step, "Pause", &PauseRequest { id: self.id(), ..PauseRequest::default() });
    }

    fn resume(&self, step: &str) {
        self.ask::<Empty>(step, "Resume", &ResumeRequest { id: self.id(), ..ResumeRequest::default() });
    }

    fn pids(&self, step: &str) {
        self.ask::<PidsResponse>(step, "Pids", &PidsRequest { id: self.id(), ..PidsRequest::default() });
    }

    /// Only the type of the statistics: their values are compared by another scenario.
    fn stats(&self, step: &str) {
        let request = StatsRequest { id: self.id(), ..StatsRequest::default() };
        let seen = match self.shim.call::<StatsResponse>("Stats", &request) {
            Ok(answer) => answer.stats.type_url.clone(),
            Err(refused) => format!("code {}", refused.code),
        };
        self.diary.note(step, seen);
    }

    fn connect(&self, step: &str) {
        self.ask::<ConnectResponse>(step, "Connect", &ConnectRequest { id: self.id(), ..ConnectRequest::default() });
    }

    fn id(&self) -> String {
        self.shim.id().into()
    }
}

const PROCESS: &str = "types.containerd.io/opencontainers/runtime-spec/1/Process";
const RESOURCES: &str = "types.containerd.io/opencontainers/runtime-spec/1/LinuxResources";

/// Tells the story of one container to a shim, and what containerd was told of it.
fn tell(lab: &Lab, daemon: &Arc<Daemon>, program: &'static str) -> Diary {
    let (id, dir) = (lab.id("compared"), lab.dir("compared"));
    let said = dir.join("said");
    let script = "trap 'exit 7' TERM; echo ready; while :; do sleep 0.05; done";
    let spec = bundle::spec(&lab.rootfs(), &format!("/{}/{id}", daemon.namespace()), &["sh", "-c", script]);
    let shim = Shim::start_program(program, daemon, &id, &dir, spec.to_string().as_bytes()).unwrap();
    let diary = Diary::default();
    let caller = Caller { shim: &shim, diary: &diary };
    let process = |command: &[&str]| {
        let mut process = spec["process"].clone();
        process["args"] = json!(command);
        process
    };

    caller.connect("connect before create");
    caller.state("state before create", "");
    caller.wait("wait before create", "");
    caller.delete("delete before create", "");
    caller.kill("kill before create", "", 15);

    let mut create = shim.create_request();
    // Go's shim panics where one of the two is a file and the other is absent.
    create.stdout = format!("file://{}", said.display());
    create.stderr = create.stdout.clone();
    caller.ask::<CreateTaskResponse>("create", "Create", &create);
    caller.connect("connect when created");
    caller.state("state when created", "");
    caller.state("state of an unknown exec", "nobody");
    caller.wait("wait for an unknown exec", "nobody");
    caller.kill("kill of an unknown exec", "nobody", 15);
    caller.start("start of an unknown exec", "nobody");
    caller.delete("delete of an unknown exec", "nobody");
    caller.pids("pids when created");
    caller.stats("stats when created");
    caller.resize("resize without a terminal", "");
    caller.close_stdin("close of an absent stdin", "");
    caller.pause("pause when created");
    caller.resume("resume when created");
    caller.exec("exec when created", "early", &process(&["sh", "-c", "exit 4"]));
    caller.start("start of an exec when created", "early");
    caller.wait("wait for an exec when created", "early");
    caller.delete("delete of an exec when created", "early");

    caller.start("start", "");
    ready(&said);
    caller.state("state when running", "");
    caller.start("start when running", "");
    caller.stats("stats when running");
    caller.resume("resume when running");
    caller.delete("delete when running", "");
    caller.update("update", r#"{"cpu":{"shares":512}}"#);
    caller.update("update without JSON", "no JSON");

    caller.exec("exec", "e", &process(&["sh", "-c", "exit 3"]));
    caller.exec("exec of a taken id", "e", &process(&["true"]));
    caller.state("state of an added exec", "e");
    caller.start("start of an exec", "e");
    caller.wait("wait for an exec", "e");
    caller.state("state of an ended exec", "e");
    // A second start of an exec makes Go's shim panic when the container ends.
    caller.kill("kill of an ended exec", "e", 15);
    caller.resize("resize of an ended exec", "e");
    caller.delete("delete of an exec", "e");
    caller.delete("delete of an exec again", "e");
    caller.state("state of a deleted exec", "e");
    caller.wait("wait for a deleted exec", "e");

    caller.exec("exec of a program that is not there", "missing", &process(&["/no/such/program"]));
    caller.start("start of a program that is not there", "missing");
    caller.state("state of an exec that failed", "missing");
    caller.delete("delete of an exec that failed", "missing");
    caller.exec("exec that is never started", "never", &process(&["true"]));
    caller.kill("kill of an exec that was never started", "never", 9);
    caller.delete("delete of an exec that was never started", "never");

    caller.exec("exec that sleeps", "sleeper", &process(&["sleep", "1000"]));
    caller.start("start of an exec that sleeps", "sleeper");
    caller.delete("delete of a running exec", "sleeper");
    caller.pause("pause");
    caller.state("state when paused", "");
    caller.state("state of an exec when paused", "sleeper");
    caller.pause("pause when paused");
    caller.delete("delete when paused", "");
    caller.resume("resume");
    caller.state("state when resumed", "");
    caller.kill("kill of an exec", "sleeper", 9);
    caller.wait("wait for a killed exec", "sleeper");
    caller.delete("delete of a killed exec", "sleeper");
    caller.exec("exec that is killed with all", "all", &process(&["sleep", "1000"]));
    caller.start("start of an exec that is killed with all", "all");
    caller.kill_all("kill of all of an exec", "all");
    caller.wait("wait for an exec that was killed with all", "all");
    caller.state("state after a kill of all of an exec", "");
    caller.exec("exec that is killed when paused", "frozen", &process(&["sleep", "1000"]));
    caller.start("start of an exec that is killed when paused", "frozen");
    caller.pause("pause before the kill of an exec");
    caller.kill("kill of an exec when paused", "frozen", 9);
    caller.resume("resume after the kill of an exec");
    caller.wait("wait for an exec that was killed when paused", "frozen");
    caller.state("state after the kill of an exec when paused", "");

    caller.kill("a signal that does not exist", "", 99);
    caller.kill("kill", "", 15);
    caller.wait("wait", "");
    caller.state("state when stopped", "");
    caller.wait("wait when stopped", "");
    caller.kill("kill when stopped", "", 9);
    caller.start("start when stopped", "");
    caller.pause("pause when stopped");
    caller.resume("resume when stopped");
    caller.stats("stats when stopped");
    caller.update("update when stopped", "{}");
    caller.resize("resize when stopped", "");
    caller.exec("exec when stopped", "late", &process(&["true"]));
    caller.start("start of an exec when stopped", "late");

    caller.delete("delete", "");
    caller.state("state when deleted", "");
    caller.delete("delete when deleted", "");
    caller.kill("kill when deleted", "", 9);
    caller.pids("pids when deleted");
    caller.stats("stats when deleted");

    daemon.events().wait_for(&id, "delete", |_| true);
    // What was killed when paused dies at some moment of the resume.
    let events = daemon.events().of(&id).into_iter().filter(|event| event.body["id"] != "frozen");
    for (number, event) in events.enumerate() {
        let body = caller.plain(&event.body.to_string());
        diary.note(&format!("event {number}"), format!("{} {body}", event.topic));
    }
    let request = ShutdownRequest { id: id.clone(), ..ShutdownRequest::default() };
    // Either may be gone before its answer is read.
    let _ = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| shim.call::<Empty>("Shutdown", &request)));
    shim.until_gone();
    diary
}

/// Waits until the container has written its first line.
fn ready(said: &Path) {
    eventually("the container's first line", || {
        fs::read_to_string(said).is_ok_and(|said| said.contains("ready")).then_some(())
    });
}

/// The text with what differs from run to run, pids and times, as `N`.
fn plain(text: &str) -> String {
    // Go says that a time is not set with the first second of the year 1.
    let text = text.replace("exited_at {seconds: -62135596800}", "");
    let mut rest = text.trim();
    let mut plain = String::new();
    while let Some((at, key)) =
        ["pid", "seconds", "nanos", "exited_at"].iter().filter_map(|key| Some((rest.find(key)?, *key))).min()
    {
        let (before, after) = rest.split_at(at + key.len());
        plain.push_str(before);
        let value = after.trim_start_matches(['"', ':', ' ']);
        plain.push_str(&after[..after.len() - value.len()]);
        let end = value.find(|c: char| ",} {\"".contains(c)).unwrap_or(value.len());
        let varies = value[..end].starts_with(|c: char| c.is_ascii_digit()) && &value[..end] != "0";
        plain.push_str(if varies { "N" } else { &value[..end] });
        rest = &value[end..];
    }
    plain + rest
}

// What a client sees: ctr's output, exit codes and errors, and the events.

fn client(lab: &Lab, case: &RuntimeCase) {
    let go = case.with_go_shim();
    let daemon = lab.daemon(case.daemon());
    let [go, ours] = [&go, case].map(|case| watch(lab, &daemon, case));
    assert_same(go, ours);
}

/// One container at a time, as a client sees it.
struct Client<'a> {
    lab: &'a Lab,
    daemon: &'a Arc<Daemon>,
    case: &'a RuntimeCase,
    diary: &'a Diary,
}

impl Client<'_> {
    fn container(&self) -> Container {
        self.lab.container(self.daemon, "seen")
    }

    /// What came of a call; its words are compared as well, but for times and names.
    fn saw(&self, step: &str, container: &Container, output: &Output) {
        let words = |text: String| {
            let lines = text.lines().map(|line| match line.split_once("msg=") {
                // ctr's own log lines begin with their time.
                Some((_, message)) => message.to_owned(),
                None => line.to_owned(),
            });
            lines.collect::<Vec<_>>().join("\n").replace(container.id(), "ID").replace(self.daemon.namespace(), "NS")
        };
        let seen = format!("{} out={:?} err={:?}", output.code, words(output.text()), words(output.errors()));
        self.diary.note(step, seen);
    }

    fn runs(&self, step: &str, options: &[&str], command: &[&str], input: &[u8]) {
        let container = self.container();
        let options = [&["--rm"], options].concat();
        let output = self.daemon.ctr_with(&container.run_line(self.case, &options, command), input);
        self.saw(step, &container, &output);
        // They have a way of their own, and may be on it still.
        self.daemon.events().settle(self.daemon);
        if container.topics().iter().any(|topic| topic == "start") {
            container.wait_for("exit", |_| true);
        }
        // Go's shim may be gone before it has sent its last event.
        let topics = container.topics();
        let topics: Vec<_> = topics.iter().filter(|topic| *topic != "delete").collect();
        self.diary.note(&format!("{step}: events"), format!("{topics:?}"));
    }
}

fn watch(lab: &Lab, daemon: &Arc<Daemon>, case: &RuntimeCase) -> Diary {
    let diary = Diary::default();
    let client = Client { lab, daemon, case, diary: &diary };
    let shell = |script: &'static str| ["sh", "-c", script];

    client.runs("both streams and a code", &[], &shell("echo out; echo err >&2; exit 23"), b"");
    client.runs("input", &[], &["head", "-n", "1"], b"to and fro\n");
    client.runs("a process that a signal ends", &[], &shell("sh -c 'kill -TERM $$'; exit $?"), b"");
    client.runs("a program that is not there", &[], &["/no/such/program"], b"");
    client.runs("a program that cannot be executed", &[], &["/etc/passwd"], b"");
    client.runs(
        "a mount that is not there",
        &["--mount=type=bind,src=/no/such,dst=/mnt,options=rbind"],
        &["true"],
        b"",
    );
    client.runs("a directory that is not there", &["--cwd=/no/such/directory"], &["pwd"], b"");
    client.runs("environment and user", &["--env=A=b", "--user=1000:1000"], &shell("echo $A; id -u; id -g"), b"");
    client.runs("a read-only root", &["--read-only"], &shell("echo > /file"), b"");
    client.runs("limits", &["--memory-limit=67108864", "--cpus=0.5"], &["true"], b"");
    let container = client.container();
    container.detach(case, &[], &shell("trap 'exit 5' TERM; while :; do sleep 0.05; done"));
    let steps: [(&str, &[&str], &[&str]); 10] = [
        ("pause", &["pause"], &[]),
        ("resume", &["resume"], &[]),
        ("resume again", &["resume"], &[]),
        ("an exec", &["exec", "--exec-id", "e"], &["sh", "-c", "echo hello; exit 9"]),
        ("an exec of the same id, later", &["exec", "--exec-id", "e"], &["true"]),
        ("an exec of what is not there", &["exec", "--exec-id", "f"], &["/no/such/program"]),
        ("an exec elsewhere", &["exec", "--exec-id", "g", "--cwd", "/tmp"], &["pwd"]),
        ("delete of what runs", &["delete"], &[]),
        ("a kill", &["kill", "--signal", "KILL"], &[]),
        ("a kill of an exec that is not there", &["kill", "--exec-id", "nobody"], &[]),
    ];
    for (step, verb, command) in steps {
        let id = container.id().to_owned();
        let line = [&["tasks"], verb, &[id.as_str()], command].concat();
        client.saw(step, &container, &daemon.ctr(&line));
    }
    container.until("STOPPED");
    for (step, verb) in [("kill of what has stopped", "kill"), ("pause of what has stopped", "pause")] {
        client.saw(step, &container, &container.task(verb, &[]));
    }
    client.saw("exec in what has stopped", &container, &container.exec("late", &[], &["true"]));
    client.saw("delete of what has stopped", &container, &container.task("delete", &[]));
    client.saw("delete of the container", &container, &daemon.ctr(&["containers", "delete", container.id()]));

    let container = client.container();
    container.detach(case, &["--memory-limit=25165824"], &["sh", "-c", "tail /dev/zero & wait; sleep 1000"]);
    container.wait_for("oom", |_| true);
    diary.note("state after a child's OOM", format!("{:?}", container.state()));
    container.kill("SIGKILL").success();
    container.until("STOPPED");
    container.remove();
    diary
}
