//! The actor that owns one container: its init, its execs, and the order of everything that is said about them.
//!
//! Requests and reports (a runtime command has finished, a process has ended, the OOM killer came) arrive in one
//! mailbox and are handled one after the other, each at once: what may take time runs in a task that reports back.
//! So the order of events holds by construction (invariant 1), and nothing a runtime does delays an answer that is
//! known already (invariant 3).

use std::collections::{HashMap, VecDeque};
use std::path::Path;
use std::time::Duration;

use containerd_shim_protos::events::task as event;
use containerd_shim_protos::protobuf::MessageField;
use containerd_shim_protos::protobuf::well_known_types::any::Any;
use nix::sys::signal::Signal;
use tokio::sync::{mpsc, oneshot};

use super::checkpoint::{self, Restore, Restored};
use super::pod::{self, Shim};
use super::process::{Process, State, killed};
use super::sandbox::{Host, Place, Sandbox};
use super::{Reply, TaskError};
use crate::bundle::record::Record;
use crate::bundle::volumes::Volumes;
use crate::bundle::{Bundle, Id, rootfs};
use crate::cgroup::{Cgroup, OomWatch};
use crate::events::{Events, timestamp};
use crate::runtime::checkpoint::Checkpoint;
use crate::runtime::command::CommandError;
use crate::runtime::{ExecStreams, ProcessStreams, Runtime, RuntimeError, Started, Target};
use crate::shim::reaper::{Claim, Exit};
use crate::stdio::{Console, ConsoleSocket, Origin, Stdio, StdioError, StreamNames};

/// How long execs may outlive their init before its end is announced without theirs.
const STRAGGLERS: Duration = Duration::from_secs(2);
/// How long a killed init may take to be reaped.
const REAP: Duration = Duration::from_secs(2);
/// How much later than its parts a sandbox that is being killed may be reaped.
const SETTLING: Duration = Duration::from_millis(500);
const SIGKILL: u32 = Signal::SIGKILL as u32;

/// What a container can be asked. An absent `exec` means the init.
pub(super) enum Request {
    Start { exec: Option<Id>, reply: Reply<u32> },
    Exec { id: Id, spec: Vec<u8>, names: StreamNames, reply: Reply<()> },
    State { exec: Option<Id>, reply: Reply<Snapshot> },
    Wait { exec: Option<Id>, reply: Reply<Exit> },
    Kill { exec: Option<Id>, signal: u32, all: bool, reply: Reply<()> },
    Delete { exec: Option<Id>, reply: Reply<Deleted> },
    Pids { reply: Reply<Vec<(u32, Option<Id>)>> },
    CloseStdin { exec: Option<Id>, reply: Reply<()> },
    Resize { exec: Option<Id>, width: u16, height: u16, reply: Reply<()> },
    Pause { reply: Reply<()> },
    Resume { reply: Reply<()> },
    Update { resources: Vec<u8>, reply: Reply<()> },
    Checkpoint { checkpoint: Checkpoint, reply: Reply<()> },
    Stats { reply: Reply<Any> },
}

/// What tasks report back.
enum Report {
    /// A process has ended.
    Exited(Option<Id>, Exit),
    /// The runtime has started the init, or not.
    Started(Result<(), RuntimeError>, Reply<u32>),
    /// The init was made from a checkpoint, or not.
    Restored(Result<Restored, TaskError>, Reply<u32>),
    /// The runtime has started an exec, or not.
    ExecStarted(Id, Result<(Started, Stdio), TaskError>, Reply<u32>),
    /// The runtime has paused (`true`) or resumed the container, or not.
    Paused(bool, Result<(), RuntimeError>, Reply<()>),
    /// A checkpoint of the container is in this directory, or not.
    Checkpointed(String, Result<(), RuntimeError>, Reply<()>),
    /// A kill has resumed the container, or not.
    Thawed(bool),
    /// A command without consequences here is done.
    Idle,
    /// What the init left running has been killed.
    Swept,
    /// The ends of all others in the sandbox are announced.
    GuestsGone,
    /// The sandbox that the container is a guest of has ended.
    SandboxEnded,
    /// Those that the init's end waited for have had their time.
    GiveUpStragglers,
    /// The runtime has deleted the container, or not.
    Removed(Result<(), RuntimeError>, Reply<Deleted>),
    /// An exec's output is delivered.
    ExecDrained(Id, Deleted, Reply<Deleted>),
}

