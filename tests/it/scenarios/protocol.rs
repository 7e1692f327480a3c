//! What the shim answers to requests that no well-behaved client sends: called directly, in containerd's place.

use std::{
    fs,
    process::{Command, Stdio},
    sync::Arc,
};

use containerd_shim_protos::{
    api::{
        CheckpointTaskRequest, ConnectRequest, ConnectResponse, CreateTaskRequest, CreateTaskResponse, DeleteRequest,
        DeleteResponse, Empty, ExecProcessRequest, KillRequest, PidsRequest, PidsResponse, StartRequest, StartResponse,
        StateRequest, StateResponse, WaitRequest, WaitResponse,
    },
    protobuf::{MessageField, well_known_types::any::Any},
};
use nix::sys::signal::{SigSet, SigmaskHow};
use serde_json::json;

use super::Scenario;
use crate::{
    case::RuntimeCase,
    lab::{
        Lab, bundle,
        daemon::Daemon,
        eventually,
        shim::{OURS, Refused, SERVICES, Shim},
    },
};

pub const SCENARIOS: &[Scenario] = &[
    ("the task service answers under both its versions, no other service does, and no container is needed", services),
    ("what is unknown is not found, what exists is not made twice, what has ended starts nothing", states),
    ("a shim that is started with signals blocked works all the same", blocked_signals),
    ("options of an unknown type are an error that names the type, and leave nothing", options),
    ("a create goes on when its caller goes away, and a delete has one answer however often it is asked", abandoned),
    ("an id that is no name is refused wherever it comes, and leaves nothing", ids),
    ("a config.json that is not JSON fails the start, and leaves no shim", no_json),
    ("a config.json that breaks after the start fails the create, and leaves nothing", broken_later),
    ("an exec has a terminal if its request asks for one, whatever its spec says", exec_terminal),
    ("of a container with the host's pids no process is left when its end is told", nothing_survives),
    ("a pod below a slice runs whether or not systemd manages the host's cgroups", below_a_slice),
    ("runc gets a spec byte for byte as its author wrote it, gVisor without what it must not heed", untouched),
];

/// What runc does otherwise than runsc.
pub const RUNC: &[Scenario] =
    &[("a container of somebody else's with the same id outlives a create that is refused for it", anothers)];

const INVALID_ARGUMENT: i32 = 3;
const NOT_FOUND: i32 = 5;
const ALREADY_EXISTS: i32 = 6;
const FAILED_PRECONDITION: i32 = 9;
const UNIMPLEMENTED: i32 = 12;

/// What is no name: some would leave their directory, some would be taken for a flag.
const HOSTILE: [&str; 7] = ["", "..", "../x", "-rf", "a/b", "a\nb", "--root=/"];

fn daemon(lab: &Lab, case: &RuntimeCase) -> Arc<Daemon> {
    let mut options = case.daemon().clone();
    options.config = Some(case.config());
    lab.daemon(&options)
}

/// A shim for a container that runs this command.
fn shim(lab: &Lab, case: &RuntimeCase, command: &[&str]) -> Shim {
    shim_with(lab, case, command, |_| {})
}

/// The same with a changed spec.
pub fn shim_with(lab: &Lab, case: &RuntimeCase, command: &[&str], change: impl FnOnce(&mut serde_json::Value)) -> Shim {
    let daemon = daemon(lab, case);
    let id = lab.id("direct");
    let mut spec = bundle::spec(&lab.rootfs(), &format!("/{}/{id}", daemon.namespace()), command);
    change(&mut spec);
    Shim::start(&daemon, &id, &lab.dir("bundles"), spec.to_string().as_bytes()).unwrap()
}

fn create(shim: &Shim) -> Result<CreateTaskResponse, Refused> {
    shim.call("Create", &shim.create_request())
}

