//! The spec as gVisor gets it. For runc a spec is never touched.
//!
//! config.json is edited as plain JSON, so that fields unknown to us stay as they are.

use serde_json::Value;

use crate::bundle::{Bundle, BundleError};

/// Rewrites a bundle's config.json for runsc.
///
/// Unless `devices` are to stay, they go: gVisor makes its own /dev, and fails on what it cannot make. With nvproxy they
/// stay, since the device nodes are what it works from. Annotations that `keep` does not want go too: some are runsc's
/// own and would undo the decision.
pub fn for_runsc(bundle: &Bundle, devices: bool, keep: impl Fn(&str) -> bool) -> Result<(), BundleError> {
    const FILE: &str = "config.json";
    let content = bundle.config()?;
    let mut spec: Value = bundle.parse(FILE, &content)?;
    let cleared = !devices && clear_devices(&mut spec);
    let dropped = drop_annotations(&mut spec, keep);
    if !cleared && !dropped {
        return Ok(());
    }
    let content = serde_json::to_vec(&spec);
    bundle.write(FILE, &content.map_err(|error| BundleError::Json { path: bundle.join(FILE), error })?)
}

/// Drops the annotations that `keep` does not want; whether there were any.
fn drop_annotations(spec: &mut Value, keep: impl Fn(&str) -> bool) -> bool {
    let Some(Value::Object(annotations)) = spec.get_mut("annotations") else { return false };
    let before = annotations.len();
    annotations.retain(|key, _| keep(key));
    annotations.len() < before
}

/// Clears `linux.devices`; whether there were any.
fn clear_devices(spec: &mut Value) -> bool {
    match spec.pointer_mut("/linux/devices") {
        Some(Value::Array(devices)) if !devices.is_empty() => {
            devices.clear();
            true
        }
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn unwanted_annotations_go_and_the_others_stay() {
        let mut spec = json!({"annotations": {"dev.gvisor.internal.nvproxy": "true", "a": "b"}});
        assert!(drop_annotations(&mut spec, |key| !key.starts_with("dev.gvisor.")));
        assert_eq!(spec, json!({"annotations": {"a": "b"}}));
        for none in [json!({}), json!({"annotations": null}), json!({"annotations": ["odd"]}), json!([])] {
            assert!(!drop_annotations(&mut none.clone(), |_| false), "{none}");
        }
    }

    #[test]
    fn devices_go_and_everything_else_stays() {
        let mut spec = json!({"linux": {"devices": [{"path": "/dev/fuse"}], "unknown": 1}, "later": {"x": [1]}});
        assert!(clear_devices(&mut spec));
        assert_eq!(spec, json!({"linux": {"devices": [], "unknown": 1}, "later": {"x": [1]}}));
        assert!(!clear_devices(&mut spec));
        assert!(!clear_devices(&mut json!({"linux": {"devices": "odd"}})));
        assert!(!clear_devices(&mut json!([])));
    }
}
