//! What a container's spec says that a decision depends on.
//!
//! Owns: a shallow view of `config.json`, and the finding of GPUs in it. Never fails on what a tenant wrote there: what
//! is not understood asks for nothing. Called by `start`, by the task service for later containers, and by `explain`.

use std::collections::BTreeMap;
use std::fmt;

use serde::{Deserialize, Serialize};

use crate::config::quote;

const DEVICES: &str = "/dev/nvidia";
const CDI: &str = "cdi.k8s.io";
const VISIBLE: &str = "NVIDIA_VISIBLE_DEVICES=";

/// What asks for a GPU; the order is that of authority.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub enum GpuEvidence {
    /// The pool's `gpuType`: the operator.
    Pool(String),
    /// A device in the spec: the node's device plugin put it there.
    Device(String),
    /// A hook in the spec, which the node's operator installed, and an environment that wakes it, which may be the
    /// image's.
    Hook(String),
    /// A `cdi.k8s.io` annotation: the device plugin's, or a pod author's.
    Cdi(String),
    /// The annotation `run.beam.cloud/nvproxy`.
    Annotation,
}

impl GpuEvidence {
    /// The first CDI annotation.
    pub fn cdi(annotations: &BTreeMap<String, String>) -> Option<Self> {
        let key = annotations.keys().find(|key| key.starts_with(CDI))?;
        Some(Self::Cdi(quote(key).bare().to_string()))
    }

    /// Whether it is the operator's or the node's word, which no pod author can forge.
    pub fn is_operators(&self) -> bool {
        matches!(self, Self::Pool(_) | Self::Device(_))
    }

    /// Whether nothing but the pod's author asks: no device, hook or CDI annotation stands behind it.
    pub fn is_mere_wish(&self) -> bool {
        matches!(self, Self::Annotation)
    }
}

impl fmt::Display for GpuEvidence {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Pool(name) => write!(f, "the pool's gpuType {name}"),
            Self::Device(path) => write!(f, "the device {path}"),
            Self::Hook(name) => write!(f, "the hook {name} with NVIDIA_VISIBLE_DEVICES"),
            Self::Cdi(key) => write!(f, "the annotation {key}"),
            Self::Annotation => write!(f, "the annotation {}", super::NVPROXY),
        }
    }
}

/// What a container asks for.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Workload {
    /// What asks for a GPU, by kind one; empty = nothing does.
    pub gpu: Vec<GpuEvidence>,
}

impl Workload {
    /// Finds what a spec asks for.
    pub fn from_spec(spec: &SpecView) -> Self {
        let device = spec.devices().find(|path| path.starts_with(DEVICES));
        let device = device.map(|path| GpuEvidence::Device(quote(path).bare().to_string()));
        let gpu = [device, spec.nvidia_hook(), spec.annotations.as_ref().and_then(GpuEvidence::cdi)];
        Self { gpu: gpu.into_iter().flatten().collect() }
    }

    /// Whether it asks for a GPU: for runsc, a spec's devices stay only then.
    pub fn asks_for_gpu(&self) -> bool {
        !self.gpu.is_empty()
    }
}

/// A spec as far as decisions read it; the rest, which may be large, is skipped over.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub struct SpecView {
    annotations: Option<BTreeMap<String, String>>,
    hooks: Option<Hooks>,
    linux: Option<Linux>,
    process: Option<Process>,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
