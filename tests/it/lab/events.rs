//! What a daemon published, as `ctr events` prints it: collected from the daemon's start on, over restarts, in the order of arrival.

use std::{
    io::{BufRead, BufReader},
    os::unix::process::CommandExt,
    process::{Child, Stdio},
    sync::{
        Arc, Mutex,
        atomic::{AtomicUsize, Ordering},
    },
    thread,
};

use serde_json::Value;

use super::{daemon::Daemon, eventually, lock};

/// One event.
#[derive(Clone, Debug)]
pub struct Event {
    /// `/tasks/exit` and the like.
    pub topic: String,
    pub body: Value,
}

impl Event {
    /// A field that is text; empty if it is absent, as protobuf's defaults are.
    pub fn text(&self, field: &str) -> &str {
        self.body[field].as_str().unwrap_or_default()
    }

    /// A field that is a number; 0 if it is absent.
    pub fn number(&self, field: &str) -> u64 {
        self.body[field].as_u64().unwrap_or_default()
    }

    fn parse(line: &str) -> Option<Self> {
        // 2024-01-31 12:00:00.123 +0000 UTC namespace /tasks/start {…}
        let topic = line.find(" /")? + 1;
        let body = topic + line[topic..].find(' ')?;
        Some(Self { topic: line[topic..body].into(), body: serde_json::from_str(line[body..].trim()).ok()? })
    }
}

/// A daemon's events so far, and the client that listens.
#[derive(Default)]
pub struct Events {
    seen: Arc<Mutex<Vec<Event>>>,
    client: Mutex<Option<Child>>,
    pokes: AtomicUsize,
}

impl Events {
    /// Begins to listen to a daemon that has just started.
    pub fn listen(&self, daemon: &Daemon) {
        let mut command = daemon.ctr_command(&["events"]);
        let mut client =
            command.process_group(0).stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::null()).spawn().unwrap();
        let lines = BufReader::new(client.stdout.take().unwrap()).lines();
        let seen = Arc::clone(&self.seen);
        thread::spawn(move || {
            for event in lines.map_while(Result::ok).filter_map(|line| Event::parse(&line)) {
                lock(&seen).push(event);
            }
        });
        *lock(&self.client) = Some(client);
    }

    /// Returns when nothing can be missed any more.
    pub fn settle(&self, daemon: &Daemon) {
        // The client does not say when its subscription stands: cause events until one arrives.
        let before = lock(&self.seen).len();
        eventually("an event of containerd", || {
            let poke = format!("poke={}", self.pokes.fetch_add(1, Ordering::Relaxed));
            daemon.ctr(&["namespaces", "label", daemon.namespace(), &poke]).success();
            lock(&self.seen)[before..].iter().any(|event| event.topic == "/namespaces/update").then_some(())
        });
    }

    /// Ends the client; what was seen stays.
    pub fn stop(&self) {
        if let Some(mut client) = lock(&self.client).take() {
            let _ = client.kill();
            let _ = client.wait();
        }
    }

    /// A container's task events, in the order of their arrival.
    pub fn of(&self, id: &str) -> Vec<Event> {
        let concerns = |event: &&Event| event.topic.starts_with("/tasks/") && event.text("container_id") == id;
        lock(&self.seen).iter().filter(concerns).cloned().collect()
    }

    /// The topics of a container's task events, without `/tasks/`.
    pub fn topics(&self, id: &str) -> Vec<String> {
        self.of(id).iter().map(|event| event.topic["/tasks/".len()..].into()).collect()
    }

    /// The places of these containers' own exits among all events so far.
    pub fn exits(&self, ids: &[&str]) -> Vec<usize> {
        let seen = lock(&self.seen);
        let place = |id: &&str| {
            let of = |event: &Event| event.topic == "/tasks/exit" && event.text("id") == *id;
            seen.iter().position(of).unwrap_or_else(|| panic!("no exit of {id}"))
        };
        ids.iter().map(place).collect()
    }

    /// Waits for a container's event of this topic (`exit`, `oom`, …) that fits, and returns it.
    pub fn wait_for(&self, id: &str, topic: &str, fits: impl Fn(&Event) -> bool) -> Event {
        let topic = format!("/tasks/{topic}");
        eventually(&format!("{topic} of {id}"), || {
            self.of(id).into_iter().find(|event| event.topic == topic && fits(event))
        })
    }

    /// Waits for the exit of a container's own process and returns its status.
    pub fn exit_status(&self, id: &str) -> u64 {
        self.wait_for(id, "exit", |exit| exit.text("id") == id).number("exit_status")
    }
}
