//! The tasks that move bytes between a process and containerd.
//!
//! Between pipes the bytes stay in the kernel (splice(2)). Terminals and files that are appended to cannot be spliced
//! and are copied through a small buffer that exists only while there is something to copy.

use std::fs::File;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use nix::errno::Errno;
use nix::fcntl::{FcntlArg, SpliceFFlags, fcntl, splice};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::unistd::{read, write};
use tokio::io::unix::AsyncFd;
use tokio::task::{consume_budget, yield_now};

use super::sink::{Fifo, Sink, append};

/// The most that one splice moves: a pipe's default capacity is 64 KiB, and one enlarged by its owner holds 1 MiB.
const CHUNK: usize = 1 << 20;
/// What a terminal gives at once at most.
const BUFFER: usize = 4096;
/// What is taken from a pipe for a file.
const FILE_BUFFER: usize = 32 << 10;
/// The capacity of a pipe that is worth it: one that was found half full.
const WIDE: i32 = 256 << 10;
const BUSY: usize = 32 << 10;

type Watched = AsyncFd<OwnedFd>;

/// Where a process's output comes from.
pub(super) enum Source {
    /// A pipe.
    Pipe(Watched),
    /// The master side of a terminal.
    Terminal(Watched),
}

/// How far the streams of a process have come: it changes whenever something is delivered.
#[derive(Clone, Default)]
pub(super) struct Progress(Arc<AtomicUsize>);

impl Progress {
    pub(super) fn so_far(&self) -> usize {
        self.0.load(Ordering::Relaxed)
    }

    fn made(&self) {
        self.0.fetch_add(1, Ordering::Relaxed);
    }
}

/// Moves everything to where it goes, to the end of the source or the loss of the sink.
pub(super) async fn deliver(source: Source, sink: &Sink, progress: &Progress) {
    match (source, sink) {
        (Source::Pipe(from), Sink::Fifo(Fifo { writer, .. }) | Sink::Logger(writer)) => {
            splice_all(&from, writer, progress).await;
        }
        (Source::Pipe(from), Sink::File(file)) => append_all(&from, file, FILE_BUFFER, progress).await,
        (Source::Terminal(from), Sink::Fifo(Fifo { writer, .. }) | Sink::Logger(writer)) => {
            copy_all(&from, writer, progress).await;
        }
        (Source::Terminal(from), Sink::File(file)) => append_all(&from, file, BUFFER, progress).await,
    }
}

/// Moves everything from one pipe to another, to the end of the first or the loss of the second.
pub(super) async fn splice_all(from: &Watched, to: &Watched, progress: &Progress) {
    let mut widened = false;
    loop {
        let Ok(mut readable) = from.readable().await else {
            return;
        };
        match splice(from.get_ref(), None, to.get_ref(), None, CHUNK, SpliceFFlags::SPLICE_F_NONBLOCK) {
            Ok(0) => return,
            Ok(moved) => {
                progress.made();
                consume_budget().await;
                if moved >= BUSY && !widened {
                    widened = true;
                    widen(from);
                    widen(to);
                }
            }
            Err(Errno::EINTR) => {}
            // One error for both "nothing to read" and "no room to write".
            Err(Errno::EAGAIN) if is_ready(from, PollFlags::POLLIN) => {
                if !room_in(to).await {
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

/// Copies everything from or to a terminal.
pub(super) async fn copy_all(from: &Watched, to: &Watched, progress: &Progress) {
    let mut buffer = Vec::new();
    while let Some(count) = receive(from, &mut buffer, BUFFER).await {
        if let Err(error) = send(to, &buffer[..count]).await {
            return lost(error);
        }
        progress.made();
        consume_budget().await;
    }
}

async fn append_all(from: &Watched, file: &File, size: usize, progress: &Progress) {
    let (mut buffer, mut failed) = (Vec::new(), false);
    while let Some(count) = receive(from, &mut buffer, size).await {
        append(file, &buffer[..count], &mut failed);
        progress.made();
        // A pipe that is refilled faster than the disk writes would never be found empty, and nothing else have its turn.
        yield_now().await;
    }
}

/// Receives the next bytes into the buffer, which is given back while there are none; `None` at the end. A terminal
/// whose last process has closed it ends with EIO.
async fn receive(from: &Watched, buffer: &mut Vec<u8>, size: usize) -> Option<usize> {
    loop {
        let mut readable = from.readable().await.ok()?;
        buffer.resize(size, 0);
        match read(from.get_ref(), buffer) {
            Ok(0) => return None,
            Ok(count) => return Some(count),
            Err(Errno::EAGAIN) => {
                *buffer = Vec::new();
                readable.clear_ready();
            }
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
