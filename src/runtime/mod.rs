//! runc's and runsc's command lines: one method for each thing that a container can be asked.
//!
//! A [`Runtime`] belongs to one container and is built from its decision record alone, so that `delete`, in another
//! process after a crash, says exactly what the shim would have said. It keeps no state of the container and publishes
//! nothing; every call runs one short-lived program under a deadline (see `command`).

pub mod checkpoint;
pub mod command;
pub mod error;
pub mod kvm;
pub mod probe;

use std::fs;
use std::io;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::time::Duration;

use nix::errno::Errno;
use nix::sys::inotify::AddWatchFlags;

use crate::bundle::record::Record;
use crate::bundle::{Bundle, Id};
use crate::cgroup::{self, Usage};
use crate::fd::PathWatch;
use crate::runtime::command::{Command, CommandError, Output, Streams};
pub use crate::runtime::error::RuntimeError;
use crate::select::{Decision, Runtime as Selected};
use crate::shim::reaper::{Claim, Exit, Reaper};

/// The file in the bundle that holds the init process's pid: also read by `delete` and by people.
pub const INIT_PID: &str = "init.pid";
/// The runtime's own log, in the bundle.
const LOG: &str = "log.json";
/// What gVisor's kernel tells a container's user, in the bundle.
const USER_LOG: &str = "user.log";

/// The first release that was seen not to; it says only once of each system call that it does not have it.
const FIRST_WITH_BOUNDED_USER_LOG: u32 = 20_240_729;
/// The length of the ids that Docker, CRI and nerdctl make.
const LONG_ID: usize = 64;
/// How often, and how long after each other, it is tried to remove a cgroup whose last processes are ending.
const LAST_PROCESSES_MS: [u64; 6] = [0, 10, 40, 150, 300, 500];

const CONSOLE: &str = "--console-socket";

/// Making or starting a container or exec: hooks run in it, and a node may be under load.
const LONG: Duration = Duration::from_secs(120);
/// Everything else is a question or a signal.
const SHORT: Duration = Duration::from_secs(10);
/// The deadline of what ends when a container does: none (tokio's own bound is 30 years as well).
const FOREVER: Duration = Duration::from_secs(30 * 365 * 86_400);
/// The deadline of a signal: what does not heed it in this time is ended otherwise, within the same ten seconds of CRI's.
const KILL: Duration = Duration::from_secs(5);
/// Who asks for statistics waits two seconds.
const STATS: Duration = Duration::from_secs(3);
/// The deadline of a delete: containerd's CRI gives its whole exit handling ten seconds.
const DELETE: Duration = Duration::from_secs(6);

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Runc,
    Runsc,
}

impl Kind {
    /// What it knows a container by.
    fn name(self, id: &Id) -> String {
        match self {
            Self::Runc => id.to_string(),
            Self::Runsc => runsc_name(id),
        }
    }
}

/// The runtime of one container.
#[derive(Clone)]
pub struct Runtime {
    kind: Kind,
    program: String,
    base: Vec<String>,
    root: PathBuf,
    record: Record,
    bundle: Bundle,
    /// What the runtime knows the container by.
    name: String,
    reaper: Reaper,
}

/// A process that a runtime started.
pub struct Started {
    /// Its pid: for gVisor's root container the sandbox's, for its execs the waiting runsc's.
    pub pid: i32,
    /// Its pid inside the sandbox, for a gVisor exec.
    pub inner_pid: Option<i32>,
    /// Its exit, if it is that of a process of ours; else it is to be asked for (see [`Runtime::wait`]).
    pub exit: Option<Claim>,
}

/// The three streams that a process is given; absent ones are /dev/null.
#[derive(Debug, Default)]
pub struct ProcessStreams {
    /// Its standard input.
    pub stdin: Option<OwnedFd>,
    /// Its standard output.
    pub stdout: Option<OwnedFd>,
    /// Its standard error.
    pub stderr: Option<OwnedFd>,
}

impl From<ProcessStreams> for Streams {
    fn from(ProcessStreams { stdin, stdout, stderr }: ProcessStreams) -> Self {
        Self::Given { stdin, stdout, stderr }
    }
}

