//! Tests that `config/schema.json` says what this module does: the same keys, the same words, open and closed tables
//! where it has them.

use serde_json::Value;

use super::*;

fn schema() -> Value {
    serde_json::from_str(include_str!("../../config/schema.json")).unwrap()
}

/// The schema that a `$ref` names, or the one given.
fn resolved<'a>(root: &'a Value, schema: &'a Value) -> &'a Value {
    match schema["$ref"].as_str() {
        Some(name) => root.pointer(name.strip_prefix('#').unwrap()).unwrap(),
        None => schema,
    }
}

/// The schema at a path of keys; `*` stands for any key.
fn at<'a>(root: &'a Value, path: &str) -> &'a Value {
    let keys = path.split('.').filter(|key| !key.is_empty());
    keys.fold(root, |schema, key| {
        let schema = match key {
            "*" => &schema["additionalProperties"],
            key => &schema["properties"][key],
        };
        assert!(!schema.is_null(), "{path}: no {key}");
        resolved(root, schema)
    })
}

/// A configuration with `value` at the path.
fn nested(path: &str, value: &str) -> String {
    let keys = path.split('.').filter(|key| !key.is_empty());
    keys.rev().fold(value.to_owned(), |inner, key| {
        let key = if key == "*" { "p" } else { key };
        format!("{{{key}: {inner}}}")
    })
}

fn accepts(yaml: &str) -> bool {
    Config::from_yaml("node.yaml", yaml).is_ok()
}

/// Every table: where it is, which keys the code knows in it, and whether it refuses others.
const TABLES: &[(&str, &[&str], bool)] = &[
    ("worker", WORKER_KEYS, false),
    ("worker.pools.*", POOL_KEYS, false),
    ("worker.pools.*.containerRuntimeConfig", GVISOR_KEYS, true),
    ("worker.pools.*.runtimeConfig", GVISOR_KEYS, true),
    ("worker.pools.*.shim", POLICY_KEYS, true),
    ("shim", SHIM_KEYS, true),
];

#[test]
fn the_schema_and_the_code_know_the_same_keys() {
    let root = schema();
    let sorted = |keys: &[&str]| {
        let mut keys: Vec<String> = keys.iter().map(ToString::to_string).collect();
        keys.sort();
        keys
    };
    let named = |schema: &Value| {
        let keys = schema["properties"].as_object().unwrap().keys();
        sorted(&keys.map(String::as_str).collect::<Vec<_>>())
    };
    // `pools` at the top is understood, and warned of.
    assert_eq!(named(&root), sorted(&[TOP_KEYS, &["pools"]].concat()));
    assert_eq!(at(&root, "pools"), at(&root, "worker.pools"));
    for (path, known, closed) in TABLES {
        let table = at(&root, path);
        assert_eq!(named(table), sorted(known), "{path}");
        assert_eq!(table["additionalProperties"] == false, *closed, "{path}");
        assert_eq!(!accepts(&nested(path, "{unknown: 1}")), *closed, "{path}");
        assert!(accepts(&nested(path, "~")), "{path}: null");
    }
}