/// Ends the container of this shim, from kill to delete, and then the shim.
pub fn end(shim: &Shim) {
    let id = shim.id().to_owned();
    let kill = KillRequest { id: id.clone(), signal: 9, ..KillRequest::default() };
    let _: Result<Empty, _> = shim.call("Kill", &kill);
    shim.call::<WaitResponse>("Wait", &WaitRequest { id: id.clone(), ..WaitRequest::default() }).unwrap();
    shim.call::<DeleteResponse>("Delete", &DeleteRequest { id, ..DeleteRequest::default() }).unwrap();
    shim.shut_down();
}

fn services(lab: &Lab, case: &RuntimeCase) {
    let shim = shim(lab, case, &["true"]);
    let connect = ConnectRequest { id: shim.id().into(), ..ConnectRequest::default() };
    for service in SERVICES {
        let answer: ConnectResponse = shim.call_service(service, "Connect", &connect).unwrap();
        assert!(answer.shim_pid > 0 && answer.task_pid == 0, "{answer:?}");
        let nothing = shim.call_service::<Empty>(service, "Levitate", &connect).unwrap_err();
        assert_eq!(nothing.code, UNIMPLEMENTED, "{nothing:?}");
    }
    for service in ["containerd.task.v1.Task", "containerd.runtime.sandbox.v1.Sandbox", ""] {
        let nothing = shim.call_service::<Empty>(service, "Connect", &connect).unwrap_err();
        assert_eq!(nothing.code, UNIMPLEMENTED, "{nothing:?}");
    }
    shim.shut_down();
}

/// Another engine's container, in the root that is the default of all engines. runc refuses its id itself; of runsc the
/// shim asks before.
fn anothers(lab: &Lab, case: &RuntimeCase) {
    let shim = shim(lab, case, &["true"]);
    let namespace = daemon(lab, case).namespace().to_owned();
    let bundle = lab.dir("another");
    let spec = bundle::spec(&lab.rootfs(), &format!("/{namespace}/another"), &["sleep", "1000"]);
    fs::write(bundle.join("config.json"), spec.to_string()).unwrap();
    let runc = |arguments: &[&str]| {
        let mut runc = Command::new(case.runtime_program());
        runc.arg("--root").arg(format!("/run/containerd/runc/{namespace}")).args(arguments).current_dir(&bundle);
        runc.stdin(Stdio::null()).stderr(Stdio::null()).stdout(Stdio::null());
        runc
    };
    assert!(runc(&["run", "--detach", shim.id()]).status().unwrap().success());
    for checkpoint in ["", "/"] {
        let request = CreateTaskRequest { checkpoint: checkpoint.into(), ..shim.create_request() };
        assert!(shim.call::<CreateTaskResponse>("Create", &request).is_err());
        // A signal reaches it only as long as it runs.
        assert!(runc(&["kill", shim.id(), "0"]).status().unwrap().success(), "checkpoint {checkpoint:?}");
    }
    assert!(runc(&["delete", "--force", shim.id()]).status().unwrap().success());
    shim.shut_down();
}

fn states(lab: &Lab, case: &RuntimeCase) {
    let shim = shim(lab, case, &["sleep", "1000"]);
    let id = shim.id().to_owned();
    let state = StateRequest { id: id.clone(), ..StateRequest::default() };
    assert_eq!(shim.call::<StateResponse>("State", &state).unwrap_err().code, NOT_FOUND);
    let restore = CreateTaskRequest { checkpoint: "/checkpoint".into(), ..shim.create_request() };
    assert_eq!(shim.call::<CreateTaskResponse>("Create", &restore).unwrap_err().code, FAILED_PRECONDITION);
    create(&shim).unwrap();
    let checkpoint =
        CheckpointTaskRequest { id: id.clone(), path: "/checkpoint".into(), ..CheckpointTaskRequest::default() };
    assert_eq!(shim.call::<Empty>("Checkpoint", &checkpoint).unwrap_err().code, FAILED_PRECONDITION);
    assert_eq!(create(&shim).unwrap_err().code, ALREADY_EXISTS);
    shim.call::<StartResponse>("Start", &StartRequest { id: id.clone(), ..StartRequest::default() }).unwrap();
    let unknown = StateRequest { exec_id: "unknown".into(), ..state };
    assert_eq!(shim.call::<StateResponse>("State", &unknown).unwrap_err().code, NOT_FOUND);

    let process = json!({"user": {"uid": 0, "gid": 0}, "args": ["true"], "cwd": "/", "env": ["PATH=/bin"]});
    let spec = Any { value: process.to_string().into_bytes(), ..Any::default() };
    let spec = MessageField::some(spec);
    let exec = ExecProcessRequest { id: id.clone(), exec_id: "late".into(), spec, ..ExecProcessRequest::default() };
    shim.call::<Empty>("Exec", &exec).unwrap();
    shim.call::<Empty>("Kill", &KillRequest { id: id.clone(), signal: 9, ..KillRequest::default() }).unwrap();
    let wait = WaitRequest { id: id.clone(), ..WaitRequest::default() };
    assert_eq!(shim.call::<WaitResponse>("Wait", &wait).unwrap().exit_status, 137);
    let start = StartRequest { id, exec_id: "late".into(), ..StartRequest::default() };
    let late = shim.call::<StartResponse>("Start", &start).unwrap_err();
    assert_eq!(late.code, FAILED_PRECONDITION, "{late:?}");
    end(&shim);
}

