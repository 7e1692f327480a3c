//! Descriptors on the event loop: the one place that vouches for them.

use std::io;
use std::os::fd::OwnedFd;

use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

/// Has the event loop watch a descriptor, which must be non-blocking to be of use.
///
/// # Errors
/// The kernel cannot watch it (a regular file), or has no room.
///
/// # Panics
/// Outside of a tokio runtime with I/O enabled.
pub(crate) fn watch(descriptor: OwnedFd, interest: Interest) -> io::Result<AsyncFd<OwnedFd>> {
    // SAFETY: an `OwnedFd` always gives the same open descriptor and closes it only when it is dropped, which the
    // `AsyncFd` that owns it does after it has left the event loop.
    Ok(unsafe { AsyncFd::register_with_interest(descriptor, interest) }?)
}
