//! The integration tests: one program that keeps a house of its own, runs every scenario in it against real daemons and
//! runtimes, and fails if anything is left when they are done.
//!
//! It runs as two processes. The keeper (`lab::keeper`) has the mount namespace and inherits every orphan; the tests run in
//! its child, so that the children of the tests are theirs alone to wait for.

// Tests end by panicking; clippy's exception for tests covers only functions under #[test], which this harness does not use.
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod case;
mod lab;
mod scenarios;

use std::process::ExitCode;

use libtest_mimic::Arguments;

/// Trials that run side by side unless `--test-threads` says otherwise: most of a trial is waiting for somebody else.
const THREADS: usize = 2;

fn main() -> ExitCode {
    let mut arguments = Arguments::from_args();
    if arguments.list {
        let (house, cases) = (lab::House::new(), case::all());
        return libtest_mimic::run(&arguments, scenarios::trials(&house, &cases)).exit_code();
    }
    if let Some(code) = lab::keeper::keep() {
        return code;
    }

    arguments.test_threads.get_or_insert(THREADS);
    let house = lab::House::new();
    let mut trials = scenarios::trials(&house, &case::all());
    if let Some(filter) = arguments.filter.take_if(|_| !arguments.exact) {
        if let Some(idle) = filter.split('|').find(|one| !trials.iter().any(|trial| fits(trial.name(), one))) {
            eprintln!("no trial is called *{idle}*");
            return ExitCode::FAILURE;
        }
        trials.retain(|trial| filter.split('|').any(|one| fits(trial.name(), one)));
    }
    let conclusion = libtest_mimic::run(&arguments, trials);
    let leaks = house.close();
    for leak in &leaks {
        eprintln!("left behind: {leak}");
    }
    if conclusion.has_failed() || !leaks.is_empty() { ExitCode::from(101) } else { ExitCode::SUCCESS }
}

/// Whether a name contains the parts of a pattern in their order; `*` stands between parts, whatever is between them.
/// A filter is one pattern or several with `|` between them, each of which must find a trial.
fn fits(name: &str, pattern: &str) -> bool {
    let mut rest = name;
    pattern.split('*').all(|part| rest.split_once(part).map(|(_, after)| rest = after).is_some())
}
