//! A dockerd on one of the lab's containerds, and its containers as a user of `docker` has them. It has its places, its
//! cgroups and its namespace in common with that containerd, whose leak checks so cover it; it has no network but what a
//! container brings along, and touches none of the host's.

use std::{
    fs,
    os::unix::process::CommandExt,
    path::PathBuf,
    process::{Child, Command, Stdio},
    sync::{Arc, Mutex},
    time::Duration,
};

use nix::{
    mount::{MntFlags, umount2},
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use serde_json::{Value, json};

use super::{
    checkout,
    command::{self, Output, Running},
    daemon::Daemon,
    eventually,
    image::Image,
    lock, pty,
};
use crate::case::DockerCase;

/// The image's name in Docker.
const IMAGE: &str = "lab";

/// How long one call of docker may take.
const CALL: Duration = Duration::from_secs(60);

/// The same where a test has ended already.
const CLEANUP: Duration = Duration::from_secs(20);

/// A dockerd.
pub struct Docker {
    daemon: Arc<Daemon>,
    process: Mutex<Option<Child>>,
}

impl Docker {
    /// Starts a dockerd that knows our shim by the pools of `DockerCase`, with the lab's image imported.
    pub fn start(daemon: Arc<Daemon>, image: &Image) -> Self {
        let docker = Self { daemon, process: Mutex::default() };
        fs::create_dir_all(docker.dir()).unwrap();
        // The example's own words, but for the file.
        let example = fs::read(checkout().join("config/docker-daemon.json")).unwrap();
        let mut configuration: Value = serde_json::from_slice(&example).unwrap();
        let beta9 = configuration["runtimes"]["beta9"].take();
        configuration["runtimes"] = json!({});
        for (name, pool) in DockerCase::pools() {
            let file = docker.dir().join(format!("{name}.yaml"));
            fs::write(&file, pool).unwrap();
            let mut runtime = beta9.clone();
            runtime["options"]["ConfigPath"] = json!(file);
            configuration["runtimes"][name] = runtime;
        }
        fs::write(docker.dir().join("daemon.json"), configuration.to_string()).unwrap();
        docker.resume();
        let layer = image.layer();
        docker.call(&["import", "--change", "ENV PATH=/bin", layer.to_str().unwrap(), IMAGE]).success();
        docker
    }

    /// The containerd underneath.
    pub fn containerd(&self) -> &Arc<Daemon> {
        &self.daemon
    }

    /// Ends dockerd with this signal and waits until it is gone. Containers keep running.
    pub fn end(&self, signal: Signal) {
        if let Some(mut child) = lock(&self.process).take() {
            let _ = kill(Pid::from_raw(i32::try_from(child.id()).unwrap()), signal);
            eventually("the end of dockerd", || child.try_wait().unwrap());
        }
    }

    /// Starts a dockerd that was ended, on the state that it left.
    pub fn resume(&self) {
        let log = fs::File::options().create(true).append(true).open(self.daemon.log()).unwrap();
        let (dir, namespace) = (self.dir(), self.daemon.namespace());
        let place = |name: &str| dir.join(name).display().to_string();
        let mut command = self.daemon.command("dockerd");
        command
            .env("HOME", &dir)
            .args([
                format!("--config-file={}", place("daemon.json")),
                format!("--data-root={}", place("root")),
                format!("--exec-root={}", place("exec")),
                format!("--pidfile={}", place("pid")),
                format!("--host={}", self.address()),
                format!("--containerd={}", self.daemon.socket().display()),
                format!("--containerd-namespace={namespace}"),
                format!("--containerd-plugins-namespace={namespace}-plugins"),
                format!("--cgroup-parent=/{namespace}"),
            ])
            .args(["--exec-opt=native.cgroupdriver=cgroupfs", "--storage-driver=overlay2", "--live-restore"])
            .args(["--bridge=none", "--iptables=false", "--ip6tables=false", "--ip-forward=false", "--ip-masq=false"])
            .args(["--userland-proxy=false", "--group=root", "--log-level=info"])
            .process_group(0)
            .stdin(Stdio::null())
            .stdout(log.try_clone().unwrap())
            .stderr(log);
        *lock(&self.process) = Some(command.spawn().unwrap());
        eventually("an answer of dockerd", || (self.call(&["version"]).code == 0).then_some(()));
    }

    /// One call of docker.
    pub fn call(&self, arguments: &[&str]) -> Output {
        self.call_with(arguments, b"")
    }

    /// One call of docker with something to read.
    pub fn call_with(&self, arguments: &[&str], input: &[u8]) -> Output {
        self.call_start(arguments, Some(input)).finish(CALL)
    }

    /// A call of docker that goes on while the test does something else. Without input its standard input stays open.
    pub fn call_start(&self, arguments: &[&str], input: Option<&[u8]>) -> Running {
        command::start(&mut self.command(arguments), input)
    }

    /// Ends dockerd and takes away what it keeps mounted for itself. What its containers left stays, for the leak checks.
    pub fn close(&self) {
        self.end(Signal::SIGTERM);
        // A dockerd that found this mount, because the one before was killed, leaves it to whoever made it.
        let _ = umount2(&self.dir().join("root"), MntFlags::MNT_DETACH);
    }

    fn command(&self, arguments: &[&str]) -> Command {
        let mut command = self.daemon.command("docker");
        command.env("DOCKER_HOST", self.address()).env("DOCKER_CONFIG", self.dir().join("client")).args(arguments);
        command
    }

    fn address(&self) -> String {
        format!("unix://{}", self.dir().join("sock").display())
    }

    fn dir(&self) -> PathBuf {
        self.daemon.dir().join("docker")
    }
}

impl Drop for Docker {
    /// The way out of a trial that failed.
    fn drop(&mut self) {
        if let Some(mut child) = lock(&self.process).take() {
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

/// One container of a trial, from the side of docker's user. When it goes out of scope the container is gone.
pub struct Container {
    docker: Arc<Docker>,
    name: String,
    runtime: &'static str,
}

impl Container {
    /// Nothing is created yet.
    pub fn new(docker: &Arc<Docker>, case: &DockerCase, name: String) -> Self {
        Self { docker: Arc::clone(docker), name, runtime: case.runtime }
    }

    /// The same container under another of Docker's runtimes.
    pub fn under(self, runtime: &'static str) -> Self {
        Self { docker: Arc::clone(&self.docker), name: self.name.clone(), runtime }
    }

    pub fn name(&self) -> &str {
        &self.name
    }

    /// Runs it to its end in the foreground, and removes it.
    pub fn run(&self, options: &[&str], command: &[&str]) -> Output {
        self.docker.call(&self.run_line(&[&["--rm"], options].concat(), command))
    }

    /// As `run`, with something to read on standard input.
    pub fn run_with(&self, options: &[&str], command: &[&str], input: &[u8]) -> Output {
        self.docker.call_with(&self.run_line(&[&["--rm", "--interactive"], options].concat(), command), input)
    }

    /// Runs it in the foreground on a terminal, which `prepare` (a shell command) may set up.
    pub fn run_on_terminal(&self, prepare: &str, command: &[&str]) -> Output {
        let line = self.run_line(&["--rm", "--interactive", "--tty"], command);
        pty::run(&self.docker.command(&line), prepare)
    }

    /// Starts it in the background; it has started when this returns.
    pub fn detach(&self, options: &[&str], command: &[&str]) {
        self.docker.call(&self.run_line(&[&["--detach"], options].concat(), command)).success();
    }

    /// Attaches a client to it, which types `input` and goes on beside the test.
    pub fn attach(&self, input: Option<&[u8]>) -> Running {
        self.docker.call_start(&["attach", &self.name], input)
    }

    /// Runs another process in it.
    pub fn exec(&self, options: &[&str], command: &[&str]) -> Output {
        self.exec_with(options, command, b"")
    }

    /// As `exec`, with something to read on standard input.
    pub fn exec_with(&self, options: &[&str], command: &[&str], input: &[u8]) -> Output {
        self.docker.call_with(&[&["exec"], options, &[&self.name], command].concat(), input)
    }

    /// Runs another process in it on a terminal.
    pub fn exec_on_terminal(&self, prepare: &str, command: &[&str]) -> Output {
        let line = [&["exec", "--interactive", "--tty", &self.name], command].concat();
        pty::run(&self.docker.command(&line), prepare)
    }

    /// `docker VERB OPTIONS… NAME`.
    pub fn verb(&self, verb: &str, options: &[&str]) -> Output {
        self.docker.call(&[&[verb], options, &[&self.name]].concat())
    }

    /// What `docker inspect` says of it, by a template.
    pub fn inspect(&self, template: &str) -> String {
        self.verb("inspect", &["--format", template]).success().text().trim_end().to_owned()
    }

    /// Waits until the template gives this.
    pub fn until(&self, template: &str, value: &str) {
        eventually(&format!("{template} of {} is {value:?}", self.name), || {
            (self.inspect(template) == value).then_some(())
        });
    }

    /// Waits until it is like this (running, paused, restarting, exited) with this code of its last end.
    pub fn until_state(&self, state: &str, code: i32) {
        self.until("{{.State.Status}} {{.State.ExitCode}}", &format!("{state} {code}"));
    }

    /// The host's pid of its first process, or of its sandbox.
    pub fn pid(&self) -> i32 {
        self.inspect("{{.State.Pid}}").parse().unwrap()
    }

    /// Its standard output so far, from Docker's log.
    pub fn logs(&self) -> String {
        self.verb("logs", &[]).success().text()
    }

    /// Whether Docker still knows it.
    pub fn exists(&self) -> bool {
        self.verb("inspect", &[]).code == 0
    }

    fn run_line<'a>(&'a self, options: &[&'a str], command: &[&'a str]) -> Vec<&'a str> {
        let fixed = ["run", "--network=none", "--runtime", self.runtime, "--name", &self.name];
        [&fixed, options, &[IMAGE], command].concat()
    }
}

impl Drop for Container {
    fn drop(&mut self) {
        let line = ["rm", "--force", "--volumes", &self.name];
        let _ = self.docker.call_start(&line, Some(b"")).end(CLEANUP);
    }
}
