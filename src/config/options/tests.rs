use proptest::prelude::proptest;

use super::*;

fn any(type_url: &str, value: Vec<u8>) -> Any {
    Any { type_url: type_url.into(), value, ..Any::default() }
}

/// A length-delimited field, as protobuf writes it.
fn field(number: u8, bytes: &[u8]) -> Vec<u8> {
    let mut wire = vec![number << 3 | 2];
    let mut length = bytes.len();
    while length >= 128 {
        wire.push((length % 128) as u8 | 128);
        length /= 128;
    }
    wire.push(length as u8);
    wire.extend(bytes);
    wire
}

fn body(toml: &str) -> Result<HandlerOptions, String> {
    HandlerOptions::decode(Some(&any(NODE[0], field(3, toml.as_bytes())))).map_err(|error| error.to_string())
}

#[test]
fn no_options_and_empty_options_say_nothing() {
    assert_eq!(HandlerOptions::decode(None).unwrap(), HandlerOptions::default());
    assert_eq!(HandlerOptions::decode(Some(&Any::default())).unwrap(), HandlerOptions::default());
}

#[test]
fn our_options_are_known_by_either_name_with_or_without_a_host() {
    for url in
        ["runtimeoptions.v1.Options", "cri.runtimeoptions.v1.Options", "type.googleapis.com/runtimeoptions.v1.Options"]
    {
        let mut value = field(1, b"whatever");
        value.extend(field(2, b"/etc/beta9/x.yaml"));
        value.extend(field(15, b"from a later containerd"));
        let options = HandlerOptions::decode(Some(&any(url, value))).unwrap();
        let expected = HandlerOptions { config_path: Some("/etc/beta9/x.yaml".into()), ..HandlerOptions::default() };
        assert_eq!(options, expected, "{url}");
    }
}

#[test]
fn another_type_is_an_error_that_names_it_and_the_known_ones() {
    for (url, value) in [("io.example.Options", vec![]), ("", vec![1])] {
        let error = HandlerOptions::decode(Some(&any(url, value))).unwrap_err().to_string();
        assert!(
            error.contains(&format!("type {url:?} is not understood; understood: runtimeoptions.v1.Options")),
            "{error}"
        );
        assert!(error.contains(RUNC), "{error}");
    }
}

#[test]
fn a_body_pins_the_pool_and_names_the_file() {
    let options = body("pool = 'secure'\nconfig_path = '/x.yaml'\nSystemdCgroup = true\nTypeUrl = 'x'").unwrap();
    assert_eq!(options.pool.as_deref(), Some("secure"));
    assert_eq!(options.config_path, Some("/x.yaml".into()));
    assert!(options.runc.systemd_cgroup && options.inline.is_none());
    assert!(body("systemd_cgroup = true").unwrap().runc.systemd_cgroup);
    assert_eq!(body("ConfigPath = '/y.yaml'").unwrap().config_path, Some("/y.yaml".into()));
}

#[test]
fn a_body_may_hold_the_whole_configuration() {
    let options = body(
        "pool = 'secure'\n[shim]\nannotations = 'ignore'\n[worker.pools.secure]\ncontainerRuntime = 'gvisor'\n\
         gpuType = 4090\n[worker.pools.secure.containerRuntimeConfig]\ngvisorPlatform = 'kvm'\n",
    );
    let yaml = "shim: {annotations: ignore}\nworker: {pools: {secure: {containerRuntime: gvisor, gpuType: 4090, \
                containerRuntimeConfig: {gvisorPlatform: kvm}}}}";
    assert_eq!(*options.unwrap().inline.unwrap(), Config::from_yaml("x", yaml).unwrap());
}

