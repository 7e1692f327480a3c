//! What can go wrong with a request, and the one place where that becomes a status code.

use thiserror::Error;
use ttrpc::{Code, get_status};

use crate::bundle::BundleError;
use crate::bundle::rootfs::MountError;
use crate::cgroup;
use crate::config::ConfigError;
use crate::runtime::RuntimeError;
use crate::runtime::command::CommandError;
use crate::select::Refusal;
use crate::stdio::StdioError;

/// Why a request failed.
#[derive(Debug, Error)]
pub enum TaskError {
    /// The container or exec is unknown, or has ended where it would have to live.
    #[error("{0}")]
    NotFound(String),
    /// The id is taken.
    #[error("{0}")]
    AlreadyExists(String),
    /// Not in the present state.
    #[error("{0}")]
    WrongState(String),
    /// The request makes no sense.
    #[error("{0}")]
    Invalid(String),
    /// The shim is ending.
    #[error("the shim is shutting down")]
    Ending,
    /// The handler's options or the node's configuration.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// The decision.
    #[error(transparent)]
    Refused(#[from] Refusal),
    /// The bundle.
    #[error(transparent)]
    Bundle(#[from] BundleError),
    /// The root file system.
    #[error(transparent)]
    Mount(#[from] MountError),
    /// The streams.
    #[error(transparent)]
    Stdio(#[from] StdioError),
    /// The container's cgroup.
    #[error(transparent)]
    Cgroup(#[from] cgroup::Error),
    /// The runtime.
    #[error(transparent)]
    Runtime(#[from] RuntimeError),
}

impl TaskError {
    /// No such container.
    pub(super) fn no_container(id: &str) -> Self {
        Self::NotFound(format!("container {id:?} is not known to this shim"))
    }

    /// No such exec.
    pub(super) fn no_exec(id: &str) -> Self {
        Self::NotFound(format!("exec {id:?} is not known in this container"))
    }

    fn code(&self) -> Code {
        match self {
            Self::NotFound(_) | Self::Runtime(RuntimeError::NotFound(_) | RuntimeError::NotRunning(_)) => {
                Code::NOT_FOUND
            }
            Self::Cgroup(cgroup::Error::Gone { .. }) => Code::NOT_FOUND,
            Self::AlreadyExists(_) => Code::ALREADY_EXISTS,
            Self::WrongState(_) | Self::Refused(_) | Self::Runtime(RuntimeError::Unable(_)) => {
                Code::FAILED_PRECONDITION
            }
            Self::Invalid(_) | Self::Config(_) | Self::Bundle(_) => Code::INVALID_ARGUMENT,
            Self::Ending => Code::UNAVAILABLE,
            Self::Runtime(RuntimeError::Unsupported(_)) => Code::UNIMPLEMENTED,
            Self::Runtime(RuntimeError::Command(CommandError::Deadline { .. })) => Code::DEADLINE_EXCEEDED,
            Self::Mount(_) | Self::Stdio(_) | Self::Cgroup(_) | Self::Runtime(_) => Code::UNKNOWN,
        }
    }
}

impl From<TaskError> for ttrpc::Error {
    fn from(error: TaskError) -> Self {
        let code = error.code();
        // What containerd's own errors end with. Before 2.0 it adds them itself, from the code, where they are missing;
        // from 2.0 on people see the message as it comes.
        let class = match code {
            Code::NOT_FOUND => ": not found",
            Code::ALREADY_EXISTS => ": already exists",
            Code::FAILED_PRECONDITION => ": failed precondition",
            _ => "",
        };
        let message = error.to_string();
        Self::RpcStatus(get_status(code, format!("{}{class}", message.strip_suffix(class).unwrap_or(&message))))
    }
}
