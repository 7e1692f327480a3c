//! The spec as gVisor gets it. For runc a spec is never touched.
//!
//! config.json is edited as plain JSON, so that fields unknown to us stay as they are.

use serde_json::Value;

use crate::bundle::{Bundle, BundleError};

/// Rewrites a bundle's config.json for runsc. Without nvproxy the devices go: gVisor makes its own /dev, and fails on
/// what it cannot make. With it they stay, since the device nodes are what nvproxy works from.
pub fn for_runsc(bundle: &Bundle, nvproxy: bool) -> Result<(), BundleError> {
    const FILE: &str = "config.json";
    let content = bundle.config()?;
    let mut spec: Value = bundle.parse(FILE, &content)?;
    if nvproxy || !clear_devices(&mut spec) {
        return Ok(());
    }
    let content = serde_json::to_vec(&spec);
    bundle.write(FILE, &content.map_err(|error| BundleError::Json { path: bundle.join(FILE), error })?)
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
    fn devices_go_and_everything_else_stays() {
        let mut spec = json!({"linux": {"devices": [{"path": "/dev/fuse"}], "unknown": 1}, "later": {"x": [1]}});
        assert!(clear_devices(&mut spec));
        assert_eq!(spec, json!({"linux": {"devices": [], "unknown": 1}, "later": {"x": [1]}}));
        assert!(!clear_devices(&mut spec));
        assert!(!clear_devices(&mut json!({"linux": {"devices": "odd"}})));
        assert!(!clear_devices(&mut json!([])));
    }
}