fn abandoned(lab: &Lab, case: &RuntimeCase) {
    let shim = shim(lab, case, &["sleep", "1000"]);
    let id = shim.id().to_owned();
    let request = shim.create_request();
    shim.abandon("Create", &request);
    let state = StateRequest { id: id.clone(), ..StateRequest::default() };
    eventually("the container", || shim.call::<StateResponse>("State", &state).ok());
    shim.call::<StartResponse>("Start", &StartRequest { id: id.clone(), ..StartRequest::default() }).unwrap();
    shim.call::<Empty>("Kill", &KillRequest { id: id.clone(), signal: 9, ..KillRequest::default() }).unwrap();
    let wait = WaitRequest { id: id.clone(), ..WaitRequest::default() };
    let exit = shim.call::<WaitResponse>("Wait", &wait).unwrap();
    // However the first delete went, a second one has the same answer.
    let delete = DeleteRequest { id, ..DeleteRequest::default() };
    let deleted = shim.call::<DeleteResponse>("Delete", &delete).unwrap();
    assert_eq!((deleted.exit_status, &deleted.exited_at), (137, &exit.exited_at));
    assert_eq!(shim.call::<DeleteResponse>("Delete", &delete).unwrap(), deleted);
    assert_eq!(shim.call::<WaitResponse>("Wait", &wait).unwrap(), exit);
    shim.shut_down();
}

fn blocked_signals(lab: &Lab, case: &RuntimeCase) {
    // Before the shim is started: what this thread has blocked is blocked in the programs that it starts.
    daemon(lab, case);
    let mask = SigSet::all();
    let before = mask.thread_swap_mask(SigmaskHow::SIG_BLOCK).unwrap();
    let shim = shim(lab, case, &["sleep", "1000"]);
    before.thread_set_mask().unwrap();
    create(&shim).unwrap();
    end(&shim);
}

fn options(lab: &Lab, case: &RuntimeCase) {
    let shim = shim(lab, case, &["true"]);
    let any = Any { type_url: "example.com/odd.v1.Options".into(), value: vec![1, 2, 3], ..Any::default() };
    let mut request = shim.create_request();
    request.options = MessageField::some(any);
    let refused = shim.call::<CreateTaskResponse>("Create", &request).unwrap_err();
    assert_eq!(refused.code, INVALID_ARGUMENT, "{refused:?}");
    assert!(refused.message.contains("odd.v1.Options"), "{refused:?}");
    // The shim has taken no harm: the same container without them is created.
    create(&shim).unwrap();
    end(&shim);
}