/// What runsc knows a container by. It takes the first container whose id begins with a given text, and nothing if there
/// are several, the one of exactly this id included. So no name may be the beginning of another one: engines' long ids are
/// all of one length and stay as they are, others get a last character that ids cannot have.
pub fn runsc_name(id: &Id) -> String {
    let mut name = id.to_string();
    if name.len() < LONG_ID {
        name.push('+');
    }
    name
}

/// What an exec'd process is given.
pub enum ExecStreams<'a> {
    /// Three streams.
    Pipes(ProcessStreams),
    /// A terminal that the runtime makes and sends to this socket, named relative to the bundle.
    Socket(&'a Path),
    /// This terminal.
    Terminal(OwnedFd),
}

/// Whom a signal is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Target {
    /// The container's init process.
    Init,
    /// Every process of the container.
    All,
    /// The process with this pid inside the sandbox (gVisor only).
    Inner(i32),
}

impl Runtime {
    /// The runtime that `record` chose for container `id`.
    pub fn new(record: Record, bundle: Bundle, id: Id, reaper: Reaper) -> Self {
        let mut base = record.base_args();
        let kind = match record.decision.runtime {
            Selected::Runc { .. } => Kind::Runc,
            Selected::Gvisor(_) => Kind::Runsc,
        };
        let name = kind.name(&id);
        base.extend(["--log".to_owned(), path(&bundle.join(LOG)), "--log-format".to_owned(), "json".to_owned()]);
        if kind == Kind::Runsc {
            base.extend(["--panic-log".to_owned(), path(&bundle.join(error::PANIC_LOG))]);
        }
        Self {
            kind,
            program: record.decision.runtime.binary().to_owned(),
            base,
            root: record.root(),
            record,
            bundle,
            name,
            reaper,
        }
    }

    /// What was decided for the container's pod.
    pub fn decision(&self) -> &Decision {
        &self.record.decision
    }

    /// Whether the container runs in gVisor.
    pub fn is_gvisor(&self) -> bool {
        self.kind == Kind::Runsc
    }

    /// Whether the container runs in another one's sandbox.
    pub fn is_in_sandbox(&self) -> bool {
        self.is_gvisor() && self.record.in_sandbox
    }

    /// Creates the container from its bundle, with these streams or, with a terminal, a console socket.
    ///
    /// # Errors
    /// Nothing is left behind by the runtime, as far as `delete --force` can see to it.
    pub async fn create(&self, streams: ProcessStreams, console: Option<&Path>) -> Result<Started, RuntimeError> {
        if self.kind == Kind::Runsc {
            self.refuse_duplicate().await?;
        }
        // runc refuses it itself; what must not be deleted then is another's.
        let is_taken = self.is_taken();
        let mut args = words(&["create", "--bundle"]);
        args.extend([path(self.bundle.path()), "--pid-file".into(), path(&self.bundle.join(INIT_PID))]);
        self.console(&mut args, console);
        match self.kind {
            Kind::Runc => {
                args.extend(self.record.no_pivot_root.then(|| "--no-pivot".into()));
                args.extend(self.record.no_new_keyring.then(|| "--no-new-keyring".into()));
            }
            Kind::Runsc if self.keeps_user_log() => {
                args.extend(["--user-log".into(), path(&self.bundle.join(USER_LOG))]);
            }
            Kind::Runsc => {}
        }
        args.push(self.name.clone());
        let _kept = self.reaper.expect();
        let created = self.run(args, streams.into(), LONG).await;
        let pid = created.and_then(|_| {
            let missing = || RuntimeError::Failed(format!("{} create wrote no pid file", self.program));
            self.bundle.pid(INIT_PID).ok_or_else(missing)
        });
        match pid {
            // Its pid is the sandbox's, whose exit belongs to the sandbox's own container.
            Ok(pid) if self.is_in_sandbox() => Ok(Started { pid, inner_pid: None, exit: None }),
            Ok(pid) => Ok(Started { pid, inner_pid: None, exit: Some(self.reaper.claim(pid)) }),
            // One that did not run has left nothing.
            Err(error @ RuntimeError::Command(CommandError::Spawn { .. })) => Err(error),
            Err(error) => {
                if !is_taken && let Err(left) = self.delete(true).await {
                    log::warn!(error = left.to_string().as_str(); "a failed create may have left something behind");
                }
                Err(error)
            }
        }
    }

