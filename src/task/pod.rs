//! The pod: which containers this shim has, and when it is done.
//!
//! An actor: it answers at once, whatever its containers are doing. It hands out the way to a container and never
//! stands in between afterwards.

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{OnceCell, mpsc, oneshot};

use super::container::{self, Deleted};
use super::create::{self, PodDecision};
use super::sandbox::Sandbox;
use super::{Reply, TaskError};
use crate::bundle::Id;
use crate::events::Events;
use crate::shim::reaper::Reaper;

/// How long a shim without containers waits for the next before it ends by itself: nobody may ever come
/// (containerd #6860: a caller that died between start and create).
const LONELY: Duration = Duration::from_secs(60);
/// How many deleted containers' ends are kept for those who ask again.
const REMEMBERED: usize = 64;

/// What all of a shim's parts share.
#[derive(Clone)]
pub struct Shim {
    /// containerd's namespace.
    pub namespace: String,
    /// The queue to containerd.
    pub events: Events,
    /// Who waits for processes.
    pub reaper: Reaper,
}

pub(super) enum Message {
    Create(Box<create::Request>),
    Created(Id, Box<Result<container::Container, TaskError>>, Reply<u32>),
    Find(String, oneshot::Sender<Found>),
    /// Delete this container; one that is being made, as soon as it is.
    Delete(String, Reply<Deleted>),
    Deleted(Id, Deleted),
    Shutdown(oneshot::Sender<bool>),
}

/// What the pod knows of an id.
pub(super) enum Found {
    /// The way to a living container.
    Here(container::Handle),
    /// It was here, and this was its end.
    Deleted(Deleted),
    /// Never heard of, or not yet created.
    Unknown,
}

enum Entry {
    /// With those who want it deleted already: of a caller that gave up a Create, containerd takes back what it began.
    Creating(Vec<Reply<Deleted>>),
    Created(container::Handle),
}

/// The way to the pod.
#[derive(Clone)]
pub struct Pod(mpsc::UnboundedSender<Message>);

impl Pod {
    /// Starts the pod's actor. The receiver resolves when the shim has nothing left to do.
    pub fn start(shim: Shim) -> (Self, oneshot::Receiver<()>) {
        let (mailbox, messages) = mpsc::unbounded_channel();
        let (done, ended) = oneshot::channel();
        let state = State {
            shim,
            mailbox: mailbox.clone(),
            containers: HashMap::new(),
            deleted: VecDeque::new(),
            decision: Arc::default(),
            sandbox: None,
        };
        tokio::spawn(async move {
            state.run(messages).await;
            let _ = done.send(());
        });
        (Self(mailbox), ended)
    }

    /// Sends a message to the pod; an answer is awaited by the caller. At the shim's end it is dropped.
    pub(super) fn send(&self, message: Message) {
        let _ = self.0.send(message);
    }

    pub(super) async fn find(&self, id: &str) -> Found {
        let (reply, found) = oneshot::channel();
        self.send(Message::Find(id.to_owned(), reply));
        found.await.unwrap_or(Found::Unknown)
    }
}

struct State {
    shim: Shim,
    mailbox: mpsc::UnboundedSender<Message>,
    containers: HashMap<Id, Entry>,
    deleted: VecDeque<(Id, Deleted)>,
    decision: Arc<OnceCell<PodDecision>>,
    /// The pod's gVisor sandbox, which its later containers are created in.
    sandbox: Option<Sandbox>,
}

impl State {
    async fn run(mut self, mut messages: mpsc::UnboundedReceiver<Message>) {
        loop {
            let next = if self.containers.is_empty() {
                match tokio::time::timeout(LONELY, messages.recv()).await {
                    Ok(next) => next,
                    Err(_) => {
                        log::info!("no container for {LONELY:?}; the shim ends by itself");
                        return;
                    }
                }
            } else {
                messages.recv().await
            };
            match next {
                None => return,
                Some(Message::Shutdown(reply)) => {
                    // Of a pod with containers left, the others' shutdown is not ours.
                    let ends = self.containers.is_empty();
                    let _ = reply.send(ends);
                    if ends {
                        return;
                    }
                }
                Some(message) => self.on(message),
            }
        }
    }

