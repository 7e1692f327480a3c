//! The configuration file: any text is a configuration, or an error that can be shown in one line.
#![no_main]

use beta9_shim::config::Config;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|text: &str| match Config::from_yaml("node.yaml", text) {
    Ok(config) => {
        let pool = config.default_pool.as_deref();
        assert!(pool.is_none_or(|name| config.pool(name).is_some()));
        for warning in config.all_warnings() {
            assert!(!warning.contains(char::is_control), "{warning:?}");
        }
        for pool in config.pools.values() {
            assert!(pool.gvisor.root.is_absolute());
        }
    }
    Err(error) => {
        let error = error.to_string();
        assert!(!error.contains(char::is_control), "{error:?}");
        assert!(error.len() < 4096, "{} bytes", error.len());
    }
});