/// Lifecycle commands, of which a container has one at a time.
enum Command {
    Start(Reply<u32>),
    Pause(bool, Reply<()>),
    Update(Vec<u8>, Reply<()>),
    Checkpoint(Checkpoint, Reply<()>),
    Delete(Reply<Deleted>),
}

enum Message {
    Request(Request),
    Report(Report),
}

/// A process as State shows it.
pub(super) struct Snapshot {
    pub(super) bundle: String,
    pub(super) pid: u32,
    pub(super) status: Status,
    pub(super) names: StreamNames,
    pub(super) exit: Option<Exit>,
}

/// The protocol's words for a process's state.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Status {
    Created,
    Running,
    Pausing,
    Paused,
    Stopped,
}

/// The end of a deleted process.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Deleted {
    pub(super) pid: u32,
    pub(super) exit: Exit,
}

/// The way to a container.
#[derive(Clone)]
pub(super) struct Handle(mpsc::UnboundedSender<Message>);

impl Handle {
    /// Asks, and waits for the answer. Given up, the request is carried out all the same.
    pub(super) async fn ask<T>(&self, request: impl FnOnce(Reply<T>) -> Request) -> Result<T, TaskError> {
        let (reply, answer) = oneshot::channel();
        let gone = || TaskError::NotFound("the container was deleted meanwhile".into());
        self.tell(request(reply));
        answer.await.map_err(|_| gone())?
    }

    /// Hands over a request whose answer somebody else waits for; that one hears of nobody if the container is gone.
    pub(super) fn tell(&self, request: Request) {
        let _ = self.0.send(Message::Request(request));
    }
}

/// A container that exists in its runtime.
pub(super) struct Container {
    id: Id,
    bundle: Bundle,
    runtime: Runtime,
    events: Events,
    init: Process,
    execs: HashMap<Id, Process>,
    exec_specs: HashMap<Id, Vec<u8>>,
    /// Distinguishes the execs' files in the bundle.
    exec_count: u64,
    /// The init's streams, if its start takes them (gVisor's later containers).
    held_streams: Option<ProcessStreams>,
    /// Where it comes from, if from a checkpoint.
    restore: Option<Restore>,
    /// Where its processes are accounted: once it exists, and if its init lived long enough to tell.
    cgroup: Option<Cgroup>,
    oom: Option<OomWatch>,
    shares_pids: bool,
    /// For the streams of execs.
    origin: Origin,
    place: Place,
    /// The init has ended, and what it left is being killed.
    sweeping: bool,
    /// The init has ended, and so have others in its sandbox, whose ends come before its own.
    hosting: bool,
    /// Signals that came while the init was being started.
    held_kills: Vec<(u32, bool, Reply<()>)>,
    pausing: bool,
    paused: bool,
    /// A lifecycle command is under way; the others wait.
    busy: bool,
    waiting: VecDeque<Command>,
    /// The runtime has deleted the container; only the init's end is still to come.
    removed: Option<Reply<Deleted>>,
    init_claim: Option<Claim>,
    /// Tells the task that starts the init that it is over already.
    ended_in_start: Option<oneshot::Sender<()>>,
    mailbox: mpsc::UnboundedSender<Message>,
    messages: mpsc::UnboundedReceiver<Message>,
}

impl Container {
    #[expect(clippy::too_many_arguments, reason = "each is made by another step of a creation")]
    pub(super) fn new(
        shim: &Shim,
        id: Id,
        bundle: Bundle,
        runtime: Runtime,
        init: Process,
        init_claim: Option<Claim>,
        held_streams: Option<ProcessStreams>,
        restore: Option<Restore>,
        cgroup: Option<Cgroup>,
        oom: Option<OomWatch>,
        shares_pids: bool,
        origin: Origin,
        place: Place,
    ) -> Self {
        let (mailbox, messages) = mpsc::unbounded_channel();
        Self {
            id,
            bundle,
            runtime,
            events: shim.events.clone(),
            init,
            execs: HashMap::new(),
            exec_specs: HashMap::new(),
            exec_count: 0,
            held_streams,
            restore,
            cgroup,
            oom,
            shares_pids,
            origin,
            place,
            sweeping: false,
            hosting: false,
            held_kills: Vec::new(),
            pausing: false,
            paused: false,
            busy: false,
            waiting: VecDeque::new(),
            removed: None,
            init_claim,
            ended_in_start: None,
            mailbox,
            messages,
        }
    }