    fn on(&mut self, message: Message) {
        match message {
            Message::Create(request) => self.create(*request),
            Message::Created(id, made, reply) => self.created(id, *made, reply),
            Message::Find(id, reply) => drop(reply.send(self.find(&id))),
            Message::Delete(id, reply) => self.delete(&id, reply),
            Message::Deleted(id, end) => {
                self.remove(&id);
                self.deleted.push_back((id, end));
                if self.deleted.len() > REMEMBERED {
                    self.deleted.pop_front();
                }
            }
            Message::Shutdown(_) => {}
        }
    }

    fn create(&mut self, request: create::Request) {
        if self.containers.contains_key(&request.id) {
            let taken = format!("container {} already exists in this shim", request.id);
            let _ = request.reply.send(Err(TaskError::AlreadyExists(taken)));
            return;
        }
        self.containers.insert(request.id.clone(), Entry::Creating(Vec::new()));
        self.deleted.retain(|(id, _)| *id != request.id);
        let (shim, decision, mailbox) = (self.shim.clone(), self.decision.clone(), self.mailbox.clone());
        let sandbox = self.sandbox.clone();
        // A task of its own: a caller that goes away must not leave a container half made.
        tokio::spawn(async move {
            let made = create::create(&shim, &decision, sandbox.as_ref(), &request).await;
            let _ = mailbox.send(Message::Created(request.id, Box::new(made), request.reply));
        });
    }

    fn created(&mut self, id: Id, made: Result<container::Container, TaskError>, reply: Reply<u32>) {
        let unwanted = match self.containers.remove(&id) {
            Some(Entry::Creating(deletes)) => deletes,
            Some(Entry::Created(_)) | None => Vec::new(),
        };
        let answer = match made {
            Ok(container) => {
                let pid = container.pid();
                if let Some(sandbox) = container.own_sandbox() {
                    self.sandbox = Some(sandbox.clone());
                }
                let handle = container.run(self.mailbox.clone());
                for reply in unwanted {
                    handle.tell(container::Request::Delete { exec: None, reply });
                }
                self.containers.insert(id, Entry::Created(handle));
                Ok(pid)
            }
            Err(error) => {
                log::error!(container_id = id.as_str(), error = error.to_string().as_str(); "create failed");
                for reply in unwanted {
                    let _ = reply.send(Err(TaskError::no_container(id.as_str())));
                }
                self.remove(&id);
                Err(error)
            }
        };
        let _ = reply.send(answer);
    }

    fn find(&self, id: &str) -> Found {
        let entry = Id::parse(id).ok().and_then(|id| self.containers.get(&id));
        match entry {
            Some(Entry::Created(container)) => Found::Here(container.clone()),
            Some(Entry::Creating(_)) => Found::Unknown,
            None => {
                let end = self.deleted.iter().find(|(known, _)| known.as_str() == id);
                end.map_or(Found::Unknown, |(_, end)| Found::Deleted(*end))
            }
        }
    }

    fn delete(&mut self, id: &str, reply: Reply<Deleted>) {
        let entry = Id::parse(id).ok().and_then(|id| self.containers.get_mut(&id));
        if let Some(Entry::Creating(deletes)) = entry {
            return deletes.push(reply);
        }
        match self.find(id) {
            Found::Here(container) => container.tell(container::Request::Delete { exec: None, reply }),
            // The first caller went away before it had the answer (containerd #7496).
            Found::Deleted(end) => drop(reply.send(Ok(end))),
            Found::Unknown => drop(reply.send(Err(TaskError::no_container(id)))),
        }
    }

    fn remove(&mut self, id: &Id) {
        self.containers.remove(id);
        self.sandbox.take_if(|sandbox| sandbox.id() == id);
        if self.containers.is_empty() {
            // What comes next is another pod's first container.
            self.decision = Arc::default();
        }
    }
}
