//! containerd's Task service: from a request to a container's actor and back.
//!
//! `service` translates requests, `pod` knows the containers, `create` makes one, `container` is the actor that owns
//! one from then on, `process` is what it knows of its init and each exec, `sandbox` what containers of one gVisor
//! sandbox know of each other, `checkpoint` what is done to keep a container and to come from what was kept.

mod checkpoint;
mod container;
mod create;
mod error;
mod pod;
mod process;
mod sandbox;
mod service;
mod standstill;

pub use error::TaskError;
pub use pod::{Pod, Shim};
pub use service::TaskService;

use tokio::sync::oneshot;

/// Where an actor sends the answer to a request. A receiver that is gone is a caller that is gone, which is fine.
type Reply<T> = oneshot::Sender<Result<T, TaskError>>;
