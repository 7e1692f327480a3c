//! The property that invariant 7 asks for (docs/architecture.md): what a pod may not be trusted with cannot loosen what
//! the node's configuration alone would give it.

use std::sync::LazyLock;

use beta9_shim::config::{
    Annotations, CheckpointWorkloads, Config, GpuWorkloads, KvmUnavailable, Policies, Pool, RunscUnavailable,
};
use beta9_shim::select::{
    self, Decision, GpuEvidence, HostFacts, Moved, Refusal, RunscFact, Runtime, SpecView, Workload,
};
use libfuzzer_sys::arbitrary::{self, Arbitrary};

const POOLS: &str = "
worker:
  defaultPool: plain
  pools:
    plain: {containerRuntime: runc}
    secure: {containerRuntime: gvisor}
    kvm: {containerRuntime: gvisor, containerRuntimeConfig: {gvisorPlatform: kvm}}
    gpu: {containerRuntime: gvisor, gpuType: T4, runtime: nvidia}
    class: {containerRuntime: gvisor, runtime: nvidia}
    criu: {containerRuntime: gvisor, criuEnabled: true}
    debug: {containerRuntime: gvisor, containerRuntimeConfig: {debug: true, gvisorRoot: /srv/gvisor}}
    gpu-runc: {containerRuntime: runc, gpuType: T4}
    silent: {}
";
const NAMES: [&str; 9] = ["plain", "secure", "kvm", "gpu", "class", "criu", "debug", "gpu-runc", "silent"];

static CONFIG: LazyLock<Config> =
    LazyLock::new(|| Config::from_yaml("node.yaml", POOLS).expect("a valid configuration"));

/// A node: which pool its handler pins, its policies, and what its host has.
#[derive(Debug, Arbitrary)]
pub struct Node {
    pool: u8,
    gpu: u8,
    checkpoint: u8,
    kvm: u8,
    runsc: u8,
    has_runsc: bool,
    knows_nvproxy: bool,
    has_kvm: bool,
    has_driver: bool,
}

impl Node {
    fn config(&self) -> Config {
        let policies = Policies {
            annotations: Annotations::Tighten,
            gpu_workloads: pick(GpuWorkloads::WORDS, self.gpu),
            checkpoint_workloads: pick(CheckpointWorkloads::WORDS, self.checkpoint),
            kvm_unavailable: pick(KvmUnavailable::WORDS, self.kvm),
            runsc_unavailable: pick(RunscUnavailable::WORDS, self.runsc),
        };
        let mut config = CONFIG.clone();
        config.policies = policies;
        for pool in config.pools.values_mut() {
            pool.policies = policies;
        }
        config
    }

    fn host(&self) -> HostFacts {
        let found =
            RunscFact::Found { version: "1".into(), nvproxy: self.knows_nvproxy, capabilities: self.knows_nvproxy };
        let missing = RunscFact::Missing { tried: "runsc".into() };
        HostFacts {
            runsc: Some(if self.has_runsc { found } else { missing }),
            kvm: Some(self.has_kvm.then_some(()).ok_or_else(|| "none".into())),
            nvidia_driver: Some(self.has_driver),
        }
    }
}

fn pick<T: Copy>(words: &[(&str, T)], which: u8) -> T {
    words[usize::from(which) % words.len()].1
}

/// Decides for `bare`, and for `annotated`, which is the same with annotations; panics if they loosened anything.
pub fn hold(node: &Node, bare: &SpecView, annotated: &SpecView) {
    let (config, host) = (node.config(), node.host());
    let pool = NAMES[usize::from(node.pool) % NAMES.len()];
    let decide = |spec: &SpecView| {
        let workload = Workload::from_spec(spec);
        let plan = select::plan(&config, Some(pool), &spec.annotations(), &workload)?;
        let needs = plan.needs();
        let decision = plan.settle(&host)?;
        if matches!(decision.runtime, Runtime::Gvisor(_)) {
            assert!(needs.runsc);
        }
        Ok::<_, Refusal>(decision)
    };
    let pool = config.pool(pool).expect("one of ours");
    let cdi = GpuEvidence::cdi(&annotated.annotations()).is_some();
    match (decide(bare), decide(annotated)) {
        (Ok(alone), Ok(after)) => {
            assert!(is_no_loss(&alone, &after, pool, cdi), "{alone:#?}\n{after:#?}");
            show(&after);
        }
        // What gVisor alone would not start, no annotation starts with runc: only the operator's settings do.
        (Err(refusal), Ok(after)) => {
            let operators = match &after.moved {
                Some(Moved::RunscUnavailable(_)) => true,
                Some(Moved::Checkpoint(_)) => matches!(refusal, Refusal::GpuNotOffered { .. }),
                _ => false,
            };
            assert!(operators || matches!(after.runtime, Runtime::Gvisor(_)), "{refusal}\n{after:#?}");
            show(&after);
        }
        (_, Err(refusal)) => assert!(!refusal.to_string().contains(char::is_control)),
    }
}

/// A CDI annotation is a fact of the spec, as a device is; what it asks for is the policy's to give.
fn is_no_loss(before: &Decision, after: &Decision, pool: &Pool, cdi: bool) -> bool {
    match (&before.runtime, &after.runtime) {
        (Runtime::Runc { .. }, _) => true,
        (Runtime::Gvisor(_), Runtime::Runc { .. }) => false,
        (Runtime::Gvisor(before), Runtime::Gvisor(after)) => {
            before.platform == after.platform
                && (!after.nvproxy || before.nvproxy || cdi || pool.offers_gpu())
                && (!after.debug || before.debug)
                && (&before.root, &before.binary) == (&after.root, &after.binary)
        }
    }
}

/// What is logged or put on a command line carries nothing of a tenant's that could end a line.
fn show(decision: &Decision) {
    for line in decision.reasons.iter().chain(&decision.warnings) {
        assert!(!line.contains(char::is_control), "{line:?}");
    }
    for arg in decision.base_args("k8s.io", false) {
        assert!(!arg.contains(char::is_control), "{arg:?}");
    }
}
