//! The node's configuration, typed and validated: what an operator may say, and nothing that a pod may.
//!
//! Owns: the meaning of every key, its default, and the error for a value that is not allowed. Does no I/O (`file`
//! does) and decides nothing (`select` does). The `tree` below it knows where each value stands; `options` reads what
//! containerd's handler says on top of the file.
//!
//! Keys that are not ours are tolerated, for the file is Beta9's own, except where all keys are ours: `shim`,
//! `containerRuntimeConfig` and its older spelling `runtimeConfig`.

pub mod file;
pub mod options;
pub mod tree;
mod yaml;

use std::collections::BTreeMap;
use std::fmt;
use std::path::{Component, Path, PathBuf};

use tree::{At, Document, Item, Section};

pub use options::{HandlerOptions, RuncOptions};

/// Declares an enum whose variants are words of the configuration.
macro_rules! words {
    ($(#[$meta:meta])* $name:ident { $($(#[$vmeta:meta])* $variant:ident = $word:literal,)+ }) => {
        $(#[$meta])*
        #[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
        pub enum $name { $($(#[$vmeta])* #[serde(rename = $word)] $variant,)+ }

        impl $name {
            /// Each value with the word it is written as.
            pub const WORDS: &'static [(&'static str, Self)] = &[$(($word, Self::$variant),)+];

            /// The word that the configuration writes.
            pub const fn word(self) -> &'static str {
                match self { $(Self::$variant => $word,)+ }
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(self.word())
            }
        }
    };
}

words! {
    /// What runs a pod's containers.
    ContainerRuntime {
        /// The host's kernel, namespaces and cgroups.
        #[default]
        Runc = "runc",
        /// A sandbox with a kernel of its own, by runsc.
        Gvisor = "gvisor",
    }
}

words! {
    /// How gVisor catches system calls.
    Platform {
        /// Seccomp traps; works in virtual machines too.
        #[default]
        Systrap = "systrap",
        /// Hardware virtualization; needs `/dev/kvm`.
        Kvm = "kvm",
        /// ptrace(2); slow, works everywhere.
        Ptrace = "ptrace",
    }
}

words! {
    /// `shim.annotations`: how far a pod's annotations are followed.
    Annotations {
        /// Not at all; only the pool's name is read.
        Ignore = "ignore",
        /// Towards isolation, never away from it.
        #[default]
        Tighten = "tighten",
        /// In every direction: something else admits annotations to the cluster.
        Trust = "trust",
    }
}

words! {
    /// `shim.gpuWorkloads`: a GPU workload in a gVisor pool.
    GpuWorkloads {
        /// Stays in gVisor, which proxies the driver.
        #[default]
        Nvproxy = "nvproxy",
        /// Runs with runc.
        Runc = "runc",
        /// Is refused.
        Reject = "reject",
    }
}

words! {
    /// `shim.checkpointWorkloads`: a checkpoint/restore workload in a gVisor pool.
    CheckpointWorkloads {
        /// Runs with runc, which has CRIU.
        #[default]
        Runc = "runc",
        /// Stays in gVisor and uses runsc's own images.
        Native = "native",
        /// Is refused.
        Reject = "reject",
    }
}

words! {
    /// `shim.kvmUnavailable`: platform kvm where `/dev/kvm` cannot be opened.
    KvmUnavailable {
        /// The platform systrap instead, with a warning.
        #[default]
        Systrap = "systrap",
        /// An error.
        Fail = "fail",
    }
}

words! {
    /// `shim.runscUnavailable`: a gVisor pod where runsc cannot be run.
    RunscUnavailable {
        /// An error.
        #[default]
        Fail = "fail",
        /// runc instead, with a warning.
        Runc = "runc",
    }
}

/// What is done where the plain configuration cannot simply be followed; one set for the node, each pool may differ.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Policies {
    /// How far annotations are followed.
    pub annotations: Annotations,
    /// GPU workloads in a gVisor pool.
    pub gpu_workloads: GpuWorkloads,
    /// Checkpoint/restore workloads in a gVisor pool.
    pub checkpoint_workloads: CheckpointWorkloads,
    /// No `/dev/kvm`.
    pub kvm_unavailable: KvmUnavailable,
    /// No runsc.
    pub runsc_unavailable: RunscUnavailable,
}

/// A pool's `containerRuntimeConfig`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct GvisorConfig {
    /// `gvisorPlatform`.
    pub platform: Platform,
    /// `gvisorRoot`: absolute and clean; runsc's state lies below it.
    pub root: PathBuf,
    /// `debug`: runsc logs to `<root>/debug.log`.
    pub debug: bool,
}