    /// Starts the created container. The streams are for a container in another one's sandbox, which gets them here.
    pub async fn start(&self, streams: Option<ProcessStreams>) -> Result<(), RuntimeError> {
        let streams = streams.map_or(Streams::Captured, Into::into);
        self.run(vec!["start".into(), self.name.clone()], streams, LONG).await.map(drop)
    }

    /// Sends a signal, by number.
    pub async fn kill(&self, signal: u32, target: Target) -> Result<(), RuntimeError> {
        let mut args = words(&["kill"]);
        match target {
            Target::Init => {}
            Target::All => args.push("--all".into()),
            Target::Inner(pid) => args.extend(["--pid".into(), pid.to_string()]),
        }
        args.extend([self.name.clone(), signal.to_string()]);
        self.run(args, Streams::Captured, KILL).await.map(drop)
    }

    /// Removes the container; one that does not exist is removed. `force` kills it first.
    pub async fn delete(&self, force: bool) -> Result<(), RuntimeError> {
        // runsc takes the first container whose id begins with the given text.
        let sandbox = self.sandbox_in_state();
        if self.kind == Kind::Runc || sandbox.is_some() {
            let mut args = words(&["delete"]);
            args.extend(force.then(|| "--force".into()));
            args.push(self.name.clone());
            match self.run(args, Streams::Captured, DELETE).await {
                Ok(_) | Err(RuntimeError::NotFound(_)) => {}
                // runsc does every step that it can; without a state the container is gone, whatever else was missing.
                Err(RuntimeError::Failed(error)) if self.kind != Kind::Runc && !self.has_state() => {
                    log::warn!(error = error.as_str(); "runsc deleted a container and complained");
                }
                Err(error) => return Err(error),
            }
        }
        if let Some(sandbox) = sandbox {
            self.remove_locks(&sandbox);
        }
        self.remove_cgroup().await;
        Ok(())
    }

    /// Removes the locks of the sandbox's containers that are gone. Each runsc command that looks at all of a sandbox's
    /// containers makes their locks anew, also those that another command has removed since it looked.
    fn remove_locks(&self, sandbox: &str) {
        let suffix = format!("_sandbox:{sandbox}.lock");
        for entry in fs::read_dir(&self.root).into_iter().flatten().flatten() {
            let lock = entry.path();
            if entry.file_name().to_str().is_some_and(|name| name.ends_with(&suffix))
                && !lock.with_extension("state").exists()
            {
                let _ = fs::remove_file(lock);
            }
        }
    }

    /// Removes a state of the same id whose sandbox is dead: of a container that nobody was left to delete. Whether it did.
    async fn remove_stale(&self) -> bool {
        #[derive(serde::Deserialize)]
        struct State {
            status: String,
        }
        let output = self.ask(words(&["state", &self.name])).await;
        let state = output.ok().and_then(|output| serde_json::from_slice::<State>(&output.stdout).ok());
        let stale = state.is_some_and(|state| state.status == "stopped");
        if stale {
            log::warn!(name = self.name.as_str(); "removing what a dead container of this id left in runsc's root");
        }
        stale && self.delete(true).await.is_ok()
    }

    /// Ends the sandbox that was made for the container, and removes what is left in it. For the shim's successor, which
    /// has no process of its own to wait for: `pid` is what the dead shim wrote down, and may be another's by now.
    pub async fn end_sandbox(&self, pid: Option<i32>) -> Result<(), RuntimeError> {
        if let Some(pid) = pid.filter(|pid| self.is_sandbox(*pid)) {
            // At once: a stuck one answers no question.
            let _ = nix::sys::signal::kill(nix::unistd::Pid::from_raw(pid), nix::sys::signal::Signal::SIGKILL);
        }
        let mut ended = self.delete(true).await;
        let suffix = format!("_sandbox:{}.state", self.name);
        let files = fs::read_dir(&self.root).into_iter().flatten().flatten();
        let names = files.filter_map(|file| Some(file.file_name().to_str()?.strip_suffix(&suffix)?.to_owned()));
        for name in names.collect::<Vec<_>>() {
            let guest = Self { name, record: Record { cgroup: None, ..self.record.clone() }, ..self.clone() };
            // One that cannot be deleted keeps no other from it.
            ended = ended.and(guest.delete(true).await);
        }
        ended
    }

    /// Whether this process is the container's own sandbox: by its arguments, of which runsc puts the name last.
    fn is_sandbox(&self, pid: i32) -> bool {
        let arguments = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
        let mut arguments = arguments.split(|byte| *byte == 0).filter(|argument| !argument.is_empty());
        arguments.next() == Some(b"runsc-sandbox") && arguments.next_back() == Some(self.name.as_bytes())
    }