fn ids(lab: &Lab, case: &RuntimeCase) {
    let shim = shim(lab, case, &["sleep", "1000"]);
    create(&shim).unwrap();
    let own = shim.id().to_owned();
    let long = "x".repeat(200);
    for id in HOSTILE.into_iter().chain([long.as_str()]).map(String::from) {
        let mut request = shim.create_request();
        request.id = id.clone();
        let refused = shim.call::<CreateTaskResponse>("Create", &request).unwrap_err();
        assert_eq!(refused.code, INVALID_ARGUMENT, "{id:?}: {refused:?}");
        assert!(refused.message.contains("is not valid"), "{id:?}: {refused:?}");

        let exec = ExecProcessRequest { id: own.clone(), exec_id: id.clone(), ..ExecProcessRequest::default() };
        let refused = shim.call::<Empty>("Exec", &exec).unwrap_err();
        assert_eq!(refused.code, INVALID_ARGUMENT, "{id:?}: {refused:?}");

        // No container can have such an id, so that there is none.
        let state = StateRequest { id: id.clone(), ..StateRequest::default() };
        assert_eq!(shim.call::<StateResponse>("State", &state).unwrap_err().code, NOT_FOUND, "{id:?}");
        let kill = KillRequest { id: id.clone(), signal: 9, ..KillRequest::default() };
        assert_eq!(shim.call::<Empty>("Kill", &kill).unwrap_err().code, NOT_FOUND, "{id:?}");
        // The empty exec is the container itself.
        if !id.is_empty() {
            let kill = KillRequest { id: own.clone(), exec_id: id.clone(), signal: 9, ..KillRequest::default() };
            assert_eq!(shim.call::<Empty>("Kill", &kill).unwrap_err().code, INVALID_ARGUMENT, "{id:?}");
        }
    }
    end(&shim);

    let daemon = daemon(lab, case);
    let bundles = lab.dir("bundles");
    for id in HOSTILE.into_iter().chain([long.as_str()]) {
        let bundle = bundles.join("bundle");
        fs::create_dir_all(&bundle).unwrap();
        fs::write(bundle.join("config.json"), "{}").unwrap();
        let mut line = daemon.shim_command(OURS, id);
        let begun = crate::lab::command::start(line.arg("start").current_dir(&bundle), Some(b""));
        begun.finish(crate::lab::PATIENCE).failure(&["is not valid"]);
        assert_eq!(fs::read_dir(&bundle).unwrap().count(), 1, "{id:?}");
    }
}

fn no_json(lab: &Lab, case: &RuntimeCase) {
    let daemon = daemon(lab, case);
    let (id, bundles) = (lab.id("nojson"), lab.dir("bundles"));
    for config in ["", "}{", "[1, 2", "\0\0\0\0"] {
        let Err(output) = Shim::start(&daemon, &id, &bundles, config.as_bytes()) else {
            panic!("{config:?} was accepted");
        };
        output.failure(&["config.json", "line"]);
        assert!(daemon.shim(&id).is_none());
        assert!(!bundles.join(&id).join("address").exists());
    }
}

fn broken_later(lab: &Lab, case: &RuntimeCase) {
    let shim = shim(lab, case, &["true"]);
    let file = shim.bundle().join("config.json");
    let good = fs::read(&file).unwrap();
    for broken in ["", "}{", "[1, 2", "{\"linux\": 7}"] {
        fs::write(&file, broken).unwrap();
        let refused = shim.call::<CreateTaskResponse>("Create", &shim.create_request()).unwrap_err();
        assert_eq!(refused.code, INVALID_ARGUMENT, "{broken:?}: {refused:?}");
        assert!(refused.message.contains("config.json"), "{broken:?}: {refused:?}");
    }
    fs::write(&file, good).unwrap();
    create(&shim).unwrap();
    end(&shim);
}

