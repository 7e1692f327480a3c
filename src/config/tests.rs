//! Every example of the documents that the system was asked for in, every key, every way to get one wrong.

use proptest::prelude::*;

use super::*;
use ContainerRuntime::{Gvisor, Runc};
use Platform::{Kvm, Ptrace, Systrap};

fn load(yaml: &str) -> Config {
    Config::from_yaml("node.yaml", yaml).unwrap_or_else(|error| panic!("{error}\n{yaml}"))
}

fn error(yaml: &str) -> String {
    Config::from_yaml("node.yaml", yaml).expect_err(yaml).to_string()
}

/// What a document says of one pool: name, container runtime (none = the node's), platform, root, pod RuntimeClass, GPU,
/// CRIU, debug.
type Row = (&'static str, Option<ContainerRuntime>, Platform, &'static str, Option<&'static str>, bool, bool, bool);
const GVISOR: &str = "/run/gvisor";

/// (the example, what it says of the node, what it says of its pools). The examples are the documents' own, comments
/// aside; a fragment stands in the place that its document shows around it.
const EXAMPLES: &[(&str, ContainerRuntime, &[Row])] = &[
    // gVisor platforms: the three fragments.
    (
        "worker: {pools: {p: {runtime: gvisor, runtimeConfig: {gvisorPlatform: systrap}}}}",
        Runc,
        &[("p", Some(Gvisor), Systrap, GVISOR, None, false, false, false)],
    ),
    (
        "worker: {pools: {p: {runtime: gvisor, runtimeConfig: {gvisorPlatform: kvm}}}}",
        Runc,
        &[("p", Some(Gvisor), Kvm, GVISOR, None, false, false, false)],
    ),
    (
        "worker: {pools: {p: {runtime: gvisor, runtimeConfig: {gvisorPlatform: ptrace}}}}",
        Runc,
        &[("p", Some(Gvisor), Ptrace, GVISOR, None, false, false, false)],
    ),
    // Production, bare metal, development, comparing platforms.
    (
        "worker:\n  pools:\n    default:\n      runtime: gvisor\n      runtimeConfig:\n        gvisorPlatform: systrap\n        gvisorRoot: /run/gvisor\n\n    gpu-pool:\n      runtime: gvisor\n      gpuType: T4\n      runtimeConfig:\n        gvisorPlatform: systrap\n        gvisorRoot: /run/gvisor\n",
        Runc,
        &[
            ("default", Some(Gvisor), Systrap, GVISOR, None, false, false, false),
            ("gpu-pool", Some(Gvisor), Systrap, GVISOR, None, true, false, false),
        ],
    ),
    (
        "worker:\n  pools:\n    high-performance:\n      runtime: gvisor\n      runtimeConfig:\n        gvisorPlatform: kvm\n        gvisorRoot: /run/gvisor\n",
        Runc,
        &[("high-performance", Some(Gvisor), Kvm, GVISOR, None, false, false, false)],
    ),
    (
        "worker:\n  pools:\n    dev:\n      runtime: gvisor\n      runtimeConfig:\n        gvisorPlatform: systrap  # Works in Docker Desktop, etc.\n        gvisorRoot: /tmp/gvisor\n",
        Runc,
        &[("dev", Some(Gvisor), Systrap, "/tmp/gvisor", None, false, false, false)],
    ),
    (
        "worker:\n  pools:\n    systrap-pool:\n      runtime: gvisor\n      runtimeConfig:\n        gvisorPlatform: systrap\n    \n    kvm-pool:\n      runtime: gvisor\n      runtimeConfig:\n        gvisorPlatform: kvm\n    \n    runc-pool:\n      runtime: runc\n",
        Runc,
        &[
            ("systrap-pool", Some(Gvisor), Systrap, GVISOR, None, false, false, false),
            ("kvm-pool", Some(Gvisor), Kvm, GVISOR, None, false, false, false),
            ("runc-pool", Some(Runc), Systrap, GVISOR, None, false, false, false),
        ],
    ),
    // Container runtimes for each pool.
    ("worker:\n  containerRuntime: \"runc\"  # or \"gvisor\"\n", Runc, &[]),
    (
        "worker:\n  pools:\n    # GPU pool - must use runc\n    gpu-pool:\n      gpuType: \"nvidia-a100\"\n      runtime: \"runc\"\n      criuEnabled: true\n      # ... other pool settings\n    \n    sandbox-pool:\n      runtime: \"gvisor\"\n      runtimeConfig:\n        gvisorPlatform: \"kvm\"      # or \"ptrace\" (optional)\n        gvisorRoot: \"/run/gvisor\"  # optional, defaults to /run/gvisor\n    \n    standard-pool:\n      # runtime not specified, falls back to global default\n      # ... other pool settings\n",
        Runc,
        &[
            ("gpu-pool", Some(Runc), Systrap, GVISOR, None, true, true, false),
            ("sandbox-pool", Some(Gvisor), Kvm, GVISOR, None, false, false, false),
            ("standard-pool", None, Systrap, GVISOR, None, false, false, false),
        ],
    ),
    (
        "worker: {pools: {p: {runtime: gvisor, runtimeConfig: {gvisorRoot: \"/run/gvisor\"}}}}",
        Runc,
        &[("p", Some(Gvisor), Systrap, GVISOR, None, false, false, false)],
    ),
    (
        "worker:\n  containerRuntime: \"runc\"  # Global default\n  \n  pools:\n    secure-sandbox:\n      runtime: \"gvisor\"\n      runtimeConfig:\n        gvisorPlatform: \"kvm\"\n      mode: \"local\"\n    standard:\n      runtime: \"runc\"\n      criuEnabled: true\n      mode: \"local\"\n    gpu-a100:\n      runtime: \"runc\"\n      gpuType: \"nvidia-a100\"\n      criuEnabled: false\n      mode: \"external\"\n",
        Runc,
        &[
            ("secure-sandbox", Some(Gvisor), Kvm, GVISOR, None, false, false, false),
            ("standard", Some(Runc), Systrap, GVISOR, None, false, true, false),
            ("gpu-a100", Some(Runc), Systrap, GVISOR, None, true, false, false),
        ],
    ),
    (
        "worker:\n  containerRuntime: \"gvisor\"  # Global default\n  \n  pools:\n    sandbox-ptrace:\n      # Uses global gVisor default\n      runtimeConfig:\n        gvisorPlatform: \"ptrace\"\n    \n    sandbox-kvm:\n      runtime: \"gvisor\"\n      runtimeConfig:\n        gvisorPlatform: \"kvm\"\n",
        Gvisor,
        &[
            ("sandbox-ptrace", None, Ptrace, GVISOR, None, false, false, false),
            ("sandbox-kvm", Some(Gvisor), Kvm, GVISOR, None, false, false, false),
        ],
    ),
    (
        "worker:\n  pools:\n    my-pool:\n      runtime: \"runc\"  # Change from \"gvisor\"\n      # Remove runtimeConfig section\n",
        Runc,
        &[("my-pool", Some(Runc), Systrap, GVISOR, None, false, false, false)],
    ),
    // GPUs in gVisor.
    (
        "worker:\n  pools:\n    gpu:\n      # Kubernetes RuntimeClass for the pod (enables NVIDIA device plugin)\n      runtime: nvidia\n      \n      # Internal container runtime for workloads\n      containerRuntime: gvisor\n      \n      # gVisor-specific settings\n      containerRuntimeConfig:\n        gvisorPlatform: systrap  # Required for GPU\n        gvisorRoot: /run/gvisor\n      \n      # GPU configuration\n      gpuType: A100\n",
        Runc,
        &[("gpu", Some(Gvisor), Systrap, GVISOR, Some("nvidia"), true, false, false)],
    ),
    (
        "worker: {pools: {gpu: {containerRuntime: gvisor, containerRuntimeConfig: {gvisorPlatform: kvm}}}}",
        Runc,
        &[("gpu", Some(Gvisor), Kvm, GVISOR, None, false, false, false)],
    ),
    (
        "worker: {pools: {gpu: {containerRuntime: gvisor, containerRuntimeConfig: {gvisorPlatform: ptrace}}}}",
        Runc,
        &[("gpu", Some(Gvisor), Ptrace, GVISOR, None, false, false, false)],
    ),
    (
        "worker: {pools: {gpu: {containerRuntime: gvisor, containerRuntimeConfig: {gvisorPlatform: systrap, debug: true}}}}",
        Runc,
        &[("gpu", Some(Gvisor), Systrap, GVISOR, None, false, false, true)],
    ),
    // Its migration guide, before and after: pools without a worker around them.
    (
        "# Before\npools:\n  gpu:\n    containerRuntime: runc\n",
        Runc,
        &[("gpu", Some(Runc), Systrap, GVISOR, None, false, false, false)],
    ),
    (
        "# After\npools:\n  gpu:\n    runtime: nvidia  # Pod RuntimeClass\n    containerRuntime: gvisor  # Container runtime\n    containerRuntimeConfig:\n      gvisorPlatform: systrap\n",
        Runc,
        &[("gpu", Some(Gvisor), Systrap, GVISOR, Some("nvidia"), false, false, false)],
    ),
    // The two kinds of runtime.
    (
        "worker:\n  pools:\n    gpu-pool:\n      runtime: nvidia  # ← Pod runs with NVIDIA Container Runtime\n",
        Runc,
        &[("gpu-pool", None, Systrap, GVISOR, Some("nvidia"), false, false, false)],
    ),
    (
        "worker:\n  pools:\n    secure-pool:\n      containerRuntime: gvisor  # ← User containers run in gVisor sandbox\n",
        Runc,
        &[("secure-pool", Some(Gvisor), Systrap, GVISOR, None, false, false, false)],
    ),
    (
        "worker:\n  pools:\n    my-pool:\n      # ========================================\n      # POD RUNTIME (Kubernetes level)\n      # ========================================\n      runtime: nvidia  # Optional: RuntimeClass for the pod\n      \n      containerRuntime: gvisor  # Required: runc or gvisor\n      containerRuntimeConfig:\n        gvisorPlatform: systrap\n        gvisorRoot: /run/gvisor\n",
        Runc,
        &[("my-pool", Some(Gvisor), Systrap, GVISOR, Some("nvidia"), false, false, false)],
    ),
    (
        "worker:\n  pools:\n    default:\n      mode: local\n      # No pod runtime specified (use K8s default)\n      containerRuntime: runc  # User containers use runc\n      containerRuntimeConfig:\n        gvisorPlatform: systrap  # Ignored for runc\n        gvisorRoot: /run/gvisor   # Ignored for runc\n",
        Runc,
        &[("default", Some(Runc), Systrap, GVISOR, None, false, false, false)],
    ),
    (
        "worker:\n  pools:\n    secure:\n      mode: local\n      containerRuntime: gvisor  # User containers use gVisor\n      containerRuntimeConfig:\n        gvisorPlatform: systrap\n        gvisorRoot: /run/gvisor\n",
        Runc,
        &[("secure", Some(Gvisor), Systrap, GVISOR, None, false, false, false)],
    ),
    (
        "worker:\n  pools:\n    gpu-runc:\n      mode: local\n      gpuType: T4\n      runtime: nvidia  # Pod needs GPU access\n      containerRuntime: runc  # User containers use runc\n      containerRuntimeConfig:\n        gvisorPlatform: systrap\n        gvisorRoot: /run/gvisor\n",
        Runc,
        &[("gpu-runc", Some(Runc), Systrap, GVISOR, Some("nvidia"), true, false, false)],
    ),
    (
        "worker:\n  pools:\n    gpu-gvisor:\n      mode: local\n      gpuType: T4\n      runtime: nvidia  # Pod needs GPU access\n      containerRuntime: gvisor  # User containers use gVisor\n      containerRuntimeConfig:\n        gvisorPlatform: systrap\n        gvisorRoot: /run/gvisor\n",
        Runc,
        &[("gpu-gvisor", Some(Gvisor), Systrap, GVISOR, Some("nvidia"), true, false, false)],
    ),
    (
        "worker:\n  pools:\n    public:\n      mode: local\n      # No special pod runtime needed\n      containerRuntime: gvisor  # Strong isolation\n      containerRuntimeConfig:\n        gvisorPlatform: systrap\n",
        Runc,
        &[("public", Some(Gvisor), Systrap, GVISOR, None, false, false, false)],
    ),
    (
        "worker:\n  pools:\n    gpu-training:\n      mode: local\n      gpuType: A100\n      runtime: nvidia  # Pod needs GPU\n      containerRuntime: runc  # Max performance\n",
        Runc,
        &[("gpu-training", Some(Runc), Systrap, GVISOR, Some("nvidia"), true, false, false)],
    ),
    (
        "worker:\n  pools:\n    gpu-inference:\n      mode: local\n      gpuType: T4\n      runtime: nvidia  # Pod needs GPU\n      containerRuntime: gvisor  # User isolation\n      containerRuntimeConfig:\n        gvisorPlatform: systrap\n",
        Runc,
        &[("gpu-inference", Some(Gvisor), Systrap, GVISOR, Some("nvidia"), true, false, false)],
    ),
    (
        "worker:\n  pools:\n    # Fast, direct execution\n    performance:\n      containerRuntime: runc\n    \n    # Secure, sandboxed execution\n    sandbox:\n      containerRuntime: gvisor\n      containerRuntimeConfig:\n        gvisorPlatform: systrap\n    \n    # GPU with max performance\n    gpu-fast:\n      runtime: nvidia\n      containerRuntime: runc\n    \n    # GPU with security\n    gpu-secure:\n      runtime: nvidia\n      containerRuntime: gvisor\n      containerRuntimeConfig:\n        gvisorPlatform: systrap\n",
        Runc,
        &[
            ("performance", Some(Runc), Systrap, GVISOR, None, false, false, false),
            ("sandbox", Some(Gvisor), Systrap, GVISOR, None, false, false, false),
            ("gpu-fast", Some(Runc), Systrap, GVISOR, Some("nvidia"), false, false, false),
            ("gpu-secure", Some(Gvisor), Systrap, GVISOR, Some("nvidia"), false, false, false),
        ],
    ),
    (
        "worker:\n  pools:\n    gpu:\n      runtime: nvidia  # ← Add this for pod GPU access\n      containerRuntime: gvisor\n",
        Runc,
        &[("gpu", Some(Gvisor), Systrap, GVISOR, Some("nvidia"), false, false, false)],
    ),
    (
        "pools:\n  pool-a:\n    runtime: nvidia\n    containerRuntime: runc\n  pool-b:\n    # no pod runtime\n    containerRuntime: gvisor\n",
        Runc,
        &[
            ("pool-a", Some(Runc), Systrap, GVISOR, Some("nvidia"), false, false, false),
            ("pool-b", Some(Gvisor), Systrap, GVISOR, None, false, false, false),
        ],
    ),
];

#[test]
fn every_example_loads_and_gives_what_its_document_says() {
    for (yaml, runtime, rows) in EXAMPLES {
        let config = load(yaml);
        assert_eq!(config.container_runtime, *runtime, "{yaml}");
        assert_eq!(config.pools.len(), rows.len(), "{yaml}");
        for (name, runtime, platform, root, class, gpu, criu, debug) in *rows {
            let pool = config.pool(name).unwrap();
            let expected = GvisorConfig { platform: *platform, root: (*root).into(), debug: *debug };
            assert_eq!(pool.container_runtime, *runtime, "{name} in\n{yaml}");
            assert_eq!(pool.gvisor, expected, "{name} in\n{yaml}");
            assert_eq!(pool.pod_runtime_class.as_deref(), *class, "{name} in\n{yaml}");
            assert_eq!((pool.gpu_type.is_some(), pool.criu_enabled), (*gpu, *criu), "{name} in\n{yaml}");
            assert!(pool.warnings.is_empty(), "{:?}", pool.warnings);
        }
    }
}

#[test]
fn an_empty_file_and_empty_values_give_the_defaults() {
    for yaml in
        ["", "---\n", "# nothing\n", "worker:\n", "worker: {pools: }", "shim:\nworker: {containerRuntime: \"\"}"]
    {
        assert_eq!(load(yaml), Config::default(), "{yaml}");
    }
    let pool =
        load("worker: {pools: {p: {runtime: '', gpuType: '', runtimeConfig: {gvisorPlatform: '', gvisorRoot: }}}}");
    assert_eq!(pool.pool("p"), Some(&Pool::default()));
}

#[test]
fn a_shim_table_sets_binaries_flags_and_policies() {
    let config = load(
        "shim: {runc: /opt/runc, runsc: runsc-dev, runscFlags: [--network=host, --overlay2=none], \
         nvproxyDriverCapabilities: 'utility, compute', annotations: ignore, gpuWorkloads: reject, \
         checkpointWorkloads: native, kvmUnavailable: fail, runscUnavailable: runc}",
    );
    assert_eq!((config.runc.as_str(), config.runsc.as_str()), ("/opt/runc", "runsc-dev"));
    assert_eq!(config.runsc_flags, ["--network=host", "--overlay2=none"]);
    assert_eq!(config.nvproxy_driver_capabilities.unwrap(), ["utility", "compute"]);
    let policies = Policies {
        annotations: Annotations::Ignore,
        gpu_workloads: GpuWorkloads::Reject,
        checkpoint_workloads: CheckpointWorkloads::Native,
        kvm_unavailable: KvmUnavailable::Fail,
        runsc_unavailable: RunscUnavailable::Runc,
    };
    assert_eq!(config.policies, policies);
}

#[test]
fn a_pool_overrides_single_policies_and_inherits_the_rest() {
    let config = load("shim: {gpuWorkloads: runc}\nworker: {pools: {p: {shim: {annotations: trust}}, q: {}}}");
    let node = Policies { gpu_workloads: GpuWorkloads::Runc, ..Policies::default() };
    assert_eq!(config.pool("q").unwrap().policies, node);
    assert_eq!(config.pool("p").unwrap().policies, Policies { annotations: Annotations::Trust, ..node });
}

#[test]
fn each_mistake_is_named_with_its_place_and_what_is_allowed() {
    let rows: &[(&str, &[&str])] = &[
        (
            "worker:\n  containerRuntime: docker\n",
            &["node.yaml:2:21: worker.containerRuntime: \"docker\" is not allowed; allowed: runc, gvisor"],
        ),
        (
            "worker:\n  pools:\n    secure:\n      containerRuntimeConfig:\n        gvisorPlatform: xen\n",
            &[
                "node.yaml:5:25: worker.pools.secure.containerRuntimeConfig.gvisorPlatform: \"xen\" is not allowed; allowed: systrap, kvm, ptrace",
            ],
        ),
        (
            "worker:\n  pools:\n    secure:\n      containerRuntimeConfig:\n        gvisorPlatfrom: kvm\n",
            &[
                "node.yaml:5:9: unknown key worker.pools.secure.containerRuntimeConfig.gvisorPlatfrom; did you mean gvisorPlatform?",
            ],
        ),
        (
            "worker: {pools: {p: {runtimeConfig: {colour: red}}}}",
            &["unknown key worker.pools.p.runtimeConfig.colour; known here: gvisorPlatform, gvisorRoot, debug"],
        ),
        ("shim: {runscFlag: []}", &["node.yaml:1:8: unknown key shim.runscFlag; did you mean runscFlags?"]),
        ("worker: {pools: {p: {shim: {runsc: runsc}}}}", &["unknown key worker.pools.p.shim.runsc; "]),
        (
            "shim: {annotations: allow}",
            &["shim.annotations: \"allow\" is not allowed; allowed: ignore, tighten, trust"],
        ),
        ("shim: {gpuWorkloads: true}", &["shim.gpuWorkloads: true is not allowed; allowed: nvproxy, runc, reject"]),
        (
            "worker: {defaultPool: x, pools: {a: , b: }}",
            &["node.yaml:1:23: worker.defaultPool: \"x\" is not a pool of worker.pools; known pools: a, b"],
        ),
        ("worker: {defaultPool: x}", &["the configuration has no pools"]),
        ("worker: {pools: [a]}", &["worker.pools: a list is not a table of keys"]),
        (
            "worker: {pools: {p: {criuEnabled: 'yes'}}}",
            &["worker.pools.p.criuEnabled: \"yes\" is not allowed; allowed: true, false"],
        ),
        ("worker: {pools: {p: {containerRuntimeConfig: {debug: 1}}}}", &["containerRuntimeConfig.debug: 1 is not"]),
        ("worker: [", &["node.yaml:", "not valid YAML"]),
        ("worker:\n\tpools: {}\n", &["node.yaml:2:", "not valid YAML"]),
        ("worker:\n  containerRuntime: runc\n  containerRuntime: gvisor\n", &["node.yaml:3:3: not valid YAML: key"]),
        ("- worker\n", &["is not a table of keys"]),
        ("worker: &a [*a]", &["not valid YAML"]),
        ("a: 1\n---\nb: 2\n", &["not valid YAML"]),
    ];
    for (yaml, parts) in rows {
        let error = error(yaml);
        for part in *parts {
            assert!(error.contains(part), "{error}\nlacks {part}");
        }
    }
}

#[test]
fn a_gvisor_root_is_absolute_and_clean() {
    for root in ["run/gvisor", "/run//gvisor", "/run/../etc", "/run/./gvisor", "/run/gvisor/", "/", "\"/run/\\n\""] {
        let error = error(&format!("worker: {{pools: {{p: {{runtimeConfig: {{gvisorRoot: {root}}}}}}}}}"));
        assert!(error.contains("worker.pools.p.runtimeConfig.gvisorRoot: "), "{error}");
        assert!(error.contains("allowed: an absolute path"), "{error}");
    }
}

#[test]
fn a_binary_is_a_name_or_an_absolute_path() {
    for path in ["./runsc", "bin/runsc", "/opt/../runsc"] {
        assert!(error(&format!("shim: {{runsc: {path}}}")).contains("is not a program's name or an absolute path"));
    }
    for path in ["runsc", "/usr/bin/runsc"] {
        assert!(error(&format!("shim: {{runc: {path}}}")).contains("runsc is not a runc"));
    }
}

#[test]
fn a_runsc_flag_is_a_flag_and_none_of_the_shims_own() {
    for flag in ["-root=/x", "network=host", "--", "--=x", "---root=/x", "\"--a\\n\""] {
        let error = error(&format!("shim: {{runscFlags: [--strace, {flag}]}}"));
        assert!(error.contains("shim.runscFlags[1]: ") && error.contains("write --name=value"), "{error}");
    }
    for name in OWNED_FLAGS {
        let error = error(&format!("shim: {{runscFlags: [--{name}=x]}}"));
        assert!(error.contains("the shim itself decides these flags"), "{error}");
    }
    assert!(error("shim: {runscFlags: --strace}").contains("is not a list"));
}

#[test]
fn driver_capabilities_are_those_that_nvproxy_knows() {
    assert!(error("shim: {nvproxyDriverCapabilities: [compute, magic]}").contains("[1]: \"magic\" is not allowed"));
    assert!(error("shim: {nvproxyDriverCapabilities: []}").contains("allowed: all, compat32"));
}

#[test]
fn the_newer_spelling_wins_and_a_difference_is_a_warning_that_names_both() {
    let config = load(
        "worker:\n  pools:\n    p:\n      containerRuntime: gvisor\n      runtime: runc\n      \
         containerRuntimeConfig: {gvisorPlatform: kvm}\n      runtimeConfig: {gvisorPlatform: ptrace}\n",
    );
    let pool = config.pool("p").unwrap();
    assert_eq!((pool.container_runtime, pool.gvisor.platform), (Some(Gvisor), Kvm));
    assert_eq!(pool.pod_runtime_class, None);
    assert_eq!(
        pool.warnings,
        [
            "node.yaml:5:16: worker.pools.p.runtime: runc differs from containerRuntime: gvisor; containerRuntime counts",
            "node.yaml:7:22: worker.pools.p.runtimeConfig differs from containerRuntimeConfig; containerRuntimeConfig counts",
        ]
    );
    let same = load("worker: {pools: {p: {containerRuntime: gvisor, runtime: gvisor}}}");
    assert_eq!(same.all_warnings().count(), 0);
}

#[test]
fn a_runtime_class_is_never_an_oci_runtime() {
    for class in ["nvidia", "kata", "runsc", "gVisor", "RUNC"] {
        let config = load(&format!("worker: {{pools: {{p: {{runtime: {class}}}}}}}"));
        let pool = config.pool("p").unwrap();
        assert_eq!((pool.container_runtime, pool.pod_runtime_class.as_deref()), (None, Some(class)));
        assert_eq!(pool.warnings.is_empty(), ["nvidia", "kata"].contains(&class), "{class}");
    }
}

#[test]
fn keys_of_others_are_tolerated_and_slips_of_ours_are_warned_of() {
    let config =
        load("gateway: {host: x}\nworker: {hostNetwork: true, pools: {p: {mode: local, poolSizing: {freeCpu: 1}}}}");
    assert_eq!(config.all_warnings().count(), 0);
    let config = load("worker: {pools: {p: {containerRuntme: gvisor, ContainerRuntimeConfig: {}}}}\nruntimeConfig: {}");
    let warnings: Vec<_> = config.all_warnings().collect();
    assert_eq!(
        warnings,
        [
            "node.yaml:2:16: runtimeConfig is not read here; it belongs to a pool below worker.pools",
            "node.yaml:1:22: worker.pools.p.containerRuntme is not read; did you mean containerRuntime?",
            "node.yaml:1:47: worker.pools.p.ContainerRuntimeConfig is not read; did you mean containerRuntimeConfig?",
        ]
    );
}

#[test]
fn pools_at_the_top_are_read_only_where_the_worker_has_none() {
    let config = load("pools: {a: }");
    assert!(config.pools.contains_key("a") && config.warnings[0].contains("read as worker.pools"));
    let config = load("pools: {a: }\nworker: {pools: {b: }}");
    assert!(!config.pools.contains_key("a") && config.warnings[0].contains("is not read"));
}

#[test]
fn anchors_and_merge_keys_work_and_bombs_do_not() {
    let config = load("base: &b {containerRuntime: gvisor}\nworker: {pools: {p: {<<: *b, gpuType: 4090}, q: *b}}");
    assert_eq!(config.pool("p").unwrap().container_runtime, Some(Gvisor));
    assert_eq!(config.pool("p").unwrap().gpu_type.as_deref(), Some("4090"));
    assert_eq!(config.pool("q").unwrap().container_runtime, Some(Gvisor));

    let mut bomb = String::from("a0: &a0 [x]\n");
    for i in 1..40 {
        let aliases = format!("*a{}, ", i - 1).repeat(9);
        bomb += &format!("a{i}: &a{i} [{aliases}]\n");
    }
    assert!(error(&bomb).contains("not valid YAML"));
    assert!(error(&("[".repeat(10_000))).contains("not valid YAML"));
    let deep: String = (0..500).map(|depth| " ".repeat(depth) + "a:\n").collect();
    assert!(error(&deep).contains("not valid YAML"));
}

#[test]
fn text_from_outside_is_shown_escaped_and_cut() {
    let named = error("worker: {pools: {\"a\\nb\": {containerRuntime: x}}}");
    assert!(named.contains(r"worker.pools.a\nb.containerRuntime"), "{named}");
    assert_eq!(quote("a\n\u{1b}[31m").to_string(), "\"a\\n\\u{1b}[31m\"");
    let long = "x".repeat(10_000);
    assert_eq!(quote(&long).bare().to_string().chars().count(), 101);
    let error = error(&format!("worker: {{containerRuntime: {long}}}"));
    assert!(error.len() < 300, "{error}");
}

#[test]
fn the_nearest_key_is_found_and_nothing_where_none_is_near() {
    assert_eq!(tree::nearest("platform", GVISOR_KEYS), Some("gvisorPlatform"));
    assert_eq!(tree::nearest("Debug", GVISOR_KEYS), Some("debug"));
    assert_eq!(tree::nearest("zzzzzzzz", GVISOR_KEYS), None);
    assert_eq!(tree::nearest(&"x".repeat(1_000_000), GVISOR_KEYS), None);
}

#[test]
fn the_example_configuration_loads_without_a_warning() {
    let config = load(include_str!("../../config/beta9.example.yaml"));
    assert_eq!(config.all_warnings().collect::<Vec<_>>(), Vec::<&str>::new());
    assert!(config.pools.len() >= 3);
}

proptest! {
    #[test]
    fn no_text_makes_the_reader_panic(text in "(?s).{0,300}") {
        let _ = Config::from_yaml("x", &text);
        let _ = tree::Document::toml("x", &text);
    }

    #[test]
    fn no_plausible_text_makes_the_reader_panic(
        words in proptest::collection::vec(
            prop_oneof![
                Just("worker"), Just("pools"), Just("p"), Just("shim"), Just("runtime"), Just("gvisor"), Just(": "), Just("\n"),
                Just("  "), Just("\n    "), Just("{"), Just("}"), Just("["), Just("]"), Just(", "), Just("&a "), Just("*a"),
                Just("<<"), Just("!!binary "), Just("|\n"), Just("- "), Just("? "), Just("'"), Just("\""), Just("---\n"),
                Just("containerRuntimeConfig"), Just("gvisorRoot"), Just("/run"), Just("1e999"), Just("~"), Just("% "),
            ],
            0..60,
        )
    ) {
        let _ = Config::from_yaml("x", &words.concat());
    }
}
