//! The runtime options that containerd's handler carries to the shim: a protobuf `Any`.
//!
//! Owns: which option types are understood, and what the TOML body of ours may say. Reads no file. Called by `start`
//! (from stdin) and by the task service (`CreateTaskRequest.options`).

use std::path::PathBuf;

use containerd_shim_protos::protobuf::well_known_types::any::Any;
use containerd_shim_protos::protobuf::{CodedInputStream, Message, rt};
use containerd_shim_protos::shim::oci;

use super::tree::Document;
use super::{Config, ConfigError, quote};

const RUNC: &str = "containerd.runc.v1.Options";
/// containerd's own, and the name it had when it was CRI's.
const NODE: [&str; 2] = ["runtimeoptions.v1.Options", "cri.runtimeoptions.v1.Options"];
/// A body travels with each request; a configuration of this size belongs in a file.
const MAX_BODY: usize = 64 << 10;
const BODY_KEYS: &[&str] =
    &["pool", "config_path", "ConfigPath", "worker", "shim", "systemd_cgroup", "SystemdCgroup", "TypeUrl", "type_url"];

/// What the handler said.
#[derive(Clone, Debug, Default, PartialEq)]
pub enum HandlerOptions {
    /// Nothing.
    #[default]
    None,
    /// The options of containerd's runc shim, as a handler that used to be runc's has them.
    Runc(RuncOptions),
    /// Our own.
    Node(NodeOptions),
}

/// `containerd.runc.v1.Options`, field by field; empty and 0 mean unset.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[expect(missing_docs, reason = "containerd documents its fields")]
pub struct RuncOptions {
    pub no_pivot_root: bool,
    pub no_new_keyring: bool,
    pub shim_cgroup: String,
    pub io_uid: u32,
    pub io_gid: u32,
    pub binary_name: String,
    pub root: String,
    pub systemd_cgroup: bool,
    pub criu_image_path: String,
    pub criu_work_path: String,
    pub task_api_address: String,
    pub task_api_version: u32,
}

/// `runtimeoptions.v1.Options`, and what its TOML body says.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct NodeOptions {
    /// The configuration file.
    pub config_path: Option<PathBuf>,
    /// The whole configuration, in place of a file.
    pub inline: Option<Box<Config>>,
    /// The pool of every pod of this handler, whatever the pod says.
    pub pool: Option<String>,
    /// cgroups are systemd's.
    pub systemd_cgroup: bool,
}

impl HandlerOptions {
    /// Understands the options; an absent or empty `Any` says nothing.
    pub fn decode(any: Option<&Any>) -> Result<Self, ConfigError> {
        let Some(any) = any else {
            return Ok(Self::None);
        };
        // What stands before the last slash is a host, which nobody asks.
        match any.type_url.rsplit('/').next().unwrap_or_default() {
            "" if any.value.is_empty() => Ok(Self::None),
            RUNC => RuncOptions::decode(&any.value).map(Self::Runc),
            name if NODE.contains(&name) => NodeOptions::decode(&any.value).map(Self::Node),
            _ => Err(ConfigError::Options(format!(
                "type {} is not understood; understood: {}, {RUNC}; set them as containerd's drop-in for this shim does",
                quote(&any.type_url),
                NODE.join(", "),
            ))),
        }
    }

    /// The pool that the handler pins.
    pub fn pool(&self) -> Option<&str> {
        match self {
            Self::Node(node) => node.pool.as_deref(),
            Self::None | Self::Runc(_) => None,
        }
    }

    /// Whether the handler wants systemd's cgroups.
    pub fn systemd_cgroup(&self) -> bool {
        match self {
            Self::None => false,
            Self::Runc(runc) => runc.systemd_cgroup,
            Self::Node(node) => node.systemd_cgroup,
        }
    }
}

