//! The decision: which runtime a pod gets, how, and why. Pure: facts in, decision with reasons out.
//!
//! Owns: the order in which pool, annotations, GPU, checkpointing and the host decide, and every refusal. Does no I/O
//! and keeps no state. In two steps, so that a host is asked only for what matters: `plan` says what it `needs`,
//! `Plan::settle` takes the answers. Called by `start` for a pod's first container, and by `explain`.
//!
//! What `shim.annotations: tighten` (and `ignore`) lets a pod author do. The yardstick is what the configuration
//! alone would give; a pod that moved itself from runc into gVisor has gained more than it can lose, so it may
//! choose platform and GPU as it likes.
//! - `container-runtime`: runc to gVisor; never back.
//! - `gvisor-platform`: only the configured one. Which platform isolates best is disputed and differs by machine, so
//!   none counts as a gain over another.
//! - `nvproxy`: `false` always, except to get around `gpuWorkloads: reject`. `true` shows the host's driver to the pod,
//!   so only in a pool that offers a GPU (`gpuType`, or the RuntimeClass `nvidia`), or where a device, a hook or a CDI
//!   annotation asks for one: those are facts of the spec, which `gpuWorkloads` answers.
//! - `checkpoint`: `false` always; `true` not where the policy answers by leaving gVisor.
//! - `debug`: `false` always; `true` writes to the host's disk without bound, so only where it is on already.
//!
//! And `gpuWorkloads: runc` leaves gVisor only on the operator's or the node's word (`gpuType`, a device): an
//! image's environment or a pod's annotation would otherwise be a way out of the sandbox.
//!
//! Pools are Beta9's to choose (rule 1), so the annotation that names one is followed under every policy; a handler
//! whose pods must not choose pins its pool.

mod decision;
mod workload;

use std::collections::BTreeMap;

pub use decision::{Decision, Gvisor, LogLine, Moved, Runtime};
pub use workload::{GpuEvidence, SpecView, Workload};

use crate::config::{
    Annotations, CheckpointWorkloads, Config, ContainerRuntime, GpuWorkloads, KvmUnavailable, Platform, Policies, Pool,
    RunscUnavailable, quote,
};

/// Names the pod's pool; Beta9 puts it on its worker pods.
pub const POOL: &str = "run.beam.cloud/worker-pool-name";
/// Asks for a container runtime.
pub const CONTAINER_RUNTIME: &str = "run.beam.cloud/container-runtime";
/// Asks for a gVisor platform.
pub const GVISOR_PLATFORM: &str = "run.beam.cloud/gvisor-platform";
/// Asks for, or forgoes, a GPU in gVisor.
pub const NVPROXY: &str = "run.beam.cloud/nvproxy";
/// Asks for, or forgoes, checkpointing.
pub const CHECKPOINT: &str = "run.beam.cloud/checkpoint";
/// Asks for, or forgoes, runsc's debug log.
pub const DEBUG: &str = "run.beam.cloud/debug";

/// runsc's flag that limits what NVIDIA's driver may be used for.
const CAPABILITIES: &str = "--nvproxy-allowed-driver-capabilities";

/// Which facts of the host a plan depends on.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Needs {
    /// Whether runsc runs, and what it knows.
    pub runsc: bool,
    /// Whether `/dev/kvm` can be opened.
    pub kvm: bool,
    /// Whether NVIDIA's driver is there.
    pub nvidia_driver: bool,
}

/// What the host has. A fact that a plan needs and nobody looked up counts as missing.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct HostFacts {
    /// runsc, as far as it runs.
    pub runsc: Option<RunscFact>,
    /// `/dev/kvm`, or why it cannot be used.
    pub kvm: Option<Result<(), String>>,
    /// NVIDIA's driver (`/dev/nvidiactl`).
    pub nvidia_driver: Option<bool>,
}

