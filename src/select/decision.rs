//! The decision as data: written to disk beside the pod, read by every later command, shown by `explain`.
//!
//! Owns: the arguments that follow from it, its log lines, and whether a later container fits in. Decides nothing
//! itself. Called by `start`, the task service, `delete` and `explain`.

use std::collections::BTreeMap;
use std::fmt;
use std::path::PathBuf;

use log::Level;
use serde::{Deserialize, Serialize};

use super::{GpuEvidence, Refusal, Workload};
use crate::config::{CheckpointWorkloads, ContainerRuntime, Platform, quote};

/// What a pod gets, and why.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Decision {
    /// The pool, if any was named.
    pub pool: Option<String>,
    /// The pool's pod RuntimeClass: reported, never followed.
    pub pod_runtime_class: Option<String>,
    /// What pool and annotations said, before GPU, checkpointing or the host moved the pod.
    pub initial: ContainerRuntime,
    /// What runs the pod.
    pub runtime: Runtime,
    /// Why it is runc in gVisor's stead.
    pub moved: Option<Moved>,
    /// The annotations that count for this pod, with the pod's own words.
    #[serde(default)]
    pub heeded: BTreeMap<String, Option<String>>,
    /// The pod itself wants no GPU, whatever its containers ask for.
    pub gpu_forgone: bool,
    /// How it came to this, in order.
    pub reasons: Vec<String>,
    /// What an operator should look at.
    pub warnings: Vec<String>,
}

/// An OCI runtime with its settings.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Runtime {
    /// runc.
    Runc {
        /// A name for PATH, or an absolute path.
        binary: String,
        /// A namespace's state lies below it.
        root: PathBuf,
    },
    /// runsc.
    Gvisor(Gvisor),
}

/// runsc's settings, the same for every command of a pod.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Gvisor {
    /// A name for PATH, or an absolute path.
    pub binary: String,
    /// `--platform`.
    pub platform: Platform,
    /// A namespace's state lies below it, the debug log in it.
    pub root: PathBuf,
    /// `--nvproxy`.
    pub nvproxy: bool,
    /// `--debug`.
    pub debug: bool,
    /// The operator's further flags.
    pub flags: Vec<String>,
    /// `shim.annotations: trust`.
    pub trusts_annotations: bool,
    /// runsc's release, as a date in digits (20240729), where its version has one.
    pub release: Option<u32>,
    /// `shim.checkpointWorkloads`.
    #[serde(default)]
    pub checkpoints: CheckpointWorkloads,
}

/// Why a pod that gVisor was meant for runs with runc.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Moved {
    /// `container-runtime: runc`, trusted.
    Annotation,
    /// `gpuWorkloads: runc`.
    Gpu(GpuEvidence),
    /// `checkpointWorkloads: runc`; what made it a checkpoint workload.
    Checkpoint(String),
    /// `runscUnavailable: runc`; what was tried.
    RunscUnavailable(String),
}

impl fmt::Display for Moved {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Annotation => write!(f, "the annotation {} (shim.annotations: trust)", super::CONTAINER_RUNTIME),
            Self::Gpu(evidence) => write!(f, "{evidence} (shim.gpuWorkloads: runc)"),
            Self::Checkpoint(why) => write!(f, "{why} (shim.checkpointWorkloads: runc)"),
            Self::RunscUnavailable(tried) => write!(f, "{tried} (shim.runscUnavailable: runc)"),
        }
    }
}

/// A line for the log; what operators grep for does not change.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LogLine {
    /// How loud.
    pub level: Level,
    /// What.
    pub message: String,
    /// With which values.
    pub fields: Vec<(&'static str, String)>,
}

impl Runtime {
    /// Which of the two it is.
    pub fn kind(&self) -> ContainerRuntime {
        match self {
            Self::Runc { .. } => ContainerRuntime::Runc,
            Self::Gvisor(_) => ContainerRuntime::Gvisor,
        }
    }

    /// Its program: a name for PATH, or an absolute path.
    pub fn binary(&self) -> &str {
        match self {
            Self::Runc { binary, .. } => binary,
            Self::Gvisor(gvisor) => &gvisor.binary,
        }
    }

    /// The directory whose subdirectories are the namespaces' states.
    pub fn root(&self) -> &std::path::Path {
        match self {
            Self::Runc { root, .. } => root,
            Self::Gvisor(gvisor) => &gvisor.root,
        }
    }
}

impl Decision {
    /// The arguments in front of every command; `namespace` is containerd's, which allows no path in it.
    pub fn base_args(&self, namespace: &str, systemd_cgroup: bool) -> Vec<String> {
        let root = self.runtime.root();
        let mut args = vec!["--root".to_owned(), root.join(namespace).to_string_lossy().into_owned()];
        match &self.runtime {
            Runtime::Runc { .. } => args.extend(systemd_cgroup.then(|| "--systemd-cgroup".to_owned())),
            Runtime::Gvisor(gvisor) => {
                args.extend(["--platform".to_owned(), gvisor.platform.word().to_owned()]);
                args.extend(gvisor.nvproxy.then(|| "--nvproxy=true".to_owned()));
                if gvisor.debug {
                    args.push("--debug=true".to_owned());
                    args.push(format!("--debug-log={}", root.join("debug.log").display()));
                }
                args.extend(systemd_cgroup.then(|| "--systemd-cgroup=true".to_owned()));
                args.extend(gvisor.flags.iter().cloned());
            }
        }
        args
    }

