//! The runtimes that every scenario is run with: Go's shim as the measure, and ours with each runtime and platform.

use std::{
    collections::BTreeMap,
    env, fs,
    path::{Path, PathBuf},
    process::Command,
};

use crate::lab::{
    cri,
    daemon::{Options, Version},
    keeper,
    packages::Suite,
};

/// What runs the containers underneath the shim; it decides what a test may expect.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Runtime {
    Runc,
    Runsc,
}

/// A shim with a runtime on a daemon.
#[derive(Clone, Debug)]
pub struct RuntimeCase {
    /// How the names of its trials begin.
    pub name: String,
    pub runtime: Runtime,
    /// The shim under test, as opposed to the one it is measured by.
    pub ours: bool,
    /// What the CRI of the lab's daemons calls it.
    pub handler: &'static str,
    /// The pool's entry in the node configuration, within its braces.
    pool: String,
    options: Options,
    flags: Vec<String>,
}

impl RuntimeCase {
    /// The daemon that it runs on.
    pub fn daemon(&self) -> &Options {
        &self.options
    }

    /// The same, for scenarios with pods.
    pub fn through_cri(&self) -> Self {
        Self { name: format!("{}::cri", self.name), ..self.clone() }
    }

    /// The same under the name of Go's shim, which a handler's `runtime_path` makes ours: only with the CRI, and with runc.
    pub fn by_path(&self) -> Option<Self> {
        let name = format!("beta9::runc-by-path::containerd-{}::cri", self.options.version.name());
        (self.handler == cri::config::RUNC).then(|| Self { name, handler: cri::config::AS_RUNC, ..self.clone() })
    }

    /// The daemon that its pods run on, which all cases of a version share: what they differ in is said by the handlers.
    pub fn cri_daemon(&self) -> Options {
        let programs = BTreeMap::from([("runc", self.options.version.runc()), ("criu", Suite::Trixie.program("criu"))]);
        Options { version: self.options.version, programs, config: None, cri: true }
    }

    /// What `ctr run` has to be told.
    pub fn flags(&self) -> impl Iterator<Item = &str> {
        self.flags.iter().map(String::as_str)
    }

    /// The name under which the shim looks for the runtime.
    pub fn runtime_name(&self) -> &'static str {
        match self.runtime {
            Runtime::Runc => "runc",
            Runtime::Runsc => "runsc",
        }
    }

    /// The real runtime that stands behind this name.
    pub fn runtime_program(&self) -> PathBuf {
        self.options.programs[self.runtime_name()].clone()
    }

    /// Whether the runtime itself is runc, whose containers are the host's processes.
    pub fn is_runc(&self) -> bool {
        self.runtime == Runtime::Runc
    }

    /// Whether its daemon is the one that stands for all where the daemon does not matter.
    pub fn is_on_first_daemon(&self) -> bool {
        self.options.version == Version::ALL[0]
    }

    /// Whether pods get a gVisor that knows nvproxy: Debian's older runsc, which is here with ptrace, does not.
    pub fn knows_nvproxy(&self) -> bool {
        self.ours && self.runtime == Runtime::Runsc && self.options.programs["runsc"] == Suite::Trixie.program("runsc")
    }

    /// The node configuration that our shim gets.
    pub fn config(&self) -> String {
        node_configuration(&self.pool)
    }

    /// The same with another configuration file, or with none in the handler's options.
    pub fn configured_by(&self, file: Option<&Path>) -> Self {
        let mut flags = vec![BETA9.to_owned()];
        flags.extend(file.map(|file| format!("--runtime-config-path={}", file.display())));
        Self { flags, ..self.clone() }
    }

    /// Go's shim with the very runtime and daemon of this case.
    pub fn with_go_shim(&self) -> Self {
        Self { flags: vec![GO.to_owned()], ours: false, ..self.clone() }
    }

    /// The same with these flags for `ctr run` in place of its own.
    pub fn with_flags(&self, flags: &[&str]) -> Self {
        Self { flags: flags.iter().map(ToString::to_string).collect(), ..self.clone() }
    }

    /// The same with our shim under the name of Go's, and this node configuration.
    pub fn in_place_of_go(&self, config: &str) -> Self {
        let mut options = self.options.clone();
        if self.ours {
            options.programs.insert("containerd-shim-runc-v2", shim());
            options.config = Some(config.to_owned());
        }
        Self { flags: vec![GO.to_owned()], options, ..self.clone() }
    }

    fn go(version: Version) -> Self {
        Self {
            name: format!("go::runc::containerd-{}", version.name()),
            runtime: Runtime::Runc,
            ours: false,
            handler: cri::config::GO,
            pool: String::new(),
            options: options(version, Suite::Bookworm),
            flags: vec![GO.to_owned()],
        }
    }

    fn runc(version: Version) -> Self {
        // A runsc with systrap stands by for containers that ask for gVisor.
        Self::ours("runc", Runtime::Runc, cri::config::RUNC, version, Suite::Trixie, String::new())
    }

    fn gvisor(version: Version, suite: Suite, platform: &str) -> Self {
        let handler = if platform == "ptrace" { cri::config::PTRACE } else { cri::config::SYSTRAP };
        Self::ours(&format!("gvisor-{platform}"), Runtime::Runsc, handler, version, suite, gvisor_pool(platform))
    }

    /// Our shim with a node configuration whose default pool is this one.
    fn ours(name: &str, runtime: Runtime, handler: &'static str, version: Version, suite: Suite, pool: String) -> Self {
        let name = format!("beta9::{name}::containerd-{}", version.name());
        let file = PathBuf::from(keeper::WORK).join(format!("{}.yaml", name.replace("::", "-")));
        let bare =
            Self { name, runtime, ours: true, handler, pool, options: options(version, suite), flags: Vec::new() };
        // Where tests are only listed there is no place for it, nor a need.
        let _ = fs::write(&file, bare.config());
        bare.configured_by(Some(&file))
    }
}