/// What became of running runsc.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum RunscFact {
    /// It is missing or unusable.
    Missing {
        /// What was tried, and what came of it.
        tried: String,
    },
    /// It runs.
    Found {
        /// What it calls itself.
        version: String,
        /// It knows the flag `--nvproxy`.
        nvproxy: bool,
        /// It knows the flag `--nvproxy-allowed-driver-capabilities`, which came later.
        capabilities: bool,
    },
}

/// Why a pod is not started. Each says what, where, and what to do.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// The pool is not configured.
    #[error("unknown pool {name}, named by {by}; {known}")]
    UnknownPool {
        /// The name, quoted.
        name: String,
        /// Who named it.
        by: &'static str,
        /// The pools there are.
        known: String,
    },
    /// An annotation's value has no meaning.
    #[error("annotation {annotation}: {value} is not allowed; allowed: {allowed}")]
    BadAnnotation {
        /// Its key.
        annotation: &'static str,
        /// Its value, quoted.
        value: String,
        /// What it may say.
        allowed: String,
    },
    /// An annotation would take isolation away.
    #[error(
        "annotation {annotation}: {value} is refused: {effect}, which {place} does not give on its own; remove the \
         annotation, or let the operator change {place} or set shim.annotations: trust"
    )]
    Loosened {
        /// Its key.
        annotation: &'static str,
        /// What it asked for.
        value: String,
        /// What that would do.
        effect: &'static str,
        /// The pool, or the node's defaults.
        place: String,
    },
    /// The pod itself asks for a GPU where the operator offers none.
    #[error(
        "the pod asks for a GPU ({evidence}), and {effect} on a pod's own word is refused in {place}; set gpuType on \
         the pool if its pods may use a GPU, or shim.annotations: trust"
    )]
    GpuNotOffered {
        /// What asked.
        evidence: GpuEvidence,
        /// What would follow.
        effect: &'static str,
        /// The pool, or the node's defaults.
        place: String,
    },
    /// The policy refuses GPU workloads.
    #[error("GPU workloads are refused in gVisor here (shim.gpuWorkloads: reject), and the pod asks for one: {0}")]
    GpuRejected(GpuEvidence),
    /// The policy refuses checkpoint workloads.
    #[error(
        "checkpoint/restore workloads are refused in gVisor here (shim.checkpointWorkloads: reject), and the pod is \
         one: {0}"
    )]
    CheckpointRejected(String),
    /// A checkpoint is asked of a pod that was not meant for it.
    #[error(
        "this pod runs in gVisor, where shim.checkpointWorkloads: {0} allows no checkpoint; set it to native for runsc's \
         own checkpoints, or to runc and mark such pods (the pool's criuEnabled, or the annotation {CHECKPOINT}: \
         \"true\"), so that they run with runc and CRIU"
    )]
    CheckpointElsewhere(CheckpointWorkloads),
    /// No runsc.
    #[error(
        "runtime gvisor is not available: {tried}; install runsc or correct shim.runsc (shim.runscUnavailable: runc \
         would run such pods without gVisor)"
    )]
    RunscUnavailable {
        /// What was tried.
        tried: String,
    },
    /// A GPU, and a runsc that is too old.
    #[error(
        "a GPU in gVisor ({evidence}) needs a runsc that knows --nvproxy, and {version} does not; install a newer \
         runsc, or set shim.gpuWorkloads: runc"
    )]
    NvproxyUnknown {
        /// What asked.
        evidence: GpuEvidence,
        /// What this runsc calls itself.
        version: String,
    },
    /// A GPU, and a runsc that cannot limit what it is used for.
    #[error(
        "what a GPU in gVisor may be used for is limited (shim.nvproxyDriverCapabilities), and runsc {version} knows no \
         such limit; install a newer runsc, or remove the setting"
    )]
    CapabilitiesUnknown {
        /// What this runsc calls itself.
        version: String,
    },
    /// A GPU, and no driver.
    #[error(
        "a GPU in gVisor ({0}) needs NVIDIA's driver on the node, and there is none (no /dev/nvidiactl); install the \
         driver, or keep such pods away from this node"
    )]
    NoDriver(GpuEvidence),
    /// kvm, and no `/dev/kvm`.
    #[error(
        "gVisor platform kvm is not available: {0}; make /dev/kvm usable, choose gvisorPlatform: systrap, or set \
         shim.kvmUnavailable: systrap"
    )]
    KvmUnavailable(String),
    /// A later container wants what its pod does not have.
    #[error(
        "annotation {annotation}: {value} is refused for a container of a pod that runs otherwise, with {runtime}: the \
         pod's first container decides for all of them; put the annotation on the pod, or remove it"
    )]
    NotThePods {
        /// Its key.
        annotation: String,
        /// Its value, quoted.
        value: String,
        /// What runs the pod.
        runtime: ContainerRuntime,
    },
    /// A later container wants what its sandbox was started without.
    #[error(
        "the container asks for a GPU ({0}), and its pod's gVisor sandbox was started without nvproxy; set gpuType on \
         the pool, or the annotation run.beam.cloud/nvproxy: \"true\" on the pod"
    )]
    GpuWithoutNvproxy(GpuEvidence),
}

