//! A containerd of the lab's own: its root, state, sockets, configuration and PATH, and its life from start over restarts to
//! the end, when it says what was left behind in it.

use std::{
    collections::BTreeMap,
    fs,
    os::unix::{fs::symlink, net::UnixStream, process::CommandExt},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    sync::Mutex,
    thread,
    time::{Duration, Instant},
};

use nix::{
    mount::{MntFlags, umount2},
    sys::signal::{Signal, kill},
    unistd::Pid,
};

use super::{
    command::{self, Output, Running},
    cri,
    events::Events,
    eventually,
    image::Image,
    keeper, leaks, lock,
    netns::Netns,
    packages::Suite,
    process::{self, Process},
    unhurried,
};

/// How long one call of ctr may take unless its test says otherwise.
const CALL: Duration = Duration::from_secs(60);

/// The same where a test has ended already.
const CLEANUP: Duration = Duration::from_secs(10);

/// The containerd versions that Debian ships.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Version {
    /// 1.6.20
    V1_6,
    /// 1.7.24
    V1_7,
    /// 2.1.9
    V2_1,
}

impl Version {
    pub const ALL: [Self; 3] = [Self::V1_6, Self::V1_7, Self::V2_1];

    /// As in the names of tests.
    pub fn name(self) -> &'static str {
        match self {
            Self::V1_6 => "1.6",
            Self::V1_7 => "1.7",
            Self::V2_1 => "2.1",
        }
    }

    /// Whether its packages were fetched.
    pub fn is_here(self) -> bool {
        self.suite().find("containerd").is_some()
    }

    /// The runc of the same release, or else Debian 12's.
    pub fn runc(self) -> PathBuf {
        self.suite().find("runc").unwrap_or_else(|| Suite::Bookworm.program("runc"))
    }

    /// The daemon itself.
    pub fn containerd(self) -> PathBuf {
        self.suite().program("containerd")
    }

    fn suite(self) -> Suite {
        match self {
            Self::V1_6 => Suite::Bookworm,
            Self::V1_7 => Suite::Trixie,
            Self::V2_1 => Suite::Sid,
        }
    }

    /// Plugins that would touch the host, or that take time nobody here needs.
    fn disabled_plugins(self, cri: bool) -> Vec<&'static str> {
        let mut plugins = vec!["io.containerd.internal.v1.opt"];
        if self != Self::V1_6 {
            plugins.push("io.containerd.nri.v1.nri");
        }
        if !cri {
            plugins.push("io.containerd.grpc.v1.cri");
        }
        if !cri && self == Self::V2_1 {
            plugins.extend(["io.containerd.cri.v1.images", "io.containerd.cri.v1.runtime"]);
        }
        plugins
    }
}

/// What distinguishes one daemon from another. Trials with equal options share one.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Options {
    pub version: Version,
    /// Programs that the daemon and its shims find under these names, besides its own and the shims.
    pub programs: BTreeMap<&'static str, PathBuf>,
    /// The node's configuration, which shims find through BETA9_SHIM_CONFIG.
    pub config: Option<String>,
    /// Whether it is a kubelet's: with the CRI, a network, and all in the namespace that CRI's containers are in.
    pub cri: bool,
}

/// A containerd and the places that it has to itself.
pub struct Daemon {
    name: String,
    namespace: String,
    dir: PathBuf,
    options: Options,
    /// That of its options until it is upgraded.
    version: Mutex<Version>,
    netns: Option<Netns>,
    process: Mutex<Option<Child>>,
    events: Events,
}

impl Daemon {
    /// Starts a daemon in a directory of its own below `house`, with the lab's image imported. Its name is its containerd
    /// namespace, unless it has the CRI.
    pub fn start(house: &Path, name: &str, options: &Options, image: &Image) -> Self {
        let daemon = Self {
            name: name.into(),
            namespace: if options.cri { "k8s.io" } else { name }.into(),
            dir: house.join(name),
            options: options.clone(),
            version: Mutex::new(options.version),
            netns: options.cri.then(Netns::new),
            process: Mutex::new(None),
            events: Events::default(),
        };
        daemon.furnish();
        daemon.resume();
        daemon.ctr(&["images", "import", image.archive().to_str().unwrap()]).success();
        daemon
    }

    /// Ends the daemon with this signal and waits until it is gone. Containers keep running.
    pub fn end(&self, signal: Signal) {
        self.events.stop();
        if let Some(mut child) = lock(&self.process).take() {
            let _ = kill(Pid::from_raw(i32::try_from(child.id()).unwrap()), signal);
            eventually("the end of containerd", || child.try_wait().unwrap());
        }
    }

