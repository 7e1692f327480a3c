//! What containerd writes to `start`'s standard input, and the form of answer that goes with it.
//!
//! Up to 2.2 it is nothing, or the handler's options as an `Any`. From 2.3 on it is a message of its own, which says again
//! what the command line says, and holds the options among its extensions (containerd's
//! api/runtime/bootstrap/v1/bootstrap.proto). Nothing marks which it is. Pure; called by `start`.

use std::path::PathBuf;

use containerd_shim_protos::protobuf::well_known_types::any::Any;
use containerd_shim_protos::protobuf::{self, CodedInputStream, CodedOutputStream, Message as _, rt};

use crate::cli::flags::Flags;
use crate::config::HandlerOptions;
use crate::shim::socket::Address;

/// More than the largest options, and far less than would hurt.
pub const LONGEST: u64 = 1 << 20;
/// The task API that we are called by. With 3, containerd would not clean up after a pod's containers when the shim dies.
const TASK_API: i32 = 2;
/// `LOG_LEVEL_DEBUG`; what is more verbose is less.
const DEBUG: i32 = -4;

/// What there is to know for a start besides the pod itself.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Bootstrap {
    /// It came as a message, and the answer is one.
    message: bool,
    /// Log at debug level.
    pub debug: bool,
    /// containerd's gRPC socket, if that was said.
    pub grpc: PathBuf,
    /// containerd's socket for events, if that was said.
    pub ttrpc: String,
    /// Where the shim's socket is to be, if that was said.
    pub socket_directory: Option<PathBuf>,
    /// The cgroup that the shim is to live in; empty if that was not said.
    pub shim_cgroup: String,
}

impl Bootstrap {
    /// Understands the input. Options that are not understood are left for the create that follows, which refuses them.
    pub fn of(input: &[u8], flags: &Flags) -> Self {
        // An `Any` often parses as the message, with its type for an id.
        let message = Message::decode(input).ok();
        let message = message.filter(|message| message.instance_id == flags.id && message.namespace == flags.namespace);
        match message {
            Some(message) => Self {
                message: true,
                debug: message.log_level <= DEBUG,
                grpc: message.grpc.into(),
                ttrpc: message.ttrpc,
                socket_directory: (!message.socket_dir.is_empty()).then(|| message.socket_dir.into()),
                shim_cgroup: message
                    .extensions
                    .iter()
                    .map(shim_cgroup)
                    .find(|name| !name.is_empty())
                    .unwrap_or_default(),
            },
            None => {
                let options = Any::parse_from_bytes(input).ok();
                Self { shim_cgroup: options.as_ref().map(shim_cgroup).unwrap_or_default(), ..Self::default() }
            }
        }
    }

    /// The answer on standard output: where the shim is. A plain address means task API 2 to every containerd.
    pub fn answer(&self, address: &Address) -> Vec<u8> {
        let address = address.to_string();
        if !self.message {
            return address.into_bytes();
        }
        let mut bytes = Vec::new();
        let mut output = CodedOutputStream::vec(&mut bytes);
        let written = output
            .write_int32(1, TASK_API)
            .and_then(|()| output.write_string(2, &address))
            .and_then(|()| output.write_string(3, "ttrpc"))
            .and_then(|()| output.flush());
        drop(output);
        // Memory takes whatever is written.
        if written.is_ok() { bytes } else { address.into_bytes() }
    }
}

fn shim_cgroup(options: &Any) -> String {
    HandlerOptions::decode(Some(options)).map(|options| options.runc.shim_cgroup).unwrap_or_default()
}

/// `BootstrapParams`, as far as it is of use here.
#[derive(Default)]
struct Message {
    instance_id: String,
    namespace: String,
    log_level: i32,
    ttrpc: String,
    grpc: String,
    extensions: Vec<Any>,
    socket_dir: String,
}

impl Message {
    fn decode(bytes: &[u8]) -> protobuf::Result<Self> {
        const TEXT: u32 = 2;
        let mut message = Self::default();
        let mut input = CodedInputStream::from_bytes(bytes);
        while let Some(tag) = input.read_raw_tag_or_eof()? {
            match (tag >> 3, tag & 7) {
                (1, TEXT) => message.instance_id = input.read_string()?,
                (2, TEXT) => message.namespace = input.read_string()?,
                (3, 0) => message.log_level = input.read_int32()?,
                (5, TEXT) => message.ttrpc = input.read_string()?,
                (6, TEXT) => message.grpc = input.read_string()?,
                (8, TEXT) => message.extensions.extend(extension(&input.read_bytes()?)?),
                (9, TEXT) => message.socket_dir = input.read_string()?,
                _ => rt::skip_field_for_tag(tag, &mut input)?,
            }
        }
        Ok(message)
    }
}

