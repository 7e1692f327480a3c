//! Signals: to whom one goes, and by which way. Straight to a process of ours where a runtime would do no more, by the
//! runtime otherwise, and a SIGKILL reaches whatever state it finds.

use super::{Container, SIGKILL};
use crate::bundle::Id;
use crate::runtime::command::CommandError;
use crate::runtime::{Runtime, RuntimeError, Target};
use crate::task::process::{State, killed};
use crate::task::sandbox::{Place, Sandbox};
use crate::task::{Reply, TaskError};

impl Container {
    pub(super) fn kill(&mut self, exec: Option<&Id>, signal: u32, all: bool, reply: Reply<()>) {
        let process = match self.process(exec) {
            Ok(process) => process,
            Err(error) => return drop(reply.send(Err(error))),
        };
        let target = match (process.state, process.inner_pid) {
            (State::Stopped { .. } | State::Running { ended: Some(_), .. }, _) => {
                return drop(reply.send(Err(TaskError::NotFound("process already finished".into()))));
            }
            (State::Created { pid: None }, _) if exec.is_none() && signal == SIGKILL => {
                // It was to be restored; now it never will be.
                let _ = reply.send(Ok(()));
                return self.init_exited(killed());
            }
            (State::Starting { pid: None, .. }, _) if exec.is_none() && signal == SIGKILL => {
                if let Some(give_up) = self.ended_in_start.take() {
                    let _ = give_up.send(());
                }
                return drop(reply.send(Ok(())));
            }
            (State::Created { pid: None } | State::Starting { pid: None, .. }, _) => {
                return drop(reply.send(Err(TaskError::WrongState("the process has not been started".into()))));
            }
            (_, Some(inner)) => Target::Inner(inner),
            // All of an exec is the exec.
            (_, None) if all && exec.is_none() => Target::All,
            (_, None) => Target::Init,
        };
        let (pid, state) = (process.pid().cast_signed(), process.state);
        let paused = self.standstill.paused();
        let direct = match &self.place {
            // The runtime knows the container's own process alone: an exec is signalled by its pid, paused or not.
            _ if exec.is_some() && target == Target::Init => true,
            // Where runc would do no more than that.
            Place::Alone => paused.is_none() && target == Target::Init,
            // A sandbox ends with its first container, and by this even if it is not started or stuck. Not when paused:
            // an old runsc then fails to delete what it still takes for paused.
            Place::Host(_) => exec.is_none() && signal == SIGKILL && paused.is_none(),
            Place::Guest(_) => false,
        };
        if direct {
            return drop(reply.send(self.runtime.signal(pid, signal).map_err(TaskError::from)));
        }
        match state {
            State::Created { .. } if self.place.is_guest() && signal == SIGKILL => {
                // It has no process yet; it never will.
                let _ = reply.send(Ok(()));
                return self.init_exited(killed());
            }
            // runsc refuses until it has finished the start.
            State::Created { .. } if self.runtime.is_gvisor() => {
                let early = format!("container {} has not been started; in gVisor only SIGKILL reaches it", self.id);
                return drop(reply.send(Err(TaskError::WrongState(early))));
            }
            State::Starting { .. } if self.runtime.is_gvisor() => {
                if signal == SIGKILL
                    && let Some(give_up) = self.ended_in_start.take()
                {
                    let _ = give_up.send(());
                }
                return self.held_kills.push((signal, all, reply));
            }
            _ => {}
        }
        let runtime = self.runtime.clone();
        let sandbox = self.place.sandbox().map(Sandbox::pid);
        if let Some(paused) = paused.filter(|_| self.runtime.is_gvisor() && signal == SIGKILL) {
            // Nothing is delivered to a paused sandbox; that much of its pause ends here.
            let thawed = self.thaw(paused);
            tokio::spawn(async move {
                thawed.await;
                let _ = reply.send(deliver(&runtime, sandbox, signal, target).await.map_err(TaskError::from));
            });
            return;
        }
        tokio::spawn(async move {
            let _ = reply.send(deliver(&runtime, sandbox, signal, target).await.map_err(TaskError::from));
        });
    }
}

/// Sends a signal by the runtime. A SIGKILL that it does not bring to its end in time ends the whole sandbox, for
/// nothing in a sandbox that does not answer can be ended otherwise.
pub(super) async fn deliver(
    runtime: &Runtime,
    sandbox: Option<i32>,
    signal: u32,
    target: Target,
) -> Result<(), RuntimeError> {
    let result = runtime.kill(signal, target).await;
    match (&result, sandbox) {
        (Err(RuntimeError::Command(CommandError::Deadline { .. })), Some(sandbox))
            if signal == SIGKILL && !matches!(target, Target::Inner(_)) =>
        {
            log::error!(sandbox; "the sandbox does not answer and is killed");
            runtime.signal(sandbox, SIGKILL)
        }
        // In whatever words runsc says so.
        (Err(_), Some(sandbox)) if !runtime.is_claimed(sandbox) => {
            Err(RuntimeError::NotRunning("process already finished".into()))
        }
        _ => result,
    }
}
