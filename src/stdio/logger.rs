//! A logger: the program of a `binary://` name, which takes both output streams of a process (containerd's
//! docs/runtime-v2.md, "Logging"). Owns its start, how it is waited for and how it is made to end.
//!
//! It is given descriptor 3 to read standard output from, 4 for standard error, 5 to say that it is ready, and two
//! variables of environment. What a process writes goes to it directly and never through the shim: the logger outlives
//! a shim that is killed, and has the end of its input when the container's processes are gone.

use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::process::CommandExt;
use std::process::{Command, Stdio};
use std::time::{Duration, SystemTime};

use nix::errno::Errno;
use nix::fcntl::{FcntlArg, fcntl};
use nix::libc;
use nix::sys::signal::{Signal, killpg};
use nix::unistd::{Pid, read};
use tokio::io::unix::AsyncFd;
use tokio::sync::oneshot;

use super::name::{LoggerName, Readiness};
use super::sink::has_reader;
use super::{Origin, StdioError, pipe, watched};
use crate::shim::reaper::{Exit, Reaper};

/// The descriptors that a logger is given, in order.
const GIVEN: [i32; 3] = [3, 4, 5];
/// How long a logger may take to be ready.
const READY: Duration = Duration::from_secs(30);
/// How long a logger that has closed its descriptors may take to have ended, if that is why they are closed.
const DYING: Duration = Duration::from_secs(2);
/// How long it may take to end after SIGTERM. The Go shim gives it twelve seconds in all.
const TERMINATION: Duration = Duration::from_secs(10);
/// How a process's flags in /proc/PID/stat say that it has begun to end (Linux, include/linux/sched.h).
const PF_EXITING: u64 = 0x4;

/// A logger that runs. Dropped before [`Logger::settle`], it is killed; after that it is left to its own end.
pub(super) struct Logger {
    pid: i32,
    exit: Option<Exit>,
    ending: oneshot::Receiver<Exit>,
    reaper: Reaper,
    settled: bool,
}

/// The writing ends of a logger's pipes.
pub(super) struct Inputs {
    pub(super) stdout: OwnedFd,
    pub(super) stderr: OwnedFd,
}

impl Logger {
    /// Starts a logger for the process `id` and waits until it is ready. On cancel it is killed.
    pub(super) async fn start(name: &LoggerName, origin: &Origin, id: &str) -> Result<(Self, Inputs), StdioError> {
        let program = || name.program.clone();
        let (stdout_out, stdout) = pipe(origin.owner)?;
        let (stderr_out, stderr) = pipe(origin.owner)?;
        let (ready, ready_in) = pipe(None)?;
        let spawned = spawn(name, origin, id, [stdout_out, stderr_out, ready_in]);
        let pid = spawned.map_err(|error| StdioError::LoggerStart { program: program(), error })?;
        let mut logger = Self::watch(pid, name, origin);

        let said = tokio::time::timeout(READY, logger.is_ready(watched(ready)?, name.readiness));
        match said.await {
            Ok(true) if is_exiting(pid) => {
                // By dying it closes the descriptor as well. It may have left a child behind that reads in its place.
                let _ = tokio::time::timeout(DYING, logger.ended()).await;
                if has_reader(&stdout) || has_reader(&stderr) {
                    return Ok((logger, Inputs { stdout, stderr }));
                }
            }
            Ok(true) => return Ok((logger, Inputs { stdout, stderr })),
            Ok(false) => {}
            Err(_) => return Err(StdioError::LoggerNotReady { program: program(), limit: READY }),
        }
        let how = match logger.exit {
            Some(exit) => format!("ended with exit code {}", exit.code),
            None => "closed descriptor 5".into(),
        };
        Err(StdioError::LoggerDied { program: program(), how })
    }

    /// Waits for its word; `false` when it is certain that there will be none.
    async fn is_ready(&mut self, ready: AsyncFd<OwnedFd>, how: Readiness) -> bool {
        loop {
            let mut readable = tokio::select! {
                Ok(readable) = ready.readable() => readable,
                // One that ends well may have left a child behind that is about to be ready.
                exit = self.ended(), if self.exit.is_none() => {
                    if exit.code == 0 { continue } else { return false }
                }
                else => return false,
            };
            match read(ready.get_ref(), &mut [0]) {
                Ok(0) => return how == Readiness::Closes,
                Ok(_) => return true,
                Err(Errno::EAGAIN) => readable.clear_ready(),
                Err(Errno::EINTR) => {}
                Err(_) => return false,
            }
        }
    }