impl Default for GvisorConfig {
    fn default() -> Self {
        Self { platform: Platform::default(), root: "/run/gvisor".into(), debug: false }
    }
}

/// An entry of `worker.pools`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Pool {
    /// `containerRuntime`; absent = the node's.
    pub container_runtime: Option<ContainerRuntime>,
    /// `containerRuntimeConfig`.
    pub gvisor: GvisorConfig,
    /// `runtime`: the pod's RuntimeClass, a Kubernetes matter that is only reported.
    pub pod_runtime_class: Option<String>,
    /// `gpuType`: any value means that this pool's pods may use a GPU.
    pub gpu_type: Option<String>,
    /// `criuEnabled`: this pool's pods are checkpointed.
    pub criu_enabled: bool,
    /// The node's policies with the pool's own on top.
    pub policies: Policies,
    /// What an operator should know about this pool's settings.
    pub warnings: Vec<String>,
}

/// A node's configuration.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Config {
    /// `worker.containerRuntime`: for pods of no pool, and of pools that do not say.
    pub container_runtime: ContainerRuntime,
    /// `worker.defaultPool`; always one of `pools`.
    pub default_pool: Option<String>,
    /// `worker.pools`.
    pub pools: BTreeMap<String, Pool>,
    /// `shim.runc`: a name looked up in PATH, or an absolute path.
    pub runc: String,
    /// Where runc keeps its state; a namespace's lies below it. The handler's options may move it, no file does.
    pub runc_root: PathBuf,
    /// `shim.runsc`: as `runc`.
    pub runsc: String,
    /// `shim.runscFlags`: further flags for every runsc command.
    pub runsc_flags: Vec<String>,
    /// `shim.nvproxyDriverCapabilities`; none = runsc's own default (`utility,compute`), and no flag.
    pub nvproxy_driver_capabilities: Option<Vec<String>>,
    /// The policies of a pod without a pool.
    pub policies: Policies,
    /// What an operator should know about the settings outside the pools.
    pub warnings: Vec<String>,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            container_runtime: ContainerRuntime::default(),
            default_pool: None,
            pools: BTreeMap::new(),
            runc: "runc".into(),
            runc_root: "/run/containerd/runc".into(),
            runsc: "runsc".into(),
            runsc_flags: Vec::new(),
            nvproxy_driver_capabilities: None,
            policies: Policies::default(),
            warnings: Vec::new(),
        }
    }
}

/// Why a configuration does not count. Nothing is started on any of these.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// The text is malformed, or a value in it is not allowed.
    #[error("configuration: {place}: {message}")]
    Invalid {
        /// `file:line:column`.
        place: String,
        /// What is wrong with which key, and what is allowed.
        message: String,
    },
    /// The file cannot be read.
    #[error("configuration: cannot read {}: {source}; {advice}", path.display())]
    Unreadable {
        /// The file.
        path: PathBuf,
        /// What to do about it.
        advice: &'static str,
        /// Why.
        source: std::io::Error,
    },
    /// Somebody other than root could change the file.
    #[error("configuration: {} is not safe: {problem}; {advice}", path.display())]
    Unsafe {
        /// The file or a directory above it.
        path: PathBuf,
        /// Who could change it.
        problem: String,
        /// What to do about it.
        advice: &'static str,
    },
    /// The handler's runtime options cannot be followed.
    #[error("runtime options: {0}")]
    Options(String),
}

impl ConfigError {
    fn at(origin: &str, at: At, message: String) -> Self {
        Self::Invalid { place: tree::place(origin, at), message }
    }
}

const POLICY_KEYS: &[&str] =
    &["annotations", "gpuWorkloads", "checkpointWorkloads", "kvmUnavailable", "runscUnavailable"];
const SHIM_KEYS: &[&str] = &[
    "runc",
    "runsc",
    "runscFlags",
    "nvproxyDriverCapabilities",
    "annotations",
    "gpuWorkloads",
    "checkpointWorkloads",
    "kvmUnavailable",
    "runscUnavailable",
];
const GVISOR_KEYS: &[&str] = &["gvisorPlatform", "gvisorRoot", "debug"];
const WORKER_KEYS: &[&str] = &["containerRuntime", "defaultPool", "pools"];
const POOL_KEYS: &[&str] =
    &["containerRuntime", "containerRuntimeConfig", "runtime", "runtimeConfig", "gpuType", "criuEnabled", "shim"];
const TOP_KEYS: &[&str] = &["worker", "shim"];