#[test]
fn mistakes_in_a_body_are_named_with_their_place() {
    let rows = [
        ("pol = 'secure'", "runtime options (config_body):1:1: unknown key pol; did you mean pool?"),
        ("pool = 'a'\npool = 'b'", "runtime options (config_body):2:1: not valid TOML: duplicate key"),
        ("pool = ", "runtime options (config_body):1:8: not valid TOML"),
        ("pool = 3", "runtime options (config_body):1:8: pool: 3 is not a text"),
        (
            "[worker.pools.p.containerRuntimeConfig]\ngvisorRoot = 'x'",
            ":2:14: worker.pools.p.containerRuntimeConfig.gvisorRoot: \"x\" is not allowed",
        ),
        ("config_path = '/x'\nworker = {}", "keep one of them"),
        ("config_path = '/x'\nConfigPath = '/y'", "given twice"),
    ];
    for (toml, part) in rows {
        let error = body(toml).unwrap_err();
        assert!(error.contains(part), "{error}\nlacks {part}");
    }
    assert!(body(&format!("pool = {}", "[".repeat(60_000))).unwrap_err().contains("not valid TOML"));
    assert!(body(&" ".repeat(65 << 10)).unwrap_err().contains("larger than 64 KiB"));
    let binary = any(NODE[0], field(3, &[0xff, 0xfe]));
    assert!(HandlerOptions::decode(Some(&binary)).unwrap_err().to_string().contains("not UTF-8"));
}

#[test]
fn a_field_and_a_body_that_both_give_a_configuration_are_an_error() {
    let mut value = field(2, b"/x.yaml");
    value.extend(field(3, b"[worker]"));
    let error = HandlerOptions::decode(Some(&any(NODE[0], value))).unwrap_err().to_string();
    assert!(error.contains("given twice"), "{error}");
}

/// What containerd's CRI plugin sends for a handler's `options`, byte for byte: what `generateRuntimeOptions` of 1.6.20 and
/// 1.7.24 and `GenerateRuntimeOptions` of 2.1.9 made of the TOML in front, with the type url beside it.
#[test]
fn a_handlers_options_arrive_as_each_containerd_sends_them() {
    let decode = |bytes: &[u8]| HandlerOptions::decode(Some(&any("runtimeoptions.v1.Options", bytes.to_vec())));

    // TypeUrl = "runtimeoptions.v1.Options", ConfigPath = "/etc/beta9/config.yaml": the same from all three.
    let by_path = decode(b"\x0a\x19runtimeoptions.v1.Options\x12\x16/etc/beta9/config.yaml").unwrap();
    assert_eq!(by_path.config_path, Some("/etc/beta9/config.yaml".into()));

    // config_path = "/etc/beta9/config.yaml", pool = "secure"
    let v1_7: &[u8] = b"\x1a\x37config_path = \"/etc/beta9/config.yaml\"\npool = \"secure\"\n";
    let v2_1: &[u8] = b"\x1a\x37config_path = '/etc/beta9/config.yaml'\npool = 'secure'\n";
    for bytes in [v1_7, v2_1] {
        let pinned = decode(bytes).unwrap();
        assert_eq!(pinned.config_path, Some("/etc/beta9/config.yaml".into()));
        assert_eq!(pinned.pool.as_deref(), Some("secure"));
    }
    // 1.6 drops all but ConfigPath: an empty message, or the type url alone.
    for bytes in [&b""[..], b"\x0a\x19runtimeoptions.v1.Options"] {
        let lost = decode(bytes).unwrap_err().to_string();
        assert!(lost.contains("ConfigPath"), "{lost}");
    }

    // Everything at once: runc's options, our own, and a configuration in nested tables.
    let v1_7 = b"\x0a\x19runtimeoptions.v1.Options\x1a\xad\x03BinaryName = \"/usr/bin/nvidia-container-runtime\"\n\
        IoUid = 1000\nRoot = \"\"\nSystemdCgroup = true\nTypeUrl = \"runtimeoptions.v1.Options\"\npool = \"secure\"\n\n\
        [shim]\n  runscFlags = [\"--network=host\", \"--overlay2=none\"]\n\n[worker]\n\n  [worker.pools]\n\n    \
        [worker.pools.secure]\n      containerRuntime = \"gvisor\"\n      gpuType = \"A100\"\n\n      \
        [worker.pools.secure.containerRuntimeConfig]\n        debug = false\n        gvisorPlatform = \"systrap\"\n";
    let v2_1 = b"\x0a\x19runtimeoptions.v1.Options\x1a\x81\x03BinaryName = '/usr/bin/nvidia-container-runtime'\n\
        IoUid = 1000\nRoot = ''\nSystemdCgroup = true\nTypeUrl = 'runtimeoptions.v1.Options'\npool = 'secure'\n\n\
        [shim]\nrunscFlags = ['--network=host', '--overlay2=none']\n\n[worker]\n[worker.pools]\n\
        [worker.pools.secure]\ncontainerRuntime = 'gvisor'\ngpuType = 'A100'\n\n\
        [worker.pools.secure.containerRuntimeConfig]\ndebug = false\ngvisorPlatform = 'systrap'\n";
    for bytes in [&v1_7[..], &v2_1[..]] {
        let options = decode(bytes).unwrap();
        let inline = options.inline.unwrap();
        assert_eq!(inline.pool("secure").unwrap().container_runtime, Some(super::super::ContainerRuntime::Gvisor));
        assert_eq!(inline.runsc_flags, ["--network=host", "--overlay2=none"]);
        let runc = RuncOptions {
            binary_name: "/usr/bin/nvidia-container-runtime".into(),
            io_uid: 1000,
            systemd_cgroup: true,
            ..RuncOptions::default()
        };
        assert_eq!((options.pool.as_deref(), options.runc), (Some("secure"), runc));
    }
}