    pub(super) fn pid(&self) -> u32 {
        self.init.pid()
    }

    /// The gVisor sandbox that was made for it, if one was.
    pub(super) fn own_sandbox(&self) -> Option<&Sandbox> {
        match &self.place {
            Place::Host(host) => Some(host.sandbox()),
            Place::Alone | Place::Guest(_) => None,
        }
    }

    /// Starts the actor. It ends, and tells the pod, when the container is deleted.
    pub(super) fn run(mut self, pod: mpsc::UnboundedSender<pod::Message>) -> Handle {
        let handle = Handle(self.mailbox.clone());
        tokio::spawn(async move {
            if let Some(claim) = self.init_claim.take() {
                self.watch(None, claim);
            }
            if let Place::Guest(guest) = &self.place {
                self.watch_sandbox(guest.sandbox());
            }
            let end = loop {
                let message = tokio::select! {
                    message = self.messages.recv() => message,
                    kills = oom_kills(&mut self.oom) => {
                        self.out_of_memory(kills);
                        continue;
                    }
                };
                let done = match message {
                    Some(Message::Request(request)) => {
                        self.on_request(request);
                        None
                    }
                    Some(Message::Report(report)) => self.on_report(report),
                    None => return,
                };
                if let Some((end, reply)) = done {
                    break (end, reply);
                }
            };
            let (end, reply) = end;
            // The pod first: who has the answer may create the same id again.
            let _ = pod.send(pod::Message::Deleted(self.id.clone(), end));
            let _ = reply.send(Ok(end));
        });
        handle
    }

    fn on_request(&mut self, request: Request) {
        match request {
            Request::Start { exec: None, reply } => self.enqueue(Command::Start(reply)),
            Request::Start { exec: Some(exec), reply } => self.start_exec(exec, reply),
            Request::Exec { id, spec, names, reply } => drop(reply.send(self.add_exec(id, spec, names))),
            Request::State { exec, reply } => drop(reply.send(self.snapshot(exec.as_ref()))),
            Request::Wait { exec, reply } => match self.process(exec.as_ref()) {
                Ok(process) => process.wait(reply),
                Err(error) => drop(reply.send(Err(error))),
            },
            Request::Kill { exec, signal, all, reply } => self.kill(exec.as_ref(), signal, all, reply),
            Request::Delete { exec: None, reply } => self.enqueue(Command::Delete(reply)),
            Request::Delete { exec: Some(exec), reply } => self.delete_exec(exec, reply),
            Request::Pids { reply } => self.pids(reply),
            Request::CloseStdin { exec, reply } => {
                drop(reply.send(self.process(exec.as_ref()).map(Process::close_stdin)));
            }
            Request::Resize { exec, width, height, reply } => {
                drop(reply.send(self.with_stdio(exec.as_ref(), |stdio| stdio.resize(width, height))));
            }
            Request::Pause { reply } => self.enqueue(Command::Pause(true, reply)),
            Request::Resume { reply } => self.enqueue(Command::Pause(false, reply)),
            Request::Update { resources, reply } => self.enqueue(Command::Update(resources, reply)),
            Request::Checkpoint { checkpoint, reply } => self.enqueue(Command::Checkpoint(checkpoint, reply)),
            Request::Stats { reply } => self.stats(reply),
        }
    }