/// Flags that the shim gives runsc itself, or that would end a command before it began.
const OWNED_FLAGS: &[&str] = &[
    "debug",
    "debug-log",
    "debug-log-fd",
    "debug-log-format",
    "help",
    "log",
    "log-fd",
    "log-format",
    "nvproxy",
    "nvproxy-allowed-driver-capabilities",
    "panic-log",
    "panic-log-fd",
    "platform",
    "root",
    "rootless",
    "systemd-cgroup",
    "user-log",
    "user-log-fd",
    "version",
];

/// gVisor's pkg/sentry/devices/nvproxy/nvconf names these.
const DRIVER_CAPABILITIES: &[&str] = &["all", "compat32", "compute", "display", "graphics", "ngx", "utility", "video"];

impl Config {
    /// Reads a configuration written in YAML; `origin` names it in errors and warnings.
    pub fn from_yaml(origin: &str, text: &str) -> Result<Self, ConfigError> {
        Self::from_root(&Document::yaml(origin, text)?.root()?)
    }

    /// The pool of that name.
    pub fn pool(&self, name: &str) -> Option<&Pool> {
        self.pools.get(name)
    }

    /// Every warning, the pools' included: for commands that check a configuration as a whole.
    pub fn all_warnings(&self) -> impl Iterator<Item = &str> {
        self.warnings.iter().chain(self.pools.values().flat_map(|pool| &pool.warnings)).map(String::as_str)
    }

    /// Follows what a handler says for runc: its program and its state directory. What pools say of gVisor stays.
    pub fn with_runc_options(mut self, options: &RuncOptions) -> Self {
        if !options.binary_name.is_empty() {
            self.runc.clone_from(&options.binary_name);
        }
        if !options.root.is_empty() {
            self.runc_root = (&options.root).into();
        }
        self
    }

    fn from_root(root: &Section<'_>) -> Result<Self, ConfigError> {
        let mut config = Self::default();
        config.read_shim(&root.section("shim")?)?;
        let worker = root.section("worker")?;
        if let Some(item) = worker.get("containerRuntime") {
            config.container_runtime = item.choice(ContainerRuntime::WORDS)?.unwrap_or_default();
        }
        config.warn_of_slips(root, TOP_KEYS);
        config.warn_of_slips(&worker, WORKER_KEYS);
        for key in POOL_KEYS.iter().filter(|key| **key != "shim") {
            if let Some(item) = root.get(key) {
                let place = item.place();
                config
                    .warnings
                    .push(format!("{place}: {key} is not read here; it belongs to a pool below worker.pools"));
            }
        }

        let mut pools = worker.section("pools")?;
        if let Some(item) = root.get("pools") {
            // Half of Beta9's own examples write it so; with both, the one of the worker counts.
            let place = item.place();
            if worker.get("pools").is_none() {
                pools = item.section()?;
                config.warnings.push(format!("{place}: pools is read as worker.pools, where it belongs"));
            } else {
                config.warnings.push(format!("{place}: pools is not read, for there is worker.pools"));
            }
        }
        for (name, item) in pools.items() {
            let pool = Pool::from_section(&item.section()?, config.policies)?;
            config.pools.insert(name.to_owned(), pool);
        }

        if let Some(item) = worker.get("defaultPool") {
            config.default_pool = item.scalar()?;
            if config.default_pool.as_ref().is_some_and(|name| !config.pools.contains_key(name)) {
                return Err(item.refuse(format_args!("a pool of worker.pools; {}", config.known_pools())));
            }
        }
        Ok(config)
    }

    fn read_shim(&mut self, shim: &Section<'_>) -> Result<(), ConfigError> {
        shim.only(SHIM_KEYS)?;
        self.policies = Policies::default().overridden(shim)?;
        for (key, binary) in [("runc", &mut self.runc), ("runsc", &mut self.runsc)] {
            if let Some((item, path)) = shim.text(key)? {
                if key == "runc" && options::is_runsc(path) {
                    return Err(item.refuse(format_args!("allowed: {}", options::NO_RUNC)));
                }
                if path.contains('/') && !is_clean_absolute(path) {
                    return Err(item.refuse("a program's name or an absolute path"));
                }
                *binary = path.to_owned();
            }
        }
        if let Some(item) = shim.get("runscFlags") {
            for item in item.list()? {
                self.runsc_flags.push(runsc_flag(&item)?);
            }
        }
        if let Some(item) = shim.get("nvproxyDriverCapabilities") {
            self.nvproxy_driver_capabilities = Some(driver_capabilities(&item)?);
        }
        Ok(())
    }

