//! Descriptors on the event loop: the one place that vouches for them.

use std::io;
use std::os::fd::OwnedFd;
use std::path::Path;

use nix::sys::inotify::{AddWatchFlags, InitFlags, Inotify};
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

/// Tells when something happens to a file or in a directory (inotify).
pub(crate) struct PathWatch(AsyncFd<OwnedFd>);

impl PathWatch {
    /// Watches a path, whose links are followed, for these events.
    pub(crate) fn on(path: &Path, events: AddWatchFlags) -> io::Result<Self> {
        let inotify = Inotify::init(InitFlags::IN_CLOEXEC | InitFlags::IN_NONBLOCK)?;
        inotify.add_watch(path, events)?;
        Ok(Self(watch(inotify.into(), Interest::READABLE)?))
    }

    /// Waits for the next event. On cancel nothing is lost.
    pub(crate) async fn changed(&mut self) {
        if let Ok(mut ready) = self.0.readable().await {
            // What happened does not matter; the event is taken out of the way.
            let mut events = [0; 1024];
            while nix::unistd::read(self.0.get_ref(), &mut events).is_ok_and(|count| count > 0) {}
            ready.clear_ready();
        }
    }
}
