//! GPUs: what a spec's devices become, nvproxy, and nodes that cannot give it. There is no GPU and no driver in the lab: a recording
//! runsc shows what it was told, and then runs the container without nvproxy.

use std::{fs, path::Path, sync::Arc};

use serde_json::{Value, json};

use super::{Scenario, faults::with_fake};
use crate::{
    case::RuntimeCase,
    lab::{
        Lab, bundle,
        container::Container,
        daemon::Daemon,
        eventually,
        fake::{self, Fake},
    },
};

pub const SCENARIOS: &[Scenario] = &[
    ("without a GPU, a spec's devices are cleared for gVisor and stay for runc", cleared),
    ("a GPU that gVisor cannot give on this node is an error that says why, and leaves nothing", unavailable),
];

/// Where gVisor knows nvproxy.
pub const NVPROXY: &[Scenario] = &[
    ("a GPU in a gVisor pool is run with nvproxy, and keeps its devices", devices),
    ("a pool with a gpuType is run with nvproxy, whatever the spec says", gpu_type),
    ("a CDI annotation is run with nvproxy", cdi),
    ("a GPU workload that the policy gives to runc runs there, and the log says so", policy),
];

/// What every call for a container with nvproxy has.
const FLAG: &str = "--nvproxy=true";

fn gpu_devices() -> Value {
    let device =
        |path: &str, major: u32, minor: u32| json!({"path": path, "type": "c", "major": major, "minor": minor});
    let gpus = [device("/dev/nvidia0", 195, 0), device("/dev/nvidia1", 195, 1)];
    let common = [device("/dev/nvidiactl", 195, 255), device("/dev/nvidia-uvm", 510, 0)];
    json!([gpus, common].concat())
}

/// A spec that waits for its end, with these devices.
fn spec(lab: &Lab, daemon: &Daemon, container: &Container, devices: &Value) -> Value {
    let cgroup = format!("/{}/{}", daemon.namespace(), container.id());
    let mut spec = bundle::spec(&lab.rootfs(), &cgroup, &["sleep", "1000"]);
    spec["linux"]["devices"] = devices.clone();
    spec
}

/// A daemon on a node with a driver, and with a recording runtime that runs containers without nvproxy.
fn with_driver(lab: &Lab, case: &RuntimeCase) -> (Arc<Daemon>, Fake) {
    let fake = Fake::install(&lab.dir("fake"), &case.runtime_program());
    fake.behave(&format!("drop {FLAG}\nclear-devices"));
    let mut options = case.daemon().clone();
    options.programs.insert(case.runtime_name(), fake.program());
    let containerd = fake::containerd_with_driver(&lab.dir("driver"), &options.version.containerd());
    options.programs.insert("containerd", containerd);
    (lab.own_daemon(&options), fake)
}

/// The case with a pool of its own: this entry within its braces, and these further lines of the `shim` section.
fn with_pool(lab: &Lab, case: &RuntimeCase, pool: &str, shim: &str) -> RuntimeCase {
    let file = lab.dir("config").join("gpu.yaml");
    let config = format!(
        "worker:\n  defaultPool: gpu\n  pools:\n    gpu: {{containerRuntime: gvisor, {pool}}}\n\
         shim:\n  runscFlags: [\"--network=none\"]\n{shim}"
    );
    fs::write(&file, config).unwrap();
    case.configured_by(Some(&file))
}

/// Ends a container that runs, from kill to delete.
fn end(container: &Container) {
    // Only the runtime can deliver this one, to a process that does not heed it.
    container.kill("SIGURG").success();
    container.kill("SIGKILL").success();
    assert_eq!(container.exit_status(), 137);
    container.remove();
}

/// Checks what a recording runtime was told about its one container, from create to delete.
fn assert_nvproxy(fake: &Fake, daemon: &Daemon) {
    let calls: Vec<_> =
        fake.calls().into_iter().filter(|call| call.first().is_some_and(|first| first == "--root")).collect();
    let root = format!("/run/gvisor/{}", daemon.namespace());
    for call in &calls {
        assert_eq!(call[..5], ["--root", &root, "--platform", "systrap", FLAG], "{call:?}");
    }
    for verb in ["create", "start", "kill", "delete"] {
        assert!(calls.iter().any(|call| call.iter().any(|argument| argument == verb)), "no {verb}: {calls:?}");
    }
    // Besides these it is only asked what it is.
    let others = fake.calls().into_iter().filter(|call| call.first().is_some_and(|first| first != "--root"));
    for call in others {
        assert!(call == ["--version"] || call == ["flags"] || call == ["help", "restore"], "{call:?}");
    }
}

