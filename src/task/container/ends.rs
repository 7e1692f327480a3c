//! The ends of processes: how they come to be known, and in which order they are told. A container's own end is last:
//! after an OOM kill's, after its execs', after its guests'; none of them can hold it up for long.

use std::time::Duration;

use containerd_shim_protos::events::task as event;
use containerd_shim_protos::protobuf::MessageField;

use super::kill::deliver;
use super::{Container, Message, REAP, Report, SETTLING, SIGKILL, STRAGGLERS};
use crate::bundle::Id;
use crate::cgroup::{Cgroup, OomWatch};
use crate::events::timestamp;
use crate::runtime::{Runtime, Target};
use crate::shim::reaper::{Claim, Exit};
use crate::task::process::{State, killed};
use crate::task::sandbox::{Place, Sandbox};
use crate::task::standstill::Phase;

impl Container {
    /// The init has ended. Its end is announced once, and last: after an OOM kill's and after its execs'.
    pub(super) fn init_exited(&mut self, exit: Exit) {
        match &mut self.init.state {
            State::Stopped { .. } => return,
            // Announced when the runtime says that it has started, or has not.
            State::Starting { ended, .. } => {
                ended.get_or_insert(exit);
                if let Some(tell) = self.ended_in_start.take() {
                    let _ = tell.send(());
                }
                return;
            }
            State::Running { ended, .. } => drop(ended.get_or_insert(exit)),
            State::Created { pid } => {
                let pid = pid.unwrap_or_default();
                self.init.state = State::Running { pid, ended: Some(exit) };
            }
        }
        // The last look, at once: the counter is final when its processes are dead.
        let kills = self.oom.take().map_or(0, |mut oom| oom.check());
        self.out_of_memory(kills);
        // A pid namespace of its own dies with the init, a sandbox as well; other processes have lost nothing but it.
        if self.shares_pids && self.own_sandbox().is_none() {
            self.sweeping = true;
            let (runtime, cgroup) = (self.runtime.clone(), self.cgroup.clone());
            self.report(async move {
                let _ = runtime.kill(SIGKILL, Target::All).await;
                // Who is told of the end may look at once, and a signal that is sent is not a process that is gone.
                if let Some(cgroup) = cgroup {
                    let _ = tokio::time::timeout(REAP, emptied(&cgroup)).await;
                }
                Report::Swept
            });
        }
        if self.place.is_guest() {
            let runtime = self.runtime.clone();
            tokio::spawn(async move { runtime.remove_cgroup().await });
        }
        if let Place::Host(host) = &mut self.place {
            if let Some(panic) = self.runtime.panic() {
                log::error!(container_id = self.id.as_str(), panic = panic.as_str(); "the gVisor sandbox broke");
            }
            self.hosting = true;
            let gone = host.end();
            self.report(async move {
                gone.await;
                Report::GuestsGone
            });
        }
        if self.sweeping || self.hosting || self.has_stragglers() {
            self.later(STRAGGLERS, Report::GiveUpStragglers);
        } else {
            self.announce_init_exit();
        }
    }

    fn has_stragglers(&self) -> bool {
        self.execs.values().any(|exec| exec.is_alive() || exec.is_starting())
    }

    pub(super) fn announce_init_exit_if_last(&mut self) {
        if !self.sweeping && !self.hosting && !self.has_stragglers() {
            self.announce_init_exit();
        }
    }

    pub(super) fn announce_init_exit(&mut self) {
        if let State::Running { ended: Some(exit), .. } = self.init.state {
            // A sandbox that stands still goes on doing so without a guest.
            if !self.place.is_guest() {
                self.standstill.set(Phase::Moving);
            }
            self.init.stop(exit);
            self.publish_exit(self.id.as_str(), self.init.pid(), exit);
            if let Place::Guest(guest) = &mut self.place {
                guest.leave();
            }
        }
    }

