//! The commands of a container's lifecycle: start, restore, pause, resume, update, checkpoint and delete. One at a time,
//! in the order of their requests; each begins a task and ends with its report.

use std::path::Path;
use std::time::Duration;

use containerd_shim_protos::events::task as event;
use containerd_shim_protos::protobuf::MessageField;
use tokio::sync::oneshot;

use super::{Command, Container, Deleted, Message, REAP, Report, SIGKILL, STRAGGLERS};
use crate::bundle::Id;
use crate::bundle::record::Record;
use crate::bundle::rootfs;
use crate::bundle::volumes::Volumes;
use crate::events::timestamp;
use crate::runtime::checkpoint::Checkpoint;
use crate::runtime::command::CommandError;
use crate::runtime::{ProcessStreams, Runtime, RuntimeError};
use crate::shim::reaper::Exit;
use crate::task::checkpoint::{self, Restore, Restored};
use crate::task::process::{State, killed};
use crate::task::sandbox::{Host, Place, Sandbox};
use crate::task::standstill::Phase;
use crate::task::{Reply, TaskError};

impl Container {
    pub(super) fn enqueue(&mut self, command: Command) {
        self.waiting.push_back(command);
        if !self.busy {
            self.next();
        }
    }

    /// Begins the next command that can begin.
    pub(super) fn next(&mut self) {
        self.busy = false;
        while !self.busy
            && let Some(command) = self.waiting.pop_front()
        {
            self.busy = match command {
                Command::Start(reply) => self.start(reply),
                Command::Pause(pause, reply) => self.pause(pause, reply),
                Command::Update(resources, reply) => self.update(resources, reply),
                Command::Checkpoint(checkpoint, reply) => self.checkpoint(checkpoint, reply),
                Command::Delete(reply) => self.delete(reply),
            };
        }
    }

    fn start(&mut self, reply: Reply<u32>) -> bool {
        if let Err(error) = self.init.begin() {
            let _ = reply.send(Err(error));
            return false;
        }
        let (runtime, streams) = (self.runtime.clone(), self.held_streams.take());
        let (tell, ended) = oneshot::channel();
        self.ended_in_start = Some(tell);
        let image = match self.restore.clone() {
            None => None,
            Some(Restore::Into(image)) => Some(image),
            Some(Restore::Anew(image)) => {
                let (bundle, origin, names) = (self.bundle.clone(), self.origin.clone(), self.init.names.clone());
                let id = self.id.clone();
                self.report(async move {
                    let restored = checkpoint::restore(&runtime, &bundle, &id, &image, &names, &origin, ended).await;
                    Report::Restored(restored, reply)
                });
                return true;
            }
        };
        let pid = self.init.pid().cast_signed();
        let sandbox = match &self.place {
            Place::Guest(guest) => Some(guest.sandbox().pid()),
            Place::Host(_) | Place::Alone => None,
        };
        self.report(async move {
            Report::Started(start_init(&runtime, pid, sandbox, image.as_deref(), streams, ended).await, reply)
        });
        true
    }

    pub(super) fn started(&mut self, result: Result<(), RuntimeError>, reply: Reply<u32>) {
        let pid = self.init.pid();
        let ended = match &result {
            Ok(()) => {
                self.events.publish(event::TaskStart { container_id: self.id.to_string(), pid, ..Default::default() });
                if let Place::Guest(guest) = &self.place {
                    self.watch_guest(guest.sandbox());
                }
                self.init.started(pid.cast_signed())
            }
            Err(error) => {
                log::error!(container_id = self.id.as_str(), error = error.to_string().as_str(); "start failed");
                let ended = self.init.not_started();
                // What stands for another one is killed, and its end comes by itself; a guest has nothing that could.
                ended.or_else(|| self.place.is_guest().then(killed))
            }
        };
        let _ = reply.send(result.map(|()| pid).map_err(TaskError::from));
        if let Some(exit) = ended {
            self.init_exited(exit);
        }
        for (signal, all, reply) in std::mem::take(&mut self.held_kills) {
            self.kill(None, signal, all, reply);
        }
    }

    pub(super) fn restored(&mut self, result: Result<Restored, TaskError>, reply: Reply<u32>) {
        // Without it, a kill has ended the restore.
        let given_up = self.ended_in_start.take().is_none();
        let Restored { started, stdio, cgroup, oom } = match result {
            Ok(restored) => restored,
            Err(error) => {
                log::error!(container_id = self.id.as_str(), error = error.to_string().as_str(); "restore failed");
                self.init.not_started();
                let _ = reply.send(Err(error));
                if given_up {
                    self.init_exited(killed());
                }
                return;
            }
        };
        self.cgroup = cgroup;
        self.oom = oom;
        if self.runtime.is_gvisor() {
            self.place = Place::Host(Host::new(self.id.clone(), started.pid, Volumes::default()));
        }
        self.init.connect(stdio);
        let pid = started.pid.unsigned_abs();
        self.events.publish(event::TaskStart { container_id: self.id.to_string(), pid, ..Default::default() });
        self.init.started(started.pid);
        if let Some(claim) = started.exit {
            self.watch(None, claim);
        }
        let _ = reply.send(Ok(pid));
        if given_up {
            // The kill came too late for the restore, not for the container.
            let _ = self.runtime.signal(started.pid, SIGKILL);
        }
    }