/// The value of an `Extension`, its only field.
fn extension(bytes: &[u8]) -> protobuf::Result<Option<Any>> {
    let mut input = CodedInputStream::from_bytes(bytes);
    let mut value = None;
    while let Some(tag) = input.read_raw_tag_or_eof()? {
        match tag {
            0x0a => value = Some(Any::parse_from_bytes(&input.read_bytes()?)?),
            tag => rt::skip_field_for_tag(tag, &mut input)?,
        }
    }
    Ok(value)
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;
    use proptest::prelude::*;

    fn flags() -> Flags {
        Flags { namespace: "default".into(), id: "c1".into(), address: "/run/c.sock".into(), ..Flags::default() }
    }

    fn address() -> Address {
        Address::of_group(None, Path::new("/run/c.sock"), "default", "c1")
    }

    /// `containerd.runc.v1.Options{shim_cgroup: "/shims"}` in an `Any`.
    const OPTIONS: &[u8] = b"\x0a\x1acontainerd.runc.v1.Options\x12\x08\x1a\x06/shims";

    /// As containerd 2.3.4 writes it at level debug.
    fn message() -> Vec<u8> {
        let mut bytes = b"\x0a\x02c1\x12\x07default\x18\xfc\xff\xff\xff\xff\xff\xff\xff\xff\x01\x22\x06v2.3.4\
            \x2a\x11/run/c.sock.ttrpc\x32\x0b/run/c.sock\x3a\x13/usr/bin/containerd\x42\x28\x0a\x26"
            .to_vec();
        bytes.extend(OPTIONS);
        bytes.extend(b"\x4a\x11/run/containerd/s");
        bytes
    }

    #[test]
    fn the_message_of_containerd_2_3_is_known_by_its_id_and_namespace() {
        let bootstrap = Bootstrap::of(&message(), &flags());
        let expected = Bootstrap {
            message: true,
            debug: true,
            grpc: "/run/c.sock".into(),
            ttrpc: "/run/c.sock.ttrpc".into(),
            socket_directory: Some("/run/containerd/s".into()),
            shim_cgroup: "/shims".into(),
        };
        assert_eq!(bootstrap, expected);

        let mut answer = b"\x08\x02\x12\x59".to_vec();
        answer.extend(address().to_string().into_bytes());
        answer.extend(b"\x1a\x05ttrpc");
        assert_eq!(bootstrap.answer(&address()), answer);
        for other in [Flags { id: "c2".into(), ..flags() }, Flags { namespace: "k8s.io".into(), ..flags() }] {
            assert!(!Bootstrap::of(&message(), &other).message);
        }
    }

    #[test]
    fn what_a_later_containerd_adds_is_passed_over() {
        let mut bytes = b"\x0a\x02c1\x12\x07default\x42\x14\x0a\x12\x0a\x0eio.later.Thing\x12\x00".to_vec();
        bytes.extend(b"\x42\x28\x0a\x26");
        bytes.extend(OPTIONS);
        bytes.extend(b"\xa2\x06\x05later\xa8\x06\x01");
        let expected = Bootstrap { message: true, shim_cgroup: "/shims".into(), ..Bootstrap::default() };
        assert_eq!(Bootstrap::of(&bytes, &flags()), expected);
    }

    #[test]
    fn options_alone_and_nothing_are_answered_by_a_plain_address() {
        for (input, shim_cgroup) in [(OPTIONS, "/shims"), (b"", ""), (b"\xff\xff", ""), (b"\x0a\x03odd\x12\x01x", "")] {
            let bootstrap = Bootstrap::of(input, &flags());
            assert_eq!(bootstrap, Bootstrap { shim_cgroup: shim_cgroup.into(), ..Bootstrap::default() });
            assert_eq!(bootstrap.answer(&address()), address().to_string().into_bytes());
        }
    }

    proptest! {
        #[test]
        fn no_input_makes_it_panic(input: Vec<u8>, cut in 0..200_usize, at in 0..200_usize, byte: u8) {
            Bootstrap::of(&input, &flags());
            let mut bytes = message();
            Bootstrap::of(&bytes[..cut.min(bytes.len())], &flags());
            if let Some(place) = bytes.get_mut(at) {
                *place = byte;
            }
            Bootstrap::of(&bytes, &flags());
        }
    }
}
