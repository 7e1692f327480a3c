//! The benchmark: our shim and Debian's Go shim on one containerd, measured in turns, with bare runc beside them.
//!
//! It owns the order of the measurements and what becomes of their result: a table on standard output and, with
//! `--write FILE`, the same in that document. It never decides what is good enough: targets only colour the table.
//! The daemon, the image and the containers are those of the integration tests, as is the private place all of it
//! runs in and is gone with. `make bench` calls it; under `cargo test` it does nothing.

// What cannot be measured ends by panicking, as a test does; there is nobody to hand an error to.
#![allow(clippy::unwrap_used, clippy::expect_used)]

#[path = "../../tests/it/case.rs"]
#[allow(dead_code, reason = "the tests use the rest of it")]
mod case;
#[path = "../../tests/it/lab/mod.rs"]
#[allow(dead_code, reason = "the tests use the rest of it")]
mod lab;

mod caption;
mod commands;
mod document;
mod reaction;
mod sides;
mod standing;
mod stopwatch;
mod stream;
mod table;
mod usage;

use std::{
    env,
    path::PathBuf,
    process::{self, ExitCode},
    sync::Mutex,
    thread,
    time::Duration,
};

use sides::Bench;
use table::Table;

/// Rounds of the quick measurements unless BENCH_ROUNDS says otherwise; with these the whole takes three to five minutes.
const ROUNDS: usize = 15;

/// After this long something hangs that has no deadline of its own.
const LIMIT: Duration = Duration::from_secs(1200);

fn main() -> ExitCode {
    let arguments: Vec<String> = env::args().skip(1).collect();
    // Which cargo adds for `cargo bench`, and not for `cargo test --benches`.
    if !arguments.iter().any(|argument| argument == "--bench") {
        println!("side_by_side: nothing is measured under `cargo test`; `make bench` does");
        return ExitCode::SUCCESS;
    }
    if env::var_os("BETA9_SHIM").is_none() {
        eprintln!("side_by_side: BETA9_SHIM must name a release build; `make bench` makes one and does so");
        return ExitCode::FAILURE;
    }
    if let Some(code) = lab::keeper::keep() {
        return code;
    }
    thread::spawn(|| {
        thread::sleep(LIMIT);
        eprintln!("side_by_side: not done after {LIMIT:?}");
        // The keeper ends whoever is left.
        process::exit(1);
    });

    let document = arguments
        .iter()
        .position(|argument| argument == "--write")
        .map(|at| PathBuf::from(arguments.get(at + 1).expect("--write takes a file")));
    let house = lab::House::new();
    let result = Mutex::new(None);
    let outcome = lab::Lab::trial(&house, true, |lab| {
        *lab::lock(&result) = Some(measure(&Bench::new(lab, rounds())));
    });
    let leaks = house.close();
    for leak in &leaks {
        eprintln!("left behind: {leak}");
    }
    if let Err(error) = outcome {
        eprintln!("side_by_side: {error}");
        return ExitCode::FAILURE;
    }
    let table = result.into_inner().unwrap().expect("a trial without error");
    println!("{}", table.text());
    if let Some(document) = document {
        document::write(&document, &table.markdown());
    }
    if leaks.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

/// Everything, in the order of the table.
fn measure(bench: &Bench) -> Table {
    let caption = caption::of(bench);
    type Part = (&'static str, fn(&Bench) -> Vec<table::Row>);
    let parts: [Part; 5] = [
        ("the shims at rest", standing::rows),
        ("start, run, exec, burst", commands::rows),
        ("a long standard output", stream::rows),
        ("how soon an end is known", reaction::rows),
        ("the binaries", standing::binary),
    ];
    let rows = parts.into_iter().flat_map(|(what, measure)| {
        eprintln!("measuring {what} …");
        measure(bench)
    });
    Table { rows: rows.collect(), caption }
}

fn rounds() -> usize {
    env::var("BENCH_ROUNDS").map_or(ROUNDS, |rounds| {
        rounds.parse().ok().filter(|rounds| *rounds > 0).expect("BENCH_ROUNDS is a number of rounds, at least 1")
    })
}