    fn warn_of_slips(&mut self, section: &Section<'_>, known: &'static [&'static str]) {
        self.warnings.extend(section.slips(known).map(slip));
    }

    /// The pools' names for an error, cut where they would fill it.
    pub(crate) fn known_pools(&self) -> String {
        const SHOWN: usize = 20;
        if self.pools.is_empty() {
            return "the configuration has no pools".into();
        }
        let names: Vec<String> = self.pools.keys().take(SHOWN).map(|name| quote(name).bare().to_string()).collect();
        let rest = self.pools.len().saturating_sub(SHOWN);
        let more = if rest > 0 { format!(" and {rest} more") } else { String::new() };
        format!("known pools: {}{more}", names.join(", "))
    }
}

impl Pool {
    /// Whether the operator meant this pool's pods to have a GPU: `gpuType`, or the pod RuntimeClass that brings one.
    pub fn offers_gpu(&self) -> bool {
        self.gpu_type.is_some() || self.pod_runtime_class.as_deref() == Some("nvidia")
    }

    fn from_section(section: &Section<'_>, policies: Policies) -> Result<Self, ConfigError> {
        let mut pool = Self::default();
        let own = section.section("shim")?;
        own.only(POLICY_KEYS)?;
        pool.policies = policies.overridden(&own)?;
        pool.read_runtime(section)?;
        pool.read_gvisor(section)?;
        if let Some(item) = section.get("gpuType") {
            pool.gpu_type = item.scalar()?;
        }
        if let Some(item) = section.get("criuEnabled") {
            pool.criu_enabled = item.flag()?;
        }
        pool.warnings.extend(section.slips(POOL_KEYS).map(slip));
        Ok(pool)
    }

    /// `runtime` had two meanings: it named the OCI runtime before `containerRuntime` did, and the pod's RuntimeClass
    /// ever since. Only the words `runc` and `gvisor`, and only without the newer key, have the older meaning.
    fn read_runtime(&mut self, section: &Section<'_>) -> Result<(), ConfigError> {
        let newer = section.get("containerRuntime");
        self.container_runtime = match &newer {
            Some(item) => item.choice(ContainerRuntime::WORDS)?,
            None => None,
        };
        let Some((item, name)) = section.text("runtime")? else {
            return Ok(());
        };
        let older = ContainerRuntime::WORDS.iter().find(|(word, _)| *word == name).map(|(_, runtime)| *runtime);
        match (self.container_runtime, older) {
            (None, Some(runtime)) => self.container_runtime = Some(runtime),
            (Some(newer), Some(older)) if newer != older => self.warnings.push(format!(
                "{}: {}: {older} differs from containerRuntime: {newer}; containerRuntime counts",
                item.place(),
                item.path(),
            )),
            (_, Some(_)) => {}
            (_, None) => {
                self.pod_runtime_class = Some(name.to_owned());
                if ["runc", "gvisor", "runsc"].iter().any(|word| word.eq_ignore_ascii_case(name)) {
                    self.warnings.push(format!(
                        "{}: {}: {} is read as a pod RuntimeClass; to choose what runs containers, set containerRuntime \
                         to runc or gvisor",
                        item.place(),
                        item.path(),
                        quote(name),
                    ));
                }
            }
        }
        Ok(())
    }

