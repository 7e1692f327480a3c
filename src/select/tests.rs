//! Each rule a table; then the property that no annotation loosens what the configuration gives.

use proptest::prelude::*;

use super::*;
use log::Level;

const NODE: &str = "
worker:
  defaultPool: plain
  pools:
    plain: {containerRuntime: runc}
    secure: {containerRuntime: gvisor}
    kvm: {containerRuntime: gvisor, containerRuntimeConfig: {gvisorPlatform: kvm}}
    gpu: {containerRuntime: gvisor, gpuType: T4, runtime: nvidia}
    class: {containerRuntime: gvisor, runtime: nvidia}
    criu: {containerRuntime: gvisor, criuEnabled: true}
    debug: {containerRuntime: gvisor, containerRuntimeConfig: {debug: true, gvisorRoot: /srv/gvisor}}
    gpu-runc: {containerRuntime: runc, gpuType: T4}
    silent: {}
";

fn config(shim: &str) -> Config {
    Config::from_yaml("node.yaml", &format!("{NODE}\nshim: {{{shim}}}")).unwrap()
}

fn annotated(pairs: &str) -> BTreeMap<String, String> {
    let pair = |pair: &str| {
        let (key, value) = pair.split_once('=').unwrap();
        let key = if key.contains('/') { key.to_owned() } else { format!("run.beam.cloud/{key}") };
        (key, value.to_owned())
    };
    pairs.split_whitespace().map(pair).collect()
}

fn full() -> HostFacts {
    let runsc = RunscFact::Found { version: "20260601".into(), nvproxy: true, capabilities: true };
    HostFacts { runsc: Some(runsc), kvm: Some(Ok(())), nvidia_driver: Some(true) }
}

fn device() -> Workload {
    Workload { gpu: vec![GpuEvidence::Device("/dev/nvidia0".into())] }
}

fn hook() -> Workload {
    Workload { gpu: vec![GpuEvidence::Hook("nvidia-cdi-hook".into())] }
}

/// A decision in a few words: `gvisor systrap nvproxy debug`, `runc`, or the refusal.
fn told(shim: &str, pool: &str, annotations: &str, workload: &Workload, host: &HostFacts) -> String {
    match decide(&config(shim), Some(pool), &annotated(annotations), workload, host) {
        Err(refusal) => refusal.to_string(),
        Ok(decision) => {
            let moved = if decision.moved.is_some() { " moved" } else { "" };
            assert_eq!(decision.moved.is_some(), decision.warnings.iter().any(|w| w.contains("is moved from gVisor")));
            match &decision.runtime {
                Runtime::Runc { .. } => format!("runc{moved}"),
                Runtime::Gvisor(gvisor) => {
                    let nvproxy = if gvisor.nvproxy { " nvproxy" } else { "" };
                    let debug = if gvisor.debug { " debug" } else { "" };
                    format!("gvisor {}{nvproxy}{debug}{moved}", gvisor.platform)
                }
            }
        }
    }
}

/// Whether a table's cell is an outcome, which must match in full, or part of a refusal.
fn is_outcome(cell: &str) -> bool {
    cell.starts_with("gvisor ") || ["runc", "runc moved"].contains(&cell)
}