/// A decision that still depends on the host.
#[derive(Clone, Debug)]
pub struct Plan {
    decision: Decision,
    policies: Policies,
    /// What a pod gets that falls back.
    runc: Runtime,
    /// Why nvproxy is on, if it is.
    gpu: Option<GpuEvidence>,
}

/// Decides as far as the configuration, the annotations and the spec reach.
pub fn plan(
    config: &Config,
    pinned_pool: Option<&str>,
    annotations: &BTreeMap<String, String>,
    workload: &Workload,
) -> Result<Plan, Refusal> {
    let mut reasons = Vec::new();
    let chosen = choose_pool(config, pinned_pool, annotations, &mut reasons)?;
    let (name, pool) = match chosen {
        Some((name, pool)) => (Some(name), pool),
        None => (None, &Pool { policies: config.policies, ..Pool::default() }),
    };
    let wishes = match pool.policies.annotations {
        Annotations::Ignore => {
            Wishes::ignored(annotations, &mut reasons);
            Wishes::default()
        }
        Annotations::Tighten | Annotations::Trust => Wishes::read(annotations)?,
    };
    let configured = pool.container_runtime.unwrap_or(config.container_runtime);
    let asked = wishes.runtime.unwrap_or(configured);
    let mut case = Case {
        place: name.map_or_else(|| "the configuration".to_owned(), |name| format!("pool {}", quote(name).bare())),
        pool,
        free: pool.policies.annotations == Annotations::Trust
            || (configured, asked) == (CONTAINER_RUNC, CONTAINER_GVISOR),
        reasons,
        warnings: config.warnings.iter().chain(&pool.warnings).cloned().collect(),
    };

    let mut gpu = None;
    let mut debug = pool.gvisor.debug;
    let mut platform = pool.gvisor.platform;
    let mut moved = case.runtime(configured, &wishes)?;
    if asked == ContainerRuntime::Gvisor {
        let evidence = gpu_evidence(pool, annotations, workload, &wishes);
        (gpu, moved) = case.gpu(&evidence, &wishes)?;
        if moved.is_none() {
            moved = case.checkpoint(&wishes)?;
        }
        if moved.is_none() {
            platform = case.platform(&wishes)?;
            debug = case.debug(&wishes)?;
        }
    }
    if let Some(moved) = &moved {
        case.warnings.push(format!("the pod is moved from gVisor to runc: {moved}"));
    }

    let runc = Runtime::Runc { binary: config.runc.clone(), root: config.runc_root.clone() };
    let runtime = if asked == ContainerRuntime::Runc || moved.is_some() {
        case.unheard(&wishes);
        gpu = None;
        runc.clone()
    } else {
        let mut flags = config.runsc_flags.clone();
        if let (Some(_), Some(names)) = (&gpu, &config.nvproxy_driver_capabilities) {
            flags.insert(0, format!("{CAPABILITIES}={}", names.join(",")));
        }
        Runtime::Gvisor(Gvisor {
            binary: config.runsc.clone(),
            platform,
            root: pool.gvisor.root.clone(),
            nvproxy: gpu.is_some(),
            debug,
            flags,
            trusts_annotations: pool.policies.annotations == Annotations::Trust,
            release: None,
            checkpoints: pool.policies.checkpoint_workloads,
        })
    };
    let decision = Decision {
        pool: name.map(str::to_owned),
        pod_runtime_class: pool.pod_runtime_class.clone(),
        initial: asked,
        runtime,
        moved,
        heeded: heeded(pool.policies.annotations, pinned_pool.is_some(), annotations),
        gpu_forgone: wishes.nvproxy == Some(false),
        reasons: case.reasons,
        warnings: case.warnings,
    };
    Ok(Plan { decision, policies: pool.policies, runc, gpu })
}

