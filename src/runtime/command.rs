//! One run of a runtime's program, under a deadline.
//!
//! The program gets a process group of its own, which is killed as a whole when the deadline passes: nothing that a
//! runtime does can keep the shim waiting (invariant 3). What it prints is kept up to a bound and the rest thrown
//! away, so that it can neither block on a full pipe nor fill the shim's memory.

use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::{Command as Process, Stdio};
use std::time::Duration;

use nix::sys::signal::{Signal, killpg};
use nix::unistd::Pid;
use thiserror::Error;
use tokio::net::unix::pipe;
use tokio::time::{Instant, timeout_at};

use crate::cwd::Within;
use crate::shim::reaper::{Claim, Exit, Reaper};

/// The longest standard output that is kept: the JSON of a state, a process list, statistics.
const KEPT_OUTPUT: usize = 1 << 20;
/// The longest standard error that is kept.
const KEPT_ERRORS: usize = 16 << 10;
/// How long a killed program may take to disappear. It outlives that only in an uninterruptible system call.
const LAST_BREATH: Duration = Duration::from_secs(2);

/// A program to be run once.
#[derive(Debug)]
pub struct Command {
    /// The program: a path, or a name to look up in PATH.
    pub program: String,
    /// Its arguments.
    pub args: Vec<String>,
    /// Its working directory; the shim's if absent, or gone.
    pub directory: Option<PathBuf>,
    /// What it gets as its standard streams.
    pub streams: Streams,
    /// How long it may take.
    pub deadline: Duration,
}

/// The standard streams of a program.
#[derive(Debug, Default)]
pub enum Streams {
    /// Nothing to read; what it prints is kept for the caller.
    #[default]
    Captured,
    /// These, as given; an absent one is /dev/null. They become a container's or an exec's.
    Given {
        /// Standard input.
        stdin: Option<OwnedFd>,
        /// Standard output.
        stdout: Option<OwnedFd>,
        /// Standard error.
        stderr: Option<OwnedFd>,
    },
    /// This terminal, for all three and to be controlled by it.
    Terminal(OwnedFd),
}

/// What a finished program left.
#[derive(Debug)]
pub struct Output {
    /// How it ended.
    pub exit: Exit,
    /// The beginning of what it printed, if captured.
    pub stdout: Vec<u8>,
    /// The beginning of what it complained, if captured.
    pub stderr: Vec<u8>,
}

/// Why a program did not finish by itself.
#[derive(Debug, Error)]
pub enum CommandError {
    /// It could not be started.
    #[error("cannot run \"{program}\": {error}")]
    Spawn {
        /// The program.
        program: String,
        /// The system's reason.
        error: io::Error,
    },
    /// It took too long and was killed.
    #[error("{command} did not finish within {deadline:?} and was killed")]
    Deadline {
        /// The program; the log has its whole command line.
        command: String,
        /// How long it had.
        deadline: Duration,
    },
}

impl Command {
    /// A command with captured output.
    pub fn new(program: &str, args: Vec<String>, deadline: Duration) -> Self {
        Self { program: program.to_owned(), args, directory: None, streams: Streams::Captured, deadline }
    }

    /// Starts it, to be waited for by the caller; the deadline is the caller's as well.
    pub fn spawn(mut self, reaper: &Reaper) -> Result<Running, CommandError> {
        self.prepare().and_then(|(process, _)| self.spawn_prepared(process, reaper))
    }

    /// Runs it to its end. On cancel the program is killed.
    pub async fn run(mut self, reaper: &Reaper) -> Result<Output, CommandError> {
        let deadline = Instant::now() + self.deadline;
        let (process, [mut stdout, mut stderr]) = self.prepare()?;
        let mut running = self.spawn_prepared(process, reaper)?;
        let finished = timeout_at(deadline, async {
            loop {
                tokio::select! {
                    exit = &mut running.exit => return exit,
                    () = read(&mut stdout) => {}
                    () = read(&mut stderr) => {}
                }
            }
        });
        match finished.await {
            Ok(Ok(exit)) => {
                running.group.0 = None;
                Ok(Output { exit, stdout: rest(stdout), stderr: rest(stderr) })
            }
            Ok(Err(_)) | Err(_) => {
                running.kill();
                let _ = tokio::time::timeout(LAST_BREATH, running.exit).await;
                log::error!(command = self.line().as_str(); "killed after its deadline");
                Err(CommandError::Deadline { command: self.program.clone(), deadline: self.deadline })
            }
        }
    }