#[test]
fn annotations_are_followed_as_far_as_the_policy_lets_them() {
    // (policy, pool, annotations, outcome or a part of the refusal)
    let rows = [
        ("", "plain", "", "runc"),
        ("", "silent", "", "runc"),
        ("", "secure", "", "gvisor systrap"),
        ("", "kvm", "", "gvisor kvm"),
        ("", "gpu", "", "gvisor systrap nvproxy"),
        ("", "gpu-runc", "", "runc"),
        ("", "class", "", "gvisor systrap"),
        ("", "debug", "", "gvisor systrap debug"),
        // The runtime.
        ("", "plain", "container-runtime=gvisor", "gvisor systrap"),
        ("", "plain", "container-runtime=runc", "runc"),
        ("", "secure", "container-runtime=gvisor", "gvisor systrap"),
        ("", "secure", "container-runtime=runc", "annotation run.beam.cloud/container-runtime: runc is refused"),
        ("annotations: trust", "secure", "container-runtime=runc", "runc moved"),
        ("annotations: ignore", "secure", "container-runtime=runc", "gvisor systrap"),
        ("annotations: ignore", "plain", "container-runtime=gvisor", "runc"),
        (
            "",
            "plain",
            "container-runtime=docker",
            "container-runtime: \"docker\" is not allowed; allowed: runc, gvisor",
        ),
        // The platform.
        ("", "secure", "gvisor-platform=systrap", "gvisor systrap"),
        ("", "secure", "gvisor-platform=kvm", "gvisor-platform: kvm is refused"),
        ("", "kvm", "gvisor-platform=ptrace", "gvisor-platform: ptrace is refused"),
        ("", "plain", "gvisor-platform=kvm", "runc"),
        ("", "plain", "container-runtime=gvisor gvisor-platform=kvm", "gvisor kvm"),
        ("annotations: trust", "secure", "gvisor-platform=ptrace", "gvisor ptrace"),
        ("", "secure", "gvisor-platform=/dev/kvm", "allowed: systrap, kvm, ptrace"),
        // nvproxy.
        (
            "",
            "secure",
            "nvproxy=true",
            "opening the host's GPU driver to it on a pod's own word is refused in pool secure",
        ),
        ("", "gpu", "nvproxy=true", "gvisor systrap nvproxy"),
        ("", "class", "nvproxy=true", "gvisor systrap nvproxy"),
        ("", "gpu", "nvproxy=false", "gvisor systrap"),
        ("", "plain", "nvproxy=true", "runc"),
        ("", "plain", "container-runtime=gvisor nvproxy=true", "gvisor systrap nvproxy"),
        ("annotations: trust", "secure", "nvproxy=true", "gvisor systrap nvproxy"),
        ("annotations: ignore", "secure", "nvproxy=true", "gvisor systrap"),
        ("", "secure", "nvproxy=yes", "nvproxy: \"yes\" is not allowed; allowed: true, false"),
        // Checkpointing.
        ("", "secure", "checkpoint=true", "checkpoint: true is refused"),
        ("", "plain", "checkpoint=true", "runc"),
        ("", "criu", "", "runc moved"),
        ("", "criu", "checkpoint=true", "runc moved"),
        ("", "criu", "checkpoint=false", "gvisor systrap"),
        ("annotations: trust", "secure", "checkpoint=true", "runc moved"),
        ("", "plain", "container-runtime=gvisor checkpoint=true", "runc moved"),
        ("checkpointWorkloads: native", "secure", "checkpoint=true", "gvisor systrap"),
        ("checkpointWorkloads: native", "criu", "", "gvisor systrap"),
        ("checkpointWorkloads: reject", "criu", "", "shim.checkpointWorkloads: reject"),
        ("checkpointWorkloads: reject", "secure", "checkpoint=true", "the annotation run.beam.cloud/checkpoint"),
        // Debugging.
        ("", "secure", "debug=true", "debug: true is refused"),
        ("", "plain", "container-runtime=gvisor debug=true", "debug: true is refused"),
        ("", "debug", "debug=true", "gvisor systrap debug"),
        ("", "debug", "debug=false", "gvisor systrap"),
        ("annotations: trust", "secure", "debug=true", "gvisor systrap debug"),
        ("annotations: ignore", "debug", "debug=false", "gvisor systrap debug"),
    ];
    for (shim, pool, annotations, expected) in rows {
        let told = told(shim, pool, annotations, &Workload::default(), &full());
        let is_refusal = !is_outcome(expected);
        assert!(told == expected || is_refusal && told.contains(expected), "{shim} {pool} {annotations}: {told}");
    }
}

