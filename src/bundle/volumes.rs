//! The volumes that the containers of a gVisor pod share: hints for runsc, and the mounts that they are about.
//!
//! gVisor mounts a shared volume once, inside of the sandbox, if annotations of the sandbox's spec describe it and each
//! container's mount has the same source (its pkg/shim and runsc/boot/mount_hints.go). Who may use a hint is the pod
//! author: its name, type, share and options count. Its source never does: that is looked up here, in the directory that
//! the kubelet keeps for this very pod. Decided once, with the sandbox; never told by a later container's spec.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use serde_json::{Value, json};

use crate::bundle::Annotations;

/// Where the kubelet keeps the volumes of pods: `<uid>/volumes/<plugin>/<name>`.
const KUBELET: &str = "/var/lib/kubelet/pods";
/// The plugin of volumes that begin empty and end with the pod.
const EMPTY_DIR: &str = "kubernetes.io~empty-dir";
/// The prefix of the hints, followed by a volume's name and a field.
const HINT: &str = "dev.gvisor.spec.mount.";
/// The prefix of wishes about an emptyDir, followed likewise.
const WISH: &str = "dev.gvisor.empty-dir.";
/// What runsc keeps the content of a disk-backed shared volume in.
const FILESTORE: &str = ".gvisor.filestore.";
/// The name of the hint about /dev/shm: no volume of Kubernetes can have it.
const SHM_NAME: &str = "beta9_dev_shm";
const SHM: &str = "/dev/shm";
/// The first release that backs a shared volume with a file in the volume itself.
const FIRST_WITH_FILESTORES: u32 = 20_231_001;

/// One volume.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Volume {
    name: String,
    source: String,
    /// The type in the hint; `tmpfs` has the sandbox mount it itself.
    hinted: &'static str,
    /// The type of the containers' mounts: with `tmpfs` hinted, `bind` has its content in a file in the volume.
    mounted: &'static str,
    share: &'static str,
    options: Option<String>,
}

/// The volumes of a pod that runsc is told about.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Volumes(Vec<Volume>);

impl Volumes {
    /// The volumes of the pod whose sandbox has this spec. `release` is runsc's, as a date in digits.
    ///
    /// A hint that is not understood, or about a volume that the kubelet does not have, is left out: the volume is then
    /// mounted as any other, which is slower and not wrong.
    pub fn of_sandbox(spec: &Value, annotations: &Annotations, release: Option<u32>) -> Self {
        Self::found_in(Path::new(KUBELET), spec, annotations, release)
    }

    fn found_in(kubelet: &Path, spec: &Value, annotations: &Annotations, release: Option<u32>) -> Self {
        let mut volumes = Vec::new();
        if let Some(pod) = pod_uid(annotations).map(|uid| kubelet.join(uid).join("volumes")) {
            let hints = hints(annotations);
            volumes.extend(hints.into_iter().filter_map(|(name, hint)| hint.volume(name, &pod, annotations, release)));
        }
        volumes.extend(shm(spec));
        Self(volumes)
    }

    /// Describes the volumes in the annotations of the sandbox's spec.
    pub fn describe(&self, spec: &mut Value) {
        let Some(spec) = spec.as_object_mut().filter(|_| !self.0.is_empty()) else { return };
        let annotations = spec.entry("annotations").or_insert_with(|| json!({}));
        if annotations.is_null() {
            *annotations = json!({});
        }
        let Some(annotations) = annotations.as_object_mut() else { return };
        for volume in &self.0 {
            let mut add = |field: &str, value: &str| {
                annotations.insert(format!("{HINT}{}.{field}", volume.name), value.into());
            };
            add("source", &volume.source);
            add("type", volume.hinted);
            add("share", volume.share);
            if let Some(options) = &volume.options {
                add("options", options);
            }
        }
    }