    /// The process to be, and the ends of its output that we read.
    fn prepare(&mut self) -> Result<(Process, [Option<Kept>; 2]), CommandError> {
        let mut process = Process::new(&self.program);
        // A notify socket is the service manager's business with containerd, not with a container.
        process.args(&self.args).env_remove("NOTIFY_SOCKET");
        let terminal = matches!(self.streams, Streams::Terminal(_));
        if terminal {
            // A session is a group of its own as well.
            // SAFETY: between fork and exec, only two system calls that are safe there.
            unsafe { process.pre_exec(lead_session) };
        } else {
            process.process_group(0);
        }
        let mut outputs = [None, None];
        match std::mem::take(&mut self.streams) {
            Streams::Given { stdin, stdout, stderr } => {
                let stream = |fd: Option<OwnedFd>| fd.map_or_else(Stdio::null, Stdio::from);
                process.stdin(stream(stdin)).stdout(stream(stdout)).stderr(stream(stderr));
            }
            Streams::Terminal(terminal) => {
                let stream = |fd: &OwnedFd| fd.try_clone().map(Stdio::from).map_err(|error| self.cannot_spawn(error));
                process.stdin(stream(&terminal)?).stdout(stream(&terminal)?).stderr(terminal);
            }
            Streams::Captured => {
                let spawn = |error| self.cannot_spawn(error);
                process.stdin(Stdio::null());
                for (output, limit) in outputs.iter_mut().zip([KEPT_OUTPUT, KEPT_ERRORS]) {
                    let (writer, reader) = pipe::pipe().map_err(spawn)?;
                    let writer = Stdio::from(writer.into_blocking_fd().map_err(spawn)?);
                    match limit {
                        KEPT_OUTPUT => process.stdout(writer),
                        _ => process.stderr(writer),
                    };
                    *output = Some(Kept { reader, content: Vec::new(), limit });
                }
            }
        }
        Ok((process, outputs))
    }

    fn spawn_prepared(&self, mut process: Process, reaper: &Reaper) -> Result<Running, CommandError> {
        log::debug!(command = self.line().as_str(); "running");
        // Not by `Process::current_dir`, which would cost a fork. What is left of a container whose bundle is gone can be
        // deleted from anywhere.
        let there = self.directory.as_deref().map(Within::enter);
        let spawned = process.spawn();
        drop(there);
        // Our copies of its descriptors go now: a pipe has its end when the child's side alone is closed.
        drop(process);
        let child = spawned.map_err(|error| self.cannot_spawn(error))?;
        let pid = child.id() as i32;
        Ok(Running { exit: reaper.claim(pid), group: Group(Some(Pid::from_raw(pid))) })
    }

    fn cannot_spawn(&self, error: io::Error) -> CommandError {
        CommandError::Spawn { program: self.program.clone(), error }
    }

    /// The program and its arguments, for logs and errors.
    fn line(&self) -> String {
        std::iter::once(&self.program).chain(&self.args).map(String::as_str).collect::<Vec<_>>().join(" ")
    }
}

/// Makes the process the leader of a session whose terminal is its standard input.
fn lead_session() -> io::Result<()> {
    nix::unistd::setsid()?;
    // SAFETY: descriptor 0 is the terminal; the request takes an integer.
    nix::errno::Errno::result(unsafe { nix::libc::ioctl(0, nix::libc::TIOCSCTTY, 0) })?;
    Ok(())
}

/// A program that runs. Dropped before its end, it is killed with its group.
pub struct Running {
    /// Its exit.
    pub exit: Claim,
    group: Group,
}

impl Running {
    /// Kills it and whatever it started in its group.
    pub fn kill(&mut self) {
        self.group = Group(None);
    }

    /// Lets it run on by itself.
    pub fn release(mut self) -> Claim {
        self.group.0 = None;
        self.exit
    }
}

/// A process group that dies with this value.
struct Group(Option<Pid>);

impl Drop for Group {
    fn drop(&mut self) {
        if let Some(group) = self.0 {
            // It fails only if there is nobody left to kill.
            let _ = killpg(group, Signal::SIGKILL);
        }
    }
}

/// The kept beginning of an output stream.
struct Kept {
    reader: pipe::Receiver,
    content: Vec<u8>,
    limit: usize,
}

impl Kept {
    /// Takes what is there; `Ok(false)` at the end of the stream.
    fn take(&mut self) -> io::Result<bool> {
        let mut buffer = [0; 4096];
        let count = self.reader.try_read(&mut buffer)?;
        let room = self.limit - self.content.len();
        self.content.extend_from_slice(&buffer[..count.min(room)]);
        Ok(count > 0)
    }
}

/// Reads what comes; never returns once the stream has ended.
async fn read(output: &mut Option<Kept>) {
    if let Some(kept) = output {
        loop {
            if kept.reader.readable().await.is_err() {
                break;
            }
            match kept.take() {
                Ok(true) => return,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                Ok(false) | Err(_) => break,
            }
        }
    }
    std::future::pending().await
}

/// What an ended program left in the pipe. Its end is not waited for: a grandchild may hold it open.
fn rest(output: Option<Kept>) -> Vec<u8> {
    let Some(mut kept) = output else {
        return Vec::new();
    };
    // Bounded, should a grandchild write faster than we read.
    for _ in 0..KEPT_OUTPUT / 4096 {
        if !matches!(kept.take(), Ok(true)) {
            break;
        }
    }
    kept.content
}