    /// Removes the cgroup that runsc left: after a failed create, or because a process in it was still ending. That of a
    /// guest never has a process in it, and would keep runsc from removing the one around it with the sandbox.
    pub async fn remove_cgroup(&self) {
        let Some(cgroup) = &self.record.cgroup else { return };
        let mut left = Ok(());
        for pause in LAST_PROCESSES_MS {
            tokio::time::sleep(Duration::from_millis(pause)).await;
            left = cgroup.remove();
            if !matches!(left, Err(cgroup::Error::Busy(_))) {
                break;
            }
        }
        if let Err(error) = left {
            log::warn!(error = error.to_string().as_str(); "runsc left a cgroup behind");
        }
    }

    /// Sends a signal straight to a process that this container's runtime left to us.
    ///
    /// # Errors
    /// [`RuntimeError::NotRunning`] if it has ended.
    pub fn signal(&self, pid: i32, signal: u32) -> Result<(), RuntimeError> {
        self.reaper.signal(pid, signal.cast_signed()).map_err(|error| match error {
            Errno::ESRCH => RuntimeError::NotRunning("process already finished".into()),
            error => RuntimeError::Failed(format!("cannot send signal {signal}: {error}")),
        })
    }

    /// Runs another process in the container, described by the file `process`. `name` distinguishes this exec's files
    /// in the bundle; it must not come from the tenant.
    pub async fn exec(&self, name: &str, process: &Path, streams: ExecStreams<'_>) -> Result<Started, RuntimeError> {
        let pid_file = format!("{name}.pid");
        let mut args = words(&["exec", "--process"]);
        args.extend([path(process), "--pid-file".into(), path(&self.bundle.join(&pid_file))]);
        let streams = match streams {
            ExecStreams::Pipes(streams) => streams.into(),
            ExecStreams::Terminal(terminal) => Streams::Terminal(terminal),
            ExecStreams::Socket(socket) => {
                self.console(&mut args, Some(socket));
                ProcessStreams::default().into()
            }
        };
        let started = match self.kind {
            Kind::Runc => self.exec_runc(args, &pid_file, streams).await,
            Kind::Runsc => self.exec_runsc(args, name, &pid_file, streams).await,
        };
        self.bundle.remove(&pid_file);
        started
    }

    /// runc leaves the process to us, its subreaper, and ends.
    async fn exec_runc(
        &self,
        mut args: Vec<String>,
        pid_file: &str,
        streams: Streams,
    ) -> Result<Started, RuntimeError> {
        args.extend(["--detach".into(), self.name.clone()]);
        let _kept = self.reaper.expect();
        self.run(args, streams, LONG).await?;
        let pid =
            self.bundle.pid(pid_file).ok_or_else(|| RuntimeError::Failed("runc exec wrote no pid file".into()))?;
        Ok(Started { pid, inner_pid: None, exit: Some(self.reaper.claim(pid)) })
    }

    /// runsc stays, as the process's stand-in, and ends with its exit code. Not with `--detach`, which only forks such
    /// a stand-in, and drops every argument with "detach" in it, an id or a path included.
    async fn exec_runsc(
        &self,
        mut args: Vec<String>,
        name: &str,
        pid_file: &str,
        streams: Streams,
    ) -> Result<Started, RuntimeError> {
        let inner_pid_file = format!("{name}.inner-pid");
        args.extend(["--internal-pid-file".into(), path(&self.bundle.join(&inner_pid_file)), self.name.clone()]);
        let written = AddWatchFlags::IN_CLOSE_WRITE | AddWatchFlags::IN_MOVED_TO;
        let mut pid_files = PathWatch::on(self.bundle.path(), written).map_err(|error| self.cannot_spawn(error))?;
        let log = self.bundle.join(LOG);
        let mark = error::mark(&log);
        let mut running = self.command(args, streams, LONG).spawn(&self.reaper)?;
        let deadline = tokio::time::sleep(LONG);
        tokio::pin!(deadline);
        let result = loop {
            tokio::select! {
                biased;
                exit = &mut running.exit => {
                    running.release();
                    let exit = exit.map_err(|_| RuntimeError::Failed("the shim is ending".into()))?;
                    // It may have started, run and ended before we looked.
                    break match self.bundle.pid(pid_file) {
                        Some(pid) => Ok((pid, resolved(exit))),
                        None => {
                            let output = Output { exit, stdout: Vec::new(), stderr: Vec::new() };
                            Err(RuntimeError::of(&self.program, "exec", &output, &log, mark))
                        }
                    };
                }
                () = pid_files.changed() => {
                    if let Some(pid) = self.bundle.pid(pid_file) {
                        break Ok((pid, running.release()));
                    }
                }
                () = &mut deadline => {
                    running.kill();
                    break Err(CommandError::Deadline { command: format!("{} exec", self.program), deadline: LONG }.into());
                }
            }
        };
        let inner_pid = self.bundle.pid(&inner_pid_file);
        self.bundle.remove(&inner_pid_file);
        result.map(|(pid, exit)| Started { pid, inner_pid, exit: Some(exit) })
    }