    /// Whether runsc may see an annotation of the pod's spec. Some of its own are flags by another name
    /// (`dev.gvisor.internal.nvproxy`, `dev.gvisor.flag.*`) or name host paths (`dev.gvisor.spec.rootfs.*`): on a pod's
    /// own word they would undo the decision. What the shim itself adds comes after this, the pod's hints about its
    /// volumes among them. CRI-O's names for what a container is do not count with containerd.
    pub fn passes_annotation(&self, key: &str) -> bool {
        match &self.runtime {
            Runtime::Gvisor(gvisor) if !gvisor.trusts_annotations => {
                // runsc heeds flags in annotations only if it is told to.
                let inert = !gvisor.flags.iter().any(|flag| flag.contains("allow-flag-override"));
                let foreign = ["dev.gvisor.", "io.kubernetes.cri-o."].iter().any(|prefix| key.starts_with(prefix));
                !foreign || (inert && key.starts_with("dev.gvisor.flag."))
            }
            Runtime::Gvisor(_) | Runtime::Runc { .. } => true,
        }
    }

    /// Whether a later container of the pod gets what it asks for, by its spec and by its own annotations. Those of its
    /// pod, which engines repeat on each container, are answered already.
    pub fn admit(&self, container: &Workload, annotations: &BTreeMap<String, String>) -> Result<(), Refusal> {
        for (key, pods) in &self.heeded {
            match annotations.get(key) {
                Some(own) if Some(own) != pods.as_ref() && !self.gives(key, own) => {
                    return Err(Refusal::NotThePods {
                        annotation: key.clone(),
                        value: quote(own).to_string(),
                        runtime: self.runtime.kind(),
                    });
                }
                _ => {}
            }
        }
        match (&self.runtime, container.gpu.first()) {
            (Runtime::Gvisor(gvisor), Some(evidence)) if !gvisor.nvproxy && !self.gpu_forgone => {
                Err(Refusal::GpuWithoutNvproxy(evidence.clone()))
            }
            _ => Ok(()),
        }
    }

    /// Whether a container of the pod may be checkpointed, or restored from a checkpoint.
    pub fn admit_checkpoint(&self) -> Result<(), Refusal> {
        match &self.runtime {
            Runtime::Gvisor(Gvisor { checkpoints, .. }) if *checkpoints != CheckpointWorkloads::Native => {
                Err(Refusal::CheckpointElsewhere(*checkpoints))
            }
            Runtime::Gvisor(_) | Runtime::Runc { .. } => Ok(()),
        }
    }

    /// Whether the pod has already what an annotation asks for.
    fn gives(&self, key: &str, value: &str) -> bool {
        let gvisor = match &self.runtime {
            Runtime::Gvisor(gvisor) => Some(gvisor),
            Runtime::Runc { .. } => None,
        };
        match key {
            super::POOL => self.pool.as_deref() == Some(value),
            super::CONTAINER_RUNTIME => self.runtime.kind().to_string() == value,
            super::GVISOR_PLATFORM => gvisor.is_none_or(|gvisor| gvisor.platform.word() == value),
            super::NVPROXY => gvisor.is_none_or(|gvisor| gvisor.nvproxy.to_string() == value),
            super::DEBUG => gvisor.is_none_or(|gvisor| gvisor.debug.to_string() == value),
            _ => value == "false",
        }
    }

    /// What the log says once the pod's first container is decided.
    pub fn log_lines(&self, container_id: &str) -> Vec<LogLine> {
        let line = |level, message: &str, fields: &[(&'static str, &dyn fmt::Display)]| LogLine {
            level,
            message: message.to_owned(),
            fields: fields.iter().map(|(key, value)| (*key, value.to_string())).collect(),
        };
        let pool = self.pool.as_deref().unwrap_or("none");
        let runtime = self.runtime.kind();
        let mut lines = vec![line(
            Level::Info,
            "initializing container runtime for worker pool",
            &[("pool", &pool), ("runtime", &self.initial)],
        )];
        lines
            .extend(self.warnings.iter().map(|warning| line(Level::Warn, warning, &[("container_id", &container_id)])));
        match &self.moved {
            Some(Moved::RunscUnavailable(tried)) => lines.push(line(
                Level::Warn,
                "failed to create gvisor runtime, falling back to runc",
                &[("container_id", &container_id), ("error", tried)],
            )),
            Some(Moved::Gpu(_)) => {
                lines.push(line(Level::Debug, "using runc for GPU workload", &[("container_id", &container_id)]));
            }
            Some(Moved::Annotation | Moved::Checkpoint(_)) | None => {}
        }
        if let Runtime::Gvisor(gvisor) = &self.runtime {
            lines.push(line(
                Level::Info,
                "gVisor runtime initialized successfully",
                &[("platform", &gvisor.platform), ("root", &gvisor.root.display())],
            ));
        }
        lines.push(line(
            Level::Debug,
            "selected runtime for container",
            &[("container_id", &container_id), ("runtime", &runtime)],
        ));
        lines
    }
}
