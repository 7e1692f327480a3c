//! Where an output stream ends: a fifo, a file or a logger's pipe.

use std::fs::{self, File};
use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::fs::{DirBuilderExt, FileTypeExt, OpenOptionsExt};
use std::path::Path;
use std::time::Duration;

use nix::fcntl::OFlag;
use nix::libc;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::inotify::AddWatchFlags;
use tokio::io::unix::AsyncFd;

use super::name::Name;
use super::{StdioError, open_nonblocking, watched};
use crate::fd::PathWatch;

/// How often it is looked whether a reader that is there has read everything, where the kernel does not tell: before
/// Linux 6.5 a splice(2) from a fifo is no event.
const LOOK: Duration = Duration::from_secs(1);

nix::ioctl_read_bad!(bytes_in, libc::FIONREAD, libc::c_int);

/// The end of an output stream.
pub(super) enum Sink {
    /// A fifo that containerd reads.
    Fifo(Fifo),
    /// A file, appended to.
    File(File),
    /// The pipe that a logger reads a terminal's output from.
    Logger(AsyncFd<OwnedFd>),
}

impl Sink {
    /// Opens the sink that `name` means; `None` for nowhere. A logger is no sink before it has been started.
    pub(super) fn open(stream: &'static str, name: &Name) -> Result<Option<Self>, StdioError> {
        let fail = |path: &Path| {
            let path = path.to_owned();
            move |error| StdioError::Open { stream, path, error }
        };
        match name {
            Name::Null | Name::Logger(_) => Ok(None),
            Name::Path(path) if fs::metadata(path).map_err(fail(path))?.file_type().is_fifo() => {
                let reader = open_nonblocking(path, OFlag::O_RDONLY).map_err(fail(path))?;
                let writer = open_nonblocking(path, OFlag::O_WRONLY).map_err(fail(path))?;
                Ok(Some(Self::Fifo(Fifo { writer: watched(writer)?, reader })))
            }
            Name::Path(path) => File::options().append(true).open(path).map(Self::File).map(Some).map_err(fail(path)),
            Name::File(path) => {
                let directory = path.parent().unwrap_or(Path::new("/"));
                fs::DirBuilder::new().recursive(true).mode(0o755).create(directory).map_err(fail(directory))?;
                let file = File::options().append(true).create(true).mode(0o644).open(path);
                file.map(Self::File).map(Some).map_err(fail(path))
            }
        }
    }

    /// Holds on to what was delivered and not yet taken.
    pub(super) async fn linger(self) {
        if let Self::Fifo(fifo) = self {
            fifo.linger().await;
        }
    }
}

/// A fifo, open from both sides: while nobody else reads, its writer must neither fail nor be raised SIGPIPE, and what
/// is in it must not be lost.
pub(super) struct Fifo {
    pub(super) writer: AsyncFd<OwnedFd>,
    reader: OwnedFd,
}

impl Fifo {
    /// Returns when the fifo may be closed: it is empty. Until then there is somebody to come for the rest, a containerd
    /// that is being restarted, and it must find the fifo open, since what no process has open is gone. Who reads it
    /// has the end right after the last byte.
    async fn linger(self) {
        let Self { writer, reader } = self;
        // From here on whoever makes the fifo a readable one is somebody else.
        drop(reader);
        if is_empty(&writer) {
            return;
        }
        let events = AddWatchFlags::IN_OPEN | AddWatchFlags::IN_ACCESS | AddWatchFlags::IN_CLOSE_NOWRITE;
        let path = format!("/proc/self/fd/{}", writer.as_raw_fd());
        let Ok(mut watch) = PathWatch::on(Path::new(&path), events) else {
            return;
        };
        while !is_empty(&writer) {
            tokio::select! {
                () = watch.changed() => {}
                () = tokio::time::sleep(LOOK), if has_reader(&writer) => {}
            }
        }
    }
}

/// Whether nothing is left to be read.
fn is_empty(pipe: &impl AsRawFd) -> bool {
    let mut count = 0;
    // SAFETY: the descriptor is open and `count` is what this request writes.
    unsafe { bytes_in(pipe.as_raw_fd(), &mut count) }.is_err() || count == 0
}

/// Whether somebody has the reading end of a pipe open.
pub(super) fn has_reader(writer: &impl AsRawFd) -> bool {
    // SAFETY: borrowed for this call from a value that has it open.
    let writer = unsafe { std::os::fd::BorrowedFd::borrow_raw(writer.as_raw_fd()) };
    let mut fds = [PollFd::new(writer.as_fd(), PollFlags::empty())];
    // POLLERR is reported unasked (poll(2)).
    let polled: nix::Result<_> = poll(&mut fds, PollTimeout::ZERO);
    polled.is_ok() && !fds[0].revents().is_some_and(|events| events.contains(PollFlags::POLLERR))
}

/// Appends everything; one that is full or broken takes nothing any more, which must not stop the process that writes.
pub(super) fn append(mut file: &File, bytes: &[u8], failed: &mut bool) {
    use io::Write as _;
    match file.write_all(bytes) {
        Ok(()) => *failed = false,
        Err(error) if !*failed => {
            *failed = true;
            log::warn!(error = error.to_string().as_str(); "output of a process cannot be written to its file; it is dropped until it can");
        }
        Err(_) => {}
    }
}
