//! The command line, for containerd and for people.

pub mod explain;
