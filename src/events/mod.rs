//! The ordered queue of task events to containerd.
//!
//! One queue for the whole shim: what is published first arrives first. The head is retried until containerd has
//! acknowledged it, however long containerd is away (containerd #3177, #6771: events lost or overtaken), and memory
//! grows with what happened, not with the tries. An acknowledgement that is lost makes its event arrive twice; it
//! never makes one vanish.

use std::path::PathBuf;
use std::time::{Duration, SystemTime};

use containerd_shim_protos::events::task as event;
use containerd_shim_protos::protobuf::well_known_types::any::Any;
use containerd_shim_protos::protobuf::well_known_types::timestamp::Timestamp;
use containerd_shim_protos::protobuf::{Message, MessageField};
use containerd_shim_protos::shim::event::Envelope;
use containerd_shim_protos::shim::events::ForwardRequest;
use containerd_shim_protos::topics;
use tokio::sync::{mpsc, oneshot};

use crate::rpc::{CallError, Client};

const SERVICE: &str = "containerd.services.events.ttrpc.v1.Events";
/// How long one try may take; containerd acknowledges in well under a millisecond.
const TRY: Duration = Duration::from_secs(5);
/// The pause after a failed try doubles from the first to the last of these.
const FIRST_PAUSE: Duration = Duration::from_millis(10);
const LAST_PAUSE: Duration = Duration::from_secs(1);

enum Item {
    Event(Box<Envelope>),
    Flush(oneshot::Sender<()>),
}

/// The sending end of the queue; clones publish to the same one.
#[derive(Clone)]
pub struct Events {
    queue: mpsc::UnboundedSender<Item>,
    namespace: String,
}

impl Events {
    /// Starts the queue's task. `address` is containerd's ttrpc socket (`TTRPC_ADDRESS`).
    pub fn start(address: PathBuf, namespace: &str) -> Self {
        let (queue, items) = mpsc::unbounded_channel();
        tokio::spawn(deliver(items, address));
        Self { queue, namespace: namespace.to_owned() }
    }

    /// Appends an event, stamped with the present time. Never blocks, never fails.
    pub fn publish<E: TaskEvent>(&self, event: E) {
        // As containerd's typeurl does it: the bare message name, without a host before it.
        let any =
            Any { type_url: E::TYPE.to_owned(), value: event.write_to_bytes().unwrap_or_default(), ..Any::default() };
        let envelope = Envelope {
            timestamp: MessageField::some(timestamp(SystemTime::now())),
            namespace: self.namespace.clone(),
            topic: E::TOPIC.to_owned(),
            event: MessageField::some(any),
            ..Envelope::default()
        };
        log::debug!(topic = E::TOPIC; "publishing event");
        // The queue's task ends only with the shim.
        let _ = self.queue.send(Item::Event(Box::new(envelope)));
    }

    /// Waits until everything published before has been acknowledged, `limit` at most. For the shim's own end only.
    pub async fn flush(&self, limit: Duration) {
        let (done, flushed) = oneshot::channel();
        if self.queue.send(Item::Flush(done)).is_ok() && tokio::time::timeout(limit, flushed).await.is_err() {
            log::error!("containerd did not take the last events in time; they are lost with this shim");
        }
    }
}

async fn deliver(mut items: mpsc::UnboundedReceiver<Item>, address: PathBuf) {
    let mut connection = None;
    while let Some(item) = items.recv().await {
        match item {
            Item::Flush(done) => drop(done.send(())),
            Item::Event(envelope) => {
                let topic = envelope.topic.clone();
                let request =
                    ForwardRequest { envelope: MessageField::from_option(Some(*envelope)), ..Default::default() };
                let payload = request.write_to_bytes().unwrap_or_default();
                let mut pause = FIRST_PAUSE;
                let mut tries = 0u32;
                while let Err(error) = forward(&mut connection, &address, &payload).await {
                    tries += 1;
                    if tries == 1 || tries.is_multiple_of(60) {
                        log::warn!(topic = topic.as_str(), tries, error = error.to_string().as_str(); "event not taken, trying again");
                    }
                    tokio::time::sleep(pause).await;
                    pause = (pause * 2).min(LAST_PAUSE);
                }
            }
        }
        if items.is_empty() {
            // Hundreds of idle shims need not hold hundreds of connections open in containerd.
            connection = None;
        }
    }
}

async fn forward(connection: &mut Option<Client>, address: &std::path::Path, payload: &[u8]) -> Result<(), CallError> {
    let mut client = match connection.take() {
        Some(client) => client,
        None => Client::connect(address).await?,
    };
    client.call(SERVICE, "Forward", payload.to_vec(), TRY).await?;
    *connection = Some(client);
    Ok(())
}

/// A message that is published under a topic of its own.
pub trait TaskEvent: Message {
    /// The topic, as containerd's subscribers filter by it.
    const TOPIC: &'static str;
    /// The message's full name. A constant, since asking the message for it would load protobuf's reflection tables
    /// into every shim.
    const TYPE: &'static str;
}

macro_rules! topics {
    ($($message:ident => $topic:ident),* $(,)?) => {
        $(impl TaskEvent for event::$message {
            const TOPIC: &'static str = topics::$topic;
            const TYPE: &'static str = concat!("containerd.events.", stringify!($message));
        })*
    };
}

topics! {
    TaskCreate => TASK_CREATE_EVENT_TOPIC,
    TaskStart => TASK_START_EVENT_TOPIC,
    TaskOOM => TASK_OOM_EVENT_TOPIC,
    TaskExit => TASK_EXIT_EVENT_TOPIC,
    TaskDelete => TASK_DELETE_EVENT_TOPIC,
    TaskExecAdded => TASK_EXEC_ADDED_EVENT_TOPIC,
    TaskExecStarted => TASK_EXEC_STARTED_EVENT_TOPIC,
    TaskPaused => TASK_PAUSED_EVENT_TOPIC,
    TaskResumed => TASK_RESUMED_EVENT_TOPIC,
    TaskCheckpointed => TASK_CHECKPOINTED_EVENT_TOPIC,
}

/// The protobuf form of a point in time. Times before 1970 (a broken clock) become 1970.
pub fn timestamp(at: SystemTime) -> Timestamp {
    let since = at.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    Timestamp { seconds: since.as_secs() as i64, nanos: since.subsec_nanos() as i32, ..Timestamp::default() }
}