    /// A checkpoint runs as long as it takes to write all of the container's memory; everything but the other lifecycle
    /// commands is answered meanwhile.
    fn checkpoint(&mut self, checkpoint: Checkpoint, reply: Reply<()>) -> bool {
        if !matches!(self.init.state, State::Running { ended: None, .. }) {
            let idle = format!("container {} does not run and cannot be checkpointed", self.id);
            let _ = reply.send(Err(TaskError::WrongState(idle)));
            return false;
        }
        if let Err(refusal) = self.runtime.decision().admit_checkpoint() {
            let _ = reply.send(Err(refusal.into()));
            return false;
        }
        if checkpoint.exit && self.runtime.is_in_sandbox() {
            let shared = format!(
                "a checkpoint that ends its container ends all of a gVisor pod: ask the pod's first container for it, not {}",
                self.id
            );
            let _ = reply.send(Err(TaskError::WrongState(shared)));
            return false;
        }
        let (runtime, id, paused) = (self.runtime.clone(), self.id.clone(), self.standstill.paused());
        let (tell, ended) = oneshot::channel();
        self.init.wait(tell);
        self.report(async move {
            let result = checkpoint::take(&runtime, &checkpoint, &id, paused, ended).await;
            Report::Checkpointed(checkpoint.image.to_string_lossy().into_owned(), result, reply)
        });
        true
    }

    pub(super) fn checkpointed(&self, image: String, result: Result<(), RuntimeError>, reply: Reply<()>) {
        match &result {
            Ok(()) => self.events.publish(event::TaskCheckpointed {
                container_id: self.id.to_string(),
                checkpoint: image,
                ..Default::default()
            }),
            Err(error) => {
                log::error!(container_id = self.id.as_str(), error = error.to_string().as_str(); "checkpoint failed");
            }
        }
        let _ = reply.send(result.map_err(TaskError::from));
    }

    fn pause(&mut self, pause: bool, reply: Reply<()>) -> bool {
        if !self.init.is_alive() {
            let what = if pause { "paused" } else { "resumed" };
            let _ = reply
                .send(Err(TaskError::WrongState(format!("container {} does not run and cannot be {what}", self.id))));
            return false;
        }
        let paused = match (pause, self.standstill.phase()) {
            (true, Phase::Moving) => {
                self.standstill.set(Phase::Pausing(self.id.clone()));
                None
            }
            (false, Phase::Paused(id)) => Some(id),
            // runc's own words for it are those for a container that is not there.
            (_, phase) => {
                let is = if phase == Phase::Moving { "is not paused" } else { "is paused already" };
                let _ = reply.send(Err(TaskError::WrongState(format!("container {} {is}", self.id))));
                return false;
            }
        };
        let runtime = self.runtime.clone();
        self.report(async move {
            let result = match paused {
                None => runtime.pause().await,
                Some(paused) => runtime.resume(&paused).await,
            };
            Report::Paused(pause, result, reply)
        });
        true
    }

    /// The runtime has carried out a pause, or a resume, or could not.
    pub(super) fn paused(&mut self, pause: bool, carried_out: bool) {
        match (pause, carried_out) {
            (true, true) if self.init.is_alive() => {
                self.standstill.set(Phase::Paused(self.id.clone()));
                self.events.publish(event::TaskPaused { container_id: self.id.to_string(), ..Default::default() });
            }
            (true, true) if self.place.is_guest() => {
                // It has ended meanwhile, and the others would stand still for nothing.
                self.standstill.set(Phase::Paused(self.id.clone()));
                tokio::spawn(self.thaw(self.id.clone()));
            }
            (true, _) => drop(self.standstill.set(Phase::Moving)),
            (false, true) => self.resumed(),
            (false, false) => {}
        }
    }

    /// Ends the pause of `paused`, which nobody has asked for.
    pub(super) fn thaw(&self, paused: Id) -> impl Future<Output = ()> + Send + use<> {
        let (runtime, mailbox) = (self.runtime.clone(), self.mailbox.clone());
        async move {
            if runtime.resume(&paused).await.is_ok() {
                let _ = mailbox.send(Message::Report(Report::Thawed));
            }
        }
    }