    fn watch(pid: i32, name: &LoggerName, origin: &Origin) -> Self {
        let claim = origin.reaper.claim(pid);
        let (tell, ending) = oneshot::channel();
        let program = name.program.display().to_string();
        tokio::spawn(async move {
            if let Ok(exit) = claim.await {
                // Who writes to it from now on gets EPIPE, and its author should know why.
                let code = exit.code;
                match code {
                    0 | ASKED => log::debug!(logger = program.as_str(), code; "a logger ended"),
                    _ => log::warn!(logger = program.as_str(), code; "a logger failed"),
                }
                let _ = tell.send(exit);
            }
        });
        Self { pid, exit: None, ending, reaper: origin.reaper.clone(), settled: false }
    }

    /// From here on it ends with its process and not with this value.
    pub(super) fn settle(&mut self) {
        self.settled = true;
    }

    /// Waits for its end. On cancel it goes on.
    pub(super) async fn ended(&mut self) -> Exit {
        match self.exit {
            Some(exit) => exit,
            // Without an answer the shim itself is ending, and nobody will know.
            None => {
                let exit = (&mut self.ending).await.unwrap_or(Exit { code: 0, at: SystemTime::now() });
                *self.exit.insert(exit)
            }
        }
    }

    /// Makes it end, gently first.
    pub(super) async fn finish(mut self) {
        if self.reaper.signal(self.pid, libc::SIGTERM).is_ok()
            && tokio::time::timeout(TERMINATION, self.ended()).await.is_err()
        {
            log::warn!(pid = self.pid; "a logger did not end on SIGTERM and is killed");
        }
        self.settled = false;
    }
}

/// The exit code of a program that SIGTERM ended.
const ASKED: u32 = 128 + libc::SIGTERM as u32;

impl Drop for Logger {
    fn drop(&mut self) {
        // Its group has its number for as long as it is not reaped itself.
        if !self.settled && self.reaper.is_claimed(self.pid) {
            let _ = killpg(Pid::from_raw(self.pid), Signal::SIGKILL);
        }
    }
}

/// Starts the program with `given` as its descriptors 3 to 5, in a process group of its own.
fn spawn(name: &LoggerName, origin: &Origin, id: &str, given: [OwnedFd; 3]) -> io::Result<i32> {
    let above = GIVEN[2] + 1;
    // The numbers are taken here, so that neither a source nor a pipe that std makes for itself lies on one of them.
    let null = OwnedFd::from(std::fs::File::open("/dev/null")?);
    let mut taken = Vec::new();
    loop {
        let filler = at_least(&null, GIVEN[0])?;
        if filler.as_raw_fd() >= above {
            break;
        }
        taken.push(filler);
    }
    let sources = [at_least(&given[0], above)?, at_least(&given[1], above)?, at_least(&given[2], above)?];
    let mut command = Command::new(&name.program);
    command.args(&name.args).env_clear().env("CONTAINER_ID", id).env("CONTAINER_NAMESPACE", &origin.namespace);
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    command.process_group(0).current_dir(&origin.directory);
    // SAFETY: between fork and exec, only a system call that is safe there; the copies are not closed on exec, and
    // everything else of the shim is.
    unsafe {
        command.pre_exec(move || {
            for (source, number) in sources.iter().zip(GIVEN) {
                Errno::result(libc::dup2(source.as_raw_fd(), number))?;
            }
            Ok(())
        });
    }
    Ok(command.spawn()?.id().cast_signed())
}

/// A copy of a descriptor with a number of at least `lowest`.
fn at_least(fd: &OwnedFd, lowest: i32) -> io::Result<OwnedFd> {
    use std::os::fd::FromRawFd as _;
    let copy = fcntl(fd, FcntlArg::F_DUPFD_CLOEXEC(lowest))?;
    // SAFETY: the kernel has just made it; nobody else owns it.
    Ok(unsafe { OwnedFd::from_raw_fd(copy) })
}

/// Whether a process is on its way out, or gone. It is marked before it closes any descriptor.
fn is_exiting(pid: i32) -> bool {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    // After the name, which may contain anything: state, ppid, pgrp, session, tty, tpgid, flags.
    let flags = stat.rsplit_once(')').and_then(|(_, fields)| fields.split_whitespace().nth(6)?.parse::<u64>().ok());
    flags.is_none_or(|flags| flags & PF_EXITING != 0)
}
