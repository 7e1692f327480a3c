//! What a container's cgroup tells, and what becomes of kills and processes in cgroups that the container made itself, which
//! only the unified hierarchy allows.

use std::fs;

use beta9_shim::cgroup::Cgroup;
use containerd_shim_protos::{
    cgroups, cgroups_v2,
    protobuf::{
        Message, MessageDyn,
        reflect::{ReflectFieldRef, ReflectValueRef},
    },
};
use serde_json::{Map, Value, json};

use super::Scenario;
use crate::{
    case::RuntimeCase,
    lab::{Lab, bundle, container::Container, eventually},
};

/// Where containers are the host's processes, on a host with the unified hierarchy.
pub const UNIFIED: &[Scenario] =
    &[("an OOM kill in a cgroup that the container made is told, and the container lives on", nested_kill)];

/// The same for our shim alone: Go's may lose a kill that ends the container, and asks `runc ps`, which fails at cgroups of
/// threads.
pub const UNIFIED_OURS: &[Scenario] = &[
    ("a container that is killed as a group: OOM first, then its exit with 137", group_kill),
    ("processes in cgroups that the container made are listed, those of threads included", nested_processes),
];

/// Of our shim with runc, in either hierarchy.
pub const MEASURED: &[Scenario] = &[("statistics are those of Go's shim, field by field", statistics)];

const LIMIT: u64 = 64 << 20;

/// Both shims' containers are measured by both: the library's numbers are what our shim sends.
fn statistics(lab: &Lab, case: &RuntimeCase) {
    let daemon = lab.daemon(case.daemon());
    let limit = format!("--memory-limit={LIMIT}");
    for shim in [&case.with_go_shim(), case] {
        let container = lab.container(&daemon, "statistics");
        container.detach(shim, &[&limit], &["sh", "-c", "cat /bin/busybox >/dev/null; exec sleep 1000"]);
        let pid = container.pid();
        eventually("a quiet container", || {
            fs::read(format!("/proc/{pid}/cmdline")).is_ok_and(|line| line.starts_with(b"sleep")).then_some(())
        });
        container.task("pause", &[]).success();
        let cgroup = Cgroup::of_pid(pid).unwrap();
        // The kernel goes on to settle a frozen cgroup's accounts for a moment.
        let (told, ours) = eventually("numbers that stand still", || {
            let told = told(&container);
            let ours = fields(&*message(&cgroup));
            (told == self::told(&container)).then_some((told, ours))
        });
        let limits = [&told["memory"]["usage_limit"], &told["memory"]["usage"]["limit"]];
        assert!(limits.contains(&&json!(LIMIT)), "{told}");
        assert_eq!(missing("", &told, &ours), Vec::<String>::new(), "of the daemon's {told}");
    }
}

fn nested_kill(lab: &Lab, case: &RuntimeCase) {
    let script = "mkdir own inner && echo 0 >own/cgroup.procs && echo +memory >cgroup.subtree_control && \
                  echo 16M >inner/memory.max && sh -c 'echo 0 >inner/cgroup.procs && exec tail /dev/zero'; \
                  test $? = 137 && exec sleep 1000";
    let container = in_its_own_tree(lab, case, script, json!({}));
    container.wait_for("oom", |_| true);
    assert_eq!(container.state().as_deref(), Some("RUNNING"));
    container.kill("SIGKILL").success();
    assert_eq!(container.exit_status(), 137);
    assert_eq!(container.topics().iter().filter(|topic| *topic == "oom").count(), 1);
    container.remove();
}

fn group_kill(lab: &Lab, case: &RuntimeCase) {
    let resources = json!({"memory": {"limit": 24 << 20}, "unified": {"memory.oom.group": "1"}});
    let script = "sleep 1000 & tail /dev/zero; exec sleep 1000";
    let container = in_its_own_tree(lab, case, script, resources);
    assert_eq!(container.exit_status(), 137);
    container.wait_for("oom", |_| true);
    let topics = container.topics();
    let exit = topics.iter().position(|topic| topic == "exit").unwrap();
    assert!(topics[..exit].contains(&"oom".into()) && !topics[exit..].contains(&"oom".into()), "{topics:?}");
    container.remove();
}

