//! What containerd writes to `start`'s standard input: any bytes, and 2.3's message with any of its fields.
#![no_main]

use beta9_shim::cli::flags::Flags;
use beta9_shim::shim::bootstrap::Bootstrap;
use beta9_shim::shim::socket::Address;
use containerd_shim_protos::protobuf::CodedOutputStream;
use libfuzzer_sys::{arbitrary, fuzz_target};

#[derive(Debug, arbitrary::Arbitrary)]
struct Input<'a> {
    id: &'a str,
    level: i32,
    extensions: Vec<&'a [u8]>,
    rest: &'a [u8],
}

impl Input<'_> {
    /// The message of a containerd whose id this is, with anything behind it.
    fn message(&self) -> Vec<u8> {
        let mut bytes = Vec::new();
        let mut output = CodedOutputStream::vec(&mut bytes);
        output.write_string(1, self.id).unwrap();
        output.write_string(2, "default").unwrap();
        output.write_int32(3, self.level).unwrap();
        for extension in &self.extensions {
            output.write_bytes(8, extension).unwrap();
        }
        output.flush().unwrap();
        drop(output);
        bytes.extend_from_slice(self.rest);
        bytes
    }
}

fuzz_target!(|input: Input| {
    let flags = Flags { id: input.id.to_owned(), namespace: "default".to_owned(), ..Flags::default() };
    for bytes in [input.rest, &input.message()] {
        let bootstrap = Bootstrap::of(bytes, &flags);
        let directory = bootstrap.socket_directory.as_deref();
        let address = Address::of_group(directory, &bootstrap.grpc, "default", input.id);
        let answer = bootstrap.answer(&address);
        let address = address.to_string().into_bytes();
        assert!(answer.windows(address.len()).any(|window| window == address), "{answer:?}");
    }
});