    fn read_gvisor(&mut self, section: &Section<'_>) -> Result<(), ConfigError> {
        let read = |key| match section.get(key) {
            Some(item) => GvisorConfig::from_section(&item.section()?).map(|config| Some((config, item))),
            None => Ok(None),
        };
        let (newer, older) = (read("containerRuntimeConfig")?, read("runtimeConfig")?);
        if let (Some((newer, _)), Some((older, item))) = (&newer, &older)
            && newer != older
        {
            let (place, path) = (item.place(), item.path());
            let message = "differs from containerRuntimeConfig; containerRuntimeConfig counts";
            self.warnings.push(format!("{place}: {path} {message}"));
        }
        if let Some((config, _)) = newer.or(older) {
            self.gvisor = config;
        }
        Ok(())
    }
}

impl GvisorConfig {
    fn from_section(section: &Section<'_>) -> Result<Self, ConfigError> {
        section.only(GVISOR_KEYS)?;
        let mut config = Self::default();
        if let Some(item) = section.get("gvisorPlatform") {
            config.platform = item.choice(Platform::WORDS)?.unwrap_or_default();
        }
        if let Some((item, path)) = section.text("gvisorRoot")? {
            if !is_clean_absolute(path) {
                return Err(item.refuse("allowed; allowed: an absolute path without ., .., // or a / at its end"));
            }
            config.root = path.into();
        }
        if let Some(item) = section.get("debug") {
            config.debug = item.flag()?;
        }
        Ok(config)
    }
}

impl Policies {
    fn overridden(mut self, shim: &Section<'_>) -> Result<Self, ConfigError> {
        fn read<T: Copy>(shim: &Section<'_>, key: &str, words: &[(&str, T)], into: &mut T) -> Result<(), ConfigError> {
            if let Some(item) = shim.get(key) {
                *into = item.choice(words)?.unwrap_or(*into);
            }
            Ok(())
        }
        read(shim, "annotations", Annotations::WORDS, &mut self.annotations)?;
        read(shim, "gpuWorkloads", GpuWorkloads::WORDS, &mut self.gpu_workloads)?;
        read(shim, "checkpointWorkloads", CheckpointWorkloads::WORDS, &mut self.checkpoint_workloads)?;
        read(shim, "kvmUnavailable", KvmUnavailable::WORDS, &mut self.kvm_unavailable)?;
        read(shim, "runscUnavailable", RunscUnavailable::WORDS, &mut self.runsc_unavailable)?;
        Ok(self)
    }
}

fn runsc_flag(item: &Item<'_>) -> Result<String, ConfigError> {
    let flag = item.text()?.unwrap_or_default();
    let name = flag.strip_prefix("--").and_then(|rest| rest.split('=').next()).unwrap_or_default();
    let well_formed = name.starts_with(|c: char| c.is_ascii_alphanumeric()) && !flag.contains(char::is_control);
    if !well_formed {
        return Err(item.refuse("a flag of runsc; write --name=value, one flag a list entry"));
    }
    if OWNED_FLAGS.contains(&name) {
        let owned = OWNED_FLAGS.join(", ");
        return Err(item.refuse(format_args!("allowed; the shim itself decides these flags: {owned}")));
    }
    Ok(flag.to_owned())
}

fn driver_capabilities(item: &Item<'_>) -> Result<Vec<String>, ConfigError> {
    let allowed = || format!("allowed; allowed: {}", DRIVER_CAPABILITIES.join(", "));
    let mut names = Vec::new();
    let mut take = |item: &Item<'_>, text: &str| {
        for name in text.split(',').map(str::trim) {
            if !DRIVER_CAPABILITIES.contains(&name) {
                return Err(item.refuse(allowed()));
            }
            names.push(name.to_owned());
        }
        Ok(())
    };
    if item.is_list() {
        for item in item.list()? {
            take(&item, item.text()?.unwrap_or_default())?;
        }
    } else {
        take(item, item.text()?.unwrap_or_default())?;
    }
    if names.is_empty() {
        return Err(item.refuse(allowed()));
    }
    Ok(names)
}

/// Absolute, below `/`, and written in the one shortest way.
fn is_clean_absolute(path: &str) -> bool {
    let mut components = Path::new(path).components();
    let absolute = components.next() == Some(Component::RootDir);
    let rest: Vec<_> = components.map(Component::as_os_str).collect();
    let rebuilt = rest.iter().fold(String::new(), |path, part| path + "/" + &part.to_string_lossy());
    absolute && rebuilt == path && !path.contains(char::is_control) && !rest.iter().any(|part| *part == "..")
}

fn slip((path, place, known): (String, String, &str)) -> String {
    format!("{place}: {path} is not read; did you mean {known}?")
}

/// Shows text from outside in an error or a log: in quotes, escaped, and cut, whoever wrote it.
pub fn quote(text: &str) -> Quoted<'_> {
    Quoted { text, quotes: true }
}

/// What `quote` shows.
#[derive(Clone, Copy, Debug)]
pub struct Quoted<'a> {
    text: &'a str,
    quotes: bool,
}

impl Quoted<'_> {
    /// The same without the quotation marks: for keys and names.
    pub fn bare(self) -> Self {
        Self { quotes: false, ..self }
    }
}

impl fmt::Display for Quoted<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        const SHOWN: usize = 100;
        let cut = self.text.char_indices().nth(SHOWN).map_or(self.text.len(), |(at, _)| at);
        let mark = if self.quotes { "\"" } else { "" };
        let dots = if cut < self.text.len() { "…" } else { "" };
        write!(f, "{mark}{}{dots}{mark}", self.text[..cut].escape_debug())
    }
}

#[cfg(test)]
mod schema;
#[cfg(test)]
mod tests;