    /// Handles a report; returns the end of the container if this was it.
    fn on_report(&mut self, report: Report) -> Option<(Deleted, Reply<Deleted>)> {
        match report {
            Report::Exited(None, exit) => self.init_exited(exit),
            Report::Exited(Some(exec), exit) => self.exec_exited(&exec, exit),
            Report::Started(result, reply) => {
                self.started(result, reply);
                self.next();
            }
            Report::Restored(result, reply) => {
                self.restored(result, reply);
                self.next();
            }
            Report::ExecStarted(exec, result, reply) => self.exec_started(&exec, result, reply),
            Report::Paused(pause, result, reply) => {
                self.pausing = false;
                if result.is_ok() {
                    self.set_paused(pause);
                }
                let _ = reply.send(result.map_err(TaskError::from));
                self.next();
            }
            Report::Checkpointed(image, result, reply) => {
                self.checkpointed(image, result, reply);
                self.next();
            }
            Report::Thawed(true) if self.paused => self.set_paused(false),
            Report::Thawed(_) => {}
            Report::Idle => self.next(),
            Report::Swept => {
                self.sweeping = false;
                self.announce_init_exit_if_last();
            }
            Report::SandboxEnded => {
                // Of one that was started, the end is known by other ways, and maybe an earlier one.
                if !matches!(self.init.state, State::Running { .. }) {
                    self.init_exited(killed());
                }
            }
            Report::GuestsGone => {
                self.hosting = false;
                self.announce_init_exit_if_last();
            }
            Report::GiveUpStragglers => self.announce_init_exit(),
            Report::Removed(Ok(()), reply) => self.removed = Some(reply),
            Report::Removed(Err(error), reply) => {
                let _ = reply.send(Err(error.into()));
                self.next();
            }
            Report::ExecDrained(exec, end, reply) => {
                self.execs.remove(&exec);
                let _ = reply.send(Ok(end));
            }
        }
        // The runtime has deleted it and its end is announced: whichever came last.
        let exit = self.init.exit()?;
        let reply = self.removed.take()?;
        Some((self.finish(exit), reply))
    }

    // Lifecycle commands: one at a time.

    fn enqueue(&mut self, command: Command) {
        self.waiting.push_back(command);
        if !self.busy {
            self.next();
        }
    }

    /// Begins the next command that can begin.
    fn next(&mut self) {
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
        let own = !self.place.is_guest();
        self.report(async move {
            Report::Started(start_init(&runtime, own.then_some(pid), image.as_deref(), streams, ended).await, reply)
        });
        true
    }

