//! The tasks that move bytes between a process and containerd.
//!
//! Between pipes the bytes stay in the kernel (splice(2)). Terminals and files cannot be spliced and are copied
//! through a small buffer that exists only while there is something to copy.

use std::fs::File;
use std::io::{self, Write as _};
use std::os::fd::{AsFd, OwnedFd};

use nix::errno::Errno;
use nix::fcntl::{FcntlArg, SpliceFFlags, fcntl, splice};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::unistd::{read, write};
use tokio::io::unix::AsyncFd;

use super::sink::Sink;

/// The most that one splice moves: a pipe's default capacity is 64 KiB, and one enlarged by its owner holds 1 MiB.
const CHUNK: usize = 1 << 20;
const BUFFER: usize = 4096;
/// The capacity of a pipe that is worth it: one that was found half full.
const WIDE: i32 = 256 << 10;
const BUSY: usize = 32 << 10;

type Watched = AsyncFd<OwnedFd>;

/// Moves everything from one pipe to another, to the end of the first or the loss of the second.
pub(super) async fn splice_all(from: Watched, to: Watched) {
    let mut widened = false;
    loop {
        let Ok(mut readable) = from.readable().await else {
            return;
        };
        match splice(from.get_ref(), None, to.get_ref(), None, CHUNK, SpliceFFlags::SPLICE_F_NONBLOCK) {
            Ok(0) => return,
            Ok(moved) if moved >= BUSY && !widened => {
                widened = true;
                widen(&from);
                widen(&to);
            }
            Ok(_) | Err(Errno::EINTR) => {}
            // One error for both "nothing to read" and "no room to write".
            Err(Errno::EAGAIN) if is_ready(&from, PollFlags::POLLIN) => {
                if !room_in(&to).await {
                    return;
                }
            }
            Err(Errno::EAGAIN) => readable.clear_ready(),
            Err(error) => return lost(error),
        }
    }
}

/// Makes a pipe hold more: four times the default halves the time and quarters the wakeups of a long output, and more
/// than that gains nothing. Best effort: a user's pipes have a common limit (pipe(7)).
fn widen(pipe: &Watched) {
    let _ = fcntl(pipe.get_ref(), FcntlArg::F_SETPIPE_SZ(WIDE));
}

/// Copies everything from a terminal or pipe to a sink.
pub(super) async fn pour(from: Watched, sink: Sink) {
    while let Some(bytes) = receive(&from).await {
        let delivered = match &sink {
            Sink::Fifo { writer, .. } => send(writer, &bytes).await,
            Sink::File(file) => append(file, &bytes),
        };
        if let Err(error) = delivered {
            return lost(error);
        }
    }
}

/// Copies everything from a fifo to a terminal.
pub(super) async fn feed_terminal(from: Watched, terminal: Watched) {
    while let Some(bytes) = receive(&from).await {
        if let Err(error) = send(&terminal, &bytes).await {
            return lost(error);
        }
    }
}

/// The next bytes; `None` at the end. A terminal whose last process has closed it ends with EIO.
async fn receive(from: &Watched) -> Option<Vec<u8>> {
    loop {
        let mut readable = from.readable().await.ok()?;
        let mut buffer = [0; BUFFER];
        match read(from.get_ref(), &mut buffer) {
            Ok(0) => return None,
            Ok(count) => return Some(buffer[..count].to_vec()),
            Err(Errno::EAGAIN) => readable.clear_ready(),
            Err(Errno::EINTR) => {}
            Err(_) => return None,
        }
    }
}

async fn send(to: &Watched, mut bytes: &[u8]) -> Result<(), Errno> {
    while !bytes.is_empty() {
        match write(to.get_ref(), bytes) {
            Ok(count) => bytes = &bytes[count..],
            Err(Errno::EAGAIN) => {
                if !room_in(to).await {
                    return Err(Errno::EPIPE);
                }
            }
            Err(Errno::EINTR) => {}
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

fn append(mut file: &File, bytes: &[u8]) -> Result<(), Errno> {
    file.write_all(bytes).map_err(|error: io::Error| error.raw_os_error().map_or(Errno::EIO, Errno::from_raw))
}

/// Waits for room; `false` if the event loop is gone.
async fn room_in(to: &Watched) -> bool {
    loop {
        let Ok(mut writable) = to.writable().await else {
            return false;
        };
        if is_ready(to, PollFlags::POLLOUT) {
            return true;
        }
        writable.clear_ready();
    }
}

/// Asks the kernel, where the event loop's memory of the last edge is not enough.
fn is_ready(fd: &Watched, what: PollFlags) -> bool {
    let mut fds = [PollFd::new(fd.get_ref().as_fd(), what)];
    poll(&mut fds, PollTimeout::ZERO).is_ok_and(|count| count > 0)
}

fn lost(error: Errno) {
    // A reader that is gone is how `head` ends a pipeline; anything else is worth a line.
    if error != Errno::EPIPE {
        log::warn!(error = error.desc(); "a stream of a process broke");
    }
}