    /// Gives the mounts of these volumes the type that runsc expects; whether any changed.
    pub fn mount(&self, spec: &mut Value) -> bool {
        let Some(Value::Array(mounts)) = spec.get_mut("mounts") else { return false };
        let mut changed = false;
        for volume in &self.0 {
            let of_volume = |mount: &Value| is_bind(mount) && mount["source"] == volume.source.as_str();
            let mut shm = false;
            for mount in mounts.iter_mut().filter(|mount| of_volume(mount)) {
                shm |= mount["destination"] == SHM;
                changed |= volume.mounted == "tmpfs";
                if volume.mounted == "tmpfs" {
                    mount["type"] = "tmpfs".into();
                    if let Some(Value::Array(options)) = mount.get_mut("options") {
                        options.retain(|option| option != "bind" && option != "rbind");
                    }
                }
            }
            if shm {
                // Of some containers the image's or the engine's own tmpfs is listed as well, and would hide this one.
                let before = mounts.len();
                mounts.retain(|mount| mount["destination"] != SHM || mount["source"] == volume.source.as_str());
                changed |= mounts.len() < before;
            }
        }
        changed
    }
}

/// A hint as an author wrote it.
#[derive(Default)]
struct Hint<'a> {
    kind: Option<&'a str>,
    share: Option<&'a str>,
    options: Option<&'a str>,
}

impl Hint<'_> {
    fn volume(self, name: &str, pod: &Path, annotations: &Annotations, release: Option<u32>) -> Option<Volume> {
        let left_out = |why: &str| {
            log::warn!(volume = name, why; "a hint about a volume is left out");
            None
        };
        let word =
            |value: Option<&str>, words: &[&'static str]| words.iter().copied().find(|word| Some(*word) == value);
        let kinds = (word(self.kind, &["tmpfs", "bind"]), word(self.share, &["container", "pod", "shared"]));
        let (Some(kind), Some(share)) = kinds else { return left_out("its type or share is missing or unknown") };
        let Some(path) = volume_path(pod, name) else { return left_out("the kubelet has no such volume for this pod") };
        let source = path.to_str()?.to_owned();
        let mut volume = Volume {
            name: name.to_owned(),
            source,
            hinted: kind,
            mounted: kind,
            share,
            options: self.options.map(str::to_owned),
        };
        if path.parent().is_some_and(|plugin| plugin.ends_with(EMPTY_DIR)) {
            let wish = annotations.get(&format!("{WISH}{name}.force-shared"));
            if wish.is_some_and(|wish| wish == "true") || !is_empty(&path) {
                // Somebody outside of the sandbox uses it.
                (volume.hinted, volume.mounted, volume.share) = ("bind", "bind", "shared");
            } else if release.is_some_and(|release| release >= FIRST_WITH_FILESTORES) {
                volume.hinted = "tmpfs";
            }
        }
        Some(volume)
    }
}

/// The hints among the annotations, by volume. A name that can be no volume's in Kubernetes is none.
fn hints(annotations: &Annotations) -> BTreeMap<&str, Hint<'_>> {
    let mut hints: BTreeMap<&str, Hint<'_>> = BTreeMap::new();
    for (key, value) in annotations {
        let Some((name, field)) = key.strip_prefix(HINT).and_then(|rest| rest.split_once('.')) else { continue };
        if !is_label(name) {
            continue;
        }
        let hint = hints.entry(name).or_default();
        match field {
            "type" => hint.kind = Some(value),
            "share" => hint.share = Some(value),
            "options" => hint.options = Some(value),
            _ => {}
        }
    }
    hints
}

/// The pod's uid, as CRI gives it: by itself, or in the name of the pod's log directory.
fn pod_uid(annotations: &Annotations) -> Option<&str> {
    if annotations.get("io.kubernetes.cri.container-type").is_none_or(|kind| kind != "sandbox") {
        return None;
    }
    let logged = || {
        let directory = annotations.get("io.kubernetes.cri.sandbox-log-directory")?;
        let name = directory.trim_end_matches('/').rsplit('/').next()?;
        match name.split('_').collect::<Vec<_>>()[..] {
            [uid] | [_, _, uid] => Some(uid),
            _ => None,
        }
    };
    let uid = annotations.get("io.kubernetes.cri.sandbox-uid").map(String::as_str).or_else(logged)?;
    is_label(uid).then_some(uid)
}

