//! `-v` and `-info`: what this shim is, for people and for containerd 2.0 and later.

use std::io::{self, Read, Write};
use std::process::{Command, Stdio};

use containerd_shim_protos::protobuf::well_known_types::any::Any;
use containerd_shim_protos::protobuf::{Message as _, MessageField};
use containerd_shim_protos::types::introspection::{RuntimeInfo, RuntimeVersion};

use crate::config::HandlerOptions;

const NAME: &str = "io.containerd.beta9.v2";
const VERSION: &str = env!("CARGO_PKG_VERSION");
/// How containerd's typeurl names the OCI specification's features.
const FEATURES: &str = "types.containerd.io/opencontainers/runtime-spec/1/features/Features";

/// The text of `-v`.
pub fn version() -> String {
    format!("containerd-shim-beta9-v2:\n  Version:  {VERSION}\n")
}

/// Answers `-info`: the handler's options (an `Any`, or nothing) come in, a RuntimeInfo goes out.
///
/// # Errors
/// Reading or writing failed, or the input is no message.
pub fn print(input: &mut impl Read, output: &mut impl Write) -> io::Result<()> {
    let mut options = Vec::new();
    input.read_to_end(&mut options)?;
    let options =
        if options.is_empty() { None } else { Some(Any::parse_from_bytes(&options).map_err(io::Error::other)?) };
    let info = RuntimeInfo {
        name: NAME.to_owned(),
        version: MessageField::some(RuntimeVersion { version: VERSION.to_owned(), ..RuntimeVersion::default() }),
        features: features(options.as_ref()).into(),
        options: options.into(),
        ..RuntimeInfo::default()
    };
    output.write_all(&info.write_to_bytes().map_err(io::Error::other)?)
}

/// What runc says that it can do: as the Go shim answers, since pods of a handler may land on runc. `None` where runc
/// is missing or too old to say.
fn features(options: Option<&Any>) -> Option<Any> {
    let binary = match HandlerOptions::decode(options) {
        Ok(options) if !options.runc.binary_name.is_empty() => options.runc.binary_name,
        _ => "runc".to_owned(),
    };
    let output = Command::new(binary).arg("features").stdin(Stdio::null()).stderr(Stdio::null()).output().ok()?;
    let is_json = serde_json::from_slice::<serde::de::IgnoredAny>(&output.stdout).is_ok();
    (output.status.success() && is_json).then(|| Any {
        type_url: FEATURES.to_owned(),
        value: output.stdout,
        ..Any::default()
    })
}