/// A runtime of Docker's, on a containerd.
#[derive(Clone, Debug)]
pub struct DockerCase {
    /// How the names of its trials begin.
    pub name: String,
    /// What `docker run --runtime` is told.
    pub runtime: &'static str,
    /// The shim under test, as opposed to the one it is measured by.
    pub ours: bool,
    /// Whether the runtime itself is runc, whose containers are the host's processes.
    pub is_runc: bool,
    /// Whether its containerd is the first of this run.
    pub is_first: bool,
    options: Options,
}

impl DockerCase {
    /// Docker's runtimes besides its own `runc`, each with a pool of the node's configuration.
    pub fn pools() -> [(&'static str, String); 2] {
        [("beta9-runc", String::new()), ("beta9-gvisor", gvisor_pool("systrap"))]
            .map(|(name, pool)| (name, node_configuration(&pool)))
    }

    /// The containerd that dockerd runs on.
    pub fn daemon(&self) -> &Options {
        &self.options
    }

    fn new(name: &str, runtime: &'static str, version: Version, is_first: bool) -> Self {
        let mut options = options(version, Suite::Trixie);
        for program in ["dockerd", "docker"] {
            options.programs.insert(program, Suite::Trixie.program(program));
        }
        options.programs.insert("docker-init", Suite::Trixie.program("tini-static"));
        // Where procps is not installed, `docker top` has this one.
        options.programs.insert("ps", Suite::Bookworm.program("busybox"));
        // For a shim that Docker is told of by its name alone.
        options.config = Some(node_configuration(&gvisor_pool("systrap")));
        let (ours, is_runc) = (runtime != "runc", runtime != "beta9-gvisor");
        Self { name: format!("{name}::containerd-{}", version.name()), runtime, ours, is_runc, is_first, options }
    }
}

/// Docker's cases that this machine can run: none if it was not fetched.
pub fn docker() -> Vec<DockerCase> {
    if Suite::Trixie.find("dockerd").is_none() {
        return Vec::new();
    }
    let ours = shim() != Path::new(NONE) && shim_answers().is_ok();
    let mut cases = Vec::new();
    for (index, version) in Version::ALL.into_iter().filter(|version| version.is_here()).enumerate() {
        let mut add = |name, runtime| cases.push(DockerCase::new(name, runtime, version, index == 0));
        add("go::docker-runc", "runc");
        if ours {
            add("beta9::docker-runc", "beta9-runc");
            add("beta9::docker-gvisor-systrap", "beta9-gvisor");
        }
    }
    cases
}

/// A node whose only pool is this one.
fn node_configuration(pool: &str) -> String {
    // Without CNI a sandbox has no network device to take over.
    format!("worker:\n  defaultPool: lab\n  pools:\n    lab: {{{pool}}}\nshim:\n  runscFlags: [\"--network=none\"]\n")
}

/// A gVisor pool's entry in the node configuration, within its braces.
fn gvisor_pool(platform: &str) -> String {
    format!("containerRuntime: gvisor, containerRuntimeConfig: {{gvisorPlatform: {platform}}}")
}

/// How ctr names our shim, and Go's.
const BETA9: &str = "--runtime=io.containerd.beta9.v2";
const GO: &str = "--runtime=io.containerd.runc.v2";

/// The value of BETA9_SHIM that leaves our cases out.
const NONE: &str = "none";

/// The cases that this machine can run: a daemon that was not fetched, or a shim that does not answer, has none.
pub fn all() -> Vec<RuntimeCase> {
    let versions = Version::ALL.into_iter().filter(|version| version.is_here());
    let ours = shim() != Path::new(NONE) && shim_answers().is_ok();
    let mut cases = Vec::new();
    for version in versions {
        cases.push(RuntimeCase::go(version));
        if ours {
            cases.push(RuntimeCase::runc(version));
            cases.push(RuntimeCase::gvisor(version, Suite::Trixie, "systrap"));
        }
        if ours && version == Version::V1_6 {
            // Debian 12's runsc with Debian 12's containerd.
            cases.push(RuntimeCase::gvisor(version, Suite::Bookworm, "ptrace"));
        }
    }
    cases
}

/// The shim under test: BETA9_SHIM names another than the one cargo built for this run, and `none` leaves our cases out.
pub fn shim() -> PathBuf {
    env::var_os("BETA9_SHIM").map_or_else(|| env!("CARGO_BIN_EXE_containerd-shim-beta9-v2").into(), PathBuf::from)
}

/// Whether the shim under test can be run at all; without this a broken one would pass by having no cases.
pub fn shim_answers() -> Result<(), String> {
    let shim = shim();
    if shim == Path::new(NONE) {
        return Ok(());
    }
    let output = Command::new(&shim).arg("-v").output();
    match output {
        Ok(output) if output.status.success() => Ok(()),
        other => Err(format!("{} -v: {other:?}", shim.display())),
    }
}

fn options(version: Version, suite: Suite) -> Options {
    let criu = Suite::Trixie.program("criu");
    let programs = BTreeMap::from([("runc", version.runc()), ("runsc", suite.program("runsc")), ("criu", criu)]);
    Options { version, programs, config: None, cri: false }
}