    fn started(&mut self, result: Result<(), RuntimeError>, reply: Reply<u32>) {
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

    fn restored(&mut self, result: Result<Restored, TaskError>, reply: Reply<u32>) {
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
        let (runtime, paused) = (self.runtime.clone(), self.paused);
        let (tell, ended) = oneshot::channel();
        self.init.wait(tell);
        self.report(async move {
            let result = checkpoint::take(&runtime, &checkpoint, paused, ended).await;
            Report::Checkpointed(checkpoint.image.to_string_lossy().into_owned(), result, reply)
        });
        true
    }

    fn checkpointed(&self, image: String, result: Result<(), RuntimeError>, reply: Reply<()>) {
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
        if self.paused == pause {
            // runc's own words for it are those for a container that is not there.
            let is = if pause { "is paused already" } else { "is not paused" };
            let _ = reply.send(Err(TaskError::WrongState(format!("container {} {is}", self.id))));
            return false;
        }
        self.pausing = pause;
        let runtime = self.runtime.clone();
        self.report(async move {
            let result = if pause { runtime.pause().await } else { runtime.resume().await };
            Report::Paused(pause, result, reply)
        });
        true
    }

    fn set_paused(&mut self, paused: bool) {
        self.paused = paused;
        let container_id = self.id.to_string();
        if paused {
            self.events.publish(event::TaskPaused { container_id, ..Default::default() });
        } else {
            self.events.publish(event::TaskResumed { container_id, ..Default::default() });
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
        self.report(async move {
            let ((), deleted) = tokio::join!(stdio.drain(), remove(&runtime, sandbox, force));
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
    fn finish(&mut self, exit: Exit) -> Deleted {
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

    // The ends of processes.

    /// The init has ended. Its end is announced once, and last: after an OOM kill's and after its execs'.
    fn init_exited(&mut self, exit: Exit) {
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
            let runtime = self.runtime.clone();
            self.report(async move {
                let _ = runtime.kill(SIGKILL, Target::All).await;
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

    fn announce_init_exit_if_last(&mut self) {
        if !self.sweeping && !self.hosting && !self.has_stragglers() {
            self.announce_init_exit();
        }
    }

    fn announce_init_exit(&mut self) {
        if let State::Running { ended: Some(exit), .. } = self.init.state {
            self.paused = false;
            self.init.stop(exit);
            self.publish_exit(self.id.as_str(), self.init.pid(), exit);
            if let Place::Guest(guest) = &mut self.place {
                guest.leave();
            }
        }
    }

    fn exec_exited(&mut self, id: &Id, exit: Exit) {
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

    fn out_of_memory(&self, kills: u64) {
        if kills > 0 {
            log::info!(container_id = self.id.as_str(), kills; "OOM kill detected via cgroup watcher");
            self.events.publish(event::TaskOOM { container_id: self.id.to_string(), ..Default::default() });
        }
    }

    // Execs.

    fn add_exec(&mut self, id: Id, spec: Vec<u8>, names: StreamNames) -> Result<(), TaskError> {
        if self.execs.contains_key(&id) || id == self.id {
            return Err(TaskError::AlreadyExists(format!("exec {id} already exists in container {}", self.id)));
        }
        if self.init.exit().is_some() {
            return Err(TaskError::WrongState(format!(
                "container {} has ended; nothing can be executed in it",
                self.id
            )));
        }
        self.events.publish(event::TaskExecAdded {
            container_id: self.id.to_string(),
            exec_id: id.to_string(),
            ..Default::default()
        });
        self.execs.insert(id.clone(), Process::created(None, names, None));
        self.exec_specs.insert(id, spec);
        Ok(())
    }

    fn start_exec(&mut self, id: Id, reply: Reply<u32>) {
        let ended = self.init.exit().is_some();
        // runc's containers have their namespaces from their creation on.
        let is_created = !self.runtime.is_gvisor() && matches!(self.init.state, State::Created { .. });
        let begun = match self.execs.get_mut(&id) {
            None if !ended => Err(TaskError::no_exec(id.as_str())),
            _ if !(self.init.is_alive() || is_created) => {
                Err(TaskError::WrongState(format!("container {} does not run; nothing can be executed in it", self.id)))
            }
            None => Err(TaskError::no_exec(id.as_str())),
            Some(exec) => exec.begin().map(|()| exec.names.clone()),
        };
        let names = match begun {
            Ok(names) => names,
            Err(error) => return drop(reply.send(Err(error))),
        };
        self.exec_count += 1;
        let name = format!("exec-{}", self.exec_count);
        let spec = self.exec_specs.get(&id).cloned().unwrap_or_default();
        let (runtime, bundle, origin) = (self.runtime.clone(), self.bundle.clone(), self.origin.clone());
        self.report(async move {
            let result = run_exec(&runtime, &bundle, &name, &spec, &names, &origin, &id).await;
            Report::ExecStarted(id, result, reply)
        });
    }

    fn exec_started(&mut self, id: &Id, result: Result<(Started, Stdio), TaskError>, reply: Reply<u32>) {
        let Some(exec) = self.execs.get_mut(id) else {
            return;
        };
        match result {
            Ok((started, stdio)) => {
                exec.started(started.pid);
                exec.connect(stdio);
                self.exec_specs.remove(id);
                exec.inner_pid = started.inner_pid;
                let pid = exec.pid();
                self.events.publish(event::TaskExecStarted {
                    container_id: self.id.to_string(),
                    exec_id: id.to_string(),
                    pid,
                    ..Default::default()
                });
                let _ = reply.send(Ok(pid));
                if let Some(claim) = started.exit {
                    self.watch(Some(id.clone()), claim);
                }
            }
            Err(error) => {
                log::error!(container_id = self.id.as_str(), exec_id = id.as_str(), error = error.to_string().as_str(); "exec failed");
                // It never ran: it can be deleted or started once more, and there is no exit to announce.
                exec.not_started();
                let _ = reply.send(Err(error));
                self.announce_init_exit_if_last();
            }
        }
    }

    fn delete_exec(&mut self, id: Id, reply: Reply<Deleted>) {
        let Some(exec) = self.execs.get_mut(&id) else {
            return drop(reply.send(Err(TaskError::no_exec(id.as_str()))));
        };
        let exit = match exec.state {
            State::Stopped { exit, .. } => exit,
            State::Created { .. } => Exit { code: 0, ..killed() },
            State::Starting { .. } | State::Running { .. } => {
                let running = format!("exec {id} runs; kill it before you delete it");
                return drop(reply.send(Err(TaskError::WrongState(running))));
            }
        };
        let end = Deleted { pid: exec.pid(), exit };
        let stdio = exec.stdio.take().unwrap_or_default();
        self.exec_specs.remove(&id);
        self.report(async move {
            stdio.drain().await;
            Report::ExecDrained(id, end, reply)
        });
    }

    // Questions and signals.

    fn process(&mut self, exec: Option<&Id>) -> Result<&mut Process, TaskError> {
        match exec {
            None => Ok(&mut self.init),
            Some(id) => self.execs.get_mut(id).ok_or_else(|| TaskError::no_exec(id.as_str())),
        }
    }

    fn with_stdio(
        &mut self,
        exec: Option<&Id>,
        act: impl FnOnce(&mut Stdio) -> Result<(), StdioError>,
    ) -> Result<(), TaskError> {
        let process = self.process(exec)?;
        process.stdio.as_mut().map_or(Ok(()), act).map_err(TaskError::from)
    }

    fn snapshot(&mut self, exec: Option<&Id>) -> Result<Snapshot, TaskError> {
        let (pausing, paused, bundle) = (self.pausing, self.paused, self.bundle.path().to_string_lossy().into_owned());
        let process = self.process(exec)?;
        let status = match process.state {
            State::Created { .. } | State::Starting { .. } => Status::Created,
            State::Stopped { .. } => Status::Stopped,
            // Its execs stand still with it.
            State::Running { .. } if paused => Status::Paused,
            State::Running { .. } if pausing => Status::Pausing,
            State::Running { .. } => Status::Running,
        };
        Ok(Snapshot { bundle, pid: process.pid(), status, names: process.names.clone(), exit: process.exit() })
    }

    fn kill(&mut self, exec: Option<&Id>, signal: u32, all: bool, reply: Reply<()>) {
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
        let direct = match &self.place {
            // The runtime knows the container's own process alone: an exec is signalled by its pid, paused or not.
            _ if exec.is_some() && target == Target::Init => true,
            // Where runc would do no more than that.
            Place::Alone => !self.paused && target == Target::Init,
            // A sandbox ends with its first container, and by this even if it is not started or stuck. Not when paused:
            // an old runsc then fails to delete what it still takes for paused.
            Place::Host(_) => exec.is_none() && signal == SIGKILL && !self.paused,
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
        if self.runtime.is_gvisor() && self.paused && signal == SIGKILL {
            // Nothing is delivered to a paused sandbox; that much of its pause ends here.
            return self.report(async move {
                let resumed = runtime.resume().await;
                let _ = reply.send(deliver(&runtime, sandbox, signal, target).await.map_err(TaskError::from));
                Report::Thawed(resumed.is_ok())
            });
        }
        tokio::spawn(async move {
            let _ = reply.send(deliver(&runtime, sandbox, signal, target).await.map_err(TaskError::from));
        });
    }

    /// A guest's cgroup is its sandbox's: what it used itself, the sandbox knows.
    fn stats(&self, reply: Reply<Any>) {
        let Some(cgroup) = self.cgroup.clone() else {
            return drop(reply.send(Err(TaskError::NotFound(format!("container {} has no cgroup", self.id)))));
        };
        if !self.place.is_guest() {
            return drop(reply.send(cgroup.metrics().map_err(TaskError::from)));
        }
        let runtime = self.runtime.clone();
        tokio::spawn(async move {
            let usage = runtime.usage().await.map_err(TaskError::from);
            let _ = reply.send(usage.and_then(|usage| Ok(cgroup.metrics_of_one(&usage)?)));
        });
    }

    fn pids(&mut self, reply: Reply<Vec<(u32, Option<Id>)>>) {
        let known: HashMap<u32, Id> = self
            .execs
            .iter()
            .filter(|(_, exec)| exec.is_alive())
            .map(|(id, exec)| (exec.inner_pid.map_or(exec.pid(), i32::unsigned_abs), id.clone()))
            .collect();
        let named = move |pids: Vec<u32>| pids.into_iter().map(|pid| (pid, known.get(&pid).cloned())).collect();
        // A container that has ended is still there until it is deleted: containerd 1.7 and later, back from a restart,
        // take a shim without any process for a leaked one and kill it, and its exit status with it.
        let init = self.init.pid();
        if self.init.exit().is_some() {
            return drop(reply.send(Ok(named(vec![init]))));
        }
        if !self.runtime.is_gvisor() {
            let pids = self.cgroup.as_ref().map_or(Ok(Vec::new()), Cgroup::procs).map_err(TaskError::from);
            return drop(reply.send(pids.map(|pids| named(pids.into_iter().map(i32::unsigned_abs).collect()))));
        }
        let runtime = self.runtime.clone();
        tokio::spawn(async move {
            let _ = reply.send(runtime.inner_pids().await.map(named).map_err(TaskError::from));
        });
    }

    // The tasks that report back.

    fn report(&self, work: impl Future<Output = Report> + Send + 'static) {
        let mailbox = self.mailbox.clone();
        tokio::spawn(async move {
            let _ = mailbox.send(Message::Report(work.await));
        });
    }

    fn later(&self, after: Duration, report: Report) {
        self.report(async move {
            tokio::time::sleep(after).await;
            report
        });
    }

    /// For the init of a guest, which is no process of ours.
    fn watch_guest(&self, sandbox: &Sandbox) {
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
    fn watch_sandbox(&self, sandbox: &Sandbox) {
        let (mailbox, ended) = (self.mailbox.clone(), sandbox.ended());
        tokio::spawn(async move {
            tokio::select! {
                () = ended => drop(mailbox.send(Message::Report(Report::SandboxEnded))),
                // Of the guests that come and go nothing may stay.
                () = mailbox.closed() => {}
            }
        });
    }

    fn watch(&self, exec: Option<Id>, claim: Claim) {
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

/// Has the runtime start the init, or restore it from `image`. An init that ends meanwhile without the runtime noticing
/// ends the start; one whose start failed is killed by its pid if it has one, for it cannot be started again and would
/// only wait.
async fn start_init(
    runtime: &Runtime,
    pid: Option<i32>,
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
    if let Some(pid) = pid
        && result.is_err()
        && !over
        && runtime.signal(pid, SIGKILL).is_ok()
    {
        let _ = tokio::time::timeout(REAP, ended).await;
    }
    result
}

/// Sends a signal by the runtime. A SIGKILL that it does not bring to its end in time ends the whole sandbox, for
/// nothing in a sandbox that does not answer can be ended otherwise.
async fn deliver(runtime: &Runtime, sandbox: Option<i32>, signal: u32, target: Target) -> Result<(), RuntimeError> {
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

/// The OOM killer's next victims in this container.
async fn oom_kills(oom: &mut Option<OomWatch>) -> u64 {
    match oom {
        Some(watch) => watch.wait().await,
        None => std::future::pending().await,
    }
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

async fn run_exec(
    runtime: &Runtime,
    bundle: &Bundle,
    name: &str,
    spec: &[u8],
    names: &StreamNames,
    origin: &Origin,
    id: &Id,
) -> Result<(Started, Stdio), TaskError> {
    let file = format!("{name}.json");
    bundle.write(&file, spec)?;
    let path = bundle.join(&file);
    let run = async {
        if names.terminal && runtime.is_gvisor() {
            // runsc takes a console socket only with --detach, which we do not use.
            let (console, terminal) = Console::pair()?;
            let started = runtime.exec(name, &path, ExecStreams::Terminal(terminal)).await?;
            Ok((started, Stdio::terminal(names, console, origin, id.as_str()).await?))
        } else if names.terminal {
            let socket = ConsoleSocket::listen(bundle.path(), &format!("{name}.sock"))?;
            let started = runtime.exec(name, &path, ExecStreams::Socket(socket.name())).await?;
            let console = socket.receive().await?;
            Ok((started, Stdio::terminal(names, console, origin, id.as_str()).await?))
        } else {
            let (stdio, streams) = Stdio::pipes(names, origin, id.as_str()).await?;
            Ok((runtime.exec(name, &path, ExecStreams::Pipes(streams)).await?, stdio))
        }
    };
    let result = run.await;
    bundle.remove(&file);
    result
}
