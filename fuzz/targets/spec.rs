//! A container's spec under `annotations: tighten`: nothing in its annotations takes isolation away.
#![no_main]

mod isolation;

use beta9_shim::select::SpecView;
use isolation::{Node, hold};
use libfuzzer_sys::{arbitrary, fuzz_target};

#[derive(Debug, arbitrary::Arbitrary)]
struct Input<'a> {
    node: Node,
    json: &'a [u8],
}

fuzz_target!(|input: Input| {
    let Ok(spec) = SpecView::from_json(input.json) else {
        return;
    };
    let _ = (spec.cgroups_path(), spec.systemd_cgroup());
    let Ok(mut json) = serde_json::from_slice::<serde_json::Value>(input.json) else {
        return;
    };
    if let Some(spec) = json.as_object_mut() {
        spec.remove("annotations");
    }
    let bare = SpecView::from_json(json.to_string().as_bytes()).expect("less of the same");
    hold(&input.node, &bare, &spec);
});