#[test]
fn runcs_own_options_are_kept_whole() {
    let wire = oci::Options {
        no_pivot_root: true,
        no_new_keyring: true,
        shim_cgroup: "/shims".into(),
        io_uid: 1000,
        io_gid: 1001,
        binary_name: "/usr/bin/nvidia-container-runtime".into(),
        root: "/run/other/".into(),
        systemd_cgroup: true,
        criu_image_path: "/images".into(),
        criu_work_path: "/work".into(),
        ..oci::Options::default()
    };
    let mut bytes = wire.write_to_bytes().unwrap();
    // Of containerd 1 only.
    bytes.extend(field(8, b"/usr/sbin/criu"));
    let by_wire = HandlerOptions::decode(Some(&any(RUNC, bytes))).unwrap();
    let expected = RuncOptions {
        no_pivot_root: true,
        no_new_keyring: true,
        shim_cgroup: "/shims".into(),
        io_uid: 1000,
        io_gid: 1001,
        binary_name: "/usr/bin/nvidia-container-runtime".into(),
        root: "/run/other/".into(),
        systemd_cgroup: true,
        criu_path: "/usr/sbin/criu".into(),
        criu_image_path: "/images".into(),
        criu_work_path: "/work".into(),
    };
    assert_eq!(by_wire, HandlerOptions { runc: expected.clone(), ..HandlerOptions::default() });
    let by_table = body(
        "NoPivotRoot = true\nNoNewKeyring = true\nShimCgroup = '/shims'\nIoUid = 1000\nIoGid = 1001\nSystemdCgroup = true\n\
         BinaryName = '/usr/bin/nvidia-container-runtime'\nRoot = '/run/other/'\nCriuPath = '/usr/sbin/criu'\n\
         CriuImagePath = '/images'\nCriuWorkPath = '/work'\nTaskApiAddress = ''\nTaskApiVersion = 0\n",
    );
    assert_eq!(by_table.unwrap(), by_wire);

    let config = Config::default().with_runc_options(&expected);
    assert_eq!(config.runc, "/usr/bin/nvidia-container-runtime");
    assert_eq!(config.runc_root, std::path::Path::new("/run/other"));
}