/// A name that is one part of a path and matches nothing but itself.
fn is_label(text: &str) -> bool {
    (1..=63).contains(&text.len()) && text.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'-')
}

/// The directory of the volume `name`, if the kubelet has exactly one.
fn volume_path(pod: &Path, name: &str) -> Option<PathBuf> {
    let plugins = fs::read_dir(pod).ok()?.flatten();
    // Not through links: only the kubelet's own directories.
    let is_directory = |path: &PathBuf| fs::symlink_metadata(path).is_ok_and(|file| file.is_dir());
    let mut found = plugins.map(|plugin| plugin.path()).filter(is_directory).map(|plugin| plugin.join(name));
    let path = found.by_ref().find(is_directory)?;
    found.find(is_directory).is_none().then_some(path)
}

/// Whether a volume has no content but what an earlier container's sandbox keeps there.
fn is_empty(path: &Path) -> bool {
    let entries = fs::read_dir(path).into_iter().flatten().flatten();
    entries.take(2).all(|entry| entry.file_name().to_string_lossy().starts_with(FILESTORE))
}

/// The pod's /dev/shm: a directory of the host's that all containers bind, which has to be a tmpfs of the sandbox's for
/// glibc to take it for one.
fn shm(spec: &Value) -> Option<Volume> {
    let mounts = spec.get("mounts")?.as_array()?;
    let mount = mounts.iter().find(|mount| mount["destination"] == SHM && is_bind(mount))?;
    Some(Volume {
        name: SHM_NAME.into(),
        source: mount["source"].as_str()?.to_owned(),
        hinted: "tmpfs",
        mounted: "tmpfs",
        share: "pod",
        // Each container's own options apply to its own mount.
        options: Some("rw".into()),
    })
}

