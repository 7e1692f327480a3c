//! ttrpc on a unix socket: the server loop that containerd talks to, and the one call that we make to containerd.
//!
//! Frames, messages and the generated dispatch tables are the `ttrpc` crate's. The loop is ours because the crate's
//! answers INVALID_ARGUMENT where an unknown service must be UNIMPLEMENTED (containerd's choice between task API v3
//! and v2 depends on it), and because it keeps nothing alive but what a connection needs.

mod client;
mod server;

pub use client::{CallError, Client};
pub use server::{Services, serve};
