//! Ids and socket addresses: what is accepted is safe in a path and on a command line.
#![no_main]

use std::path::{Component, Path};

use beta9_shim::bundle::Id;
use beta9_shim::shim::socket::Address;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|text: &str| {
    match Id::parse(text) {
        Ok(id) => {
            assert_eq!(id.as_str(), text);
            let parts: Vec<_> = Path::new(text).components().collect();
            assert!(matches!(parts[..], [Component::Normal(_)]));
            assert!(!text.starts_with('-') && !text.contains(char::is_control));
        }
        Err(error) => assert!(!error.to_string().contains(char::is_control)),
    }
    for text in [text, &format!("unix:///run/containerd/s/{text}")] {
        let Some(address) = Address::parse(text) else {
            continue;
        };
        // containerd may name another directory, but it is the one that is written there.
        let mut parts = address.path().components();
        assert_eq!(parts.next(), Some(Component::RootDir), "{address}");
        assert!(parts.all(|part| matches!(part, Component::Normal(_))), "{address}");
        assert_eq!(Address::parse(&address.to_string()), Some(address));
    }
});