fn nested_processes(lab: &Lab, case: &RuntimeCase) {
    let script = "(mkdir -p own/threads && echo 0 >own/cgroup.procs && echo threaded >own/threads/cgroup.type && \
                  echo 0 >own/threads/cgroup.threads && exec sleep 1000) & exec sleep 1000";
    let container = in_its_own_tree(lab, case, script, json!({}));
    let listed = || -> Vec<String> {
        let table = container.task("ps", &[]).success().text();
        table.lines().skip(1).filter_map(|line| line.split_whitespace().next()).map(String::from).collect()
    };
    let nested = eventually("a process in a cgroup of threads", || {
        let place = |pid: &String| fs::read_to_string(format!("/proc/{pid}/cgroup")).unwrap_or_default();
        listed().into_iter().find(|pid| place(pid).trim_end().ends_with("/own/threads"))
    });
    assert_ne!(nested, container.pid().to_string());
    assert_eq!(listed().len(), 2);
    container.kill("SIGKILL").success();
    container.remove();
}

/// A container whose shell stands in its own cgroup, which it may write to.
fn in_its_own_tree(lab: &Lab, case: &RuntimeCase, script: &str, resources: Value) -> Container {
    let daemon = lab.daemon(case.daemon());
    let container = lab.container(&daemon, "tree");
    let cgroup = format!("/{}/{}", daemon.namespace(), container.id());
    let mut spec = bundle::spec(&lab.rootfs(), &cgroup, &["sh", "-c", &format!("cd /sys/fs/cgroup && {script}")]);
    let mounts = spec["mounts"].as_array_mut().unwrap();
    mounts.push(json!({"destination": "/sys/fs/cgroup", "type": "cgroup", "source": "cgroup", "options": ["rw"]}));
    spec["linux"]["namespaces"].as_array_mut().unwrap().push(json!({"type": "cgroup"}));
    let given = resources.as_object().unwrap().clone();
    spec["linux"]["resources"].as_object_mut().unwrap().extend(given);
    container.detach_spec(case, &spec, &lab.dir("tree").join("spec.json"));
    container
}

/// What the daemon's client shows of the statistics that the container's shim sent.
fn told(container: &Container) -> Value {
    let text = container.task("metrics", &["--format", "json"]).success().text();
    serde_json::from_str(&text).unwrap_or_else(|error| panic!("{error}: {text}"))
}

/// The statistics that our shim would send.
fn message(cgroup: &Cgroup) -> Box<dyn MessageDyn> {
    let any = cgroup.metrics().unwrap();
    match cgroup {
        Cgroup::V1(_) => Box::new(cgroups::metrics::Metrics::parse_from_bytes(&any.value).unwrap()),
        Cgroup::V2(_) => Box::new(cgroups_v2::metrics::Metrics::parse_from_bytes(&any.value).unwrap()),
    }
}

/// A message under its fields' protobuf names, which are also the names in the client's JSON.
fn fields(message: &dyn MessageDyn) -> Value {
    let mut object = Map::new();
    for field in message.descriptor_dyn().fields() {
        let value = match field.get_reflect(message) {
            ReflectFieldRef::Optional(value) => value.value().map(|value| plain(&value)),
            ReflectFieldRef::Repeated(values) => Some(values.into_iter().map(|value| plain(&value)).collect()),
            ReflectFieldRef::Map(_) => None,
        };
        object.extend(value.map(|value| (field.name().to_owned(), value)));
    }
    object.into()
}

fn plain(value: &ReflectValueRef) -> Value {
    match value {
        ReflectValueRef::U32(number) => json!(number),
        ReflectValueRef::U64(number) => json!(number),
        ReflectValueRef::F64(number) => json!(number),
        ReflectValueRef::String(text) => json!(text),
        ReflectValueRef::Message(message) => fields(&**message),
        other => panic!("statistics have no {other:?}"),
    }
}

/// The places where `ours` has not what `theirs` has, and nothing that is something.
fn missing(place: &str, theirs: &Value, ours: &Value) -> Vec<String> {
    match (theirs, ours) {
        (Value::Object(theirs), _) => {
            theirs.iter().flat_map(|(name, value)| missing(&format!("{place}.{name}"), value, &ours[name])).collect()
        }
        (Value::Array(theirs), Value::Array(ours)) if theirs.len() == ours.len() => {
            theirs.iter().zip(ours).flat_map(|(theirs, ours)| missing(&format!("{place}[]"), theirs, ours)).collect()
        }
        _ if theirs == ours => Vec::new(),
        _ => vec![format!("{place}: {theirs} and not {ours}")],
    }
}