    /// Waits for the end of a started container in another one's sandbox, however long that takes.
    ///
    /// # Errors
    /// runsc cannot be run, or does not know: the sandbox may have ended. On cancel runsc is killed; the container is not.
    pub async fn wait(&self) -> Result<Exit, RuntimeError> {
        #[derive(serde::Deserialize)]
        struct Waited {
            #[serde(rename = "exitStatus")]
            exit_status: u32,
        }
        let output = self.run(vec!["wait".into(), self.name.clone()], Streams::Captured, FOREVER).await?;
        let waited: Waited = serde_json::from_slice(&output.stdout)
            .map_err(|error| RuntimeError::Failed(format!("{} wait printed no exit status: {error}", self.program)))?;
        Ok(Exit { code: waited.exit_status, ..output.exit })
    }

    /// Whether what gVisor tells its user may be kept. Older releases write a line for each process that a signal ends, as
    /// many as a tenant likes, so they do it only where an operator wants everything logged.
    fn keeps_user_log(&self) -> bool {
        match &self.record.decision.runtime {
            Selected::Gvisor(gvisor) => {
                gvisor.debug || gvisor.release.is_some_and(|release| release >= FIRST_WITH_BOUNDED_USER_LOG)
            }
            Selected::Runc { .. } => false,
        }
    }

    /// Why the container's sandbox broke, if it did.
    pub fn panic(&self) -> Option<String> {
        error::panic_in(&self.bundle.join(error::PANIC_LOG))
    }

    /// Whether this process, which the container's runtime left to us, is still there.
    pub fn is_claimed(&self, pid: i32) -> bool {
        self.reaper.is_claimed(pid)
    }

    /// Freezes the container; in gVisor the whole sandbox.
    pub async fn pause(&self) -> Result<(), RuntimeError> {
        self.ask(vec!["pause".into(), self.name.clone()]).await.map(drop)
    }

    /// Thaws what a pause of the container `paused` froze: this one, or in gVisor any in its sandbox. runsc knows a pause
    /// by the container alone that it was asked for.
    pub async fn resume(&self, paused: &Id) -> Result<(), RuntimeError> {
        self.ask(vec!["resume".into(), self.kind.name(paused)]).await.map(drop)
    }

    /// Applies new resource limits: the JSON of the OCI specification's LinuxResources.
    pub async fn update(&self, resources: &[u8]) -> Result<(), RuntimeError> {
        const FILE: &str = "resources.json";
        let written = self.bundle.write(FILE, resources);
        written.map_err(|error| RuntimeError::Failed(error.to_string()))?;
        let args = vec!["update".into(), "--resources".into(), path(&self.bundle.join(FILE)), self.name.clone()];
        let updated = self.ask(args).await;
        self.bundle.remove(FILE);
        updated.map(drop)
    }

    /// What the container has used, as gVisor accounts for it: for one of several in a sandbox. Processor time is the
    /// sandbox's on the host, divided; memory is divided too, but by releases of 2022, which tell all of the sandbox's.
    pub async fn usage(&self) -> Result<Usage, RuntimeError> {
        let output = self.run(words(&["events", "--stats", &self.name]), Streams::Captured, STATS).await?;
        usage(&output.stdout)
            .ok_or_else(|| RuntimeError::Failed(format!("{} events printed no statistics", self.program)))
    }

