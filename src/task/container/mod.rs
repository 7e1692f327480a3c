//! The actor that owns one container: its init, its execs, and the order of everything that is said about them.
//!
//! Requests and reports (a runtime command has finished, a process has ended, the OOM killer came) arrive in one
//! mailbox and are handled one after the other, each at once: what may take time runs in a task that reports back.
//! So the order of events holds by construction (invariant 1), and nothing a runtime does delays an answer that is
//! known already (invariant 3).
//!
//! Here are the actor, what it can be asked and what is reported to it; `lifecycle` has the commands, of which one runs
//! at a time, `execs` its further processes, `kill` the signals, `answers` the questions, and `ends` how it all ends.

mod answers;
mod ends;
mod execs;
mod kill;
mod lifecycle;

use std::collections::{HashMap, VecDeque};
use std::time::Duration;

use containerd_shim_protos::protobuf::well_known_types::any::Any;
use nix::sys::signal::Signal;
use tokio::sync::{mpsc, oneshot};

use super::checkpoint::{Restore, Restored};
use super::pod::{self, Shim};
use super::process::{Process, State, killed};
use super::sandbox::{Place, Sandbox};
use super::standstill::Standstill;
use super::{Reply, TaskError};
use crate::bundle::{Bundle, Id};
use crate::cgroup::{Cgroup, OomWatch};
use crate::events::Events;
use crate::runtime::checkpoint::Checkpoint;
use crate::runtime::{ProcessStreams, Runtime, RuntimeError, Started};
use crate::shim::reaper::{Claim, Exit};
use crate::stdio::{Origin, Stdio, StreamNames};
use ends::oom_kills;

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
    /// The container moves again, without having been asked to.
    Thawed,
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
    ExecDrained(Id, Deleted),
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
    standstill: Standstill,
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
        let standstill = place.sandbox().map(|sandbox| sandbox.standstill().clone()).unwrap_or_default();
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
            standstill,
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
                self.paused(pause, result.is_ok());
                let _ = reply.send(result.map_err(TaskError::from));
                self.next();
            }
            Report::Checkpointed(image, result, reply) => {
                self.checkpointed(image, result, reply);
                self.next();
            }
            Report::Thawed => self.resumed(),
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
            Report::ExecDrained(exec, end) => {
                let deletes = self.execs.remove(&exec).map_or_else(Vec::new, |exec| exec.deletes);
                for reply in deletes {
                    let _ = reply.send(Ok(end));
                }
            }
        }
        // The runtime has deleted it and its end is announced: whichever came last.
        let exit = self.init.exit()?;
        let reply = self.removed.take()?;
        Some((self.finish(exit), reply))
    }

    /// Starts a task that reports back.
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
}
