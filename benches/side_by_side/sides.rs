//! The two shims that are compared, the daemon that they share, and the turns in which they are measured. Measures nothing.

use std::{
    fs,
    path::{Path, PathBuf},
    sync::Arc,
};

use nix::sys::signal::Signal;

use crate::{
    case::{self, RuntimeCase},
    lab::{
        Lab,
        container::Container,
        daemon::{Daemon, Version},
        keeper,
        packages::Suite,
    },
};

/// Something for each side.
#[derive(Clone, Copy, Debug, Default)]
pub struct Both<T> {
    pub ours: T,
    pub go: T,
}

impl<T> Both<T> {
    /// The same done to each, ours first.
    pub fn map<U>(&self, mut change: impl FnMut(&T) -> U) -> Both<U> {
        Both { ours: change(&self.ours), go: change(&self.go) }
    }

    /// Each with its counterpart.
    pub fn zip<'a, U>(&'a self, other: &'a Both<U>) -> Both<(&'a T, &'a U)> {
        Both { ours: (&self.ours, &other.ours), go: (&self.go, &other.go) }
    }
}

/// What was measured of one side, one value a round.
pub type Samples = Vec<f64>;

/// The value in the middle, or the mean of the two there.
pub fn median(samples: &[f64]) -> f64 {
    let mut sorted = samples.to_vec();
    sorted.sort_by(f64::total_cmp);
    let middle = sorted.len() / 2;
    match sorted.len() {
        0 => f64::NAN,
        length if length % 2 == 1 => sorted[middle],
        _ => (sorted[middle - 1] + sorted[middle]) / 2.0,
    }
}

/// A shim.
pub struct Side {
    /// How its containers are started.
    pub case: RuntimeCase,
    /// Its binary.
    pub program: PathBuf,
}

/// What every measurement needs.
pub struct Bench<'a> {
    pub lab: &'a Lab,
    pub daemon: Arc<Daemon>,
    pub sides: Both<Side>,
    pub rounds: usize,
}

impl<'a> Bench<'a> {
    /// A daemon of Debian 12's containerd that logs as a node's does, with nothing on it.
    pub fn new(lab: &'a Lab, rounds: usize) -> Self {
        let version = Version::V1_6;
        assert!(version.is_here(), "containerd is not here: run tests/lab/fetch.sh first");
        case::shim_answers().expect("our shim");
        let find = |ours: bool| {
            case::all()
                .into_iter()
                .find(|case| case.ours == ours && case.is_runc() && case.daemon().version == version)
                .expect("a case for each shim")
        };
        let sides = Both {
            ours: Side { case: find(true), program: case::shim() },
            go: Side { case: find(false), program: Suite::Bookworm.program("containerd-shim-runc-v2") },
        };
        let daemon = lab.own_daemon(sides.ours.case.daemon());
        log_as_usual(&daemon);
        Self { lab, daemon, sides, rounds }
    }

    /// Measures in turns: ours, Go's, ours, Go's, …
    pub fn turns(&self, rounds: usize, mut measure: impl FnMut(&Side) -> f64) -> Both<Samples> {
        let mut samples = Both::<Samples>::default();
        for _ in 0..rounds {
            samples.ours.push(measure(&self.sides.ours));
            samples.go.push(measure(&self.sides.go));
        }
        samples
    }

    /// Rounds for what takes seconds.
    pub fn few(&self) -> usize {
        self.rounds.div_ceil(3)
    }

    /// A container that does nothing.
    pub fn sleeper(&self, side: &Side) -> Container {
        let container = self.lab.container(&self.daemon, "bench");
        container.detach(&side.case, &[], &["sleep", "1000"]);
        container
    }

    /// The daemon's own directory.
    pub fn home(&self) -> PathBuf {
        home(&self.daemon)
    }

    /// runc itself.
    pub fn runc(&self) -> PathBuf {
        self.sides.ours.case.runtime_program()
    }
}

fn home(daemon: &Daemon) -> PathBuf {
    Path::new(keeper::WORK).join(daemon.namespace())
}

/// The tests' daemons log everything, and so do their shims; here that would be measured as well.
fn log_as_usual(daemon: &Daemon) {
    daemon.end(Signal::SIGTERM);
    let file = home(daemon).join("config.toml");
    let config = fs::read_to_string(&file).unwrap();
    let changed = config.replace("level = 'trace'", "level = 'info'");
    assert_ne!(config, changed, "no log level in {config}");
    fs::write(file, changed).unwrap();
    daemon.resume();
}
