//! A runtime's log: any bytes have a last error or none.
#![no_main]

use beta9_shim::runtime::error::last_error_in;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|log: &[u8]| {
    if let Some(reason) = last_error_in(log) {
        assert!(!reason.trim().is_empty());
    }
});