#[test]
fn gpu_workloads_follow_their_policy() {
    let cdi = "cdi.k8s.io/nvidia-gpu=nvidia.com/gpu=0";
    let none = Workload::default();
    let rows = [
        ("", "secure", "", device(), "gvisor systrap nvproxy"),
        ("", "secure", "", hook(), "gvisor systrap nvproxy"),
        ("", "secure", cdi, none.clone(), "gvisor systrap nvproxy"),
        ("", "secure", cdi, device(), "gvisor systrap nvproxy"),
        ("", "gpu", cdi, none.clone(), "gvisor systrap nvproxy"),
        ("", "class", cdi, none.clone(), "gvisor systrap nvproxy"),
        ("annotations: trust", "secure", cdi, none.clone(), "gvisor systrap nvproxy"),
        ("annotations: ignore", "secure", cdi, none.clone(), "gvisor systrap nvproxy"),
        ("annotations: ignore", "gpu", cdi, none.clone(), "gvisor systrap nvproxy"),
        ("", "plain", cdi, device(), "runc"),
        ("", "secure", "nvproxy=false", device(), "gvisor systrap"),
        ("gpuWorkloads: runc", "secure", "", none.clone(), "gvisor systrap"),
        ("gpuWorkloads: runc", "gpu", "", none.clone(), "runc moved"),
        ("gpuWorkloads: runc", "secure", "", device(), "runc moved"),
        ("gpuWorkloads: runc", "secure", "", hook(), "leaving gVisor for runc"),
        ("gpuWorkloads: runc", "secure", cdi, none.clone(), "leaving gVisor for runc"),
        ("gpuWorkloads: runc", "class", cdi, none.clone(), "leaving gVisor for runc"),
        ("gpuWorkloads: runc", "secure", "nvproxy=true", none.clone(), "leaving gVisor for runc"),
        ("gpuWorkloads: runc", "gpu", "nvproxy=false", none.clone(), "gvisor systrap"),
        ("gpuWorkloads: runc, annotations: trust", "secure", cdi, none.clone(), "runc moved"),
        ("gpuWorkloads: runc", "plain", "container-runtime=gvisor nvproxy=true", none.clone(), "runc moved"),
        ("gpuWorkloads: reject", "gpu", "", none.clone(), "gvisor systrap"),
        ("gpuWorkloads: reject", "gpu", cdi, none.clone(), "shim.gpuWorkloads: reject"),
        ("gpuWorkloads: reject", "secure", "", device(), "the device /dev/nvidia0"),
        ("gpuWorkloads: reject", "criu", "nvproxy=false", device(), "the device /dev/nvidia0"),
        ("gpuWorkloads: reject", "plain", "", device(), "runc"),
    ];
    for (shim, pool, annotations, workload, expected) in rows {
        let told = told(shim, pool, annotations, &workload, &full());
        let is_refusal = !is_outcome(expected);
        assert!(told == expected || is_refusal && told.contains(expected), "{shim} {pool} {annotations}: {told}");
    }
}

#[test]
fn what_the_host_lacks_is_an_error_or_the_policys_fallback() {
    let missing = RunscFact::Missing { tried: "runsc: not in PATH".into() };
    let old = RunscFact::Found { version: "20221219".into(), nvproxy: false, capabilities: false };
    let no_runsc = HostFacts { runsc: Some(missing), ..full() };
    let old_runsc = HostFacts { runsc: Some(old), ..full() };
    let no_driver = HostFacts { nvidia_driver: Some(false), ..full() };
    let no_kvm = HostFacts { kvm: Some(Err("/dev/kvm: permission denied".into())), ..full() };
    let nothing = HostFacts::default();
    let rows = [
        ("", "secure", &no_runsc, "runtime gvisor is not available: runsc: not in PATH"),
        ("", "secure", &nothing, "runtime gvisor is not available: nobody looked for runsc"),
        ("", "plain", &nothing, "runc"),
        ("runscUnavailable: runc", "secure", &no_runsc, "runc moved"),
        ("runscUnavailable: runc", "gpu", &no_runsc, "runc moved"),
        ("", "secure", &old_runsc, "gvisor systrap"),
        ("", "gpu", &old_runsc, "needs a runsc that knows --nvproxy, and 20221219 does not"),
        ("", "gpu", &no_driver, "needs NVIDIA's driver on the node"),
        ("gpuWorkloads: runc", "gpu", &no_driver, "runc moved"),
        ("", "kvm", &no_kvm, "gvisor systrap"),
        ("kvmUnavailable: fail", "kvm", &no_kvm, "platform kvm is not available: /dev/kvm: permission denied"),
        ("kvmUnavailable: fail", "kvm", &full(), "gvisor kvm"),
    ];
    for (shim, pool, host, expected) in rows {
        let told = told(shim, pool, "", &Workload::default(), host);
        let is_refusal = !is_outcome(expected);
        assert!(told == expected || is_refusal && told.contains(expected), "{shim} {pool}: {told}");
    }
    let decision = decide(&config(""), Some("kvm"), &annotated(""), &Workload::default(), &no_kvm).unwrap();
    assert_eq!(decision.warnings, ["platform kvm is not available (/dev/kvm: permission denied), using systrap"]);
}

