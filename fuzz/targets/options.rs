//! The handler's runtime options: the message around them, and the TOML body of ours.
#![no_main]

use beta9_shim::config::HandlerOptions;
use containerd_shim_protos::protobuf::well_known_types::any::Any;
use libfuzzer_sys::{arbitrary, fuzz_target};

#[derive(Debug, arbitrary::Arbitrary)]
enum Options<'a> {
    Any(&'a str, &'a [u8]),
    Runc(&'a [u8]),
    Node(&'a [u8]),
    Body(&'a str),
}

impl Options<'_> {
    fn any(&self) -> Any {
        let (url, value) = match self {
            Self::Any(url, value) => (*url, value.to_vec()),
            Self::Runc(value) => ("containerd.runc.v1.Options", value.to_vec()),
            Self::Node(value) => ("runtimeoptions.v1.Options", value.to_vec()),
            Self::Body(text) => ("runtimeoptions.v1.Options", body(text)),
        };
        Any { type_url: url.to_owned(), value, ..Any::default() }
    }
}

/// `config_body`, which is field 3.
fn body(text: &str) -> Vec<u8> {
    let mut bytes = vec![3 << 3 | 2];
    let mut length = text.len();
    while length > 0x7f {
        bytes.push(length as u8 | 0x80);
        length >>= 7;
    }
    bytes.push(length as u8);
    bytes.extend_from_slice(text.as_bytes());
    bytes
}

fuzz_target!(|options: Options| {
    if let Err(error) = HandlerOptions::decode(Some(&options.any())) {
        let error = error.to_string();
        assert!(!error.contains(char::is_control), "{error:?}");
        assert!(error.len() < 4096, "{} bytes", error.len());
    }
});