    /// The pids of the container's processes, as seen inside a gVisor sandbox.
    pub async fn inner_pids(&self) -> Result<Vec<u32>, RuntimeError> {
        let output = self.ask(vec!["ps".into(), "--format".into(), "json".into(), self.name.clone()]).await?;
        // runsc prints nothing else, but not always a list: null when there is none.
        let pids: Option<Vec<u32>> = serde_json::from_slice(&output.stdout)
            .map_err(|error| RuntimeError::Failed(format!("{} ps printed no list of pids: {error}", self.program)))?;
        Ok(pids.unwrap_or_default())
    }

    /// Refuses what the runtime has already, of another containerd perhaps. A second create of the same id would destroy
    /// the first one's state in runsc.
    pub async fn refuse_duplicate(&self) -> Result<(), RuntimeError> {
        if !self.is_taken() || self.kind == Kind::Runsc && self.remove_stale().await {
            return Ok(());
        }
        let (program, name, root) = (&self.program, &self.name, self.root.display());
        Err(RuntimeError::Failed(format!("{program} has a container {name} already, in {root}; delete it first")))
    }

    /// Whether the runtime has a state of exactly this container.
    pub fn is_taken(&self) -> bool {
        match self.kind {
            Kind::Runc => self.root.join(&self.name).exists(),
            Kind::Runsc => self.has_state(),
        }
    }

    /// Whether runsc has a state file of exactly this container.
    fn has_state(&self) -> bool {
        self.sandbox_in_state().is_some()
    }

    /// The sandbox that runsc's state file of exactly this container names, if there is one.
    fn sandbox_in_state(&self) -> Option<String> {
        let prefix = format!("{}_sandbox:", self.name);
        let entries = fs::read_dir(&self.root).into_iter().flatten().flatten();
        entries
            .filter_map(|entry| entry.file_name().into_string().ok())
            .find_map(|name| Some(name.strip_prefix(&prefix)?.strip_suffix(".state")?.to_owned()))
    }

    fn console(&self, args: &mut Vec<String>, console: Option<&Path>) {
        if let Some(console) = console {
            args.extend([CONSOLE.into(), path(console)]);
        }
    }

    fn cannot_spawn(&self, error: io::Error) -> CommandError {
        CommandError::Spawn { program: self.program.clone(), error }
    }

    async fn ask(&self, args: Vec<String>) -> Result<Output, RuntimeError> {
        self.run(args, Streams::Captured, SHORT).await
    }

    async fn run(&self, args: Vec<String>, streams: Streams, deadline: Duration) -> Result<Output, RuntimeError> {
        let name = args[0].clone();
        let log = self.bundle.join(LOG);
        let mark = error::mark(&log);
        let output = self.command(args, streams, deadline).run(&self.reaper).await?;
        if output.exit.code == 0 {
            Ok(output)
        } else {
            Err(RuntimeError::of(&self.program, &name, &output, &log, mark))
        }
    }

    fn command(&self, args: Vec<String>, streams: Streams, deadline: Duration) -> Command {
        // In the bundle: that is where a wrapper of a runtime looks for config.json, and a console socket is named
        // relative to it, since a socket's path has 107 bytes at most.
        let directory = Some(self.bundle.path().to_owned());
        let args = self.base.iter().cloned().chain(args).collect();
        Command { program: self.program.clone(), args, directory, streams, deadline }
    }
}

/// The claim of a process that has ended already.
fn resolved(exit: Exit) -> Claim {
    let (tell, claim) = tokio::sync::oneshot::channel();
    let _ = tell.send(exit);
    claim
}

/// The figures in what `runsc events --stats` prints.
fn usage(printed: &[u8]) -> Option<Usage> {
    let event: serde_json::Value = serde_json::from_slice(printed).ok()?;
    let data = event.get("data")?;
    // A figure that is zero may be left out.
    let figure = |path: &str| data.pointer(path).and_then(serde_json::Value::as_u64).unwrap_or_default();
    Some(Usage {
        cpu_ns: figure("/cpu/usage/total"),
        memory: figure("/memory/usage/usage"),
        pids: figure("/pids/current"),
    })
}

fn words(words: &[&str]) -> Vec<String> {
    words.iter().map(ToString::to_string).collect()
}

fn path(path: &Path) -> String {
    // Bundles are containerd's own paths, made of its configuration and a checked id: UTF-8 as they come to us.
    path.to_string_lossy().into_owned()
}