#[test]
fn a_host_is_asked_only_for_what_matters() {
    let needs = |pool, workload| plan(&config(""), Some(pool), &annotated(""), &workload).unwrap().needs();
    assert_eq!(needs("plain", device()), Needs::default());
    assert_eq!(needs("secure", Workload::default()), Needs { runsc: true, ..Needs::default() });
    assert_eq!(needs("kvm", Workload::default()), Needs { runsc: true, kvm: true, nvidia_driver: false });
    assert_eq!(needs("secure", device()), Needs { runsc: true, kvm: false, nvidia_driver: true });
}

#[test]
fn the_pool_is_the_handlers_then_the_annotations_then_the_default() {
    let pool = |pinned, annotations, yaml: &str| {
        let config = Config::from_yaml("node.yaml", yaml).unwrap();
        let decision = decide(&config, pinned, &annotated(annotations), &Workload::default(), &full());
        decision.map(|decision| decision.pool)
    };
    let named = "worker-pool-name=secure";
    assert_eq!(pool(Some("gpu"), named, NODE), Ok(Some("gpu".into())));
    assert_eq!(pool(None, named, NODE), Ok(Some("secure".into())));
    let ignoring = format!("{NODE}\nshim: {{annotations: ignore}}");
    assert_eq!(pool(None, named, &ignoring), Ok(Some("secure".into())));
    assert_eq!(pool(None, "", NODE), Ok(Some("plain".into())));
    assert_eq!(pool(None, "", ""), Ok(None));
    assert_eq!(
        pool(None, "worker-pool-name=sceure", "worker: {pools: {secure: , plain: }}").unwrap_err().to_string(),
        "unknown pool \"sceure\", named by the annotation run.beam.cloud/worker-pool-name; known pools: plain, secure"
    );
    let error = pool(Some("x"), "", "").unwrap_err().to_string();
    assert_eq!(error, "unknown pool \"x\", named by the handler's runtime options; the configuration has no pools");
}

#[test]
fn what_a_tenant_wrote_is_short_and_escaped_in_every_message() {
    for key in [POOL, CONTAINER_RUNTIME, NVPROXY, "cdi.k8s.io/"] {
        let hostile = "\n\u{1b}[2J".repeat(100_000);
        let mut annotations = BTreeMap::from([(key.to_owned(), hostile.clone())]);
        annotations.insert(format!("cdi.k8s.io/{hostile}"), String::new());
        let host = HostFacts {
            runsc: Some(RunscFact::Found { version: "1".into(), nvproxy: true, capabilities: true }),
            nvidia_driver: Some(false),
            kvm: None,
        };
        let refusal = decide(&config(""), (key != POOL).then_some("secure"), &annotations, &Workload::default(), &host);
        let text = refusal.unwrap_err().to_string();
        assert!(text.len() < 1_500 && !text.contains(char::is_control), "{text}");
    }
}

#[test]
fn the_command_line_is_that_of_the_documents() {
    let args = |pool, systemd| {
        let decision =
            decide(&config("runscFlags: [--network=host]"), Some(pool), &annotated(""), &Workload::default(), &full());
        decision.unwrap().base_args("k8s.io", systemd).join(" ")
    };
    assert_eq!(args("plain", false), "--root /run/containerd/runc/k8s.io");
    assert_eq!(args("plain", true), "--root /run/containerd/runc/k8s.io --systemd-cgroup");
    assert_eq!(args("secure", false), "--root /run/gvisor/k8s.io --platform systrap --network=host");
    assert_eq!(args("gpu", false), "--root /run/gvisor/k8s.io --platform systrap --nvproxy=true --network=host");
    assert_eq!(
        args("debug", true),
        "--root /srv/gvisor/k8s.io --platform systrap --debug=true --debug-log=/srv/gvisor/debug.log \
         --systemd-cgroup=true --network=host"
    );
}

