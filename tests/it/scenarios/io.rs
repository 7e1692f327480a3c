//! Bytes to and from a container.

use std::thread;

use super::Scenario;
use crate::{case::RuntimeCase, lab::Lab};

pub const SCENARIOS: &[Scenario] = &[
    ("700 kB of input arrive as they are, and their end with them", input),
    ("8 MB of output arrive to the last byte", much_output),
    ("the last words of a container that exits at once arrive, 30 times of 30", last_words),
    ("an exec's input and output are its own", exec_input),
];

/// Numbers of seven digits, a line each: they show when a piece is lost, doubled or moved.
fn numbers(bytes: usize) -> Vec<u8> {
    (1_000_000..).take(bytes.div_ceil(8)).flat_map(|number: u32| format!("{number}\n").into_bytes()).collect()
}

/// Where two byte strings first differ, for a message that is shorter than they are.
fn assert_same(found: &[u8], expected: &[u8]) {
    let differ = found.iter().zip(expected).position(|(found, expected)| found != expected);
    assert_eq!((found.len(), differ), (expected.len(), None), "length and first difference");
}

fn input(lab: &Lab, case: &RuntimeCase) {
    let daemon = lab.daemon(case.daemon());
    let bytes = numbers(700_000);
    let cat = || lab.container(&daemon, "input").run_with(case, &[], &["cat"], &bytes).success().stdout;
    // Go's shim may close the input before all of it is through; ours may not, ever.
    let tries = if case.ours { 1 } else { 5 };
    let found = (0..tries).map(|_| cat()).find(|found| *found == bytes);
    assert_same(&found.unwrap_or_else(cat), &bytes);
}

fn much_output(lab: &Lab, case: &RuntimeCase) {
    let daemon = lab.daemon(case.daemon());
    let container = lab.container(&daemon, "much");
    let output = container.run(case, &[], &["sh", "-c", "seq 1000000 1999999"]).success();
    assert_same(&output.stdout, &numbers(8_000_000));
}

fn last_words(lab: &Lab, case: &RuntimeCase) {
    let daemon = lab.daemon(case.daemon());
    let lost: Vec<_> = (0..30)
        .filter(|_| {
            let output = lab
                .container(&daemon, "tail")
                .run(case, &[], &["sh", "-c", "echo first; seq 1 500; echo last"])
                .success();
            !output.text().starts_with("first\n1\n") || !output.text().ends_with("500\nlast\n")
        })
        .collect();
    assert!(lost.is_empty(), "incomplete in runs {lost:?}");
}

fn exec_input(lab: &Lab, case: &RuntimeCase) {
    let daemon = lab.daemon(case.daemon());
    let container = lab.container(&daemon, "execinput");
    container.detach(case, &[], &["sleep", "1000"]);
    let bytes = numbers(300_000);
    thread::scope(|scope| {
        for exec in ["a", "b"] {
            let (container, bytes) = (&container, &bytes);
            scope.spawn(move || {
                let output =
                    container.exec_with(exec, &[], &["sh", "-c", &format!("cat; echo {exec} >&2")], bytes).success();
                assert_same(&output.stdout, bytes);
                assert_eq!(output.errors(), format!("{exec}\n"));
            });
        }
    });
}
