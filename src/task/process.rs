//! One process of a container, its init or an exec: its state and who waits for its end.

use std::time::SystemTime;

use tokio::sync::oneshot;

use super::container::Deleted;
use super::{Reply, TaskError};
use crate::shim::reaper::Exit;
use crate::stdio::{Stdio, StreamNames};

/// Where a process is in its life. It moves forward only.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum State {
    /// It may be started. An init has a pid already, an exec has not.
    Created { pid: Option<i32> },
    /// The runtime is starting it. Its end, if that has come already, waits for the start to be announced.
    Starting { pid: Option<i32>, ended: Option<Exit> },
    /// It runs. For an init that has ended but whose end is not announced yet, `ended` is set.
    Running { pid: i32, ended: Option<Exit> },
    /// It has ended, and that is announced.
    Stopped { pid: Option<i32>, exit: Exit },
}

/// A process and what belongs to it.
pub(super) struct Process {
    pub(super) state: State,
    pub(super) names: StreamNames,
    pub(super) stdio: Option<Stdio>,
    /// Its input was closed before it had any.
    stdin_closed: bool,
    /// Its pid inside a gVisor sandbox, for signals.
    pub(super) inner_pid: Option<i32>,
    waiters: Vec<oneshot::Sender<Result<Exit, TaskError>>>,
    /// Those who have asked for its deletion, which is under way if there are any (execs).
    pub(super) deletes: Vec<Reply<Deleted>>,
}

impl Process {
    pub(super) fn created(pid: Option<i32>, names: StreamNames, mut stdio: Option<Stdio>) -> Self {
        if let Some(stdio) = &mut stdio {
            stdio.settle();
        }
        Self {
            state: State::Created { pid },
            names,
            stdio,
            stdin_closed: false,
            inner_pid: None,
            waiters: Vec::new(),
            deletes: Vec::new(),
        }
    }

    /// Gives it its streams.
    pub(super) fn connect(&mut self, mut stdio: Stdio) {
        stdio.settle();
        if self.stdin_closed {
            stdio.close_stdin();
        }
        self.stdio = Some(stdio);
    }

    /// Ends its input; at once, or when it has one: a short input is written and closed before an exec is started.
    pub(super) fn close_stdin(&mut self) {
        self.stdin_closed = true;
        if let Some(stdio) = &mut self.stdio {
            stdio.close_stdin();
        }
    }

    /// Its pid, 0 while there is none, as the protocol has it.
    pub(super) fn pid(&self) -> u32 {
        let pid = match self.state {
            State::Created { pid } | State::Starting { pid, .. } | State::Stopped { pid, .. } => pid,
            State::Running { pid, .. } => Some(pid),
        };
        pid.map_or(0, i32::unsigned_abs)
    }

    /// How it ended, once that is announced.
    pub(super) fn exit(&self) -> Option<Exit> {
        match self.state {
            State::Stopped { exit, .. } => Some(exit),
            _ => None,
        }
    }

    /// Whether it lives, or is being brought to life.
    pub(super) fn is_alive(&self) -> bool {
        matches!(self.state, State::Starting { ended: None, .. } | State::Running { ended: None, .. })
    }

    /// Whether the runtime is starting it at this moment.
    pub(super) fn is_starting(&self) -> bool {
        matches!(self.state, State::Starting { .. })
    }

    /// Begins its start.
    pub(super) fn begin(&mut self) -> Result<(), TaskError> {
        match self.state {
            State::Created { pid } => {
                self.state = State::Starting { pid, ended: None };
                Ok(())
            }
            State::Starting { .. } => Err(TaskError::WrongState("the process is being started already".into())),
            State::Running { .. } => Err(TaskError::WrongState("the process has been started already".into())),
            State::Stopped { .. } => Err(TaskError::WrongState("the process has ended already".into())),
        }
    }

    /// Its start succeeded; returns its end if that came first.
    pub(super) fn started(&mut self, pid: i32) -> Option<Exit> {
        let ended = match self.state {
            State::Starting { ended, .. } => ended,
            _ => None,
        };
        self.state = State::Running { pid, ended: None };
        ended
    }

    /// Its start failed; returns its end if it has one. An init whose start failed may still be there, to be deleted.
    pub(super) fn not_started(&mut self) -> Option<Exit> {
        let State::Starting { pid, ended } = self.state else {
            return None;
        };
        self.state = State::Created { pid };
        ended
    }

    /// Announces its end: those who wait are told.
    pub(super) fn stop(&mut self, exit: Exit) {
        let pid = i32::try_from(self.pid()).ok().filter(|pid| *pid != 0);
        self.state = State::Stopped { pid, exit };
        for waiter in self.waiters.drain(..) {
            let _ = waiter.send(Ok(exit));
        }
    }

    /// Answers with its end, now or then.
    pub(super) fn wait(&mut self, reply: Reply<Exit>) {
        match self.exit() {
            Some(exit) => drop(reply.send(Ok(exit))),
            None => {
                // Callers that are gone must not pile up over the years of a long process.
                self.waiters.retain(|waiter| !waiter.is_closed());
                self.waiters.push(reply);
            }
        }
    }
}

/// The end of a process of which only the fact is known.
pub(super) fn killed() -> Exit {
    Exit { code: 137, at: SystemTime::now() }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn exit() -> Exit {
        Exit { code: 3, at: SystemTime::UNIX_EPOCH }
    }

    fn process() -> Process {
        Process::created(Some(7), StreamNames::default(), None)
    }

    #[test]
    fn a_process_is_started_once() {
        let mut process = process();
        assert!(process.begin().is_ok());
        assert!(process.begin().is_err());
        assert_eq!(process.started(7), None);
        assert!(process.begin().is_err());
        process.stop(exit());
        assert!(process.begin().is_err());
        assert_eq!((process.pid(), process.exit()), (7, Some(exit())));
    }

    #[test]
    fn an_end_that_overtakes_the_start_is_kept_for_after_it() {
        let mut process = process();
        process.begin().unwrap();
        process.state = State::Starting { pid: Some(7), ended: Some(exit()) };
        assert_eq!(process.exit(), None);
        assert_eq!(process.started(7), Some(exit()));
    }

    #[test]
    fn all_who_wait_are_told_and_who_comes_late_too() {
        let mut process = process();
        let (early, mut early_exit) = oneshot::channel();
        process.wait(early);
        assert!(early_exit.try_recv().is_err());
        process.stop(exit());
        assert_eq!(early_exit.try_recv().unwrap().unwrap(), exit());
        let (late, mut late_exit) = oneshot::channel();
        process.wait(late);
        assert_eq!(late_exit.try_recv().unwrap().unwrap(), exit());
    }
}
