//! What a kubelet needs of a runtime, through containerd's CRI. All handlers are registered with every daemon, so all cases of a
//! version share one.

mod checkpoint;
mod container;
mod network;
mod outage;
mod pod;
mod stream;

use std::sync::Arc;

use libtest_mimic::Trial;

use super::{Scenario, trial};
use crate::{
    case::{Runtime, RuntimeCase},
    lab::{House, Lab, cri::Cri, daemon::Version},
};

/// What every shim has to do.
const ALL: [&[Scenario]; 5] =
    [pod::SCENARIOS, container::SCENARIOS, stream::SCENARIOS, network::SCENARIOS, outage::SCENARIOS];

/// What only ours can.
const OURS: [&[Scenario]; 2] = [pod::OURS, outage::OURS];

/// What shows that a registration works, where all else is known from another one.
const BRIEFLY: [&[Scenario]; 1] = [pod::BRIEFLY];

/// Every scenario with every case that it is for.
pub fn trials(house: &Arc<House>, cases: &[RuntimeCase]) -> Vec<Trial> {
    let mut trials = Vec::new();
    let mut add = |rooms: &[&[Scenario]], case: &RuntimeCase| {
        trials.extend(rooms.iter().copied().flatten().map(|scenario| trial(house, case, *scenario)));
    };
    for case in cases {
        let pods = case.through_cri();
        add(&ALL, &pods);
        if case.ours {
            add(&OURS, &pods);
        }
        add(&[checkpoints(case)], &pods);
        if let Some(renamed) = case.by_path() {
            add(&BRIEFLY, &renamed);
            add(&[checkpoints(case)], &renamed);
        }
    }
    trials
}

/// What a containerd before 2.1 has not.
fn checkpoints(case: &RuntimeCase) -> &'static [Scenario] {
    match case.runtime {
        _ if case.daemon().version < Version::V2_1 => &[],
        Runtime::Runc => checkpoint::SCENARIOS,
        Runtime::Runsc => checkpoint::GVISOR,
    }
}

/// The CRI of the daemon that all cases of this version share.
fn cri(lab: &Lab, case: &RuntimeCase) -> Cri {
    Cri::of(&lab.daemon(&case.cri_daemon()))
}
