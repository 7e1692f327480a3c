//! The runtime options that containerd's handler carries to the shim: a protobuf `Any`.
//!
//! Owns: which option types are understood, and what the TOML body of ours may say. Reads no file. Called by `start`
//! (from stdin) and by the task service (`CreateTaskRequest.options`).

use std::path::PathBuf;

use containerd_shim_protos::protobuf::well_known_types::any::Any;
use containerd_shim_protos::protobuf::{CodedInputStream, Message, UnknownValueRef, rt};
use containerd_shim_protos::shim::oci;

use super::tree::{Document, Section};
use super::{Config, ConfigError, is_clean_absolute, quote};

const RUNC: &str = "containerd.runc.v1.Options";
/// What clients of containerd 1 make of `--no-pivot` and the like where the runtime's type is not runc's own.
const OLD_RUNC: &str = "containerd.linux.runc.CreateOptions";
/// containerd's own, and the name it had when it was CRI's.
const NODE: [&str; 2] = ["runtimeoptions.v1.Options", "cri.runtimeoptions.v1.Options"];
/// A body travels with each request; a configuration of this size belongs in a file.
const MAX_BODY: usize = 64 << 10;
/// Our own keys, then those of runc's options as containerd's TOML spells them: a handler that was runc's is made ours
/// by its `runtime_type` alone.
const BODY_KEYS: &[&str] = &[
    "pool",
    "config_path",
    "ConfigPath",
    "worker",
    "shim",
    "systemd_cgroup",
    "TypeUrl",
    "type_url",
    "BinaryName",
    "Root",
    "SystemdCgroup",
    "NoPivotRoot",
    "NoNewKeyring",
    "ShimCgroup",
    "IoUid",
    "IoGid",
    "CriuPath",
    "CriuImagePath",
    "CriuWorkPath",
    "TaskApiAddress",
    "TaskApiVersion",
];

/// What the handler said: all of it is the operator's word.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct HandlerOptions {
    /// The configuration file.
    pub config_path: Option<PathBuf>,
    /// The whole configuration, in place of a file.
    pub inline: Option<Box<Config>>,
    /// The pool of every pod of this handler, whatever the pod says.
    pub pool: Option<String>,
    /// For runc, where runc runs the pod.
    pub runc: RuncOptions,
}

/// `containerd.runc.v1.Options`, field by field; empty and 0 mean unset. `task_api_address` and `task_api_version` are
/// not among them: they are containerd's own, which by them finds a sandbox's task API and then starts no shim
/// (core/runtime/v2/shim_manager.go).
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
    pub criu_path: String,
    pub criu_image_path: String,
    pub criu_work_path: String,
}

impl HandlerOptions {
    /// Understands the options; an absent or empty `Any` says nothing.
    pub fn decode(any: Option<&Any>) -> Result<Self, ConfigError> {
        let Some(any) = any else {
            return Ok(Self::default());
        };
        // What stands before the last slash is a host, which nobody asks.
        match any.type_url.rsplit('/').next().unwrap_or_default() {
            "" if any.value.is_empty() => Ok(Self::default()),
            RUNC => Ok(Self { runc: RuncOptions::decode(&any.value)?, ..Self::default() }),
            OLD_RUNC => Ok(Self { runc: RuncOptions::decode_old(&any.value)?, ..Self::default() }),
            name if NODE.contains(&name) => Self::decode_node(&any.value),
            _ => Err(ConfigError::Options(format!(
                "type {} is not understood; understood: {}, {RUNC}; set them as containerd's drop-in for this shim does",
                quote(&any.type_url),
                NODE.join(", "),
            ))),
        }
    }

