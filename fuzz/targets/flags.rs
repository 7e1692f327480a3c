//! containerd's command line.
#![no_main]

use std::ffi::OsString;
use std::os::unix::ffi::OsStringExt;

use beta9_shim::cli::flags::Flags;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|args: Vec<Vec<u8>>| {
    let _ = Flags::parse(args.into_iter().map(OsString::from_vec));
});
