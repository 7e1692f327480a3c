//! A process's standard streams: what containerd names in a request, connected to what the process gets.
//!
//! Each stream is a pipe (or the terminal's master) with a task that moves its bytes. containerd's end may come and go:
//! a fifo is held open from both sides here, so that its reader's absence is backpressure, never SIGPIPE or a lost byte.
//! A logger alone has the pipes themselves.

mod console;
mod logger;
mod name;
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
use nix::unistd::{Gid, Uid, fchown, pipe2};
use thiserror::Error;
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;
use tokio::sync::oneshot;
use tokio::task::JoinSet;
use tokio::time::{Instant, timeout};

pub use console::{Console, ConsoleSocket};
use logger::Logger;
use name::Name;
use relay::{Progress, Source, copy_all, deliver, splice_all};
use sink::Sink;

use crate::runtime::ProcessStreams;
use crate::shim::reaper::Reaper;

/// How long the output of a deleted process may stand still before it is given up.
const STALLED: Duration = Duration::from_secs(2);
/// How long it may take in all, however slowly its reader takes it: containerd's CRI gives its whole exit handling, in
/// which this is one step, ten seconds.
const DRAIN: Duration = Duration::from_secs(6);

/// Where a process's streams go: as a Create or Exec request has them. Empty names mean /dev/null.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct StreamNames {
    /// A fifo to read from.
    pub stdin: String,
    /// A fifo, `file://` path or `binary://` logger to write to.
    pub stdout: String,
    /// The same; unused with a terminal, and with a logger, which takes both.
    pub stderr: String,
    /// The process gets a terminal instead of three pipes.
    pub terminal: bool,
}

/// What the streams of all processes of a container have in common.
#[derive(Clone)]
pub struct Origin {
    /// containerd's namespace, for loggers.
    pub namespace: String,
    /// The bundle, which loggers run in.
    pub directory: PathBuf,
    /// Whom the pipes belong to, if not to root.
    pub owner: Option<Owner>,
    /// It waits for loggers.
    pub reaper: Reaper,
}

