//! The runtimes that every scenario is run with: Go's shim as the measure, and ours with each runtime and platform.

use std::{collections::BTreeMap, env, fs, path::PathBuf, process::Command};

use crate::lab::{
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
    options: Options,
    flags: Vec<String>,
}

impl RuntimeCase {
    /// The daemon that it runs on.
    pub fn daemon(&self) -> &Options {
        &self.options
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

    fn go(version: Version) -> Self {
        let name = format!("go::runc::containerd-{}", version.name());
        Self {
            name,
            runtime: Runtime::Runc,
            ours: false,
            options: options(version, Suite::Bookworm),
            flags: vec!["--runtime=io.containerd.runc.v2".into()],
        }
    }

    fn runc(version: Version) -> Self {
        Self::ours(
            format!("beta9::runc::containerd-{}", version.name()),
            Runtime::Runc,
            version,
            Suite::Bookworm,
            "",
        )
    }

    fn gvisor(version: Version, suite: Suite, platform: &str) -> Self {
        let pool = format!(
            "containerRuntime: gvisor, containerRuntimeConfig: {{gvisorPlatform: {platform}}}"
        );
        Self::ours(
            format!("beta9::gvisor-{platform}::containerd-{}", version.name()),
            Runtime::Runsc,
            version,
            suite,
            &pool,
        )
    }

    /// Our shim with a node configuration whose default pool is this one.
    fn ours(name: String, runtime: Runtime, version: Version, suite: Suite, pool: &str) -> Self {
        let file = PathBuf::from(keeper::WORK).join(format!("{}.yaml", name.replace("::", "-")));
        // Without CNI a sandbox has no network device to take over.
        let config = format!(
            "worker:\n  defaultPool: lab\n  pools:\n    lab: {{{pool}}}\nshim:\n  runsc:\n    flags: [\"--network=none\"]\n"
        );
        let flags = vec![
            "--runtime=io.containerd.beta9.v2".into(),
            format!("--runtime-config-path={}", file.display()),
        ];
        // Absent when tests are only listed: then there is no place for it either.
        let _ = fs::write(file, config);
        Self {
            name,
            runtime,
            ours: true,
            options: options(version, suite),
            flags,
        }
    }
}

/// The cases that this machine can run: a daemon that was not fetched, or a shim that does not answer, has none.
pub fn all() -> Vec<RuntimeCase> {
    let versions = Version::ALL.into_iter().filter(|version| version.is_here());
    let ours = answers();
    let mut cases = Vec::new();
    for version in versions {
        cases.push(RuntimeCase::go(version));
        if ours {
            cases.push(RuntimeCase::runc(version));
            cases.push(RuntimeCase::gvisor(version, Suite::Bookworm, "ptrace"));
            cases.push(RuntimeCase::gvisor(version, Suite::Trixie, "systrap"));
        }
    }
    cases
}

/// The shim under test: BETA9_SHIM names another than the one cargo built for this run.
pub fn shim() -> PathBuf {
    env::var_os("BETA9_SHIM").map_or_else(
        || env!("CARGO_BIN_EXE_containerd-shim-beta9-v2").into(),
        PathBuf::from,
    )
}

fn answers() -> bool {
    Command::new(shim())
        .arg("-v")
        .output()
        .is_ok_and(|output| output.status.success())
}

fn options(version: Version, suite: Suite) -> Options {
    let programs = BTreeMap::from([("runc", version.runc()), ("runsc", suite.program("runsc"))]);
    Options {
        version,
        programs,
        config: None,
    }
}