    /// Starts a daemon that was ended, on the state that it left.
    pub fn resume(&self) {
        let log = fs::File::options().create(true).append(true).open(self.log()).unwrap();
        let mut command = self.command("containerd");
        command
            .arg("--config")
            .arg(self.dir.join("config.toml"))
            .process_group(0)
            .stdin(Stdio::null())
            .stdout(log.try_clone().unwrap())
            .stderr(log);
        let child = match &self.netns {
            Some(netns) => netns.inside(|| command.spawn()),
            None => command.spawn(),
        };
        *lock(&self.process) = Some(child.unwrap());
        eventually("containerd's socket", || UnixStream::connect(self.socket()).ok());
        // At once: a shim that waited for the daemon does not wait for us.
        self.events.listen(self);
        eventually("an answer of containerd", || (self.ctr(&["version"]).code == 0).then_some(()));
        self.ctr(&["namespaces", "create", &self.namespace]);
        self.events.settle(self);
    }

    /// What tells it from others; the cgroups of its containers carry it.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The network namespace that a daemon with the CRI is in.
    pub fn netns(&self) -> Option<&Netns> {
        self.netns.as_ref()
    }

    /// Starts a later version of a daemon that was ended, on the state that it left: its packages were upgraded.
    pub fn resume_as(&self, version: Version) {
        *lock(&self.version) = version;
        self.furnish();
        self.resume();
    }

    /// The namespace that everything of this daemon is in; runtime roots carry it as well.
    pub fn namespace(&self) -> &str {
        &self.namespace
    }

    /// What it published since its first start.
    pub fn events(&self) -> &Events {
        &self.events
    }

    /// One call of ctr.
    pub fn ctr(&self, arguments: &[&str]) -> Output {
        self.ctr_with(arguments, b"")
    }

    /// One call of ctr with something to read.
    pub fn ctr_with(&self, arguments: &[&str], input: &[u8]) -> Output {
        self.ctr_start(arguments, input).finish(CALL)
    }

    /// One call of ctr for the way out, where nothing may panic: its output if it succeeded in time.
    pub fn ctr_attempt(&self, arguments: &[&str]) -> Option<String> {
        let output = self.ctr_start(arguments, b"").end(CLEANUP).ok()?;
        (output.code == 0).then(|| output.text())
    }

    /// A call of ctr that goes on while the test does something else.
    pub fn ctr_start(&self, arguments: &[&str], input: &[u8]) -> Running {
        command::start(&mut self.ctr_command(arguments), Some(input))
    }

    /// ctr of the daemon's own version, addressed to it.
    pub fn ctr_command(&self, arguments: &[&str]) -> Command {
        let mut command = self.command("ctr");
        command.args(["--address", self.socket().to_str().unwrap(), "--namespace", &self.namespace]).args(arguments);
        command
    }

    /// The server of the shim that was started for this id.
    pub fn shim(&self, id: &str) -> Option<Process> {
        self.shims().into_iter().find(|shim| shim.argument("-id") == Some(id))
    }

    /// The servers of all shims that this daemon started and that are still alive.
    pub fn shims(&self) -> Vec<Process> {
        let socket = self.socket();
        let ours = |process: &Process| {
            process.argument("-address") == socket.to_str() && process.argument("-namespace") == Some(&self.namespace)
        };
        process::descendants(Pid::from_raw(keeper::pid())).into_iter().filter(ours).collect()
    }

    /// The directory that containerd keeps for a running container.
    pub fn bundle(&self, id: &str) -> PathBuf {
        self.dir.join("state/io.containerd.runtime.v2.task").join(&self.namespace).join(id)
    }

    /// How many events of this topic shims have handed to the daemon since its first start, whoever listened.
    pub fn forwarded(&self, topic: &str) -> usize {
        let log = String::from_utf8_lossy(&fs::read(self.log()).unwrap_or_default()).into_owned();
        let topic = format!("topic={topic} ");
        log.lines().filter(|line| line.contains("event forwarded") && line.contains(&topic)).count()
    }

    /// Waits for a line with all of these words in its log, where the lines of its shims are as well.
    pub fn until_log_says(&self, words: &[&str]) {
        eventually(&format!("{words:?} in the log"), || {
            let log = String::from_utf8_lossy(&fs::read(self.log()).unwrap_or_default()).into_owned();
            log.lines().any(|line| words.iter().all(|word| line.contains(word))).then_some(())
        });
    }

    /// The shim of this name, called as the daemon calls it for this id; the action is still to be added.
    pub fn shim_command(&self, program: &str, id: &str) -> Command {
        let mut command = self.command(program);
        command.env("TTRPC_ADDRESS", self.dir.join("ttrpc"));
        command.args(["-namespace", &self.namespace, "-id", id, "-address"]).arg(self.socket());
        command
    }