/// Whether a mount binds a directory: by its type, or by its options alone (the OCI specification allows both).
fn is_bind(mount: &Value) -> bool {
    let options = mount.get("options").and_then(Value::as_array);
    mount["type"] == "bind" || options.into_iter().flatten().any(|option| option == "bind" || option == "rbind")
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const UID: &str = "0b6d4e3a-1111-4222-8333-944455556666";

    struct Kubelet(PathBuf);

    impl Kubelet {
        fn new(name: &str, volumes: &[&str]) -> Self {
            let path = std::env::temp_dir().join(format!("beta9-volumes-{name}-{}", std::process::id()));
            volumes.iter().for_each(|volume| fs::create_dir_all(path.join(UID).join("volumes").join(volume)).unwrap());
            Self(path)
        }

        fn volumes(&self, annotations: &[(&str, &str)], release: Option<u32>) -> Volumes {
            let pod = [("io.kubernetes.cri.container-type", "sandbox"), ("io.kubernetes.cri.sandbox-uid", UID)];
            let all = annotations.iter().chain(&pod).map(|(key, value)| (key.to_string(), value.to_string()));
            Volumes::found_in(&self.0, &json!({}), &all.collect(), release)
        }
    }

    impl Drop for Kubelet {
        fn drop(&mut self) {
            let _ = fs::remove_dir_all(&self.0);
        }
    }

    const MEMORY: [(&str, &str); 2] =
        [("dev.gvisor.spec.mount.cache.type", "tmpfs"), ("dev.gvisor.spec.mount.cache.share", "pod")];
    const DISK: [(&str, &str); 2] =
        [("dev.gvisor.spec.mount.cache.type", "bind"), ("dev.gvisor.spec.mount.cache.share", "pod")];

    #[test]
    fn a_volume_is_mounted_by_its_medium_and_the_release() {
        let kubelet = Kubelet::new("medium", &["kubernetes.io~empty-dir/cache"]);
        let source = kubelet.0.join(UID).join("volumes/kubernetes.io~empty-dir/cache").to_str().unwrap().to_owned();
        for (hints, release, hinted, mounted) in [
            (MEMORY, None, "tmpfs", "tmpfs"),
            (MEMORY, Some(20240729), "tmpfs", "tmpfs"),
            (DISK, Some(20221219), "bind", "bind"),
            (DISK, Some(20240729), "tmpfs", "bind"),
        ] {
            let Volumes(volumes) = kubelet.volumes(&hints, release);
            assert_eq!(volumes.len(), 1, "{hints:?}");
            let volume = &volumes[0];
            assert_eq!(
                (volume.hinted, volume.mounted, volume.share),
                (hinted, mounted, "pod"),
                "{hints:?} {release:?}"
            );
            assert_eq!(volume.source, source);
        }
    }

    #[test]
    fn a_volume_that_somebody_else_uses_stays_a_bind_mount() {
        let kubelet = Kubelet::new("used", &["kubernetes.io~empty-dir/cache/socket", "kubernetes.io~csi/data"]);
        let Volumes(volumes) = kubelet.volumes(&MEMORY, Some(20240729));
        assert_eq!((volumes[0].hinted, volumes[0].mounted, volumes[0].share), ("bind", "bind", "shared"));

        let kubelet = Kubelet::new("forced", &["kubernetes.io~empty-dir/cache"]);
        let forced = [MEMORY[0], MEMORY[1], ("dev.gvisor.empty-dir.cache.force-shared", "true")];
        let Volumes(volumes) = kubelet.volumes(&forced, Some(20240729));
        assert_eq!((volumes[0].hinted, volumes[0].mounted, volumes[0].share), ("bind", "bind", "shared"));
    }

    #[test]
    fn what_an_earlier_sandbox_left_in_a_volume_is_no_content() {
        let kubelet = Kubelet::new("left", &["kubernetes.io~empty-dir/cache"]);
        let volume = kubelet.0.join(UID).join("volumes/kubernetes.io~empty-dir/cache");
        fs::write(volume.join(".gvisor.filestore.abc"), "").unwrap();
        assert_eq!(kubelet.volumes(&DISK, Some(20240729)).0[0].hinted, "tmpfs");
    }

    #[test]
    fn no_hint_names_a_path() {
        let kubelet = Kubelet::new("paths", &["kubernetes.io~empty-dir/cache", "kubernetes.io~csi/twice"]);
        fs::create_dir_all(kubelet.0.join(UID).join("volumes/kubernetes.io~nfs/twice")).unwrap();
        std::os::unix::fs::symlink("/etc", kubelet.0.join(UID).join("volumes/kubernetes.io~csi/link")).unwrap();
        for hostile in ["..", "*", "a/b", "", "other", "twice", "link", "cach?"] {
            let keys = [format!("{HINT}{hostile}.type"), format!("{HINT}{hostile}.share")];
            let annotations = [(keys[0].as_str(), "tmpfs"), (keys[1].as_str(), "pod")];
            assert_eq!(kubelet.volumes(&annotations, None), Volumes::default(), "{hostile}");
        }
        let sourced = [MEMORY[0], MEMORY[1], ("dev.gvisor.spec.mount.cache.source", "/etc")];
        assert_eq!(kubelet.volumes(&sourced, None), kubelet.volumes(&MEMORY, None));
        for half in [&MEMORY[..1], &MEMORY[1..], &[MEMORY[0], ("dev.gvisor.spec.mount.cache.share", "world")]] {
            assert_eq!(kubelet.volumes(half, None), Volumes::default());
        }
    }

    #[test]
    fn a_pods_uid_is_cris_word_and_one_name() {
        let uid = |pairs: &[(&str, &str)]| {
            let all: Annotations = pairs.iter().map(|(key, value)| (key.to_string(), value.to_string())).collect();
            pod_uid(&all).map(str::to_owned)
        };
        let sandbox = ("io.kubernetes.cri.container-type", "sandbox");
        let logs = "io.kubernetes.cri.sandbox-log-directory";
        assert_eq!(uid(&[sandbox, (logs, "/var/log/pods/ns_name_1-2")]).as_deref(), Some("1-2"));
        assert_eq!(uid(&[sandbox, (logs, "/var/log/pods/1-2/")]).as_deref(), Some("1-2"));
        assert_eq!(uid(&[sandbox, ("io.kubernetes.cri.sandbox-uid", "3-4")]).as_deref(), Some("3-4"));
        for (key, value) in [(logs, "a_b"), (logs, ".."), (logs, "x_y_.."), ("io.kubernetes.cri.sandbox-uid", "../..")]
        {
            assert_eq!(uid(&[sandbox, (key, value)]), None, "{value}");
        }
        assert_eq!(uid(&[("io.kubernetes.cri.sandbox-uid", "3-4")]), None);
    }

    #[test]
    fn mounts_of_a_volume_change_and_others_stay() {
        let mount = |destination: &str, kind: &str, source: &str, options: &[&str]| json!({"destination": destination, "type": kind, "source": source, "options": options});
        let mut spec = json!({"mounts": [
            mount("/dev/shm", "tmpfs", "shm", &["nosuid"]),
            mount("/dev/shm", "bind", "/run/sandbox/shm", &["rbind", "ro"]),
            mount("/cache", "none", "/pods/cache", &["bind"]),
            mount("/disk", "bind", "/pods/disk", &["rbind"]),
            mount("/other", "bind", "/pods/cache/below", &["rbind"]),
        ]});
        let volume = |name: &str, source: &str, hinted, mounted| Volume {
            name: name.into(),
            source: source.into(),
            hinted,
            mounted,
            share: "pod",
            options: None,
        };
        let mut volumes =
            vec![volume("cache", "/pods/cache", "tmpfs", "tmpfs"), volume("disk", "/pods/disk", "tmpfs", "bind")];
        volumes.extend(shm(&spec));
        assert!(Volumes(volumes.clone()).mount(&mut spec));
        assert_eq!(
            spec,
            json!({"mounts": [
                mount("/dev/shm", "tmpfs", "/run/sandbox/shm", &["ro"]),
                mount("/cache", "tmpfs", "/pods/cache", &[]),
                mount("/disk", "bind", "/pods/disk", &["rbind"]),
                mount("/other", "bind", "/pods/cache/below", &["rbind"]),
            ]})
        );
        assert!(!Volumes(volumes).mount(&mut json!({"mounts": "odd"})));
    }

    #[test]
    fn the_sandboxs_spec_describes_them() {
        let mut spec = json!({"mounts": [
            {"destination": "/dev/shm", "type": "bind", "source": "/run/sandbox/shm", "options": ["rbind"]},
        ]});
        let volumes = Volumes::of_sandbox(&spec, &Annotations::new(), None);
        volumes.describe(&mut spec);
        assert_eq!(
            spec["annotations"],
            json!({
                "dev.gvisor.spec.mount.beta9_dev_shm.source": "/run/sandbox/shm",
                "dev.gvisor.spec.mount.beta9_dev_shm.type": "tmpfs",
                "dev.gvisor.spec.mount.beta9_dev_shm.share": "pod",
                "dev.gvisor.spec.mount.beta9_dev_shm.options": "rw",
            })
        );
    }

    proptest! {
        #[test]
        fn no_annotations_make_it_panic_or_leave_the_pod(
            keys in proptest::collection::vec("dev\\.gvisor\\.spec\\.mount\\.[a-z./*_-]{0,12}(\\.(type|share|source))?", 0..6),
            values in proptest::collection::vec("tmpfs|bind|pod|/etc|(?s).{0,8}", 6),
            uid in "[a-z0-9./_-]{0,12}",
        ) {
            let mut annotations: Annotations = keys.into_iter().zip(values).collect();
            annotations.insert("io.kubernetes.cri.container-type".into(), "sandbox".into());
            annotations.insert("io.kubernetes.cri.sandbox-uid".into(), uid);
            let Volumes(volumes) = Volumes::found_in(Path::new("/usr"), &json!({}), &annotations, None);
            prop_assert!(volumes.iter().all(|volume| volume.source.starts_with("/usr/")));
        }
    }
}
