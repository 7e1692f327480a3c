//! `-v` and `-info`: what this shim is, for people and for containerd 2.0 and later.

use std::io::{self, Read, Write};
use std::time::Duration;

use containerd_shim_protos::protobuf::well_known_types::any::Any;
use containerd_shim_protos::protobuf::{self, Message as _, MessageField};
use containerd_shim_protos::types::introspection::{RuntimeInfo, RuntimeVersion};

use crate::config::file::{ENVIRONMENT, load};
use crate::config::{Config, ConfigError, ContainerRuntime, HandlerOptions};
use crate::runtime::command::{Command, CommandError};
use crate::shim::reaper::Reaper;

const NAME: &str = "io.containerd.beta9.v2";
const VERSION: &str = env!("CARGO_PKG_VERSION");
/// The commit that it was built from; empty if that was not known.
const REVISION: &str = env!("BETA9_REVISION");
/// The compiler's own words for itself.
const COMPILER: &str = env!("BETA9_COMPILER");
/// How containerd's typeurl names the OCI specification's features.
const FEATURES: &str = "types.containerd.io/opencontainers/runtime-spec/1/features/Features";
/// How long a runtime may take to say what it can do (it takes some 20 ms).
const PATIENCE: Duration = Duration::from_secs(5);

/// Why there is no answer to `-info`.
#[derive(Debug, thiserror::Error)]
pub enum InfoError {
    /// Reading or writing failed.
    #[error(transparent)]
    Io(#[from] io::Error),
    /// The input is no message.
    #[error("standard input must be the handler's options as containerd sends them: {0}")]
    Input(#[from] protobuf::Error),
    /// The handler's options or the node's configuration.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// The runtime is missing.
    #[error(transparent)]
    Runtime(#[from] CommandError),
}

/// The text of `-v`.
pub fn version() -> String {
    format!("containerd-shim-beta9-v2:\n  Version:  {VERSION}\n  Revision: {REVISION}\n  Rust version: {COMPILER}\n\n")
}

/// Answers `-info`: the handler's options (an `Any`, or nothing) come in, a RuntimeInfo goes out.
///
/// # Errors
/// What keeps a pod of this handler from being started keeps its features from being told.
pub fn print(input: &mut impl Read, output: &mut impl Write) -> Result<(), InfoError> {
    let mut any = Vec::new();
    input.read_to_end(&mut any)?;
    let any = if any.is_empty() { None } else { Some(Any::parse_from_bytes(&any)?) };
    let options = HandlerOptions::decode(any.as_ref())?;
    let config = load(&options, std::env::var_os(ENVIRONMENT))?;
    let info = RuntimeInfo {
        name: NAME.to_owned(),
        version: MessageField::some(RuntimeVersion {
            version: VERSION.to_owned(),
            revision: REVISION.to_owned(),
            ..RuntimeVersion::default()
        }),
        features: features(runtime(&config, options.pool.as_deref()))?.into(),
        options: any.into(),
        ..RuntimeInfo::default()
    };
    Ok(output.write_all(&info.write_to_bytes()?)?)
}

/// The program that runs a pod of this handler that says nothing of itself. A kubelet goes by its features for every pod
/// of the handler: user namespaces and recursively read-only mounts, which gVisor has not.
fn runtime<'a>(config: &'a Config, pinned: Option<&str>) -> &'a str {
    let pool = pinned.or(config.default_pool.as_deref()).and_then(|name| config.pool(name));
    match pool.and_then(|pool| pool.container_runtime).unwrap_or(config.container_runtime) {
        ContainerRuntime::Runc => &config.runc,
        ContainerRuntime::Gvisor => &config.runsc,
    }
}

/// What a runtime says that it can do; `None` where it is too old to say.
fn features(program: &str) -> Result<Option<Any>, InfoError> {
    let event_loop = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let output = event_loop.block_on(async {
        let asked = Command::new(program, vec!["features".to_owned()], PATIENCE);
        Ok::<_, InfoError>(asked.run(&Reaper::start()?).await?)
    })?;
    let is_json = serde_json::from_slice::<serde::de::IgnoredAny>(&output.stdout).is_ok();
    let said = output.exit.code == 0 && is_json;
    Ok(said.then(|| Any { type_url: FEATURES.to_owned(), value: output.stdout, ..Any::default() }))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_features_are_those_of_what_runs_a_pod_that_says_nothing() {
        let config = |yaml| Config::from_yaml("x", yaml).unwrap();
        let pools =
            config("worker: {defaultPool: a, pools: {a: {containerRuntime: gvisor}, b: {containerRuntime: runc}}}");
        assert_eq!(runtime(&pools, None), "runsc");
        assert_eq!(runtime(&pools, Some("b")), "runc");
        let node = config("worker: {containerRuntime: gvisor, pools: {b: {}}}");
        assert_eq!((runtime(&node, None), runtime(&node, Some("b"))), ("runsc", "runsc"));
        assert_eq!(runtime(&Config::default(), None), "runc");
    }

    #[test]
    fn the_version_has_containerds_form() {
        let version = version();
        let labels: Vec<_> = version.lines().map(|line| line.split_once(':').map_or("", |(label, _)| label)).collect();
        assert_eq!(labels, ["containerd-shim-beta9-v2", "  Version", "  Revision", "  Rust version", ""]);
    }
}