fn exec_terminal(lab: &Lab, case: &RuntimeCase) {
    let shim = shim(lab, case, &["sleep", "1000"]);
    let id = shim.id().to_owned();
    create(&shim).unwrap();
    shim.call::<StartResponse>("Start", &StartRequest { id: id.clone(), ..StartRequest::default() }).unwrap();
    for (name, asked, mut process) in [
        ("silent", true, json!({})),
        ("contrary", true, json!({"terminal": false})),
        ("eager", false, json!({"terminal": true})),
        ("modest", false, json!({})),
    ] {
        process["user"] = json!({"uid": 0, "gid": 0});
        process["args"] = json!(["sh", "-c", "test -t 0 && exit 7; exit 8"]);
        process["env"] = json!(["PATH=/bin"]);
        process["cwd"] = json!("/");
        let exec = ExecProcessRequest {
            id: id.clone(),
            exec_id: name.into(),
            terminal: asked,
            spec: MessageField::some(Any { value: process.to_string().into_bytes(), ..Any::default() }),
            ..ExecProcessRequest::default()
        };
        shim.call::<Empty>("Exec", &exec).unwrap();
        let start = StartRequest { id: id.clone(), exec_id: name.into(), ..StartRequest::default() };
        shim.call::<StartResponse>("Start", &start).unwrap();
        let wait = WaitRequest { id: id.clone(), exec_id: name.into(), ..WaitRequest::default() };
        let exit = shim.call::<WaitResponse>("Wait", &wait).unwrap();
        assert_eq!(exit.exit_status, if asked { 7 } else { 8 }, "{name}");
    }
    end(&shim);
}

fn nothing_survives(lab: &Lab, case: &RuntimeCase) {
    // In gVisor no process is the host's.
    if !case.is_runc() {
        return;
    }
    let shim = shim(lab, case, &["sh", "-c", "sleep 1000 & sleep 1000; true"]);
    let file = shim.bundle().join("config.json");
    let mut spec: serde_json::Value = serde_json::from_slice(&fs::read(&file).unwrap()).unwrap();
    spec["linux"]["namespaces"].as_array_mut().unwrap().retain(|namespace| namespace["type"] != "pid");
    fs::write(&file, spec.to_string()).unwrap();
    create(&shim).unwrap();
    let id = shim.id().to_owned();
    shim.call::<StartResponse>("Start", &StartRequest { id: id.clone(), ..StartRequest::default() }).unwrap();
    let request = PidsRequest { id: id.clone(), ..PidsRequest::default() };
    let pids = eventually("three processes", || {
        let pids = shim.call::<PidsResponse>("Pids", &request).unwrap().processes;
        (pids.len() == 3).then_some(pids)
    });
    shim.call::<Empty>("Kill", &KillRequest { id: id.clone(), signal: 9, ..KillRequest::default() }).unwrap();
    shim.call::<WaitResponse>("Wait", &WaitRequest { id, ..WaitRequest::default() }).unwrap();
    for process in pids {
        assert!(!std::path::Path::new(&format!("/proc/{}", process.pid)).exists(), "{} is left", process.pid);
    }
    end(&shim);
}

fn below_a_slice(lab: &Lab, case: &RuntimeCase) {
    let shim = shim(lab, case, &["true"]);
    let file = shim.bundle().join("config.json");
    let mut spec: serde_json::Value = serde_json::from_slice(&fs::read(&file).unwrap()).unwrap();
    // As the CRI writes it wherever a pod's cgroup parent ends in .slice.
    spec["linux"]["cgroupsPath"] = json!(format!("system.slice:{}:{}", daemon(lab, case).namespace(), shim.id()));
    fs::write(&file, spec.to_string()).unwrap();
    create(&shim).unwrap();
    end(&shim);
}

fn untouched(lab: &Lab, case: &RuntimeCase) {
    let shim = shim(lab, case, &["true"]);
    let file = shim.bundle().join("config.json");
    let mut spec: serde_json::Value = serde_json::from_slice(&fs::read(&file).unwrap()).unwrap();
    spec["linux"]["devices"] = json!([{"path": "/dev/fuse", "type": "c", "major": 10, "minor": 229}]);
    spec["annotations"] = json!({"dev.gvisor.internal.nvproxy": "true"});
    let written = format!("\n {:#}\n\n", spec);
    fs::write(&file, &written).unwrap();
    create(&shim).unwrap();
    let now = fs::read_to_string(&file).unwrap();
    if case.is_runc() {
        assert_eq!(now, written);
    } else {
        spec["linux"]["devices"] = json!([]);
        spec["annotations"] = json!({});
        assert_eq!(serde_json::from_str::<serde_json::Value>(&now).unwrap(), spec);
    }
    end(&shim);
}
