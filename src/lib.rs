//! containerd-shim-beta9-v2: runs each pod with runc or gVisor, as the node's pool configuration says.

pub mod cli;
pub mod config;
pub mod select;
