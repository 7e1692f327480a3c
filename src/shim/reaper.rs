//! The one place that waits for child processes.
//!
//! The shim is a subreaper: runtimes fork container processes, exit, and leave them to us. Two rules make an exit
//! impossible to lose or to mix up:
//!
//! - A child that we spawn is claimed before the reaper can run again (one thread, no await in between).
//! - A process that a runtime made is known only when the runtime has written its pid file, and may be dead by then.
//!   While such a command runs its caller holds an [`Expectation`], and exits of unknown processes are kept. Without
//!   one they are dropped: nobody can come to ask, and a stale entry could meet a recycled pid.

use std::collections::HashMap;
use std::io;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::SystemTime;

use nix::errno::Errno;
use nix::libc;
use nix::sys::wait::{Id, WaitPidFlag, waitid};
use nix::unistd::Pid;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::oneshot;

/// How many exits of unknown processes are kept at once: a container in the host's pid namespace may leave us orphans
/// without end while a command runs.
const MOST_EARLY: usize = 65_536;

/// How and when a process ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Exit {
    /// The exit code; 128 + the signal's number for a process that a signal ended, as shells and containerd have it.
    pub code: u32,
    /// When it was reaped.
    pub at: SystemTime,
}

/// The exit of one claimed process; resolves once. An error means that the reaper is gone, with the shim.
pub type Claim = oneshot::Receiver<Exit>;

#[derive(Default)]
struct State {
    claims: HashMap<i32, oneshot::Sender<Exit>>,
    early: HashMap<i32, Exit>,
    expectations: usize,
}

/// A handle on the reaper; clones share it.
#[derive(Clone, Default)]
pub struct Reaper {
    // A lock in name only: there is one thread, and no await happens under it.
    state: Arc<Mutex<State>>,
}

impl Reaper {
    /// Starts reaping on SIGCHLD, for as long as the runtime lives.
    ///
    /// # Errors
    /// The signal handler cannot be installed.
    pub fn start() -> io::Result<Self> {
        let reaper = Self::default();
        let mut children = signal(SignalKind::child())?;
        let reap = reaper.clone();
        tokio::spawn(async move {
            // Once before the first signal: a child inherited over exec may be dead already.
            reap.reap();
            while children.recv().await.is_some() {
                reap.reap();
            }
        });
        Ok(reaper)
    }

    /// Asks for the exit of `pid`, a child or a process about to be one (an orphan of a child).
    pub fn claim(&self, pid: i32) -> Claim {
        let (tell, exit) = oneshot::channel();
        let mut state = self.state();
        match state.early.remove(&pid) {
            // A kept exit is of an earlier process if one of that pid is (again) ours to wait for.
            Some(early) if !is_waitable(pid) => drop(tell.send(early)),
            _ => drop(state.claims.insert(pid, tell)),
        }
        exit
    }

    /// Whether `pid` is a process that somebody claimed and that has not been reaped.
    pub fn is_claimed(&self, pid: i32) -> bool {
        self.state().claims.contains_key(&pid)
    }

    /// Sends a signal, by number, to a claimed process; to nobody if it was reaped, since its pid may be another's now.
    ///
    /// # Errors
    /// `ESRCH`: it has ended. `EINVAL`: there is no such signal.
    pub fn signal(&self, pid: i32, signal: i32) -> Result<(), Errno> {
        if !self.is_claimed(pid) {
            return Err(Errno::ESRCH);
        }
        // SAFETY: plain integers. libc's own call, since a signal is a number here: real-time ones have no name in nix.
        Errno::result(unsafe { libc::kill(pid, signal) }).map(drop)
    }

    /// Has exits of unknown processes kept until the guard is dropped.
    pub fn expect(&self) -> Expectation {
        self.state().expectations += 1;
        Expectation(self.clone())
    }

    fn reap(&self) {
        loop {
            let mut status = 0;
            // SAFETY: `status` is a valid place for the result. libc's own call, since nix's reports a real-time
            // signal as an error and has reaped the child by then.
            let pid = unsafe { libc::waitpid(-1, &mut status, libc::WNOHANG) };
            let code = match pid {
                0 => return,
                -1 if Errno::last() == Errno::EINTR => continue,
                -1 => return,
                _ if libc::WIFSIGNALED(status) => 128 + libc::WTERMSIG(status) as u32,
                _ => libc::WEXITSTATUS(status) as u32,
            };
            let exit = Exit { code, at: SystemTime::now() };
            let mut state = self.state();
            match state.claims.remove(&pid) {
                Some(claim) => drop(claim.send(exit)),
                None if state.expectations > 0 && state.early.len() < MOST_EARLY => drop(state.early.insert(pid, exit)),
                None => {}
            }
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// While it lives, the reaper keeps exits that nobody has claimed yet.
pub struct Expectation(Reaper);

impl Drop for Expectation {
    fn drop(&mut self) {
        let mut state = self.0.state();
        state.expectations -= 1;
        if state.expectations == 0 {
            state.early = HashMap::new();
        }
    }
}

/// Whether `pid` is a child of ours, alive or dead but not reaped.
fn is_waitable(pid: i32) -> bool {
    let flags = WaitPidFlag::WEXITED | WaitPidFlag::WNOHANG | WaitPidFlag::WNOWAIT;
    waitid(Id::Pid(Pid::from_raw(pid)), flags) != Err(Errno::ECHILD)
}