#[test]
fn driver_capabilities_are_given_with_nvproxy_and_only_if_configured() {
    let config = config("nvproxyDriverCapabilities: [compute, utility]");
    for (pool, given) in [("gpu", true), ("secure", false)] {
        let decision = decide(&config, Some(pool), &annotated(""), &Workload::default(), &full()).unwrap();
        let flag = "--nvproxy-allowed-driver-capabilities=compute,utility".to_owned();
        assert_eq!(decision.base_args("n", false).contains(&flag), given);
    }
}

#[test]
fn a_decision_survives_being_written_down() {
    for pool in ["plain", "gpu", "criu", "debug"] {
        let decision = decide(&config(""), Some(pool), &annotated(""), &Workload::default(), &full()).unwrap();
        let json = serde_json::to_string(&decision).unwrap();
        assert_eq!(serde_json::from_str::<Decision>(&json).unwrap(), decision);
    }
}

#[test]
fn runscs_own_annotations_reach_it_only_where_they_decide_nothing() {
    let passes = |shim, pool, key| {
        decide(&config(shim), Some(pool), &annotated(""), &Workload::default(), &full()).unwrap().passes_annotation(key)
    };
    assert!(passes("", "secure", "dev.gvisor.flag.network"));
    for key in ["dev.gvisor.internal.nvproxy", "dev.gvisor.spec.cgroup-parent", "dev.gvisor.spec.rootfs.overlay"] {
        assert!(!passes("", "secure", key));
        assert!(!passes("annotations: ignore", "secure", key));
        assert!(passes("annotations: trust", "secure", key));
        assert!(passes("", "plain", key));
    }
    let heeded = "runscFlags: [--allow-flag-override]";
    assert!(!passes(heeded, "secure", "dev.gvisor.flag.network"));
    // The shim reads these, and tells runsc what comes of them.
    assert!(!passes("", "secure", "dev.gvisor.spec.mount.cache.share"));
    assert!(!passes("", "secure", "io.kubernetes.cri-o.ContainerType"));
    assert!(passes("", "secure", "io.kubernetes.cri.container-type"));
}