#[test]
fn the_options_that_clients_of_containerd_1_make_for_a_runtime_that_is_not_runcs_are_understood() {
    let mut bytes = vec![1 << 3, 1, 8 << 3, 1];
    bytes.extend(field(9, b"/shims"));
    // Exit and terminal are a checkpoint's.
    bytes.extend([2 << 3, 1, 4 << 3, 1]);
    bytes.extend([10 << 3, 0xe8, 0x07, 11 << 3, 0xe9, 0x07]);
    bytes.extend(field(12, b"/work"));
    bytes.extend(field(13, b"/images"));
    let expected = RuncOptions {
        no_pivot_root: true,
        no_new_keyring: true,
        shim_cgroup: "/shims".into(),
        io_uid: 1000,
        io_gid: 1001,
        criu_work_path: "/work".into(),
        criu_image_path: "/images".into(),
        ..RuncOptions::default()
    };
    let options = HandlerOptions::decode(Some(&any(OLD_RUNC, bytes))).unwrap();
    assert_eq!(options, HandlerOptions { runc: expected, ..HandlerOptions::default() });
    for broken in [vec![9 << 3 | 2, 200], field(9, b"../x")] {
        let error = HandlerOptions::decode(Some(&any(OLD_RUNC, broken))).unwrap_err().to_string();
        assert!(error.contains("CreateOptions is malformed") || error.contains("ShimCgroup"), "{error}");
    }
}

#[test]
fn runcs_options_replace_runcs_program_and_nothing_of_gvisor() {
    let yaml = "worker: {containerRuntime: gvisor}\nshim: {runc: /usr/bin/runc, runsc: /usr/bin/runsc}";
    let config = Config::from_yaml("x", yaml).unwrap();
    let options = RuncOptions { binary_name: "crun".into(), root: "/run/crun".into(), ..RuncOptions::default() };
    let expected = Config { runc: "crun".into(), runc_root: "/run/crun".into(), ..config.clone() };
    assert_eq!(config.with_runc_options(&options), expected);
}

#[test]
fn options_of_runc_that_cannot_be_meant_are_an_error() {
    for (toml, part) in [
        ("BinaryName = '/usr/local/bin/runsc'", "pool's containerRuntime: gvisor"),
        ("BinaryName = 'runsc'", "pool's containerRuntime: gvisor"),
        ("BinaryName = '../crun'", "absolute path"),
        ("Root = 'run'", "Root: \"run\" is not allowed"),
        ("Root = '/run/../etc'", "without .."),
        ("ShimCgroup = '../x'", "ShimCgroup: \"../x\" is not allowed"),
        ("IoUid = -1", ":1:9: IoUid: -1 is not a user's or group's number"),
        ("NoPivotRoot = 1", "NoPivotRoot: 1 is not allowed; allowed: true, false"),
    ] {
        let error = body(toml).unwrap_err();
        assert!(error.contains(part), "{error}\nlacks {part}");
    }
    let wire = oci::Options { binary_name: "/opt/runsc".into(), ..oci::Options::default() };
    let error = HandlerOptions::decode(Some(&any(RUNC, wire.write_to_bytes().unwrap()))).unwrap_err().to_string();
    assert!(error.contains("BinaryName: \"/opt/runsc\" is not allowed"), "{error}");
}

proptest! {
    #[test]
    fn no_bytes_make_the_decoder_panic(bytes in proptest::collection::vec(proptest::num::u8::ANY, 0..200), which in 0..4usize) {
        let url = [NODE[0], NODE[1], RUNC, OLD_RUNC][which];
        let _ = HandlerOptions::decode(Some(&any(url, bytes)));
    }

    #[test]
    fn no_body_makes_the_decoder_panic(text in "(?s).{0,200}") {
        let _ = body(&text);
    }
}

#[test]
fn the_drop_ins_options_are_understood() {
    for (drop_in, plugin) in [
        (include_str!("../../../config/containerd-config-v2.toml"), "io.containerd.grpc.v1.cri"),
        (include_str!("../../../config/containerd-config-v3.toml"), "io.containerd.cri.v1.runtime"),
    ] {
        let table: toml::Table = drop_in.parse().unwrap();
        for (handler, pool) in [("beta9", None), ("beta9-secure", Some("secure"))] {
            let options = &table["plugins"][plugin]["containerd"]["runtimes"][handler]["options"];
            // containerd passes this very table as the body.
            let options = options
                .as_table()
                .unwrap()
                .iter()
                .map(|(key, value)| format!("{key} = {:?}\n", value.as_str().unwrap()));
            let options = body(&options.collect::<String>()).unwrap();
            assert_eq!(options.pool.as_deref(), pool);
            assert_eq!(options.config_path, Some("/etc/beta9/config.yaml".into()));
        }
    }
}
