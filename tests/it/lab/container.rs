//! One container of a trial, from the client's side: everything a test does to it by ctr. When it goes out of scope the container
//! is gone, whatever state the trial left it in.

use std::{fs, path::Path, sync::Arc, thread, time::Duration};

use serde_json::Value;

use super::{
    command::{Output, Running},
    daemon::Daemon,
    events::Event,
    eventually,
    image::IMAGE,
    process::Process,
    pty,
};
use crate::case::RuntimeCase;

/// A container's name and the daemon that it is (or will be) with.
pub struct Container {
    daemon: Arc<Daemon>,
    id: String,
}

impl Container {
    /// Nothing is created yet.
    pub fn new(daemon: Arc<Daemon>, id: String) -> Self {
        Self { daemon, id }
    }

    pub fn id(&self) -> &str {
        &self.id
    }

    /// Runs it to its end in the foreground, and removes it.
    pub fn run(&self, case: &RuntimeCase, options: &[&str], command: &[&str]) -> Output {
        self.run_with(case, options, command, b"")
    }

    /// As `run`, with something to read on standard input.
    pub fn run_with(&self, case: &RuntimeCase, options: &[&str], command: &[&str], input: &[u8]) -> Output {
        self.daemon.ctr_with(&self.run_line(case, &[&["--rm"], options].concat(), command), input)
    }

    /// Runs it in the foreground of a client that goes on beside the test.
    pub fn start(&self, case: &RuntimeCase, options: &[&str], command: &[&str]) -> Running {
        self.daemon.ctr_start(&self.run_line(case, &[&["--rm"], options].concat(), command), b"")
    }

    /// Runs it in the foreground on a terminal, which `prepare` (a shell command) may set up.
    pub fn run_on_terminal(&self, case: &RuntimeCase, prepare: &str, command: &[&str]) -> Output {
        pty::run(&self.daemon.ctr_command(&self.run_line(case, &["--rm", "--tty"], command)), prepare)
    }

    /// Starts it in the background, its output discarded; it has started when this returns.
    pub fn detach(&self, case: &RuntimeCase, options: &[&str], command: &[&str]) {
        self.daemon.ctr(&self.run_line(case, &[&["--detach", "--null-io"], options].concat(), command)).success();
    }

    /// Starts it in the background with a complete OCI spec instead of the image's.
    pub fn detach_spec(&self, case: &RuntimeCase, spec: &Value, file: &Path) {
        self.try_spec(case, spec, file).success();
    }

    /// As `detach_spec`, where it may fail.
    pub fn try_spec(&self, case: &RuntimeCase, spec: &Value, file: &Path) -> Output {
        fs::write(file, spec.to_string()).unwrap();
        let mut line = vec!["run", "--detach", "--null-io", "--config", file.to_str().unwrap()];
        line.extend(case.flags());
        line.push(&self.id);
        self.daemon.ctr(&line)
    }

    /// Runs it to its end in the foreground with a complete OCI spec instead of the image's, and removes it.
    pub fn run_spec(&self, case: &RuntimeCase, spec: &Value, file: &Path) -> Output {
        fs::write(file, spec.to_string()).unwrap();
        let mut line = vec!["run", "--rm", "--config", file.to_str().unwrap()];
        line.extend(case.flags());
        line.push(&self.id);
        self.daemon.ctr(&line)
    }

    /// As `run_spec`, on a terminal, which `prepare` (a shell command) may set up.
    pub fn run_spec_on_terminal(&self, case: &RuntimeCase, spec: &Value, file: &Path, prepare: &str) -> Output {
        fs::write(file, spec.to_string()).unwrap();
        let mut line = vec!["run", "--rm", "--tty", "--config", file.to_str().unwrap()];
        line.extend(case.flags());
        line.push(&self.id);
        pty::run(&self.daemon.ctr_command(&line), prepare)
    }

    /// Runs another process in it.
    pub fn exec(&self, exec: &str, options: &[&str], command: &[&str]) -> Output {
        self.exec_with(exec, options, command, b"")
    }

    /// As `exec`, with something to read on standard input.
    pub fn exec_with(&self, exec: &str, options: &[&str], command: &[&str], input: &[u8]) -> Output {
        self.daemon.ctr_with(&self.exec_line(exec, options, command), input)
    }