    /// The last lines of its log, under a heading.
    pub fn log_tail(&self, count: usize) -> String {
        let log = fs::read(self.log()).unwrap_or_default();
        let log = String::from_utf8_lossy(&log);
        let lines: Vec<_> =
            log.lines().filter(|line| !line.contains("level=trace") && !line.contains("loading plugin")).collect();
        format!(
            "--- log of containerd {} {}\n{}\n",
            lock(&self.version).name(),
            self.namespace,
            lines[lines.len().saturating_sub(count)..].join("\n")
        )
    }

    /// A client looks into the image on a mount of its own, which stays where the client is killed meanwhile.
    pub fn unmount_after_clients(&self) {
        let is_theirs = |mount: &&String| mount.starts_with(&format!("{}/containerd-mount", self.dir.display()));
        for mount in leaks::mounts_below(&self.dir).iter().filter(is_theirs) {
            umount2(Path::new(mount), MntFlags::MNT_DETACH).unwrap();
        }
    }

    /// Ends the daemon and returns what is left of its containers, each in words.
    pub fn close(&self) -> Vec<String> {
        // A shim may take a moment to go after its last container; only what stays is a leak.
        let begin = Instant::now();
        while !self.shims().is_empty() && begin.elapsed() < unhurried(Duration::from_secs(5)) {
            thread::sleep(Duration::from_millis(20));
        }
        let mut leaks: Vec<_> = self.shims().iter().map(|shim| format!("shim {}", shim.command.join(" "))).collect();
        self.end(Signal::SIGTERM);
        leaks.extend(leaks::of_daemon(&self.dir, &self.namespace, &self.name));
        leaks
    }

    fn furnish(&self) {
        let bin = self.dir.join("bin");
        fs::create_dir_all(&bin).unwrap();
        let version = *lock(&self.version);
        let suite = version.suite();
        let mut programs = BTreeMap::from([
            ("containerd", suite.program("containerd")),
            ("ctr", suite.program("ctr")),
            ("containerd-shim-runc-v2", suite.program("containerd-shim-runc-v2")),
            ("containerd-shim-beta9-v2", crate::case::shim()),
        ]);
        programs.extend(self.options.programs.clone());
        for (name, path) in programs {
            let _ = fs::remove_file(bin.join(name));
            symlink(path, bin.join(name)).unwrap();
        }
        if let Some(config) = &self.options.config {
            fs::write(self.config(), config).unwrap();
        }
        let dir = self.dir.display();
        let disabled = version.disabled_plugins(self.options.cri);
        // The form of the configuration that each version writes itself.
        let form = if version == Version::V2_1 { 3 } else { 2 };
        let mut config = format!(
            "version = {form}\nroot = '{dir}/root'\nstate = '{dir}/state'\ndisabled_plugins = {disabled:?}\n\
             [grpc]\naddress = '{dir}/sock'\n[ttrpc]\naddress = '{dir}/ttrpc'\n[debug]\nlevel = 'trace'\n"
        );
        if self.options.cri {
            config += &cri::config::furnish(version, &self.dir);
        }
        fs::write(self.dir.join("config.toml"), config).unwrap();
    }

    /// A program of the daemon's PATH, with the environment that daemon and clients have.
    pub(super) fn command(&self, program: &str) -> Command {
        let bin = self.dir.join("bin");
        let mut command = Command::new(bin.join(program));
        command
            .env_clear()
            .env("PATH", format!("{}:/usr/sbin:/usr/bin:/sbin:/bin", bin.display()))
            // containerd leaves the checkpoints there that it has unpacked.
            .env("TMPDIR", &self.dir)
            .env("CONTAINERD_NAMESPACE", &self.namespace);
        if self.options.config.is_some() {
            command.env("BETA9_SHIM_CONFIG", self.config());
        }
        command
    }

    /// The directory that it has to itself, and those who work on it as well.
    pub(super) fn dir(&self) -> &Path {
        &self.dir
    }

    /// Where it serves its clients.
    pub fn socket(&self) -> PathBuf {
        self.dir.join("sock")
    }

    fn config(&self) -> PathBuf {
        self.dir.join("beta9.yaml")
    }

    /// Its log, which also tells what happens around it.
    pub(super) fn log(&self) -> PathBuf {
        self.dir.join("log")
    }
}

impl Drop for Daemon {
    /// The way out of a trial that failed.
    fn drop(&mut self) {
        self.events.stop();
        if let Some(mut child) = lock(&self.process).take() {
            let _ = child.kill();
            let _ = child.wait();
        }
        for shim in self.shims() {
            let _ = kill(Pid::from_raw(shim.pid), Signal::SIGKILL);
        }
    }
}
