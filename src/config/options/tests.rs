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

fn body(toml: &str) -> Result<NodeOptions, String> {
    match HandlerOptions::decode(Some(&any(NODE[0], field(3, toml.as_bytes())))) {
        Ok(HandlerOptions::Node(options)) => Ok(options),
        Ok(other) => panic!("{other:?}"),
        Err(error) => Err(error.to_string()),
    }
}

#[test]
fn no_options_and_empty_options_say_nothing() {
    assert_eq!(HandlerOptions::decode(None).unwrap(), HandlerOptions::None);
    assert_eq!(HandlerOptions::decode(Some(&Any::default())).unwrap(), HandlerOptions::None);
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
        let expected = NodeOptions { config_path: Some("/etc/beta9/x.yaml".into()), ..NodeOptions::default() };
        assert_eq!(options, HandlerOptions::Node(expected), "{url}");
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
    assert!(options.systemd_cgroup && options.inline.is_none());
    assert!(body("systemd_cgroup = true").unwrap().systemd_cgroup);
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

#[test]
fn runcs_own_options_are_kept_whole() {
    let wire = oci::Options {
        no_pivot_root: true,
        io_uid: 1000,
        binary_name: "/usr/bin/nvidia-container-runtime".into(),
        root: "/run/other".into(),
        systemd_cgroup: true,
        ..oci::Options::default()
    };
    let options = HandlerOptions::decode(Some(&any(RUNC, wire.write_to_bytes().unwrap()))).unwrap();
    assert!(options.systemd_cgroup() && options.pool().is_none());
    let HandlerOptions::Runc(runc) = options else { panic!("{options:?}") };
    assert!(runc.no_pivot_root && runc.io_uid == 1000 && runc.io_gid == 0);
    let config = Config::default().with_runc_options(&runc);
    assert_eq!(config.runc, "/usr/bin/nvidia-container-runtime");
    assert_eq!(config.runc_root, std::path::Path::new("/run/other"));
}

proptest! {
    #[test]
    fn no_bytes_make_the_decoder_panic(bytes in proptest::collection::vec(proptest::num::u8::ANY, 0..200), which in 0..3usize) {
        let url = [NODE[0], NODE[1], RUNC][which];
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
