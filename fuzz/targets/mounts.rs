//! Mount options, taken apart and shortened; and the mount points of mountinfo.
#![no_main]

use beta9_shim::bundle::rootfs::{Lower, Options, mount_point};
use libfuzzer_sys::fuzz_target;

/// A page, less the terminating zero (mount(2)).
const PAGE: usize = 4095;

fuzz_target!(|input: (Vec<String>, u16, &str)| {
    let (mut options, layers, line) = input;
    if layers > 0 {
        // Enough lower directories to need shortening now and then.
        let stem = options.first().cloned().unwrap_or_default();
        let lower: Vec<_> = (0..layers % 500).map(|n| format!("{stem}/{n}/fs")).collect();
        options.push(format!("lowerdir={}", lower.join(":")));
    }
    if let Ok(Ok((lower, data))) = Options::parse(&options).map(|options| options.layout("overlay")) {
        assert!(data.len() <= PAGE);
        assert!(!matches!(lower, Lower::In(directory) if !directory.is_absolute()));
    }
    let _ = mount_point(line);
});
