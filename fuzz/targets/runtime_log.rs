//! A runtime's log, and CRIU's: any bytes have a reason or none.
#![no_main]

use beta9_shim::runtime::checkpoint::criu_reason;
use beta9_shim::runtime::error::last_error_in;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|log: &[u8]| {
    if let Some(reason) = last_error_in(log) {
        assert!(!reason.trim().is_empty());
    }
    if let Some(reason) = criu_reason(log) {
        assert!(!reason.contains('\n'));
    }
});