    pub(super) fn exec_exited(&mut self, id: &Id, exit: Exit) {
        let Some(exec) = self.execs.get_mut(id) else {
            return;
        };
        exec.stop(exit);
        let pid = exec.pid();
        self.publish_exit(id.as_str(), pid, exit);
        self.announce_init_exit_if_last();
    }

    fn publish_exit(&self, id: &str, pid: u32, exit: Exit) {
        self.events.publish(event::TaskExit {
            container_id: self.id.to_string(),
            id: id.to_owned(),
            pid,
            exit_status: exit.code,
            exited_at: MessageField::some(timestamp(exit.at)),
            ..Default::default()
        });
    }

    pub(super) fn out_of_memory(&self, kills: u64) {
        if kills > 0 {
            log::info!(container_id = self.id.as_str(), kills; "OOM kill detected via cgroup watcher");
            self.events.publish(event::TaskOOM { container_id: self.id.to_string(), ..Default::default() });
        }
    }

    /// For the init of a guest, which is no process of ours.
    pub(super) fn watch_guest(&self, sandbox: &Sandbox) {
        let (runtime, id) = (self.runtime.clone(), self.id.clone());
        let (ended, pid) = (sandbox.ended(), sandbox.pid());
        self.report(async move {
            let wait = wait_for_guest(&runtime, &id, pid);
            tokio::pin!(wait);
            let exit = tokio::select! {
                exit = &mut wait => exit,
                // It may have ended by itself just before.
                () = ended => tokio::time::timeout(REAP, wait).await.unwrap_or_else(|_| killed()),
            };
            Report::Exited(None, exit)
        });
    }

    /// For a guest that was not started: it ends when its sandbox does.
    pub(super) fn watch_sandbox(&self, sandbox: &Sandbox) {
        let (mailbox, ended) = (self.mailbox.clone(), sandbox.ended());
        tokio::spawn(async move {
            tokio::select! {
                () = ended => drop(mailbox.send(Message::Report(Report::SandboxEnded))),
                // Of the guests that come and go nothing may stay.
                () = mailbox.closed() => {}
            }
        });
    }

    pub(super) fn watch(&self, exec: Option<Id>, claim: Claim) {
        let mailbox = self.mailbox.clone();
        // What stands in for an exec says 128 when it lost its sandbox, and may say so before that is reaped.
        let sandbox = self.place.sandbox().filter(|_| exec.is_some()).map(Sandbox::ended);
        tokio::spawn(async move {
            if let Ok(mut exit) = claim.await {
                if exit.code == 128
                    && let Some(ended) = sandbox
                    && tokio::time::timeout(SETTLING, ended).await.is_ok()
                {
                    exit.code = killed().code;
                }
                let _ = mailbox.send(Message::Report(Report::Exited(exec, exit)));
            }
        });
    }
}

/// Waits for the end of a started guest. While its sandbox lives, a wait that fails is tried again; one that fails for
/// good leaves nothing that could be waited for.
async fn wait_for_guest(runtime: &Runtime, id: &Id, sandbox: i32) -> Exit {
    let mut pause = Duration::from_millis(50);
    loop {
        let error = match runtime.wait().await {
            Ok(exit) => return exit,
            Err(error) => error.to_string(),
        };
        if !runtime.is_claimed(sandbox) {
            return killed();
        }
        if pause > STRAGGLERS {
            log::error!(container_id = id.as_str(), error = error.as_str(); "cannot wait for the container; it is killed");
            let _ = deliver(runtime, Some(sandbox), SIGKILL, Target::All).await;
            return killed();
        }
        tokio::time::sleep(pause).await;
        pause *= 2;
    }
}

/// Waits until no process is left in the cgroup. Looks again and again: cgroup v1 tells nobody.
async fn emptied(cgroup: &Cgroup) {
    while cgroup.procs().is_ok_and(|processes| !processes.is_empty()) {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

/// The OOM killer's next victims in this container.
pub(super) async fn oom_kills(oom: &mut Option<OomWatch>) -> u64 {
    match oom {
        Some(watch) => watch.wait().await,
        None => std::future::pending().await,
    }
}
