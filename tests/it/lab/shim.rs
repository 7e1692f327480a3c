//! A shim that the test itself calls, in containerd's place: for requests that no client of containerd would send. Its events go to
//! a daemon of the lab, whose namespace it is in.

use std::{
    fs,
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
    sys::signal::{Signal, kill},
    unistd::Pid,
};

use super::{
    command::{self, Output},
    daemon::Daemon,
    eventually, leaks,
};

/// The names of the Task service.
pub const SERVICES: [&str; 2] = ["containerd.task.v2.Task", "containerd.task.v3.Task"];

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
    id: String,
    bundle: PathBuf,
    socket: PathBuf,
}

impl Shim {
    /// Calls `start` in a new bundle with this config.json; what it printed if it failed.
    pub fn start(daemon: &Arc<Daemon>, id: &str, bundles: &Path, config: &[u8]) -> Result<Self, Output> {
        let bundle = bundles.join(id);
        fs::create_dir_all(bundle.join("rootfs")).unwrap();
        fs::write(bundle.join("config.json"), config).unwrap();
        let mut line = daemon.shim_command(id);
        let output = command::start(line.arg("start").current_dir(&bundle), Some(b"")).finish(CALL);
        if output.code != 0 {
            return Err(output);
        }
        let socket = PathBuf::from(output.text().trim().strip_prefix("unix://").unwrap());
        Ok(Self { daemon: Arc::clone(daemon), id: id.into(), bundle, socket })
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

    /// Calls a method of the Task service.
    pub fn call<R: Message>(&self, method: &str, request: &impl Message) -> Result<R, Refused> {
        self.call_service(SERVICES[0], method, request)
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
            Err(error) => panic!("{service}/{method}: {error}"),
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
        eventually("the end of the shim", || self.daemon.shim(&self.id).is_none().then_some(()));
        assert!(!self.socket.exists(), "the socket was left");
        assert!(!self.bundle.join("beta9.json").exists(), "the decision record was left");
        assert_eq!(leaks::mounts_below(&self.bundle), [""; 0]);
    }
}

impl Drop for Shim {
    /// The way out of a trial that failed.
    fn drop(&mut self) {
        if let Some(server) = self.daemon.shim(&self.id) {
            let _ = kill(Pid::from_raw(server.pid), Signal::SIGKILL);
            let mut line = self.daemon.shim_command(&self.id);
            let _ = command::start(line.arg("delete").current_dir(&self.bundle), Some(b"")).end(CALL);
        }
    }
}
