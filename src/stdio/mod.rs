//! A process's standard streams: what containerd names in a request, connected to what the process gets.
//!
//! Each stream is a pipe (or the terminal's master) with a task that moves its bytes. containerd's end may come and go:
//! a fifo is held open from both sides here, so that its reader's absence is backpressure, never SIGPIPE or a lost byte.

mod console;
mod relay;
mod sink;

use std::fs::File;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::fs::{FileTypeExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::time::Duration;

use nix::fcntl::OFlag;
use nix::libc;
use nix::unistd::pipe2;
use thiserror::Error;
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;
use tokio::task::{AbortHandle, JoinSet};

pub use console::{Console, ConsoleSocket};
use relay::{feed_terminal, pour, splice_all};
use sink::Sink;

use crate::runtime::ProcessStreams;

/// Where a process's streams go: as a Create or Exec request has them. Empty names mean /dev/null.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct StreamNames {
    /// A fifo to read from.
    pub stdin: String,
    /// A fifo, `file://` path or `binary://` logger to write to.
    pub stdout: String,
    /// The same; unused with a terminal.
    pub stderr: String,
    /// The process gets a terminal instead of three pipes.
    pub terminal: bool,
}

/// Why a process's streams cannot be connected.
#[derive(Debug, Error)]
pub enum StdioError {
    /// A stream's file cannot be opened.
    #[error("cannot open {stream} {}: {error}", path.display())]
    Open {
        /// stdin, stdout or stderr.
        stream: &'static str,
        /// What was to be opened.
        path: PathBuf,
        /// The system's reason.
        error: io::Error,
    },
    /// The stream's name is of no known kind.
    #[error("{stream} {name:?} is neither a path, nor file://, nor binary://")]
    Name {
        /// stdin, stdout or stderr.
        stream: &'static str,
        /// The name.
        name: String,
    },
    /// Pipes or the console failed.
    #[error("cannot {what}: {error}")]
    Io {
        /// The step, in words.
        what: &'static str,
        /// The system's reason.
        error: io::Error,
    },
    /// The runtime never sent the terminal.
    #[error("the runtime sent no terminal within {0:?}")]
    NoConsole(Duration),
}

/// The shim's side of a process's streams. Dropped, everything is closed and no task is left.
#[derive(Default)]
pub struct Stdio {
    outputs: JoinSet<()>,
    input: Option<AbortHandle>,
    inputs: JoinSet<()>,
    /// Our own writing end of the stdin fifo: while it is open, a client that detaches does not end the input.
    stdin_open: Option<OwnedFd>,
    console: Option<Console>,
}

impl Stdio {
    /// Connects three pipes. The process's ends are for the runtime's command line; our copies must be closed once it
    /// runs, or the streams never end.
    pub fn pipes(names: &StreamNames) -> Result<(Self, ProcessStreams), StdioError> {
        let mut stdio = Self::default();
        let mut streams = ProcessStreams::default();
        if !names.stdin.is_empty() {
            let (fifo, writer) = open_input(&names.stdin)?;
            let (theirs, ours) = pipe()?;
            stdio.stdin_open = Some(writer);
            stdio.input = Some(stdio.inputs.spawn(splice_all(fifo, watched(ours)?)));
            streams.stdin = Some(theirs);
        }
        for (stream, name, end) in
            [("stdout", &names.stdout, &mut streams.stdout), ("stderr", &names.stderr, &mut streams.stderr)]
        {
            if name.is_empty() {
                continue;
            }
            let sink = Sink::open(stream, name)?;
            let (ours, theirs) = pipe()?;
            let ours = watched(ours)?;
            stdio.outputs.spawn(async move {
                match sink {
                    // Both are held to the end: the reader so that the fifo stays writable while containerd is away.
                    Sink::Fifo { writer, reader: _reader } => splice_all(ours, writer).await,
                    Sink::File(file) => pour(ours, Sink::File(file)).await,
                }
            });
            *end = Some(theirs);
        }
        Ok((stdio, streams))
    }

    /// Connects a terminal that a runtime has sent.
    pub fn terminal(names: &StreamNames, console: Console) -> Result<Self, StdioError> {
        let mut stdio = Self::default();
        if !names.stdin.is_empty() {
            let (fifo, writer) = open_input(&names.stdin)?;
            stdio.stdin_open = Some(writer);
            stdio.input = Some(stdio.inputs.spawn(feed_terminal(fifo, watched(console.duplicate()?)?)));
        }
        if !names.stdout.is_empty() {
            let sink = Sink::open("stdout", &names.stdout)?;
            stdio.outputs.spawn(pour(watched(console.duplicate()?)?, sink));
        }
        stdio.console = Some(console);
        Ok(stdio)
    }

    /// Ends the process's input, once what is in the fifo has been delivered. Without effect if it ended already.
    pub fn close_stdin(&mut self) {
        self.stdin_open = None;
    }

    /// Sets the terminal's size, in characters. Without a terminal there is nothing to set.
    pub fn resize(&self, width: u16, height: u16) -> Result<(), StdioError> {
        self.console.as_ref().map_or(Ok(()), |console| console.resize(width, height))
    }

    /// Waits until the output of an ended process has been delivered, `limit` at most: a grandchild may hold the pipe,
    /// and containerd may be away. Then everything is closed.
    pub async fn drain(mut self, limit: Duration) {
        self.inputs.abort_all();
        let drained = async { while self.outputs.join_next().await.is_some() {} };
        if tokio::time::timeout(limit, drained).await.is_err() {
            log::warn!("output was still open when its process was deleted; the rest of it is not delivered");
        }
    }
}

/// Opens the fifo of an input, and its writing end, which keeps it from ending when a client detaches.
fn open_input(name: &str) -> Result<(AsyncFd<OwnedFd>, OwnedFd), StdioError> {
    let fail = |error| StdioError::Open { stream: "stdin", path: name.into(), error };
    // Without waiting for a writer; and there is a reader then, so that the second does not fail.
    let reader = open_nonblocking(Path::new(name), OFlag::O_RDONLY).map_err(fail)?;
    let writer = open_nonblocking(Path::new(name), OFlag::O_WRONLY).map_err(fail)?;
    Ok((watched(reader)?, writer))
}

fn open_nonblocking(path: &Path, mode: OFlag) -> io::Result<OwnedFd> {
    let file = File::options()
        .read(mode == OFlag::O_RDONLY)
        .write(mode == OFlag::O_WRONLY)
        .custom_flags(libc::O_NONBLOCK)
        .open(path)?;
    if file.metadata()?.file_type().is_fifo() { Ok(file.into()) } else { Err(io::Error::other("it is not a fifo")) }
}

/// A pipe: the reading end and the writing end. The process's end must block, ours must not; `watched` sees to ours.
fn pipe() -> Result<(OwnedFd, OwnedFd), StdioError> {
    pipe2(OFlag::O_CLOEXEC).map_err(|error| StdioError::Io { what: "make a pipe", error: error.into() })
}

/// Makes a descriptor non-blocking and known to the event loop.
fn watched(fd: OwnedFd) -> Result<AsyncFd<OwnedFd>, StdioError> {
    use nix::fcntl::{FcntlArg, fcntl};
    fcntl(&fd, FcntlArg::F_SETFL(OFlag::O_NONBLOCK))
        .map_err(io::Error::from)
        .and_then(|_| crate::fd::watch(fd, Interest::READABLE | Interest::WRITABLE))
        .map_err(|error| StdioError::Io { what: "watch a stream", error })
}
