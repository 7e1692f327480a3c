//! `/proc/<pid>/cgroup` and mountinfo, in which tenants choose names.
#![no_main]

use beta9_shim::cgroup::{parse_mountinfo, parse_proc_cgroup};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|text: &[u8]| {
    let lines = text.split(|byte| *byte == b'\n').count();
    assert!(parse_proc_cgroup(text).len() <= lines);
    let mounts = parse_mountinfo(text).expect("bytes in memory can be read");
    assert!(mounts.len() <= lines);
});
