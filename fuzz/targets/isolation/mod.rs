//! The property that invariant 7 asks for (docs/architecture.md): what a pod may not be trusted with cannot loosen what
//! the node's configuration alone would give it.

use beta9_shim::config::{Config, Pool};
use beta9_shim::select::{
    self, Decision, HostFacts, Moved, Refusal, RunscFact, Runtime, SpecView, Workload,
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
const NAMES: [&str; 9] = [
    "plain", "secure", "kvm", "gpu", "class", "criu", "debug", "gpu-runc", "silent",
];

/// A node: which pool its handler pins, its policies, and what its host has.
#[derive(Debug, Arbitrary)]
pub struct Node {
    pool: u8,
    gpu: u8,
    checkpoint: u8,
    kvm_fails: bool,
    runsc_falls_back: bool,
    has_runsc: bool,
    knows_nvproxy: bool,
    has_kvm: bool,
    has_driver: bool,
}

impl Node {
    fn config(&self) -> Config {
        let gpu = ["nvproxy", "runc", "reject"][usize::from(self.gpu % 3)];
        let checkpoint = ["runc", "native", "reject"][usize::from(self.checkpoint % 3)];
        let kvm = if self.kvm_fails { "fail" } else { "systrap" };
        let runsc = if self.runsc_falls_back {
            "runc"
        } else {
            "fail"
        };
        let text = format!(
            "{POOLS}\nshim: {{annotations: tighten, gpuWorkloads: {gpu}, checkpointWorkloads: {checkpoint}, \
             kvmUnavailable: {kvm}, runscUnavailable: {runsc}}}"
        );
        Config::from_yaml("node.yaml", &text).expect("a valid configuration")
    }

    fn host(&self) -> HostFacts {
        let found = RunscFact::Found {
            version: "1".into(),
            nvproxy: self.knows_nvproxy,
        };
        let missing = RunscFact::Missing {
            tried: "runsc".into(),
        };
        HostFacts {
            runsc: Some(if self.has_runsc { found } else { missing }),
            kvm: Some(self.has_kvm.then_some(()).ok_or_else(|| "none".into())),
            nvidia_driver: Some(self.has_driver),
        }
    }
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
    match (decide(bare), decide(annotated)) {
        (Ok(alone), Ok(after)) => {
            assert!(is_no_loss(&alone, &after, pool), "{alone:#?}\n{after:#?}");
            show(&after);
        }
        // What gVisor alone would not start, no annotation starts with runc: only the operator's settings do.
        (Err(refusal), Ok(after)) => {
            let operators = match &after.moved {
                Some(Moved::RunscUnavailable(_)) => true,
                Some(Moved::Checkpoint(_)) => matches!(refusal, Refusal::GpuNotOffered { .. }),
                _ => false,
            };
            assert!(
                operators || matches!(after.runtime, Runtime::Gvisor(_)),
                "{refusal}\n{after:#?}"
            );
            show(&after);
        }
        (_, Err(refusal)) => assert!(!refusal.to_string().contains(char::is_control)),
    }
}

fn is_no_loss(before: &Decision, after: &Decision, pool: &Pool) -> bool {
    match (&before.runtime, &after.runtime) {
        (Runtime::Runc { .. }, _) => true,
        (Runtime::Gvisor(_), Runtime::Runc { .. }) => false,
        (Runtime::Gvisor(before), Runtime::Gvisor(after)) => {
            before.platform == after.platform
                && (!after.nvproxy || before.nvproxy || pool.offers_gpu())
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
