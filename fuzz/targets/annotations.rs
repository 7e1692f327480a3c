//! Annotations that mean something, with values that mean something, on a spec that may want a GPU: nothing in them
//! takes isolation away.
#![no_main]

mod isolation;

use std::collections::BTreeMap;

use beta9_shim::select::{self, SpecView};
use isolation::{Node, hold};
use libfuzzer_sys::{arbitrary, fuzz_target};
use serde_json::json;

#[derive(Debug, arbitrary::Arbitrary)]
struct Input<'a> {
    node: Node,
    annotations: Vec<(Key<'a>, Value<'a>)>,
    device: bool,
    hook: bool,
}

#[derive(Debug, arbitrary::Arbitrary)]
enum Key<'a> {
    Runtime,
    Platform,
    Nvproxy,
    Checkpoint,
    Debug,
    Cdi,
    Other(&'a str),
}

#[derive(Debug, arbitrary::Arbitrary)]
enum Value<'a> {
    True,
    False,
    Runc,
    Gvisor,
    Systrap,
    Kvm,
    Ptrace,
    Other(&'a str),
}

impl<'a> Key<'a> {
    fn text(&self) -> &'a str {
        match self {
            Self::Runtime => select::CONTAINER_RUNTIME,
            Self::Platform => select::GVISOR_PLATFORM,
            Self::Nvproxy => select::NVPROXY,
            Self::Checkpoint => select::CHECKPOINT,
            Self::Debug => select::DEBUG,
            Self::Cdi => "cdi.k8s.io/gpu",
            Self::Other(text) => text,
        }
    }
}

impl<'a> Value<'a> {
    fn text(&self) -> &'a str {
        match self {
            Self::True => "true",
            Self::False => "false",
            Self::Runc => "runc",
            Self::Gvisor => "gvisor",
            Self::Systrap => "systrap",
            Self::Kvm => "kvm",
            Self::Ptrace => "ptrace",
            Self::Other(text) => text,
        }
    }
}

fuzz_target!(|input: Input| {
    let mut spec = json!({});
    if input.device {
        spec["linux"]["devices"] = json!([{"path": "/dev/nvidia0"}]);
    }
    if input.hook {
        spec["process"]["env"] = json!(["NVIDIA_VISIBLE_DEVICES=all"]);
        spec["hooks"]["prestart"] = json!([{"path": "/usr/bin/nvidia-container-runtime-hook"}]);
    }
    let read = |spec: &serde_json::Value| SpecView::from_json(spec.to_string().as_bytes()).expect("a spec");
    let bare = read(&spec);
    let pairs = input.annotations.iter();
    let pairs: BTreeMap<_, _> = pairs.map(|(key, value)| (key.text(), value.text())).collect();
    spec["annotations"] = json!(pairs);
    hold(&input.node, &bare, &read(&spec));
});