    /// All that stood still moves again: said of the container whose pause it was.
    pub(super) fn resumed(&mut self) {
        if let Phase::Paused(id) = self.standstill.set(Phase::Moving) {
            self.events.publish(event::TaskResumed { container_id: id.to_string(), ..Default::default() });
        }
    }

    fn update(&mut self, resources: Vec<u8>, reply: Reply<()>) -> bool {
        if self.init.exit().is_some() {
            let ended = format!("container {} has ended; there is nothing to update", self.id);
            let _ = reply.send(Err(TaskError::WrongState(ended)));
            return false;
        }
        let runtime = self.runtime.clone();
        self.report(async move {
            let _ = reply.send(runtime.update(&resources).await.map_err(TaskError::from));
            Report::Idle
        });
        true
    }

    fn delete(&mut self, reply: Reply<Deleted>) -> bool {
        // One that was never started may be deleted alive.
        let force = match self.init.state {
            State::Stopped { .. } => false,
            State::Created { .. } => true,
            State::Starting { .. } | State::Running { .. } => {
                let _ = reply.send(Err(TaskError::WrongState(format!(
                    "container {} runs; kill it before you delete it",
                    self.id
                ))));
                return false;
            }
        };
        let (runtime, stdio) = (self.runtime.clone(), self.init.stdio.take().unwrap_or_default());
        let sandbox = self.place.sandbox().map(Sandbox::pid);
        self.held_streams = None;
        // What no restore has made is not there; if something has its name, it is another's.
        let exists = self.init.pid() != 0;
        self.report(async move {
            let removed = async { if exists { remove(&runtime, sandbox, force).await } else { Ok(()) } };
            let ((), deleted) = tokio::join!(stdio.drain(), removed);
            if let Err(error) = &deleted {
                log::error!(error = error.to_string().as_str(); "the runtime did not delete the container");
            }
            Report::Removed(deleted, reply)
        });
        if force {
            // What was never started may have nothing that could tell its end.
            let patience = if self.place.is_guest() || self.init.pid() == 0 { Duration::ZERO } else { 2 * REAP };
            self.later(patience, Report::Exited(None, killed()));
        }
        true
    }

    /// Removes what the shim made for the container, and says so.
    pub(super) fn finish(&mut self, exit: Exit) -> Deleted {
        rootfs::unmount_all(&self.bundle.rootfs());
        Record::remove(&self.bundle);
        let end = Deleted { pid: self.init.pid(), exit };
        self.events.publish(event::TaskDelete {
            container_id: self.id.to_string(),
            pid: end.pid,
            exit_status: exit.code,
            exited_at: MessageField::some(timestamp(exit.at)),
            ..Default::default()
        });
        end
    }
}

/// Has the runtime start the init, or restore it from `image`. An init that ends meanwhile without the runtime noticing
/// ends the start. One whose start failed cannot be started again and is ended: by its pid; or, in another's `sandbox`,
/// where it may be running although its start was given up, by its deletion.
async fn start_init(
    runtime: &Runtime,
    pid: i32,
    sandbox: Option<i32>,
    image: Option<&Path>,
    streams: Option<ProcessStreams>,
    mut ended: oneshot::Receiver<()>,
) -> Result<(), RuntimeError> {
    let mut over = false;
    let overdue = async {
        over = (&mut ended).await.is_ok();
        if over { tokio::time::sleep(STRAGGLERS).await } else { std::future::pending().await }
    };
    let start = async {
        match image {
            None => runtime.start(streams).await,
            Some(image) => runtime.restore_into(image, streams).await,
        }
    };
    let result = tokio::select! {
        result = start => result,
        () = overdue => Err(RuntimeError::Failed("the container ended while it was being started".into())),
    };
    match sandbox {
        _ if result.is_ok() => {}
        Some(_) => {
            if let Err(error) = remove(runtime, sandbox, true).await {
                log::error!(error = error.to_string().as_str(); "a container that could not be started was not deleted");
            }
        }
        None if !over && runtime.signal(pid, SIGKILL).is_ok() => {
            let _ = tokio::time::timeout(REAP, ended).await;
        }
        None => {}
    }
    result
}

/// Deletes by the gentle way first, if that is allowed at all. In gVisor the gentle way does nothing that the other
/// does not; what a sandbox does not answer to in time is deleted when that is dead.
async fn remove(runtime: &Runtime, sandbox: Option<i32>, force: bool) -> Result<(), RuntimeError> {
    if !force && sandbox.is_none() && runtime.delete(false).await.is_ok() {
        return Ok(());
    }
    let result = runtime.delete(true).await;
    match (&result, sandbox) {
        (Err(RuntimeError::Command(CommandError::Deadline { .. })), Some(sandbox)) => {
            log::error!(sandbox; "the sandbox does not answer and is killed");
            let _ = runtime.signal(sandbox, SIGKILL);
            runtime.delete(true).await
        }
        _ => result,
    }
}
