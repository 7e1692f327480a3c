//! What a shim has to do, as a user of containerd sees it. Each function is one sentence about behaviour and runs with every
//! case; where a runtime differs with reason, the function says so.

mod exec;
mod faults;
mod io;
mod life;
mod limits;
mod outage;
mod run;
mod signals;
mod terminal;

use std::sync::Arc;

use libtest_mimic::{Failed, Trial};

use crate::{
    case::RuntimeCase,
    lab::{House, Lab},
};

/// A sentence, and the function that shows it.
type Scenario = (&'static str, fn(&Lab, &RuntimeCase));

/// Every scenario with every case.
pub fn trials(house: &Arc<House>, cases: &[RuntimeCase]) -> Vec<Trial> {
    let rooms: [&[Scenario]; 9] = [
        run::SCENARIOS,
        io::SCENARIOS,
        exec::SCENARIOS,
        signals::SCENARIOS,
        terminal::SCENARIOS,
        life::SCENARIOS,
        limits::SCENARIOS,
        outage::SCENARIOS,
        faults::SCENARIOS,
    ];
    let scenarios = rooms.into_iter().flatten();
    scenarios
        .flat_map(|scenario| cases.iter().map(move |case| trial(house, case, *scenario)))
        .collect()
}

fn trial(house: &Arc<House>, case: &RuntimeCase, (sentence, show): Scenario) -> Trial {
    let (house, case) = (Arc::clone(house), case.clone());
    Trial::test(format!("{}::{sentence}", case.name), move || {
        Lab::trial(house, |lab| show(lab, &case)).map_err(Failed::from)
    })
}
