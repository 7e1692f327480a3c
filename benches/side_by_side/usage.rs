//! What a process uses, as /proc tells it (proc(5)). Only reads; a process that is gone is an error.

use std::{fs, path::Path};

use crate::lab::process::Process;

const KIB_PER_MIB: f64 = 1024.0;

/// Resident memory, in MiB.
pub fn resident(process: &Process) -> f64 {
    number(&status(process, "status"), "VmRSS:") / KIB_PER_MIB
}

/// Its share of memory: pages that it has in common with others count in parts. In MiB.
pub fn proportional(process: &Process) -> f64 {
    number(&status(process, "smaps_rollup"), "Pss:") / KIB_PER_MIB
}

/// Its threads.
pub fn threads(process: &Process) -> f64 {
    number(&status(process, "status"), "Threads:")
}

/// How often its threads, all together, were given a processor and left it again.
pub fn switches(process: &Process) -> f64 {
    let threads = fs::read_dir(format!("/proc/{}/task", process.pid)).unwrap();
    let one = |thread: &Path| {
        // A thread may end while it is looked at.
        let status = fs::read_to_string(thread.join("status")).unwrap_or_default();
        ["voluntary_ctxt_switches:", "nonvoluntary_ctxt_switches:"]
            .iter()
            .filter_map(|field| find(&status, field))
            .sum::<f64>()
    };
    threads.map(|thread| one(&thread.unwrap().path())).sum()
}

/// The time that it has been running on a processor, ended threads included and children not, in seconds.
pub fn cpu(process: &Process) -> f64 {
    // USER_HZ is 100 on every architecture that containerd runs on.
    const TICKS: f64 = 100.0;
    let stat = status(process, "stat");
    // The name, in parentheses, may hold anything. After it come state, ppid, …; utime and stime are fields 14 and 15.
    let fields = stat.rsplit_once(')').unwrap().1.split_whitespace();
    let times = fields.skip(11).take(2);
    times.map(|time| time.parse::<f64>().unwrap()).sum::<f64>() / TICKS
}

fn status(process: &Process, file: &str) -> String {
    let path = format!("/proc/{}/{file}", process.pid);
    fs::read_to_string(&path).unwrap_or_else(|error| panic!("{path}: {error}"))
}

fn number(status: &str, field: &str) -> f64 {
    find(status, field).unwrap_or_else(|| panic!("no {field} in {status}"))
}

fn find(status: &str, field: &str) -> Option<f64> {
    let value = status.lines().find_map(|line| line.strip_prefix(field))?;
    value.split_whitespace().next()?.parse().ok()
}