#[test]
fn a_container_without_a_pid_namespace_of_its_own_shares_one() {
    let shares = |namespaces: &str| {
        let spec = format!(r#"{{"linux": {{"namespaces": {namespaces}}}}}"#);
        SpecView::from_json(spec.as_bytes()).unwrap().shares_pids()
    };
    assert!(!shares(r#"[{"type": "mount"}, {"type": "pid"}]"#));
    assert!(!shares(r#"[{"type": "pid", "path": ""}]"#));
    assert!(shares(r#"[{"type": "pid", "path": "/proc/1/ns/pid"}]"#));
    for none in ["[]", "null", r#"[{"type": "mount"}]"#, "[{}]"] {
        assert!(shares(none), "{none}");
    }
}

#[test]
fn a_later_container_gets_a_gpu_only_where_the_sandbox_has_nvproxy() {
    let decided = |pool, annotations| {
        decide(&config(""), Some(pool), &annotated(annotations), &Workload::default(), &full()).unwrap()
    };
    assert_eq!(decided("gpu", "").admit(&device(), &BTreeMap::new()), Ok(()));
    assert_eq!(decided("plain", "").admit(&device(), &BTreeMap::new()), Ok(()));
    assert_eq!(decided("secure", "").admit(&Workload::default(), &BTreeMap::new()), Ok(()));
    assert!(
        decided("secure", "")
            .admit(&device(), &BTreeMap::new())
            .unwrap_err()
            .to_string()
            .contains("started without nvproxy")
    );
    // Who forgoes the GPU has its devices cleared instead.
    assert_eq!(decided("gpu", "nvproxy=false").admit(&device(), &BTreeMap::new()), Ok(()));
}

#[test]
fn the_log_has_the_lines_that_operators_grep_for() {
    let lines = |shim, pool, host: &HostFacts| -> Vec<String> {
        let decision = decide(&config(shim), Some(pool), &annotated(""), &Workload::default(), host).unwrap();
        let show = |line: LogLine| {
            let fields: Vec<_> = line.fields.iter().map(|(key, value)| format!("{key}={value}")).collect();
            let level = match line.level {
                Level::Warn => "WARN",
                Level::Info => "INFO",
                _ => "DEBUG",
            };
            format!("{level} {} {}", line.message, fields.join(" "))
        };
        decision.log_lines("abc123").into_iter().map(show).collect()
    };
    assert_eq!(
        lines("", "kvm", &full()),
        [
            "INFO initializing container runtime for worker pool pool=kvm runtime=gvisor",
            "INFO gVisor runtime initialized successfully platform=kvm root=/run/gvisor",
            "DEBUG selected runtime for container container_id=abc123 runtime=gvisor",
        ]
    );
    assert_eq!(
        lines("gpuWorkloads: runc", "gpu", &full()),
        [
            "INFO initializing container runtime for worker pool pool=gpu runtime=gvisor",
            "WARN the pod is moved from gVisor to runc: the pool's gpuType T4 (shim.gpuWorkloads: runc) container_id=abc123",
            "DEBUG using runc for GPU workload container_id=abc123",
            "DEBUG selected runtime for container container_id=abc123 runtime=runc",
        ]
    );
    let gone = HostFacts { runsc: Some(RunscFact::Missing { tried: "no runsc".into() }), ..full() };
    assert_eq!(
        lines("runscUnavailable: runc", "secure", &gone)[2],
        "WARN failed to create gvisor runtime, falling back to runc container_id=abc123 error=no runsc"
    );
}

#[test]
fn a_gpu_is_found_in_a_spec_by_device_hook_or_annotation() {
    let hook = |stage, path, env| {
        format!(
            r#"{{"hooks": {{"{stage}": [{{"path": "{path}"}}]}}, "process": {{"env": ["A=b", "NVIDIA_VISIBLE_DEVICES={env}"]}}}}"#
        )
    };
    let rows = [
        (r#"{"linux": {"devices": [{"path": "/dev/fuse"}, {"path": "/dev/nvidia0"}]}}"#.to_owned(), true),
        (r#"{"linux": {"devices": [{"path": "/dev/nvidiactl"}]}}"#.to_owned(), true),
        (r#"{"linux": {"devices": [{"path": "/dev/fuse"}, {}]}}"#.to_owned(), false),
        (r#"{"annotations": {"cdi.k8s.io/nvidia-gpu": "nvidia.com/gpu=0"}}"#.to_owned(), true),
        (r#"{"annotations": {"x.cdi.k8s.io/y": ""}}"#.to_owned(), false),
        (hook("prestart", "/usr/bin/nvidia-container-runtime-hook", "all"), true),
        (hook("createContainer", "/usr/bin/nvidia-cdi-hook", "0"), true),
        (hook("createContainer", "/usr/bin/nvidia-container-runtime-hook", "all"), false),
        (hook("prestart", "/usr/bin/other", "all"), false),
        (hook("prestart", "/usr/bin/nvidia-container-runtime-hook", "void"), false),
        (hook("prestart", "/usr/bin/nvidia-container-runtime-hook", ""), false),
        (r#"{"process": {"env": ["NVIDIA_VISIBLE_DEVICES=all"]}}"#.to_owned(), false),
        (
            r#"{"hooks": null, "linux": {"devices": null}, "process": {"env": null}, "annotations": null}"#.to_owned(),
            false,
        ),
        ("{}".to_owned(), false),
    ];
    for (spec, asks) in rows {
        let spec_view = SpecView::from_json(spec.as_bytes()).unwrap();
        assert_eq!(Workload::from_spec(&spec_view).asks_for_gpu(), asks, "{spec}");
    }
}

#[test]
fn a_cgroup_is_systemds_when_its_path_says_slice_prefix_name() {
    for (path, systemd) in [
        ("kubepods-pod1.slice:cri-containerd:abc", true),
        ("system.slice:x:y", true),
        (":x:y", true),
        ("/kubepods/pod1/abc", false),
        ("/a:b:c", false),
        ("a:b:", false),
        ("a:b:c:d", false),
        ("", false),
    ] {
        let spec = serde_json::json!({ "linux": { "cgroupsPath": path } }).to_string();
        assert_eq!(SpecView::from_json(spec.as_bytes()).unwrap().systemd_cgroup(), systemd, "{path}");
    }
    assert!(!SpecView::default().systemd_cgroup());
}

/// The order of isolation: gVisor before runc; within gVisor the configured platform, no driver, no debug log. A GPU
/// that the operator offers the pool is no loss.
/// A CDI annotation is a fact of the spec, as a device is; what it asks for is the policy's to give.
fn is_no_loss(before: &Decision, after: &Decision, pool: &Pool, cdi: bool) -> bool {
    match (&before.runtime, &after.runtime) {
        (Runtime::Runc { .. }, _) => true,
        (Runtime::Gvisor(_), Runtime::Runc { .. }) => false,
        (Runtime::Gvisor(before), Runtime::Gvisor(after)) => {
            before.platform == after.platform
                && (!after.nvproxy || before.nvproxy || cdi || pool.offers_gpu())
                && (!after.debug || before.debug)
                && (&before.root, &before.binary) == (&after.root, &after.binary)
        }
    }
}

fn word<T: Copy + std::fmt::Debug>(words: &'static [(&'static str, T)]) -> impl Strategy<Value = &'static str> {
    proptest::sample::select(words).prop_map(|(word, _)| word)
}

fn value() -> impl Strategy<Value = String> {
    prop_oneof![
        8 => proptest::sample::select(vec!["true", "false", "runc", "gvisor", "systrap", "kvm", "ptrace"]).prop_map(str::to_owned),
        1 => "\\PC{0,8}",
    ]
}

fn annotation() -> impl Strategy<Value = (String, String)> {
    let own = [
        (CONTAINER_RUNTIME, vec!["runc", "gvisor"]),
        (GVISOR_PLATFORM, vec!["systrap", "kvm", "ptrace"]),
        (NVPROXY, vec!["true", "false"]),
        (CHECKPOINT, vec!["true", "false"]),
        (DEBUG, vec!["true", "false"]),
        ("cdi.k8s.io/gpu", vec!["nvidia.com/gpu=0"]),
    ];
    let fitting = proptest::sample::select(own.to_vec()).prop_flat_map(|(key, values)| {
        proptest::sample::select(values).prop_map(move |value| (key.to_owned(), value.to_owned()))
    });
    let keys = vec![CONTAINER_RUNTIME, GVISOR_PLATFORM, NVPROXY, CHECKPOINT, DEBUG, "cdi.k8s.io", "run.beam.cloud/x"];
    let wild = (proptest::sample::select(keys).prop_map(str::to_owned), value());
    prop_oneof![9 => fitting, 1 => wild]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2_000))]

    #[test]
    fn no_annotation_loosens_what_the_configuration_gives(
        pool in proptest::sample::select(vec!["plain", "secure", "kvm", "gpu", "class", "criu", "debug", "gpu-runc", "silent"]),
        trusted in word(&[("ignore", ()), ("tighten", ())]),
        gpu in word(GpuWorkloads::WORDS),
        checkpoint in word(CheckpointWorkloads::WORDS),
        kvm in word(KvmUnavailable::WORDS),
        runsc in word(RunscUnavailable::WORDS),
        annotations in proptest::collection::vec(annotation(), 0..5),
        workload in proptest::sample::select(vec![Workload::default(), device(), hook()]),
        has_runsc in any::<bool>(), knows_nvproxy in any::<bool>(), has_kvm in any::<bool>(), has_driver in any::<bool>(),
    ) {
        let config = config(&format!(
            "annotations: {trusted}, gpuWorkloads: {gpu}, checkpointWorkloads: {checkpoint}, kvmUnavailable: {kvm}, \
             runscUnavailable: {runsc}",
        ));
        let found = RunscFact::Found { version: String::new(), nvproxy: knows_nvproxy, capabilities: knows_nvproxy };
        let host = HostFacts {
            runsc: Some(if has_runsc { found } else { RunscFact::Missing { tried: String::new() } }),
            kvm: Some(if has_kvm { Ok(()) } else { Err(String::new()) }),
            nvidia_driver: Some(has_driver),
        };
        let annotations: BTreeMap<String, String> = annotations.into_iter().collect();
        let alone = decide(&config, Some(pool), &BTreeMap::new(), &workload, &host);
        let after = decide(&config, Some(pool), &annotations, &workload, &host);
        match (alone, after) {
            (Ok(alone), Ok(after)) => {
                prop_assert!(is_no_loss(&alone, &after, config.pool(pool).unwrap(), GpuEvidence::cdi(&annotations).is_some()), "{alone:#?}\n{after:#?}");
            }
            // What gVisor alone would not start, no annotation starts with runc. Only the operator does: by the fallback,
            // or by criuEnabled once the pod has taken back the request for a GPU that it was refused.
            (Err(refusal), Ok(after)) => {
                let operators = match &after.moved {
                    Some(Moved::RunscUnavailable(_)) => true,
                    Some(Moved::Checkpoint(_)) => matches!(refusal, Refusal::GpuNotOffered { .. }),
                    _ => false,
                };
                prop_assert!(operators || matches!(after.runtime, Runtime::Gvisor(_)), "{refusal}\n{after:#?}");
            }
            (_, Err(_)) => {}
        }
    }

    #[test]
    fn no_spec_makes_the_reader_panic(text in "(?s).{0,200}") {
        let _ = SpecView::from_json(text.as_bytes()).map(|spec| Workload::from_spec(&spec));
    }
}

#[test]
fn a_runsc_counts_its_releases_by_date() {
    for (version, expected) in [
        ("release-20240729.0", Some(20240729)),
        ("0.0~20221219.0", Some(20221219)),
        ("20260511.1-3+b2", Some(20260511)),
        ("VERSION_MISSING", None),
        ("release-123456789.0", None),
        ("10000000", None),
    ] {
        assert_eq!(super::release(version), expected, "{version}");
    }
}

#[test]
fn a_later_container_gets_its_pods_decision_or_none() {
    let admitted = |shim: &str, pool: &str, pods: &str, own: &str| {
        let decision = decide(&config(shim), Some(pool), &annotated(pods), &Workload::default(), &full()).unwrap();
        decision.admit(&Workload::default(), &annotated(own)).map_err(|refusal| refusal.to_string())
    };
    for (pool, pods, own) in [
        ("secure", "", ""),
        ("secure", "", "container-runtime=gvisor"),
        ("secure", "", "gvisor-platform=systrap"),
        ("secure", "", "nvproxy=false debug=false checkpoint=false"),
        ("plain", "container-runtime=gvisor", "container-runtime=gvisor"),
        ("plain", "container-runtime=gvisor gvisor-platform=kvm", "gvisor-platform=kvm"),
        ("plain", "", "container-runtime=runc"),
    ] {
        assert_eq!(admitted("", pool, pods, own), Ok(()), "{pool} {pods} {own}");
    }
    for (pool, pods, own) in [
        ("secure", "", "container-runtime=runc"),
        ("secure", "", "gvisor-platform=ptrace"),
        ("secure", "", "nvproxy=true"),
        ("secure", "", "container-runtime=nonsense"),
        ("plain", "", "container-runtime=gvisor"),
        ("plain", "container-runtime=gvisor", "container-runtime=runc"),
    ] {
        let refusal = admitted("", pool, pods, own).unwrap_err();
        assert!(refusal.contains("first container decides"), "{refusal}");
    }
    assert_eq!(admitted("annotations: ignore", "secure", "", "container-runtime=runc"), Ok(()));
}

#[test]
fn a_limit_that_this_runsc_does_not_know_is_said_so() {
    let host = |capabilities| HostFacts {
        runsc: Some(RunscFact::Found { version: "20240729".into(), nvproxy: true, capabilities }),
        ..full()
    };
    let limited = "nvproxyDriverCapabilities: [compute]";
    assert_eq!(told(limited, "gpu", "", &device(), &host(true)), "gvisor systrap nvproxy");
    assert!(told(limited, "gpu", "", &device(), &host(false)).contains("20240729 knows no such limit"));
    assert_eq!(told("", "gpu", "", &device(), &host(false)), "gvisor systrap nvproxy");
    assert_eq!(told(limited, "secure", "", &Workload::default(), &host(false)), "gvisor systrap");
}
