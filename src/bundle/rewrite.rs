//! The spec as gVisor gets it. For runc a spec is never touched.
//!
//! config.json is edited as plain JSON, so that fields unknown to us stay as they are.

use serde_json::{Value, json};

use crate::bundle::volumes::Volumes;
use crate::bundle::{Annotations, Bundle, BundleError};

const FILE: &str = "config.json";
/// Names the cgroup that the sandbox's processes go to, where that is not the container's own.
const CGROUP_PARENT: &str = "dev.gvisor.spec.cgroup-parent";
const CONTAINER_TYPE: &str = "io.kubernetes.cri.container-type";
const SANDBOX_ID: &str = "io.kubernetes.cri.sandbox-id";

/// What the rewriting of a spec depends on, apart from the spec.
pub struct Rules<'a> {
    /// Devices stay: with nvproxy their nodes are what it works from. Otherwise they go: gVisor makes its own /dev, and
    /// fails on what it cannot make.
    pub devices: bool,
    /// The annotations that stay. Some are runsc's own and would undo the decision.
    pub keep: &'a dyn Fn(&str) -> bool,
}

/// Rewrites the config.json of a container that gets a sandbox, and returns the volumes that those who come to live in
/// it share. `annotations` are the spec's own; `release` is runsc's, as a date in digits.
pub fn for_sandbox(
    bundle: &Bundle,
    rules: &Rules<'_>,
    annotations: &Annotations,
    release: Option<u32>,
) -> Result<Volumes, BundleError> {
    let mut volumes = Volumes::default();
    rewrite(bundle, rules, |spec| {
        volumes = Volumes::of_sandbox(spec, annotations, release);
        volumes.describe(spec);
        volumes.mount(spec) | name_pod_cgroup(spec)
    })?;
    Ok(volumes)
}

/// Rewrites the config.json of a container that comes to live in the sandbox that runsc knows as `sandbox`.
pub fn for_guest(bundle: &Bundle, rules: &Rules<'_>, volumes: &Volumes, sandbox: &str) -> Result<(), BundleError> {
    rewrite(bundle, rules, |spec| {
        let mounted = volumes.mount(spec);
        let renamed = spec["annotations"][SANDBOX_ID] != sandbox;
        if renamed {
            spec["annotations"][SANDBOX_ID] = sandbox.into();
        }
        mounted || renamed
    })
}

/// Applies the rules and then `change`, which says whether it changed anything; what is unchanged is not written.
fn rewrite(bundle: &Bundle, rules: &Rules<'_>, change: impl FnOnce(&mut Value) -> bool) -> Result<(), BundleError> {
    let content = bundle.config()?;
    let mut spec: Value = bundle.parse(FILE, &content)?;
    let cleared = !rules.devices && clear_devices(&mut spec);
    let dropped = drop_annotations(&mut spec, rules.keep);
    let changed = spec.is_object() && change(&mut spec);
    if !cleared && !dropped && !changed {
        return Ok(());
    }
    let content = serde_json::to_vec(&spec);
    bundle.write(FILE, &content.map_err(|error| BundleError::Json { path: bundle.join(FILE), error })?)
}

/// Has a pod's sandbox join the pod's cgroup, where the kubelet's limits are, instead of that of its first container, which
/// is nothing but a placeholder; whether there is one.
fn name_pod_cgroup(spec: &mut Value) -> bool {
    if spec.pointer("/annotations").and_then(|all| all.get(CONTAINER_TYPE)).is_none_or(|kind| kind != "sandbox") {
        return false;
    }
    let own = spec.pointer("/linux/cgroupsPath").and_then(Value::as_str);
    let Some(pod) = own.and_then(pod_cgroup).map(str::to_owned) else { return false };
    spec["annotations"][CGROUP_PARENT] = json!(pod);
    true
}

/// The cgroup of a pod in the path of one of its containers': `/kubepods/burstable/pod1234/5678`, as the kubelet's cgroupfs
/// driver names them. systemd's paths have no such part.
fn pod_cgroup(path: &str) -> Option<&str> {
    let (parent, _) = path.rsplit_once('/')?;
    let mut end = parent.len();
    loop {
        let start = parent[..end].rfind('/').map_or(0, |slash| slash + 1);
        if parent[start..end].starts_with("pod") {
            return Some(&parent[..end]);
        }
        end = start.checked_sub(1)?;
    }
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

    #[test]
    fn the_pods_cgroup_is_the_last_part_that_is_called_so() {
        for (path, expected) in [
            ("/kubepods/burstable/pod12/34", Some("/kubepods/burstable/pod12")),
            ("/kubepods/pod12/sub/34", Some("/kubepods/pod12")),
            ("kubepods/pod12/34", Some("kubepods/pod12")),
            ("/pods/pod1/34", Some("/pods/pod1")),
            ("/kubepods/burstable/pod12", None),
            ("/k8s.io/34", None),
            ("kubepods-burstable-pod12.slice:cri-containerd:34", None),
            ("", None),
            ("/", None),
        ] {
            assert_eq!(pod_cgroup(path), expected, "{path}");
        }
    }

    #[test]
    fn only_a_pods_sandbox_joins_the_pods_cgroup() {
        let spec =
            |kind: &str| json!({"linux": {"cgroupsPath": "/kubepods/pod1/2"}, "annotations": {CONTAINER_TYPE: kind}});
        let mut sandbox = spec("sandbox");
        assert!(name_pod_cgroup(&mut sandbox));
        assert_eq!(sandbox["annotations"][CGROUP_PARENT], "/kubepods/pod1");
        for mut other in [spec("container"), json!({"linux": {"cgroupsPath": "/kubepods/pod1/2"}}), json!({})] {
            let before = other.clone();
            assert!(!name_pod_cgroup(&mut other));
            assert_eq!(other, before);
        }
    }

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
