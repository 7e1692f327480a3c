//! Under what circumstances a table came about: what is needed to judge its numbers, and nothing that names the machine.

use std::{fs, path::Path, process::Command, thread};

use nix::sys::utsname::uname;

use crate::{lab::packages::Suite, sides::Bench};

/// One sentence, taken down before the first measurement.
pub fn of(bench: &Bench) -> String {
    let kernel = uname().unwrap().release().to_string_lossy().into_owned();
    let cores = thread::available_parallelism().map_or(0, usize::from);
    let load = fs::read_to_string("/proc/loadavg").unwrap_or_default();
    let load = load.split_whitespace().next().unwrap_or("?");
    let cgroups = if Path::new("/sys/fs/cgroup/cgroup.controllers").exists() { "v2" } else { "v1" };
    format!(
        "Medians of {} rounds ({} for the burst and the long output), ours and Go's in turns. \
         Linux {kernel} on {cores} cores (load {load} at the beginning), cgroup {cgroups}; containerd and Go's shim {}, runc {}, ours {}.",
        bench.rounds,
        bench.few(),
        version(&Suite::Bookworm.program("containerd"), 2),
        version(&bench.runc(), 2),
        env!("CARGO_PKG_VERSION"),
    )
}

/// A word of the first line that a program says of its version.
fn version(program: &Path, word: usize) -> String {
    let output = Command::new(program).arg("--version").output().unwrap();
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let words = text.lines().next().unwrap_or_default();
    words.split_whitespace().nth(word).unwrap_or("?").to_owned()
}