#[test]
fn the_schema_and_the_code_know_the_same_words() {
    fn words<T>(words: &[(&'static str, T)]) -> Vec<&'static str> {
        words.iter().map(|(word, _)| *word).collect()
    }
    let policies = [
        ("annotations", words(Annotations::WORDS)),
        ("gpuWorkloads", words(GpuWorkloads::WORDS)),
        ("checkpointWorkloads", words(CheckpointWorkloads::WORDS)),
        ("kvmUnavailable", words(KvmUnavailable::WORDS)),
        ("runscUnavailable", words(RunscUnavailable::WORDS)),
    ];
    let runtimes = words(ContainerRuntime::WORDS);
    let gvisor = "worker.pools.*.containerRuntimeConfig.gvisorPlatform";
    let mut choices = vec![
        ("worker.containerRuntime".to_owned(), runtimes.clone()),
        ("worker.pools.*.containerRuntime".to_owned(), runtimes),
        (gvisor.to_owned(), words(Platform::WORDS)),
    ];
    for (key, words) in policies {
        choices.push((format!("shim.{key}"), words.clone()));
        choices.push((format!("worker.pools.*.shim.{key}"), words));
    }
    let root = schema();
    for (path, mut words) in choices {
        words.push("");
        let mut named: Vec<Value> = words.iter().map(|word| (*word).into()).collect();
        named.push(Value::Null);
        assert_eq!(at(&root, &path)["enum"], Value::Array(named.clone()), "{path}");
        for word in named {
            assert!(accepts(&nested(&path, &word.to_string())), "{path}: {word}");
        }
        assert!(!accepts(&nested(&path, "other")), "{path}");
    }
}

#[test]
fn the_schemas_patterns_name_what_the_code_names() {
    let root = schema();
    let flags = &at(&root, "shim.runscFlags")["items"]["not"]["pattern"];
    assert_eq!(*flags, format!("^--({})(=|$)", OWNED_FLAGS.join("|")));
    let name = format!(r"\s*({})\s*", DRIVER_CAPABILITIES.join("|"));
    let forms = &at(&root, "shim.nvproxyDriverCapabilities")["anyOf"];
    for pattern in [&forms[0]["pattern"], &forms[1]["items"]["pattern"]] {
        assert_eq!(*pattern, format!("^{name}(,{name})*$"));
    }
}

#[test]
fn the_schemas_defaults_are_the_codes() {
    let root = schema();
    let default = |path: &str| {
        let key = path.rsplit_once('.').unwrap();
        at(&root, key.0)["properties"][key.1]["default"].clone()
    };
    let (config, pool) = (Config::default(), Pool::default());
    let gvisor = "worker.pools.*.containerRuntimeConfig";
    for (path, expected) in [
        ("worker.containerRuntime", config.container_runtime.word()),
        ("shim.runc", config.runc.as_str()),
        ("shim.runsc", config.runsc.as_str()),
        ("shim.annotations", config.policies.annotations.word()),
        ("shim.gpuWorkloads", config.policies.gpu_workloads.word()),
        ("shim.checkpointWorkloads", config.policies.checkpoint_workloads.word()),
        ("shim.kvmUnavailable", config.policies.kvm_unavailable.word()),
        ("shim.runscUnavailable", config.policies.runsc_unavailable.word()),
        (&format!("{gvisor}.gvisorPlatform"), pool.gvisor.platform.word()),
        (&format!("{gvisor}.gvisorRoot"), pool.gvisor.root.to_str().unwrap()),
    ] {
        assert_eq!(default(path), expected, "{path}");
    }
    assert_eq!(default(&format!("{gvisor}.debug")), pool.gvisor.debug);
    assert_eq!(default("worker.pools.*.criuEnabled"), pool.criu_enabled);
    assert_eq!(default("shim.runscFlags"), serde_json::json!([]));
}

#[test]
fn the_example_has_no_key_or_word_that_the_schema_does_not_name() {
    fn check(root: &Value, schema: &Value, table: &Section<'_>) {
        for (key, item) in table.items() {
            let named = match &schema["properties"][key] {
                Value::Null => &schema["additionalProperties"],
                named => named,
            };
            let path = item.path();
            assert!(named.is_object(), "{path} is not in the schema");
            let named = resolved(root, named);
            if let Some(words) = named["enum"].as_array() {
                let word = item.text().unwrap().unwrap_or_default();
                assert!(words.contains(&word.into()), "{path}: {word}");
            }
            if let Ok(table) = item.section() {
                check(root, named, &table);
            }
        }
    }
    let example = Document::yaml("example", include_str!("../../config/beta9.example.yaml")).unwrap();
    let (root, example) = (schema(), example.root().unwrap());
    assert!(example.section("worker").unwrap().get("pools").is_some());
    check(&root, &root, &example);
}
