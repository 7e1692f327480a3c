//! The shim as a process: its socket, how it is started, serves, reaps and cleans up, and where it logs.

pub mod bootstrap;
pub mod cleanup;
pub mod log;
pub mod reaper;
pub mod serve;
pub mod socket;
pub mod start;