/// The host's ids of a user: a process that is not root, or root in a user namespace, can reopen its /dev/stdout only
/// if the pipe is its own.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[expect(missing_docs, reason = "there is no more to say")]
pub struct Owner {
    pub uid: u32,
    pub gid: u32,
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
    #[error("{stream} {name:?} {why}")]
    Name {
        /// stdin, stdout or stderr.
        stream: &'static str,
        /// The name.
        name: String,
        /// What is wrong with it.
        why: &'static str,
    },
    /// A logger's program cannot be run.
    #[error("cannot run the logger {}: {error}", program.display())]
    LoggerStart {
        /// The program.
        program: PathBuf,
        /// The system's reason.
        error: io::Error,
    },
    /// A logger gave up at once.
    #[error("the logger {} {how} before it was ready; its own log or standard error may say why", program.display())]
    LoggerDied {
        /// The program.
        program: PathBuf,
        /// What happened, in words.
        how: String,
    },
    /// A logger said nothing.
    #[error("the logger {} was not ready within {limit:?}: it must close descriptor 5 when it is", program.display())]
    LoggerNotReady {
        /// The program.
        program: PathBuf,
        /// How long it had.
        limit: Duration,
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

/// The shim's side of a process's streams. Dropped, everything is closed and no task is left; a logger is killed unless
/// the process was made (see [`Stdio::settle`]).
#[derive(Default)]
pub struct Stdio {
    outputs: JoinSet<()>,
    /// For each output, that it may begin.
    begin: Vec<oneshot::Sender<()>>,
    /// For each output, when all of it has been delivered; its task may go on, holding it for a reader to come.
    delivered: Vec<oneshot::Receiver<()>>,
    /// Of the outputs.
    progress: Progress,
    inputs: JoinSet<()>,
    /// Our own writing end of the stdin fifo: while it is open, a client that detaches does not end the input.
    stdin_open: Option<OwnedFd>,
    console: Option<Console>,
    logger: Option<Logger>,
}

impl Stdio {
    /// Connects three pipes for the process `id`. Its ends are for the runtime's command line; our copies must be closed
    /// once it runs, or the streams never end.
    pub async fn pipes(names: &StreamNames, origin: &Origin, id: &str) -> Result<(Self, ProcessStreams), StdioError> {
        let mut stdio = Self::default();
        let mut streams = ProcessStreams::default();
        let outputs = [Name::parse("stdout", &names.stdout)?, Name::parse("stderr", &names.stderr)?];
        if !names.stdin.is_empty() {
            let (fifo, writer) = open_input(&names.stdin)?;
            let (theirs, ours) = pipe(origin.owner)?;
            let ours = watched(ours)?;
            stdio.stdin_open = Some(writer);
            stdio.inputs.spawn(async move { splice_all(&fifo, &ours, &Progress::default()).await });
            streams.stdin = Some(theirs);
        }
        if let Name::Logger(name) = &outputs[0] {
            let (logger, inputs) = Logger::start(name, origin, id).await?;
            stdio.logger = Some(logger);
            (streams.stdout, streams.stderr) = (Some(inputs.stdout), Some(inputs.stderr));
            return Ok((stdio, streams));
        }
        let ends = [("stdout", &mut streams.stdout), ("stderr", &mut streams.stderr)];
        for (name, (stream, end)) in outputs.iter().zip(ends) {
            if matches!(name, Name::Logger(_)) {
                let why = "is a logger, which takes both streams: it must be named as stdout";
                return Err(StdioError::Name { stream, name: names.stderr.clone(), why });
            }
            let Some(sink) = Sink::open(stream, name)? else {
                continue;
            };
            let (ours, theirs) = pipe(origin.owner)?;
            stdio.output(Source::Pipe(watched(ours)?), sink);
            *end = Some(theirs);
        }
        Ok((stdio, streams))
    }

    /// Connects a terminal that a runtime has sent for the process `id`.
    pub async fn terminal(
        names: &StreamNames,
        console: Console,
        origin: &Origin,
        id: &str,
    ) -> Result<Self, StdioError> {
        let mut stdio = Self::default();
        let name = Name::parse("stdout", &names.stdout)?;
        if !names.stdin.is_empty() {
            let (fifo, writer) = open_input(&names.stdin)?;
            let terminal = watched(console.duplicate()?)?;
            stdio.stdin_open = Some(writer);
            stdio.inputs.spawn(async move { copy_all(&fifo, &terminal, &Progress::default()).await });
        }
        let sink = if let Name::Logger(name) = &name {
            let (logger, inputs) = Logger::start(name, origin, id).await?;
            stdio.logger = Some(logger);
            // A terminal has one stream; the other is at its end at once.
            Some(Sink::Logger(watched(inputs.stdout)?))
        } else {
            Sink::open("stdout", &name)?
        };
        if let Some(sink) = sink {
            stdio.output(Source::Terminal(watched(console.duplicate()?)?), sink);
        }
        stdio.console = Some(console);
        Ok(stdio)
    }

    /// Has everything delivered, from the moment on that the process is made. Of one that cannot be made its runtime has
    /// written what is wrong into the same pipe, and that is not the process's output.
    fn output(&mut self, source: Source, sink: Sink) {
        let progress = self.progress.clone();
        let (begin, begun) = oneshot::channel();
        let (delivered, all_delivered) = oneshot::channel();
        self.begin.push(begin);
        self.delivered.push(all_delivered);
        self.outputs.spawn(async move {
            if begun.await.is_err() {
                return;
            }
            deliver(source, &sink, &progress).await;
            let _ = delivered.send(());
            sink.linger().await;
        });
    }

    /// The process exists: from here on its output is delivered, and its logger ends with it, not with this value.
    pub fn settle(&mut self) {
        for begin in self.begin.drain(..) {
            let _ = begin.send(());
        }
        if let Some(logger) = &mut self.logger {
            logger.settle();
        }
    }

    /// Ends the process's input, once what is in the fifo has been delivered. Without effect if it ended already.
    pub fn close_stdin(&mut self) {
        self.stdin_open = None;
    }

    /// Sets the terminal's size, in characters. Without a terminal there is nothing to set.
    pub fn resize(&self, width: u16, height: u16) -> Result<(), StdioError> {
        self.console.as_ref().map_or(Ok(()), |console| console.resize(width, height))
    }

    /// Waits until the output of an ended process has been delivered. Not longer than [`STALLED`] without any progress:
    /// a grandchild may hold the pipe, and containerd may be away; and not longer than [`DRAIN`] in all. Then everything
    /// is closed. A logger has the time of a stall to end by itself, and some more to end when it is told to.
    pub async fn drain(mut self) {
        self.inputs.abort_all();
        let begin = Instant::now();
        loop {
            let progress = self.progress.so_far();
            if timeout(STALLED, self.finish_outputs()).await.is_ok() {
                return;
            }
            if self.progress.so_far() == progress || begin.elapsed() + STALLED > DRAIN {
                break;
            }
        }
        self.outputs.shutdown().await;
        match self.logger.take() {
            Some(logger) => logger.finish().await,
            None => {
                log::warn!("output was still open when its process was deleted; the rest of it is not delivered");
            }
        }
    }

    /// Waits until everything has been delivered, and a logger has ended. Given up, it can be begun again.
    async fn finish_outputs(&mut self) {
        while let Some(delivered) = self.delivered.last_mut() {
            let _ = delivered.await;
            self.delivered.pop();
        }
        // Their ends close the pipe of a logger that reads a terminal.
        while self.logger.is_some() && self.outputs.join_next().await.is_some() {}
        if let Some(logger) = &mut self.logger {
            logger.ended().await;
        }
    }
}

/// Opens the fifo of an input, and its writing end, which keeps it from ending when a client detaches.
fn open_input(name: &str) -> Result<(AsyncFd<OwnedFd>, OwnedFd), StdioError> {
    if !name.starts_with('/') {
        return Err(StdioError::Name { stream: "stdin", name: name.to_owned(), why: "is not an absolute path" });
    }
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
fn pipe(owner: Option<Owner>) -> Result<(OwnedFd, OwnedFd), StdioError> {
    let io = |what| move |error: nix::Error| StdioError::Io { what, error: error.into() };
    let (reader, writer) = pipe2(OFlag::O_CLOEXEC).map_err(io("make a pipe"))?;
    if let Some(Owner { uid, gid }) = owner {
        // Both ends are of one inode.
        fchown(&writer, Some(Uid::from_raw(uid)), Some(Gid::from_raw(gid))).map_err(io("give a pipe to its user"))?;
    }
    Ok((reader, writer))
}

/// Makes a descriptor non-blocking and known to the event loop.
fn watched(fd: OwnedFd) -> Result<AsyncFd<OwnedFd>, StdioError> {
    use nix::fcntl::{FcntlArg, fcntl};
    fcntl(&fd, FcntlArg::F_SETFL(OFlag::O_NONBLOCK))
        .map_err(io::Error::from)
        .and_then(|_| crate::fd::watch(fd, Interest::READABLE | Interest::WRITABLE))
        .map_err(|error| StdioError::Io { what: "watch a stream", error })
}