/// Both steps at once, where all facts are at hand.
pub fn decide(
    config: &Config,
    pinned_pool: Option<&str>,
    annotations: &BTreeMap<String, String>,
    workload: &Workload,
    host: &HostFacts,
) -> Result<Decision, Refusal> {
    plan(config, pinned_pool, annotations, workload)?.settle(host)
}

impl Plan {
    /// What `settle` will want to know.
    pub fn needs(&self) -> Needs {
        match &self.decision.runtime {
            Runtime::Runc { .. } => Needs::default(),
            Runtime::Gvisor(gvisor) => {
                Needs { runsc: true, kvm: gvisor.platform == Platform::Kvm, nvidia_driver: gvisor.nvproxy }
            }
        }
    }

    /// The runtime as planned: whose binary to probe.
    pub fn runtime(&self) -> &Runtime {
        &self.decision.runtime
    }

    /// Decides with what the host has.
    pub fn settle(self, host: &HostFacts) -> Result<Decision, Refusal> {
        let Self { mut decision, policies, runc, gpu } = self;
        let Runtime::Gvisor(gvisor) = &mut decision.runtime else {
            return Ok(decision);
        };
        let (version, knows_nvproxy, knows_capabilities) = match &host.runsc {
            Some(RunscFact::Found { version, nvproxy, capabilities }) => (version, *nvproxy, *capabilities),
            missing => {
                let tried = match missing {
                    Some(RunscFact::Missing { tried }) => tried.clone(),
                    _ => format!("nobody looked for {}", gvisor.binary),
                };
                return match policies.runsc_unavailable {
                    RunscUnavailable::Fail => Err(Refusal::RunscUnavailable { tried }),
                    RunscUnavailable::Runc => {
                        let moved = Moved::RunscUnavailable(tried);
                        decision.warnings.push(format!("the pod is moved from gVisor to runc: {moved}"));
                        Ok(Decision { runtime: runc, moved: Some(moved), ..decision })
                    }
                };
            }
        };
        gvisor.release = release(version);
        if let Some(evidence) = gpu {
            if !knows_nvproxy {
                return Err(Refusal::NvproxyUnknown { evidence, version: quote(version).bare().to_string() });
            }
            if !knows_capabilities && gvisor.flags.iter().any(|flag| flag.starts_with(CAPABILITIES)) {
                return Err(Refusal::CapabilitiesUnknown { version: quote(version).bare().to_string() });
            }
            if host.nvidia_driver != Some(true) {
                return Err(Refusal::NoDriver(evidence));
            }
        }
        if gvisor.platform == Platform::Kvm {
            let kvm = host.kvm.clone().unwrap_or_else(|| Err("nobody looked for /dev/kvm".into()));
            match (kvm, policies.kvm_unavailable) {
                (Ok(()), _) => {}
                (Err(why), KvmUnavailable::Fail) => return Err(Refusal::KvmUnavailable(why)),
                (Err(why), KvmUnavailable::Systrap) => {
                    gvisor.platform = Platform::Systrap;
                    decision.warnings.push(format!("platform kvm is not available ({why}), using systrap"));
                }
            }
        }
        Ok(decision)
    }
}