    fn decode_node(bytes: &[u8]) -> Result<Self, ConfigError> {
        let message = NodeMessage::decode(bytes).map_err(|error| malformed(NODE[0], &error))?;
        if message.config_path.is_empty() && message.config_body.is_empty() {
            // The operator wrote something, perhaps a pool, and the pod must not run as if it were not so.
            let message = "nothing of the handler's options has come; containerd 1.6 passes only ConfigPath on: name the \
                           configuration by that, or remove the options";
            return Err(ConfigError::Options(message.into()));
        }
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

        let mut options = Self { runc: RuncOptions::from_section(&root)?, ..Self::default() };
        for key in ["config_path", "ConfigPath"] {
            if let Some((_, path)) = root.text(key)? {
                options.set_path(path)?;
            }
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

impl RuncOptions {
    fn decode(bytes: &[u8]) -> Result<Self, ConfigError> {
        /// In containerd 1 alone, so that the crates have no name for it.
        const CRIU_PATH: u32 = 8;
        let options = oci::Options::parse_from_bytes(bytes).map_err(|error| malformed(RUNC, &error))?;
        let criu_path = match options.special_fields.unknown_fields().get(CRIU_PATH) {
            Some(UnknownValueRef::LengthDelimited(path)) => String::from_utf8_lossy(path).into_owned(),
            _ => String::new(),
        };
        Self {
            no_pivot_root: options.no_pivot_root,
            no_new_keyring: options.no_new_keyring,
            shim_cgroup: options.shim_cgroup,
            io_uid: options.io_uid,
            io_gid: options.io_gid,
            binary_name: options.binary_name,
            root: options.root,
            systemd_cgroup: options.systemd_cgroup,
            criu_path,
            criu_image_path: options.criu_image_path,
            criu_work_path: options.criu_work_path,
        }
        .checked()
    }

    /// The older message (containerd 1's runctypes), which the crates have no name for. Its further fields are those of a
    /// checkpoint.
    fn decode_old(bytes: &[u8]) -> Result<Self, ConfigError> {
        let mut options = Self::default();
        let mut read = || -> Result<(), containerd_shim_protos::protobuf::Error> {
            let mut input = CodedInputStream::from_bytes(bytes);
            while let Some(tag) = input.read_raw_tag_or_eof()? {
                match (tag >> 3, tag & 7) {
                    (1, VARINT) => options.no_pivot_root = input.read_bool()?,
                    (8, VARINT) => options.no_new_keyring = input.read_bool()?,
                    (9, LENGTH_DELIMITED) => options.shim_cgroup = input.read_string()?,
                    (10, VARINT) => options.io_uid = input.read_uint32()?,
                    (11, VARINT) => options.io_gid = input.read_uint32()?,
                    (12, LENGTH_DELIMITED) => options.criu_work_path = input.read_string()?,
                    (13, LENGTH_DELIMITED) => options.criu_image_path = input.read_string()?,
                    _ => rt::skip_field_for_tag(tag, &mut input)?,
                }
            }
            Ok(())
        };
        read().map_err(|error| malformed(OLD_RUNC, &error))?;
        options.checked()
    }

    fn from_section(root: &Section<'_>) -> Result<Self, ConfigError> {
        let flag = |key| root.get(key).map_or(Ok(false), |item| item.flag());
        let text = |key| Ok::<_, ConfigError>(root.text(key)?.map_or_else(String::new, |(_, text)| text.to_owned()));
        let number = |key| match root.get(key) {
            None => Ok(0),
            Some(item) => {
                let number = item.scalar()?.and_then(|number| number.parse().ok());
                number.ok_or_else(|| item.refuse("a user's or group's number"))
            }
        };
        Self {
            no_pivot_root: flag("NoPivotRoot")?,
            no_new_keyring: flag("NoNewKeyring")?,
            shim_cgroup: text("ShimCgroup")?,
            io_uid: number("IoUid")?,
            io_gid: number("IoGid")?,
            binary_name: text("BinaryName")?,
            root: text("Root")?,
            systemd_cgroup: flag("SystemdCgroup")? || flag("systemd_cgroup")?,
            criu_path: text("CriuPath")?,
            criu_image_path: text("CriuImagePath")?,
            criu_work_path: text("CriuWorkPath")?,
        }
        .checked()
    }

    /// Refuses what cannot be followed as it is meant.
    fn checked(self) -> Result<Self, ConfigError> {
        let refuse = |key: &str, value: &str, why: &str| {
            Err(ConfigError::Options(format!("{key}: {} is not allowed: {why}", quote(value))))
        };
        let Self { binary_name, root, shim_cgroup, .. } = &self;
        if is_runsc(binary_name) {
            return refuse("BinaryName", binary_name, NO_RUNC);
        }
        if binary_name.contains('/') && !is_clean_absolute(binary_name) {
            return refuse("BinaryName", binary_name, "it must be a program's name or an absolute path");
        }
        if !root.is_empty() && !is_within_root(root) {
            return refuse("Root", root, "it must be an absolute path without ..");
        }
        if !shim_cgroup.is_empty() && !is_within_root(&format!("/{shim_cgroup}")) {
            return refuse("ShimCgroup", shim_cgroup, "it must be a cgroup's path, as /system.slice/shims, without ..");
        }
        Ok(self)
    }
}

/// runsc would be called as runc is: without its platform, and by ids that it takes for prefixes.
pub(super) const NO_RUNC: &str = "runsc is not a runc; pods run in gVisor by their pool's containerRuntime: gvisor";

/// Whether this program is gVisor's, by its name.
pub(super) fn is_runsc(program: &str) -> bool {
    program.rsplit('/').next() == Some("runsc")
}

fn is_within_root(path: &str) -> bool {
    path.starts_with('/') && !path.contains(char::is_control) && !path.split('/').any(|part| part == "..")
}

/// Wire types of protobuf's encoding.
const VARINT: u32 = 0;
const LENGTH_DELIMITED: u32 = 2;

/// The message as it goes over the wire: containerd has it, the Rust protocol crates do not.
#[derive(Default)]
struct NodeMessage {
    config_path: String,
    config_body: Vec<u8>,
}

impl NodeMessage {
    fn decode(bytes: &[u8]) -> Result<Self, containerd_shim_protos::protobuf::Error> {
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
