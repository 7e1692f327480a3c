//! containerd-shim-beta9-v2: a containerd shim that runs each pod with runc or gVisor, as the node's pool
//! configuration says.
//!
//! The way of the data, in one direction: a request comes in over [`rpc`], is translated by the service in [`task`],
//! carried out by the container's actor with the commands of [`runtime`] on what [`bundle`] keeps on disk; processes
//! end at the reaper in [`shim`], which tells the actor, which publishes to [`events`]. What runs a pod is decided once,
//! by [`select`], from what [`config`] says. `docs/architecture.md` is the tour.

pub mod bundle;
pub mod cgroup;
pub mod cli;
pub mod config;
mod cwd;
pub mod events;
mod fd;
pub mod rpc;
pub mod runtime;
pub mod select;
pub mod shim;
pub mod stdio;
pub mod task;
