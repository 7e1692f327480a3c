//! The decision record: what was decided for a container and how its runtime is called, written into the bundle before
//! anything is created and read by whoever comes later, `delete` after a crash included.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use crate::bundle::{Bundle, BundleError};
use crate::cgroup::Cgroup;
use crate::config::RuncOptions;
use crate::select::Decision;

const FILE: &str = "beta9.json";

/// What the shim must remember of a container.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Record {
    /// containerd's namespace of the container.
    pub namespace: String,
    /// The pod's decision.
    pub decision: Decision,
    /// The container runs in another one's sandbox (a gVisor pod's containers but the first).
    pub in_sandbox: bool,
    /// gVisor: the cgroup that runsc makes for this container alone, where its path tells.
    pub cgroup: Option<Cgroup>,
    /// The runtime asks systemd for cgroups.
    pub systemd_cgroup: bool,
    /// runc: do not use pivot_root.
    pub no_pivot_root: bool,
    /// runc: do not give the container a session keyring.
    pub no_new_keyring: bool,
    /// runc: where CRIU's log and scratch files go when a checkpoint is restored; the bundle's own place if empty.
    #[serde(default)]
    pub criu_work_path: PathBuf,
}

impl Record {
    /// Follows the handler's options for one container of runc's, whose cgroup may say that it is systemd's.
    pub fn follow(&mut self, options: &RuncOptions, systemd_cgroup: bool) {
        self.systemd_cgroup = options.systemd_cgroup || systemd_cgroup;
        self.no_pivot_root = options.no_pivot_root;
        self.no_new_keyring = options.no_new_keyring;
        self.criu_work_path = options.criu_work_path.clone().into();
    }

    /// The directory of the runtime's state for this namespace.
    pub fn root(&self) -> PathBuf {
        self.decision.runtime.root().join(&self.namespace)
    }

    /// The arguments before the runtime's subcommand, the same for every command of the pod.
    pub fn base_args(&self) -> Vec<String> {
        self.decision.base_args(&self.namespace, self.systemd_cgroup)
    }

    /// Reads a bundle's record. `Ok(None)`: there is none, so nothing was created.
    pub fn read(bundle: &Bundle) -> Result<Option<Self>, BundleError> {
        match bundle.read(FILE) {
            Err(BundleError::Io { error, .. }) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
            content => bundle.parse(FILE, &content?).map(Some),
        }
    }

    /// Writes it into the bundle.
    pub fn write(&self, bundle: &Bundle) -> Result<(), BundleError> {
        let content = serde_json::to_vec(self);
        let content = content.map_err(|error| BundleError::Json { path: bundle.join(FILE), error })?;
        bundle.write(FILE, &content)
    }

    /// Removes it from the bundle.
    pub fn remove(bundle: &Bundle) {
        bundle.remove(FILE);
    }
}
