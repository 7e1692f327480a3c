use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::sync::atomic::{AtomicU32, Ordering};

use super::*;

const NODE: &str = "
worker:
  pools:
    plain: {containerRuntime: runc}
    secure: {containerRuntime: gvisor}
    gpu: {containerRuntime: gvisor, gpuType: T4, runtime: nvidia}
";

struct Ran {
    status: i32,
    out: String,
    err: String,
    /// What the host was asked for.
    asked: Vec<Needs>,
}

impl Ran {
    fn json(&self) -> serde_json::Value {
        serde_json::from_str(&self.out).unwrap()
    }
}

/// Runs `explain` on the configuration above, with what `spec` says, on a host that has runsc and nothing else.
fn run(args: &str, spec: Option<&str>) -> Ran {
    static NEXT: AtomicU32 = AtomicU32::new(0);
    let number = NEXT.fetch_add(1, Ordering::Relaxed);
    let directory = std::env::temp_dir().join(format!("beta9-explain-{}-{number}", std::process::id()));
    fs::create_dir(&directory).unwrap();
    fs::set_permissions(&directory, fs::Permissions::from_mode(0o755)).unwrap();
    let config = directory.join("node.yaml");
    fs::write(&config, NODE).unwrap();
    fs::set_permissions(&config, fs::Permissions::from_mode(0o644)).unwrap();
    let mut arguments: Vec<OsString> = vec!["--config".into(), config.into()];
    if let Some(spec) = spec {
        fs::write(directory.join("config.json"), spec).unwrap();
        arguments.extend(["--bundle".into(), directory.clone().into()]);
    }
    arguments.extend(args.split_whitespace().map(OsString::from));

    let mut asked = Vec::new();
    let mut probe = |needs: &Needs, _: &Plan| {
        asked.push(*needs);
        let runsc = RunscFact::Found { version: "1".into(), nvproxy: true, capabilities: true };
        HostFacts { runsc: Some(runsc), kvm: Some(Err("no kvm".into())), nvidia_driver: Some(false) }
    };
    let (mut out, mut err) = (Vec::new(), Vec::new());
    let status = explain(&arguments, &mut probe, true, &mut out, &mut err);
    fs::remove_dir_all(&directory).unwrap();
    let text = |bytes| String::from_utf8(bytes).unwrap();
    Ran { status, out: text(out), err: text(err), asked }
}

#[test]
fn json_has_exactly_the_promised_fields() {
    let ran = run("--json --pool gpu --assume nvidia-driver=yes", None);
    assert_eq!((ran.status, ran.err.as_str()), (0, ""));
    let expected = json!({
        "pool": "gpu", "runtime": "gvisor", "platform": "systrap", "root": "/run/gvisor", "nvproxy": true,
        "command": ["runsc", "--root", "/run/gvisor/k8s.io", "--platform", "systrap", "--nvproxy=true"],
        "reasons": [
            "pool gpu: named by the handler's runtime options",
            "container runtime gvisor: pool gpu",
            "nvproxy: the pool's gpuType T4",
        ],
        "warnings": [],
    });
    assert_eq!(ran.json(), expected);
}

#[test]
fn runc_has_no_platform_and_asks_the_host_for_nothing() {
    let ran = run("--json", None);
    let told = ran.json();
    assert_eq!((&told["pool"], &told["platform"], &told["runtime"]), (&json!(null), &json!(null), &json!("runc")));
    assert_eq!(told["command"], json!(["runc", "--root", "/run/containerd/runc/k8s.io"]));
    assert!(ran.asked.is_empty());
}

#[test]
fn people_get_the_reasons_as_a_list() {
    let ran = run("--annotation run.beam.cloud/worker-pool-name=secure", None);
    assert_eq!(ran.status, 0);
    assert!(ran.out.contains("runtime:   gvisor\nplatform:  systrap\nnvproxy:   false\n"), "{}", ran.out);
    assert!(ran.out.contains("reasons:\n  - pool secure: named by the annotation"), "{}", ran.out);
}

#[test]
fn a_refusal_is_exit_1_and_says_why_in_the_form_asked_for() {
    let ran = run("--pool secure --annotation run.beam.cloud/container-runtime=runc", None);
    assert_eq!((ran.status, ran.out.as_str()), (1, ""));
    assert!(
        ran.err.starts_with("refused: annotation run.beam.cloud/container-runtime: runc is refused"),
        "{}",
        ran.err
    );
    let ran = run("--json --pool none", None);
    assert_eq!((ran.status, ran.err.as_str()), (1, ""));
    let told = ran.json();
    assert!(told["error"].as_str().unwrap().contains("known pools: gpu, plain, secure"));
    assert_eq!(told.as_object().unwrap().len(), 1);
}

#[test]
fn a_wrong_configuration_is_exit_1() {
    let ran = run("--config /nowhere/node.yaml", None);
    assert_eq!(ran.status, 1);
    assert!(ran.err.contains("/nowhere/node.yaml"), "{}", ran.err);
}

#[test]
fn assumed_facts_are_not_looked_up_and_count() {
    let ran = run("--json --pool secure --assume runsc=missing", None);
    assert!(ran.asked.is_empty() && ran.out.contains("runtime gvisor is not available"), "{}", ran.out);
    let ran = run("--json --pool gpu --assume runsc=20221219 --assume runsc-nvproxy=no", None);
    assert_eq!(ran.asked, [Needs { nvidia_driver: true, ..Needs::default() }]);
    assert!(ran.out.contains("20221219 does not"), "{}", ran.out);
    let ran = run("--json --pool gpu --assume runsc-nvproxy=yes", None);
    assert!(ran.out.contains("no /dev/nvidiactl"), "{}", ran.out);
    let kvm =
        "--annotation run.beam.cloud/container-runtime=gvisor --annotation run.beam.cloud/gvisor-platform=kvm --json";
    assert_eq!(run(&format!("{kvm} --assume kvm=yes"), None).json()["platform"], "kvm");
    assert_eq!(run(kvm, None).json()["platform"], "systrap");
}

#[test]
fn a_bundle_gives_annotations_devices_and_cgroup() {
    let spec = r#"{"annotations": {"run.beam.cloud/worker-pool-name": "secure"},
        "linux": {"cgroupsPath": "pod.slice:cri:x", "devices": [{"path": "/dev/nvidia0"}]}}"#;
    let told = run("--json --assume nvidia-driver=yes", Some(spec)).json();
    assert_eq!((&told["pool"], &told["nvproxy"]), (&json!("secure"), &json!(true)));
    assert!(told["command"].as_array().unwrap().contains(&json!("--systemd-cgroup=true")));
    let ran = run("--json", Some("{"));
    assert!(ran.status == 1 && ran.out.contains("config.json"), "{}", ran.out);
}

#[test]
fn wrong_usage_is_exit_2_and_help_is_exit_0() {
    for args in [
        "--frob",
        "extra",
        "--pool",
        "--annotation novalue",
        "--annotation =x",
        "--assume moon=full",
        "--assume kvm=perhaps",
        "--json=yes",
    ] {
        let ran = run(args, None);
        assert_eq!((ran.status, ran.out.as_str()), (2, ""), "{args}");
        assert!(ran.err.contains("Try explain --help."), "{}", ran.err);
    }
    let ran = run("--help", None);
    assert!(ran.status == 0 && ran.out.starts_with("Usage: containerd-shim-beta9-v2 explain"));
    assert_eq!(run("--pool=secure --json", None).json()["pool"], "secure");
}