impl RuncOptions {
    fn decode(bytes: &[u8]) -> Result<Self, ConfigError> {
        let options = oci::Options::parse_from_bytes(bytes).map_err(|error| malformed(RUNC, &error))?;
        Ok(Self {
            no_pivot_root: options.no_pivot_root,
            no_new_keyring: options.no_new_keyring,
            shim_cgroup: options.shim_cgroup,
            io_uid: options.io_uid,
            io_gid: options.io_gid,
            binary_name: options.binary_name,
            root: options.root,
            systemd_cgroup: options.systemd_cgroup,
            criu_image_path: options.criu_image_path,
            criu_work_path: options.criu_work_path,
            task_api_address: options.task_api_address,
            task_api_version: options.task_api_version,
        })
    }
}

impl NodeOptions {
    fn decode(bytes: &[u8]) -> Result<Self, ConfigError> {
        let message = NodeMessage::decode(bytes).map_err(|error| malformed(NODE[0], &error))?;
        let mut options = Self::from_body(&message.config_body)?;
        if !message.config_path.is_empty() {
            options.set_path(&message.config_path)?;
        }
        Ok(options)
    }

    fn from_body(body: &[u8]) -> Result<Self, ConfigError> {
        const ORIGIN: &str = "runtime options (config_body)";
        if body.len() > MAX_BODY {
            return Err(ConfigError::Options("config_body is larger than 64 KiB; name a file by config_path".into()));
        }
        let text = str::from_utf8(body).map_err(|_| ConfigError::Options("config_body is not UTF-8".into()))?;
        let document = Document::toml(ORIGIN, text)?;
        let root = document.root()?;
        root.only(BODY_KEYS)?;

        let mut options = Self::default();
        for key in ["config_path", "ConfigPath"] {
            if let Some((_, path)) = root.text(key)? {
                options.set_path(path)?;
            }
        }
        for key in ["systemd_cgroup", "SystemdCgroup"] {
            options.systemd_cgroup |= root.get(key).map(|item| item.flag()).transpose()?.unwrap_or(false);
        }
        options.pool = root.text("pool")?.map(|(_, name)| name.to_owned());
        if root.get("worker").is_some() || root.get("shim").is_some() {
            if options.config_path.is_some() {
                let message = "config_body has a configuration of its own and names a file; keep one of them";
                return Err(ConfigError::Options(message.into()));
            }
            options.inline = Some(Box::new(Config::from_root(&root)?));
        }
        Ok(options)
    }

    fn set_path(&mut self, path: &str) -> Result<(), ConfigError> {
        let same = self.config_path.get_or_insert_with(|| path.into()).as_os_str() == path;
        if same && self.inline.is_none() {
            return Ok(());
        }
        Err(ConfigError::Options(format!("the configuration is given twice, the second time by {}", quote(path))))
    }
}

/// The message as it goes over the wire: containerd has it, the Rust protocol crates do not.
#[derive(Default)]
struct NodeMessage {
    config_path: String,
    config_body: Vec<u8>,
}

impl NodeMessage {
    fn decode(bytes: &[u8]) -> Result<Self, containerd_shim_protos::protobuf::Error> {
        const LENGTH_DELIMITED: u32 = 2;
        const CONFIG_PATH: u32 = 2 << 3 | LENGTH_DELIMITED;
        const CONFIG_BODY: u32 = 3 << 3 | LENGTH_DELIMITED;
        let mut message = Self::default();
        let mut input = CodedInputStream::from_bytes(bytes);
        while let Some(tag) = input.read_raw_tag_or_eof()? {
            match tag {
                CONFIG_PATH => message.config_path = input.read_string()?,
                CONFIG_BODY => message.config_body = input.read_bytes()?,
                // type_url (1) repeats what the Any says; what a later containerd adds is not for us.
                tag => rt::skip_field_for_tag(tag, &mut input)?,
            }
        }
        Ok(message)
    }
}

fn malformed(name: &str, error: &containerd_shim_protos::protobuf::Error) -> ConfigError {
    ConfigError::Options(format!("{name} is malformed: {error}"))
}

#[cfg(test)]
mod tests;