struct Hooks {
    prestart: Option<Vec<Hook>>,
    #[serde(rename = "createContainer")]
    create_container: Option<Vec<Hook>>,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
struct Hook {
    path: Option<String>,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
struct Linux {
    #[serde(rename = "cgroupsPath")]
    cgroups_path: Option<String>,
    devices: Option<Vec<Device>>,
    namespaces: Option<Vec<Namespace>>,
    #[serde(rename = "uidMappings")]
    uid_mappings: Option<Vec<Mapping>>,
    #[serde(rename = "gidMappings")]
    gid_mappings: Option<Vec<Mapping>>,
}

/// A range of ids in a user namespace.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
struct Mapping {
    #[serde(rename = "containerID")]
    inside: u32,
    #[serde(rename = "hostID")]
    outside: u32,
    size: u32,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
struct Namespace {
    #[serde(rename = "type")]
    kind: Option<String>,
    path: Option<String>,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
struct Device {
    path: Option<String>,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
struct Process {
    env: Option<Vec<String>>,
    user: Option<User>,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
struct User {
    uid: u32,
    gid: u32,
}

impl SpecView {
    /// Reads `config.json`.
    pub fn from_json(json: &[u8]) -> Result<Self, serde_json::Error> {
        serde_json::from_slice(json)
    }

    /// The annotations.
    pub fn annotations(&self) -> BTreeMap<String, String> {
        self.annotations.clone().unwrap_or_default()
    }

    /// `linux.cgroupsPath`.
    pub fn cgroups_path(&self) -> Option<&str> {
        self.linux.as_ref()?.cgroups_path.as_deref()
    }

    /// Whether the cgroup is systemd's to make, where systemd runs: its path has the form `slice:prefix:name`. containerd
    /// writes that for every pod below a `.slice`, whoever manages the host's cgroups.
    pub fn systemd_cgroup(&self) -> bool {
        let parts: Vec<&str> = self.cgroups_path().unwrap_or_default().split(':').collect();
        matches!(parts[..], [slice, _, name] if !slice.contains('/') && !name.is_empty())
    }

    /// Whether the container lives in somebody else's pid namespace, so that its init's end is not its processes' end.
    pub fn shares_pids(&self) -> bool {
        let own = |namespace: &Namespace| {
            namespace.kind.as_deref() == Some("pid") && namespace.path.as_deref().unwrap_or_default().is_empty()
        };
        !self.linux.iter().flat_map(|linux| &linux.namespaces).flatten().any(own)
    }

    /// The host's uid and gid of the container's user, if it is in a user namespace that maps both.
    pub fn mapped_user(&self) -> Option<(u32, u32)> {
        let linux = self.linux.as_ref()?;
        let user = self.process.as_ref().and_then(|process| process.user.clone()).unwrap_or_default();
        let outside = |mappings: &Option<Vec<Mapping>>, id: u32| {
            mappings.iter().flatten().find_map(|mapping| {
                let offset = id.checked_sub(mapping.inside).filter(|offset| *offset < mapping.size)?;
                mapping.outside.checked_add(offset)
            })
        };
        Some((outside(&linux.uid_mappings, user.uid)?, outside(&linux.gid_mappings, user.gid)?))
    }

    fn devices(&self) -> impl Iterator<Item = &str> {
        self.linux.iter().flat_map(|linux| &linux.devices).flatten().filter_map(|device| device.path.as_deref())
    }

    /// NVIDIA's hook, where the environment does not tell it to do nothing.
    fn nvidia_hook(&self) -> Option<GpuEvidence> {
        let environment = self.process.as_ref()?.env.as_ref()?;
        // Later entries overwrite earlier ones, as the hook itself reads them.
        let visible = environment.iter().rev().find_map(|entry| entry.strip_prefix(VISIBLE))?;
        if visible.is_empty() || visible == "void" {
            return None;
        }
        let hooks = self.hooks.as_ref()?;
        let named = |hooks: &Option<Vec<Hook>>, name: &str| {
            let mut paths = hooks.iter().flatten().filter_map(|hook| hook.path.as_deref());
            paths.any(|path| path.rsplit('/').next() == Some(name))
        };
        let known = [("nvidia-container-runtime-hook", &hooks.prestart), ("nvidia-cdi-hook", &hooks.create_container)];
        let (name, _) = known.into_iter().find(|(name, hooks)| named(hooks, name))?;
        Some(GpuEvidence::Hook(name.to_owned()))
    }
}