/// The annotations that count where this policy holds, with what this pod says.
fn heeded(
    policy: Annotations,
    pinned: bool,
    annotations: &BTreeMap<String, String>,
) -> BTreeMap<String, Option<String>> {
    let wishes: &[&str] = match policy {
        Annotations::Ignore => &[],
        Annotations::Tighten | Annotations::Trust => &[CONTAINER_RUNTIME, GVISOR_PLATFORM, NVPROXY, CHECKPOINT, DEBUG],
    };
    let pool = (!pinned).then_some(POOL);
    wishes.iter().copied().chain(pool).map(|key| (key.to_owned(), annotations.get(key).cloned())).collect()
}

/// The date in a runsc's version, which is how gVisor counts: `release-20240729.0`, Debian's `0.0~20221219.0`.
fn release(version: &str) -> Option<u32> {
    let mut numbers = version.split(|character: char| !character.is_ascii_digit());
    numbers.find(|number| number.len() == 8 && number.starts_with("20"))?.parse().ok()
}

const CONTAINER_RUNC: ContainerRuntime = ContainerRuntime::Runc;
const CONTAINER_GVISOR: ContainerRuntime = ContainerRuntime::Gvisor;

fn choose_pool<'a>(
    config: &'a Config,
    pinned: Option<&'a str>,
    annotations: &'a BTreeMap<String, String>,
    reasons: &mut Vec<String>,
) -> Result<Option<(&'a str, &'a Pool)>, Refusal> {
    let annotated = annotations.get(POOL).map(String::as_str);
    let named = [
        (pinned, "the handler's runtime options"),
        (annotated, "the annotation run.beam.cloud/worker-pool-name"),
        (config.default_pool.as_deref(), "worker.defaultPool"),
    ];
    let Some((name, by)) = named.into_iter().find_map(|(name, by)| name.map(|name| (name, by))) else {
        reasons.push("nothing names a pool: the node's defaults apply".into());
        return Ok(None);
    };
    let pool = config.pool(name).ok_or_else(|| Refusal::UnknownPool {
        name: quote(name).to_string(),
        by,
        known: config.known_pools(),
    })?;
    reasons.push(format!("pool {}: named by {by}", quote(name).bare()));
    Ok(Some((name, pool)))
}

/// What asks for a GPU, the most authoritative first.
fn gpu_evidence(
    pool: &Pool,
    annotations: &BTreeMap<String, String>,
    workload: &Workload,
    wishes: &Wishes,
) -> Vec<GpuEvidence> {
    let mut evidence = Vec::new();
    evidence.extend(pool.gpu_type.as_deref().map(|name| GpuEvidence::Pool(quote(name).bare().to_string())));
    evidence.extend(workload.gpu.iter().cloned());
    evidence.extend(GpuEvidence::cdi(annotations));
    evidence.extend((wishes.nvproxy == Some(true)).then_some(GpuEvidence::Annotation));
    evidence.sort();
    evidence.dedup();
    evidence
}

/// What the pod's annotations ask for.
#[derive(Debug, Default)]
struct Wishes {
    runtime: Option<ContainerRuntime>,
    platform: Option<Platform>,
    nvproxy: Option<bool>,
    checkpoint: Option<bool>,
    debug: Option<bool>,
}