fn devices(lab: &Lab, case: &RuntimeCase) {
    let (daemon, fake) = with_driver(lab, case);
    let container = lab.container(&daemon, "gpu");
    let devices = gpu_devices();
    container.detach_spec(case, &spec(lab, &daemon, &container, &devices), &lab.dir("spec").join("spec.json"));
    container.exec("inside", &[], &["true"]).success();
    end(&container);
    assert_nvproxy(&fake, &daemon);
    let specs = fake.specs();
    assert_eq!(specs.len(), 1);
    assert_eq!(paths(&specs[0]), paths(&json!({"linux": {"devices": devices}})));
    daemon.until_log_says(&["starting container with nvproxy", container.id(), "nvproxy_enabled=true", "level=info"]);
    assert!(!Path::new("/dev/nvidiactl").exists(), "the host's /dev was changed");
}

fn gpu_type(lab: &Lab, case: &RuntimeCase) {
    let (daemon, fake) = with_driver(lab, case);
    let container = lab.container(&daemon, "gputype");
    container.detach(&with_pool(lab, case, "gpuType: A100", ""), &[], &["sleep", "1000"]);
    end(&container);
    assert_nvproxy(&fake, &daemon);
}

fn cdi(lab: &Lab, case: &RuntimeCase) {
    let (daemon, fake) = with_driver(lab, case);
    let container = lab.container(&daemon, "cdi");
    container.detach(case, &["--annotation=cdi.k8s.io/plugin=nvidia.com/gpu=0"], &["sleep", "1000"]);
    end(&container);
    assert_nvproxy(&fake, &daemon);
}

fn policy(lab: &Lab, case: &RuntimeCase) {
    let (daemon, fake) = with_fake(lab, case);
    let case = with_pool(lab, case, "gpuType: A100", "  gpuWorkloads: runc\n");
    let container = lab.container(&daemon, "moved");
    let kernel = container.run(&case, &[], &["cat", "/proc/version"]).success();
    assert_eq!(kernel.text(), fs::read_to_string("/proc/version").unwrap());
    assert!(fake.calls().is_empty(), "{:?}", fake.calls());
    daemon.until_log_says(&["level=warn", "the pod is moved from gVisor to runc", "A100", container.id()]);
    daemon.until_log_says(&["level=debug", "using runc for GPU workload", container.id()]);
}

fn cleared(lab: &Lab, case: &RuntimeCase) {
    let (daemon, fake) = with_fake(lab, case);
    let container = lab.container(&daemon, "cleared");
    let devices = json!([{"path": "/dev/fuse", "type": "c", "major": 10, "minor": 229}]);
    container.detach_spec(case, &spec(lab, &daemon, &container, &devices), &lab.dir("spec").join("spec.json"));
    end(&container);
    let calls = fake.calls();
    assert!(!calls.iter().flatten().any(|argument| argument.contains("nvproxy")), "{calls:?}");
    let kept: &[&str] = if case.is_runc() { &["/dev/fuse"] } else { &[] };
    assert_eq!(paths(&fake.specs()[0]), kept);
}

fn unavailable(lab: &Lab, case: &RuntimeCase) {
    let daemon = lab.daemon(case.daemon());
    let container = lab.container(&daemon, "nodriver");
    // The pool is runc's in runc's case: its pods get gVisor by their annotation.
    let mut spec = spec(lab, &daemon, &container, &gpu_devices());
    spec["annotations"] = json!({"run.beam.cloud/container-runtime": "gvisor"});
    let old = !case.is_runc() && !case.knows_nvproxy();
    let words: &[&str] =
        if old { &["/dev/nvidia0", "--nvproxy", "20221219"] } else { &["/dev/nvidia0", "/dev/nvidiactl", "driver"] };
    container.try_spec(case, &spec, &lab.dir("spec").join("spec.json")).failure(words);
    eventually("the end of the shim", || daemon.shim(container.id()).is_none().then_some(()));
    assert!(!daemon.bundle(container.id()).exists(), "a bundle was left");
}

/// The devices of a spec.
fn paths(spec: &Value) -> Vec<&str> {
    spec["linux"]["devices"].as_array().into_iter().flatten().filter_map(|device| device["path"].as_str()).collect()
}
