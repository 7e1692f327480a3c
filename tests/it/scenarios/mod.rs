//! What a shim has to do, as a user of containerd sees it. Each function is one sentence about behaviour and runs with every
//! case; where a runtime differs with reason, the function says so.

mod cgroups;
mod checkpoint;
mod choice;
mod compare;
mod cri;
mod docker;
mod exec;
mod faults;
mod gpu;
mod hang;
mod io;
mod life;
mod limits;
mod loggers;
mod options;
mod outage;
mod pod;
mod protocol;
mod rootfs;
mod run;
mod signals;
mod soak;
mod terminal;

use std::sync::Arc;

use beta9_shim::cgroup::Hierarchy;
use libtest_mimic::{Failed, Trial};

use crate::{
    case::{self, RuntimeCase},
    lab::{House, Lab},
};

/// A sentence, and the function that shows it.
type Scenario = (&'static str, fn(&Lab, &RuntimeCase));

/// What every shim has to do, on every daemon.
const ALL: &[&[Scenario]] = &[
    run::SCENARIOS,
    io::SCENARIOS,
    exec::SCENARIOS,
    signals::SCENARIOS,
    terminal::SCENARIOS,
    life::SCENARIOS,
    limits::SCENARIOS,
    outage::SCENARIOS,
    loggers::SCENARIOS,
    checkpoint::SCENARIOS,
];

/// The same where one daemon is as good as another: what is between the shim and the runtime.
const ALL_ONCE: &[&[Scenario]] = &[checkpoint::ONCE, faults::SCENARIOS, outage::UPGRADE];

/// What only ours can.
const OURS: &[&[Scenario]] = &[options::SCENARIOS];

/// The same where one daemon is as good as another, or none is needed.
const OURS_ONCE: &[&[Scenario]] = &[
    checkpoint::OURS_ONCE,
    choice::SCENARIOS,
    hang::SCENARIOS,
    gpu::SCENARIOS,
    protocol::SCENARIOS,
    faults::OURS,
    loggers::OURS,
    io::OURS,
    rootfs::SCENARIOS,
];

/// What only gVisor has.
const GVISOR: [&[Scenario]; 1] = [pod::SCENARIOS];

/// What only ours can, where gVisor knows nvproxy.
const NVPROXY: [&[Scenario]; 1] = [gpu::NVPROXY];

/// Every scenario with every case that it is for.
pub fn trials(house: &Arc<House>, cases: &[RuntimeCase]) -> Vec<Trial> {
    let mut trials = cri::trials(house, cases);
    let mut add = |rooms: &[&[Scenario]], meant: fn(&RuntimeCase) -> bool| {
        for scenario in rooms.iter().copied().flatten() {
            trials.extend(cases.iter().filter(|case| meant(case)).map(|case| trial(house, case, *scenario)));
        }
    };
    add(ALL, |_| true);
    add(ALL_ONCE, RuntimeCase::is_on_first_daemon);
    add(OURS, |case| case.ours);
    add(OURS_ONCE, |case| case.ours && case.is_on_first_daemon());
    add(&GVISOR, |case| case.ours && !case.is_runc());
    add(&[compare::SCENARIOS, cgroups::MEASURED], |case| case.ours && case.is_runc());
    add(&[protocol::RUNC], |case| case.ours && case.is_runc() && case.is_on_first_daemon());
    if Hierarchy::of_host().is_ok_and(|mode| mode == Hierarchy::V2) {
        add(&[cgroups::UNIFIED], RuntimeCase::is_runc);
        add(&[cgroups::UNIFIED_OURS], |case| case.ours && case.is_runc());
    }
    add(&NVPROXY, RuntimeCase::knows_nvproxy);
    add(&[soak::SCENARIOS], |case| case.ours && case.is_on_first_daemon() && (case.is_runc() || case.knows_nvproxy()));
    trials.extend(docker::trials(house));
    trials.push(Trial::test("beta9::the shim under test answers", || case::shim_answers().map_err(Failed::from)));
    trials
}

fn trial(house: &Arc<House>, case: &RuntimeCase, (sentence, show): Scenario) -> Trial {
    let (house, case) = (Arc::clone(house), case.clone());
    Trial::test(format!("{}::{sentence}", case.name), move || {
        Lab::trial(&house, case.ours, |lab| show(lab, &case)).map_err(Failed::from)
    })
}