    /// Starts another process in it, which goes on beside the test.
    pub fn exec_start(&self, exec: &str, options: &[&str], command: &[&str]) -> Running {
        self.daemon.ctr_start(&self.exec_line(exec, options, command), b"")
    }

    /// Runs another process in it on a terminal.
    pub fn exec_on_terminal(&self, exec: &str, prepare: &str, command: &[&str]) -> Output {
        pty::run(&self.daemon.ctr_command(&self.exec_line(exec, &["--tty"], command)), prepare)
    }

    /// `ctr tasks VERB OPTIONS… ID`.
    pub fn task(&self, verb: &str, options: &[&str]) -> Output {
        self.daemon.ctr(&[&["tasks", verb], options, &[&self.id]].concat())
    }

    /// Sends a signal to its first process.
    pub fn kill(&self, signal: &str) -> Output {
        self.task("kill", &["--signal", signal])
    }

    /// RUNNING, STOPPED, PAUSED, …; `None` without a task.
    pub fn state(&self) -> Option<String> {
        let list = self.daemon.ctr(&["tasks", "list"]).success().text();
        let row = list.lines().find(|line| line.split_whitespace().next() == Some(&self.id))?;
        row.split_whitespace().nth(2).map(String::from)
    }

    /// Waits until its state is this.
    pub fn until(&self, state: &str) {
        eventually(&format!("{} {state}", self.id), || (self.state().as_deref() == Some(state)).then_some(()));
    }

    /// The pid that containerd knows for it.
    pub fn pid(&self) -> i32 {
        let list = self.daemon.ctr(&["tasks", "list"]).success().text();
        let row = list
            .lines()
            .find(|line| line.split_whitespace().next() == Some(&self.id))
            .unwrap_or_else(|| panic!("no task {}: {list}", self.id));
        row.split_whitespace().nth(1).unwrap().parse().unwrap()
    }

    /// The server of its shim.
    pub fn shim(&self) -> Process {
        self.daemon.shim(&self.id).unwrap_or_else(|| panic!("{} has no shim", self.id))
    }

    /// Its events so far.
    pub fn events(&self) -> Vec<Event> {
        self.daemon.events().of(&self.id)
    }

    /// The topics of its events so far, without `/tasks/`.
    pub fn topics(&self) -> Vec<String> {
        self.daemon.events().topics(&self.id)
    }

    /// Waits for its exit event and returns the status in it.
    pub fn exit_status(&self) -> u64 {
        self.daemon.events().exit_status(&self.id)
    }

    /// Waits for an event of this topic that fits.
    pub fn wait_for(&self, topic: &str, fits: impl Fn(&Event) -> bool) -> Event {
        self.daemon.events().wait_for(&self.id, topic, fits)
    }

    /// Deletes the stopped task and the container, both of which must succeed.
    pub fn remove(&self) {
        self.until("STOPPED");
        self.task("delete", &[]);
        assert_eq!(self.state(), None, "the task of {} is still there", self.id);
        self.daemon.ctr(&["containers", "delete", &self.id]).success();
    }

    /// The arguments of ctr that run a command in it.
    pub fn run_line<'a>(&'a self, case: &'a RuntimeCase, options: &[&'a str], command: &[&'a str]) -> Vec<&'a str> {
        let mut line = vec!["run"];
        line.extend(case.flags());
        line.extend(options);
        line.extend([IMAGE, &self.id]);
        line.extend(command);
        line
    }

    fn exec_line<'a>(&'a self, exec: &'a str, options: &[&'a str], command: &[&'a str]) -> Vec<&'a str> {
        [&["tasks", "exec", "--exec-id", exec], options, &[&self.id], command].concat()
    }

    fn exists(&self) -> bool {
        let list = self.daemon.ctr_attempt(&["containers", "list", "--quiet"]);
        list.is_some_and(|list| list.lines().any(|line| line == self.id))
    }
}

impl Drop for Container {
    fn drop(&mut self) {
        if !self.exists() {
            return;
        }
        // A paused task refuses its end; a client in the foreground may be removing it at the same time.
        for _ in 0..3 {
            self.daemon.ctr_attempt(&["tasks", "resume", &self.id]);
            self.daemon.ctr_attempt(&["tasks", "delete", "--force", &self.id]);
            self.daemon.ctr_attempt(&["containers", "delete", &self.id]);
            if !self.exists() {
                return;
            }
            thread::sleep(Duration::from_millis(100));
        }
        eprintln!("could not remove {}", self.id);
    }
}