impl Wishes {
    fn read(annotations: &BTreeMap<String, String>) -> Result<Self, Refusal> {
        fn one<T: Copy>(
            annotations: &BTreeMap<String, String>,
            annotation: &'static str,
            words: &[(&str, T)],
        ) -> Result<Option<T>, Refusal> {
            let Some(value) = annotations.get(annotation) else {
                return Ok(None);
            };
            match words.iter().find(|(word, _)| word == value) {
                Some((_, wish)) => Ok(Some(*wish)),
                None => Err(Refusal::BadAnnotation {
                    annotation,
                    value: quote(value).to_string(),
                    allowed: words.iter().map(|(word, _)| *word).collect::<Vec<_>>().join(", "),
                }),
            }
        }
        const FLAG: &[(&str, bool)] = &[("true", true), ("false", false)];
        Ok(Self {
            runtime: one(annotations, CONTAINER_RUNTIME, ContainerRuntime::WORDS)?,
            platform: one(annotations, GVISOR_PLATFORM, Platform::WORDS)?,
            nvproxy: one(annotations, NVPROXY, FLAG)?,
            checkpoint: one(annotations, CHECKPOINT, FLAG)?,
            debug: one(annotations, DEBUG, FLAG)?,
        })
    }

    fn ignored(annotations: &BTreeMap<String, String>, reasons: &mut Vec<String>) {
        let ours = [CONTAINER_RUNTIME, GVISOR_PLATFORM, NVPROXY, CHECKPOINT, DEBUG];
        for annotation in ours.into_iter().filter(|annotation| annotations.contains_key(*annotation)) {
            reasons.push(format!("annotation {annotation} is ignored (shim.annotations: ignore)"));
        }
    }
}

/// One pod's case while it is weighed.
struct Case<'a> {
    /// What an operator would change.
    place: String,
    pool: &'a Pool,
    /// The pod's own word counts: it is trusted, or nothing it asks for is worse than what it would have had.
    free: bool,
    reasons: Vec<String>,
    warnings: Vec<String>,
}

