//! A shim that the test itself calls, in containerd's place: for requests that no client of containerd would send. Its events go to
//! a daemon of the lab, whose namespace it is in.

use std::{
    fs::{self, File, OpenOptions},
    io::Read,
    os::unix::fs::OpenOptionsExt,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use beta9_shim::rpc::{CallError, Client};
use containerd_shim_protos::{
    api::{CreateTaskRequest, Empty, ShutdownRequest},
    protobuf::Message,
};
use nix::{
    errno::Errno,
    libc,
    sys::{
        signal::{Signal, kill},
        stat::Mode,
    },
    unistd::{Pid, mkfifo},
};

use super::{
    command::{self, Output},
    daemon::Daemon,
    eventually, leaks,
};

/// The names of the Task service.
pub const SERVICES: [&str; 2] = ["containerd.task.v2.Task", "containerd.task.v3.Task"];

/// The program under test, and the one that it is measured by.
pub const OURS: &str = "containerd-shim-beta9-v2";
pub const GOS: &str = "containerd-shim-runc-v2";

/// The status code for a service or method that is not there.
const UNIMPLEMENTED: i32 = 12;

/// How long one call may take.
const CALL: Duration = Duration::from_secs(30);

/// What a shim refuses a request with.
#[derive(Debug)]
pub struct Refused {
    /// The number of the status code.
    pub code: i32,
    pub message: String,
}

/// A bundle, and the shim that was started in it.
pub struct Shim {
    daemon: Arc<Daemon>,
    program: &'static str,
    id: String,
    bundle: PathBuf,
    socket: PathBuf,
    /// The shim's log, which must have a reader.
    log: File,
    answer: Vec<u8>,
}

impl Shim {
    /// Calls our shim's `start` in a new bundle with this config.json; what it printed if it failed.
    pub fn start(daemon: &Arc<Daemon>, id: &str, bundles: &Path, config: &[u8]) -> Result<Self, Output> {
        Self::launch(OURS, daemon, id, bundles, config, b"")
    }

    /// As `start`, for either shim.
    pub fn start_program(
        program: &'static str,
        daemon: &Arc<Daemon>,
        id: &str,
        bundles: &Path,
        config: &[u8],
    ) -> Result<Self, Output> {
        Self::launch(program, daemon, id, bundles, config, b"")
    }

    /// As `start`, with something to read on standard input.
    pub fn start_with(
        daemon: &Arc<Daemon>,
        id: &str,
        bundles: &Path,
        config: &[u8],
        input: &[u8],
    ) -> Result<Self, Output> {
        Self::launch(OURS, daemon, id, bundles, config, input)
    }

    fn launch(
        program: &'static str,
        daemon: &Arc<Daemon>,
        id: &str,
        bundles: &Path,
        config: &[u8],
        input: &[u8],
    ) -> Result<Self, Output> {
        let bundle = bundles.join(id);
        fs::create_dir_all(bundle.join("rootfs")).unwrap();
        fs::write(bundle.join("config.json"), config).unwrap();
        // containerd makes it, and Go's shim does not start without it.
        match mkfifo(&bundle.join("log"), Mode::S_IRWXU) {
            // A bundle in which a start has failed is used again.
            Ok(()) | Err(Errno::EEXIST) => {}
            Err(error) => panic!("log: {error}"),
        }
        let log = OpenOptions::new().read(true).custom_flags(libc::O_NONBLOCK).open(bundle.join("log")).unwrap();
        let mut line = daemon.shim_command(program, id);
        let output = command::start(line.arg("start").current_dir(&bundle), Some(input)).finish(CALL);
        if output.code != 0 {
            return Err(output);
        }
        let socket = match fs::read_to_string(bundle.join("address")) {
            Ok(file) => address(&file),
            Err(_) => address(output.text().trim()),
        };
        Ok(Self { daemon: Arc::clone(daemon), program, id: id.into(), bundle, socket, answer: output.stdout, log })
    }

    /// What `start` printed.
    pub fn answer(&self) -> &[u8] {
        &self.answer
    }

    pub fn socket(&self) -> &Path {
        &self.socket
    }

    pub fn id(&self) -> &str {
        &self.id
    }

    pub fn bundle(&self) -> &Path {
        &self.bundle
    }

    /// A Create request for its own container, without streams.
    pub fn create_request(&self) -> CreateTaskRequest {
        let bundle = self.bundle.to_str().unwrap().to_owned();
        CreateTaskRequest { id: self.id.clone(), bundle, ..CreateTaskRequest::default() }
    }

    /// A Create request for a further container of this shim, with a bundle of its own beside the first one's.
    pub fn further_request(&self, id: &str, config: &[u8]) -> CreateTaskRequest {
        let bundle = self.bundle.with_file_name(id);
        fs::create_dir_all(bundle.join("rootfs")).unwrap();
        fs::write(bundle.join("config.json"), config).unwrap();
        CreateTaskRequest { id: id.into(), bundle: bundle.to_str().unwrap().into(), ..CreateTaskRequest::default() }
    }

    /// Calls a method of the Task service.
    pub fn call<R: Message>(&self, method: &str, request: &impl Message) -> Result<R, Refused> {
        // Go's later shims serve the later version alone.
        match self.call_service(SERVICES[0], method, request) {
            Err(Refused { code: UNIMPLEMENTED, .. }) => self.call_service(SERVICES[1], method, request),
            answer => answer,
        }
    }

    /// Calls a method of some service; that there is no answer at all is the trial's failure.
    pub fn call_service<R: Message>(&self, service: &str, method: &str, request: &impl Message) -> Result<R, Refused> {
        let event_loop = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let payload = request.write_to_bytes().unwrap();
        let answer = event_loop
            .block_on(async { Client::connect(&self.socket).await?.call(service, method, payload, CALL).await });
        match answer {
            Ok(answer) => Ok(R::parse_from_bytes(&answer).unwrap()),
            Err(CallError::Refused { code, message }) => Err(Refused { code, message }),
            Err(error) => panic!("{service}/{method}: {error}\n{}", self.log()),
        }
    }

    /// Sends a request and goes away before the answer can have come.
    pub fn abandon(&self, method: &str, request: &impl Message) {
        let event_loop = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let payload = request.write_to_bytes().unwrap();
        let hasty = Duration::from_millis(20);
        let answer = event_loop
            .block_on(async { Client::connect(&self.socket).await?.call(SERVICES[0], method, payload, hasty).await });
        // Which of both noticed first, the shim or this side, does not matter.
        let given_up = matches!(answer, Err(CallError::Timeout(_) | CallError::Refused { code: 4, .. }));
        assert!(given_up, "{method} was answered too soon: {answer:?}");
    }

    /// Asks it to end, and checks that it does and that nothing of it is left.
    pub fn shut_down(&self) {
        let request = ShutdownRequest { id: self.id.clone(), ..ShutdownRequest::default() };
        self.call::<Empty>("Shutdown", &request).unwrap();
        self.until_gone();
        assert!(!self.socket.exists(), "the socket was left");
        assert!(!self.bundle.join("beta9.json").exists(), "the decision record was left");
        assert_eq!(leaks::mounts_below(&self.bundle), [""; 0]);
    }

    /// What it logged since the last look.
    fn log(&self) -> String {
        let mut said = Vec::new();
        // It ends where there is nothing more yet.
        let _ = (&self.log).read_to_end(&mut said);
        String::from_utf8_lossy(&said).into_owned()
    }

    /// Waits until its process has ended.
    pub fn until_gone(&self) {
        eventually("the end of the shim", || self.daemon.shim(&self.id).is_none().then_some(()));
    }
}

/// The socket in what `start` left or printed: a plain address, or JSON with one.
fn address(printed: &str) -> PathBuf {
    let json = serde_json::from_str::<serde_json::Value>(printed).ok();
    let address = json.as_ref().and_then(|json| json["address"].as_str()).unwrap_or(printed);
    address.strip_prefix("unix://").unwrap().into()
}

impl Drop for Shim {
    /// The way out of a trial that failed.
    fn drop(&mut self) {
        if let Some(server) = self.daemon.shim(&self.id) {
            let _ = kill(Pid::from_raw(server.pid), Signal::SIGKILL);
            let mut line = self.daemon.shim_command(self.program, &self.id);
            let _ = command::start(line.arg("delete").current_dir(&self.bundle), Some(b"")).end(CALL);
        }
    }
}