impl Case<'_> {
    fn runtime(&mut self, configured: ContainerRuntime, wishes: &Wishes) -> Result<Option<Moved>, Refusal> {
        let from = if self.pool.container_runtime.is_some() { self.place.as_str() } else { "the node's default" };
        self.reasons.push(format!("container runtime {configured}: {from}"));
        match (configured, wishes.runtime) {
            (ContainerRuntime::Gvisor, Some(ContainerRuntime::Runc)) => {
                self.allow(CONTAINER_RUNTIME, "runc", "the pod would run without gVisor")?;
                Ok(Some(Moved::Annotation))
            }
            (ContainerRuntime::Runc, Some(ContainerRuntime::Gvisor)) => {
                self.reasons.push(format!("container runtime gvisor: the annotation {CONTAINER_RUNTIME} tightens it"));
                Ok(None)
            }
            _ => Ok(None),
        }
    }

    /// Rule 5: what to do with a GPU workload; the evidence for nvproxy, or the move to runc.
    fn gpu(
        &mut self,
        evidence: &[GpuEvidence],
        wishes: &Wishes,
    ) -> Result<(Option<GpuEvidence>, Option<Moved>), Refusal> {
        let Some(strongest) = evidence.first() else {
            return Ok((None, None));
        };
        // Forgoing is no way around a rejection: what moves the pod to runc later would hand it the device after all.
        let rejects = self.pool.policies.gpu_workloads == GpuWorkloads::Reject;
        if wishes.nvproxy == Some(false) && !rejects {
            self.reasons.push(format!("no GPU: the annotation {NVPROXY} forgoes it ({strongest})"));
            return Ok((None, None));
        }
        let refuse = |effect| Refusal::GpuNotOffered { evidence: strongest.clone(), effect, place: self.place.clone() };
        match self.pool.policies.gpu_workloads {
            GpuWorkloads::Nvproxy => {
                if strongest.is_mere_wish() && !self.free && !self.pool.offers_gpu() {
                    return Err(refuse("opening the host's GPU driver to it"));
                }
                self.reasons.push(format!("nvproxy: {strongest}"));
                Ok((Some(strongest.clone()), None))
            }
            GpuWorkloads::Runc => {
                if !strongest.is_operators() && !self.free {
                    return Err(refuse("leaving gVisor for runc (shim.gpuWorkloads: runc)"));
                }
                Ok((None, Some(Moved::Gpu(strongest.clone()))))
            }
            // A pool's gpuType says that its pods may ask, not that this one did.
            GpuWorkloads::Reject => match evidence.iter().find(|evidence| !matches!(evidence, GpuEvidence::Pool(_))) {
                Some(evidence) => Err(Refusal::GpuRejected(evidence.clone())),
                None => Ok((None, None)),
            },
        }
    }

    /// Rule 6.
    fn checkpoint(&mut self, wishes: &Wishes) -> Result<Option<Moved>, Refusal> {
        let configured = self.pool.criu_enabled;
        if !wishes.checkpoint.unwrap_or(configured) {
            if configured {
                self.reasons.push(format!("no checkpointing: the annotation {CHECKPOINT} forgoes it"));
            }
            return Ok(None);
        }
        let why = if configured {
            format!("criuEnabled: true in {}", self.place)
        } else {
            format!("the annotation {CHECKPOINT}")
        };
        match self.pool.policies.checkpoint_workloads {
            CheckpointWorkloads::Runc => {
                if !configured {
                    self.allow(
                        CHECKPOINT,
                        "true",
                        "the pod would run without gVisor (shim.checkpointWorkloads: runc)",
                    )?;
                }
                Ok(Some(Moved::Checkpoint(why)))
            }
            CheckpointWorkloads::Native => {
                self.reasons.push(format!("checkpoints are runsc's own: {why}"));
                Ok(None)
            }
            CheckpointWorkloads::Reject => Err(Refusal::CheckpointRejected(why)),
        }
    }

    fn platform(&mut self, wishes: &Wishes) -> Result<Platform, Refusal> {
        let configured = self.pool.gvisor.platform;
        let Some(wish) = wishes.platform.filter(|wish| *wish != configured) else {
            return Ok(configured);
        };
        self.allow(GVISOR_PLATFORM, wish.word(), "the pod would get another gVisor platform")?;
        self.reasons.push(format!("platform {wish}: the annotation {GVISOR_PLATFORM}"));
        Ok(wish)
    }

    fn debug(&mut self, wishes: &Wishes) -> Result<bool, Refusal> {
        let configured = self.pool.gvisor.debug;
        let Some(wish) = wishes.debug.filter(|wish| *wish != configured) else {
            return Ok(configured);
        };
        if wish && self.pool.policies.annotations != Annotations::Trust {
            return Err(self.loosened(DEBUG, "true", "runsc would write a debug log to the host's disk"));
        }
        self.reasons.push(format!("debug {wish}: the annotation {DEBUG}"));
        Ok(wish)
    }

    /// Under runc the wishes about gVisor mean nothing; saying so is kinder than silence.
    fn unheard(&mut self, wishes: &Wishes) {
        let heard = [
            (GVISOR_PLATFORM, wishes.platform.is_some()),
            (NVPROXY, wishes.nvproxy.is_some()),
            (DEBUG, wishes.debug.is_some()),
        ];
        for (annotation, _) in heard.into_iter().filter(|(_, asked)| *asked) {
            self.reasons.push(format!("annotation {annotation} means nothing under runc"));
        }
    }

    fn allow(&self, annotation: &'static str, value: &str, effect: &'static str) -> Result<(), Refusal> {
        if self.free { Ok(()) } else { Err(self.loosened(annotation, value, effect)) }
    }

    fn loosened(&self, annotation: &'static str, value: &str, effect: &'static str) -> Refusal {
        Refusal::Loosened { annotation, value: value.to_owned(), effect, place: self.place.clone() }
    }
}

#[cfg(test)]
mod tests;
