//! A pod of a trial and its containers, from a kubelet's side: their configurations, logs, cgroup, and everything that is done to
//! them. When a pod goes out of scope it is gone, whatever state the trial left it in.

use std::{
    fs,
    path::{Path, PathBuf},
    thread,
    time::Duration,
};

use super::{
    Cri, Status,
    api::{self, ContainerState, Empty, PodSandboxState},
    stream::Session,
};
use crate::lab::{Lab, cgroup::Cgroup, eventually, image::IMAGE, process::Process};

/// A running pod.
pub struct Pod {
    cri: Cri,
    id: String,
    config: api::PodSandboxConfig,
    cgroup: Cgroup,
}

impl Pod {
    /// Runs a pod of this handler, whose configuration `adapt` may change.
    pub fn run(lab: &Lab, cri: &Cri, handler: &str, adapt: impl FnOnce(&mut api::PodSandboxConfig)) -> Self {
        Self::try_run(lab, cri, handler, adapt).unwrap_or_else(|error| panic!("RunPodSandbox: {error}"))
    }

    /// As `run`, where it may fail.
    pub fn try_run(
        lab: &Lab,
        cri: &Cri,
        handler: &str,
        adapt: impl FnOnce(&mut api::PodSandboxConfig),
    ) -> Result<Self, Status> {
        let name = lab.id("pod");
        let cgroup = Cgroup::new(cri.daemon.name(), &name);
        let logs = lab.dir("logs");
        let mut config = api::PodSandboxConfig {
            metadata: Some(api::PodSandboxMetadata {
                name: name.clone(),
                uid: format!("uid-{name}"),
                namespace: "lab".into(),
                attempt: 0,
            }),
            hostname: name,
            log_directory: logs.to_str().unwrap().into(),
            linux: Some(api::LinuxPodSandboxConfig {
                cgroup_parent: cgroup.path().into(),
                // A kubelet's answer to `shareProcessNamespace: false`.
                security_context: Some(api::LinuxSandboxSecurityContext {
                    namespace_options: Some(api::NamespaceOption {
                        pid: api::NamespaceMode::Container.into(),
                        ..api::NamespaceOption::default()
                    }),
                    ..api::LinuxSandboxSecurityContext::default()
                }),
                ..api::LinuxPodSandboxConfig::default()
            }),
            ..api::PodSandboxConfig::default()
        };
        adapt(&mut config);
        let request = api::RunPodSandboxRequest { config: Some(config.clone()), runtime_handler: handler.into() };
        let answer: api::PodSandboxId = cri.call("RunPodSandbox", &request)?;
        Ok(Self { cri: cri.clone(), id: answer.pod_sandbox_id, config, cgroup })
    }

    pub fn id(&self) -> &str {
        &self.id
    }

    /// Its uid, which names its directory in a kubelet's.
    pub fn uid(&self) -> &str {
        &self.config.metadata.as_ref().unwrap().uid
    }

    /// The pod's own cgroup, which its containers' are below.
    pub fn cgroup(&self) -> &Cgroup {
        &self.cgroup
    }

    /// Creates a container of the lab's image that runs `command`; its configuration may be changed.
    pub fn create(&self, name: &str, command: &[&str], adapt: impl FnOnce(&mut api::ContainerConfig)) -> Container<'_> {
        self.try_create(name, command, adapt).unwrap_or_else(|error| panic!("CreateContainer {name}: {error}"))
    }

    /// As `create`, where it may fail.
    pub fn try_create(
        &self,
        name: &str,
        command: &[&str],
        adapt: impl FnOnce(&mut api::ContainerConfig),
    ) -> Result<Container<'_>, Status> {
        let sandbox = self.config.linux.clone().unwrap().security_context.unwrap();
        let mut config = api::ContainerConfig {
            metadata: Some(api::ContainerMetadata { name: name.into(), attempt: 0 }),
            image: Some(api::ImageSpec { image: IMAGE.into() }),
            command: words(command),
            log_path: format!("{name}.log"),
            linux: Some(api::LinuxContainerConfig {
                resources: Some(api::LinuxContainerResources::default()),
                security_context: Some(api::LinuxContainerSecurityContext {
                    namespace_options: sandbox.namespace_options,
                    ..api::LinuxContainerSecurityContext::default()
                }),
            }),
            ..api::ContainerConfig::default()
        };
        adapt(&mut config);
        let log = Path::new(&self.config.log_directory).join(&config.log_path);
        let request = api::CreateContainerRequest {
            pod_sandbox_id: self.id.clone(),
            config: Some(config),
            sandbox_config: Some(self.config.clone()),
        };
        let answer: api::ContainerId = self.cri.call("CreateContainer", &request)?;
        Ok(Container { pod: self, id: answer.container_id, log })
    }

    /// Creates and starts a container of the lab's image that runs `command`.
    pub fn start(&self, name: &str, command: &[&str]) -> Container<'_> {
        self.start_with(name, command, |_| {})
    }

    /// As `start`, with another configuration.
    pub fn start_with(
        &self,
        name: &str,
        command: &[&str],
        adapt: impl FnOnce(&mut api::ContainerConfig),
    ) -> Container<'_> {
        let container = self.create(name, command, adapt);
        container.start().unwrap_or_else(|error| panic!("StartContainer {name}: {error}"));
        container
    }

    pub fn status(&self) -> api::PodSandboxStatus {
        let answer: api::PodSandboxStatusResponse = self.cri.call("PodSandboxStatus", &self.request()).unwrap();
        answer.status.unwrap()
    }

    pub fn is_ready(&self) -> bool {
        self.status().state() == PodSandboxState::Ready
    }

    /// Its address in the CNI network.
    pub fn ip(&self) -> String {
        self.status().network.unwrap().ip
    }

    pub fn stats(&self) -> api::LinuxPodSandboxStats {
        let answer: api::PodSandboxStatsResponse = self.cri.call("PodSandboxStats", &self.request()).unwrap();
        answer.stats.unwrap().linux.unwrap()
    }

    /// The ids and states of its containers, as the daemon lists them.
    pub fn containers(&self) -> Vec<(String, ContainerState)> {
        let filter = Some(api::ContainerFilter { pod_sandbox_id: self.id.clone() });
        let answer: api::ListContainersResponse =
            self.cri.call("ListContainers", &api::ListContainersRequest { filter }).unwrap();
        answer.containers.iter().map(|container| (container.id.clone(), container.state())).collect()
    }

    /// Opens a connection to one of its ports.
    pub fn forward(&self, port: u16) -> Session {
        let request = api::PortForwardRequest { pod_sandbox_id: self.id.clone(), port: vec![port.into()] };
        self.cri.stream("PortForward", &request, &format!("?port={port}"))
    }

    /// The server of the shim that all of its containers have.
    pub fn shim(&self) -> Process {
        self.cri.daemon.shim(&self.id).unwrap_or_else(|| panic!("pod {} has no shim", self.id))
    }

    pub fn stop(&self) -> Result<(), Status> {
        self.cri.call::<Empty>("StopPodSandbox", &self.request()).map(drop)
    }

    pub fn remove(&self) -> Result<(), Status> {
        self.cri.call::<Empty>("RemovePodSandbox", &self.request()).map(drop)
    }

    fn request(&self) -> api::PodSandboxId {
        api::PodSandboxId { pod_sandbox_id: self.id.clone() }
    }

    fn exists(&self) -> bool {
        let pods = self.cri.call::<api::ListPodSandboxResponse>("ListPodSandbox", &Empty {});
        pods.is_ok_and(|pods| pods.items.iter().any(|pod| pod.id == self.id))
    }
}

impl Drop for Pod {
    fn drop(&mut self) {
        for _ in 0..3 {
            if !self.exists() {
                break;
            }
            let gone = self.stop().and_then(|()| self.remove());
            if let Err(error) = gone {
                eprintln!("could not remove pod {}: {error}", self.id);
                thread::sleep(Duration::from_millis(200));
            }
        }
    }
}

/// A container of a pod.
pub struct Container<'a> {
    pod: &'a Pod,
    id: String,
    log: PathBuf,
}

/// A line of a container's log, as kubelets read them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Line {
    /// `stdout` or `stderr`.
    pub stream: String,
    /// False if it goes on in the stream's next entry.
    pub full: bool,
    pub text: String,
}

/// What a finished exec left.
#[derive(Debug, PartialEq, Eq)]
pub struct Exec {
    pub stdout: String,
    pub stderr: String,
    pub code: i32,
}

impl Container<'_> {
    pub fn id(&self) -> &str {
        &self.id
    }

    pub fn start(&self) -> Result<(), Status> {
        self.call::<Empty>("StartContainer").map(drop)
    }

    pub fn status(&self) -> api::ContainerStatus {
        self.call::<api::ContainerStatusResponse>("ContainerStatus").unwrap().status.unwrap()
    }

    pub fn state(&self) -> ContainerState {
        self.status().state()
    }

    /// Waits for its end and returns its last status.
    pub fn ended(&self) -> api::ContainerStatus {
        eventually(&format!("the end of container {}", self.id), || {
            let status = self.status();
            (status.state() == ContainerState::Exited).then_some(status)
        })
    }

    /// Runs a command in it, without a limit of time.
    pub fn exec(&self, command: &[&str]) -> Exec {
        self.try_exec(command, 0).unwrap_or_else(|error| panic!("ExecSync {command:?}: {error}"))
    }

    /// Runs a command in it for so many seconds at most.
    pub fn try_exec(&self, command: &[&str], timeout: i64) -> Result<Exec, Status> {
        let request = api::ExecSyncRequest { container_id: self.id.clone(), cmd: words(command), timeout };
        let answer: api::ExecSyncResponse = self.pod.cri.call("ExecSync", &request)?;
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        Ok(Exec { stdout: text(&answer.stdout), stderr: text(&answer.stderr), code: answer.exit_code })
    }

    /// What a command in it prints; it must succeed.
    pub fn output(&self, command: &[&str]) -> String {
        let exec = self.exec(command);
        assert_eq!(exec.code, 0, "{command:?}: {exec:?}");
        exec.stdout
    }

    /// What a line of shell in it prints; it must succeed.
    pub fn shell(&self, line: &str) -> String {
        self.output(&["sh", "-c", line])
    }

    /// Runs a command in it whose streams stay connected.
    pub fn exec_stream(&self, tty: bool, command: &[&str]) -> Session {
        let request = api::ExecRequest {
            container_id: self.id.clone(),
            cmd: words(command),
            tty,
            stdin: true,
            stdout: true,
            // A terminal has one output.
            stderr: !tty,
        };
        self.pod.cri.stream("Exec", &request, "")
    }

    /// Connects to the streams of its first process.
    pub fn attach(&self, tty: bool) -> Session {
        let request =
            api::AttachRequest { container_id: self.id.clone(), stdin: true, tty, stdout: true, stderr: !tty };
        self.pod.cri.stream("Attach", &request, "")
    }

    pub fn stats(&self) -> api::ContainerStats {
        self.call::<api::ContainerStatsResponse>("ContainerStats").unwrap().stats.unwrap()
    }

    pub fn update(&self, resources: api::LinuxContainerResources) -> Result<(), Status> {
        let request = api::UpdateContainerResourcesRequest { container_id: self.id.clone(), linux: Some(resources) };
        self.pod.cri.call::<Empty>("UpdateContainerResources", &request).map(drop)
    }

    /// Has an archive written of it as it is, while it runs.
    pub fn checkpoint(&self, archive: &Path) -> Result<(), Status> {
        let location = archive.to_str().unwrap().into();
        let request = api::CheckpointContainerRequest { container_id: self.id.clone(), location, timeout: 30 };
        self.pod.cri.call::<Empty>("CheckpointContainer", &request).map(drop)
    }

    /// Asks it to end, and kills it after so many seconds.
    pub fn stop(&self, timeout: i64) -> Result<(), Status> {
        let request = api::StopContainerRequest { container_id: self.id.clone(), timeout };
        self.pod.cri.call::<Empty>("StopContainer", &request).map(drop)
    }

    pub fn remove(&self) -> Result<(), Status> {
        self.call::<Empty>("RemoveContainer").map(drop)
    }

    /// Its log so far.
    pub fn log(&self) -> Vec<Line> {
        let log = fs::read(&self.log).unwrap_or_default();
        String::from_utf8(log).unwrap().lines().map(line).collect()
    }

    /// One stream of its log so far, as it was written.
    pub fn logged(&self, stream: &str) -> String {
        let log = self.log();
        let lines = log.iter().filter(|line| line.stream == stream);
        lines.map(|line| format!("{}{}", line.text, if line.full { "\n" } else { "" })).collect()
    }

    /// Waits until the text is in its log.
    pub fn until_it_says(&self, text: &str) {
        eventually(&format!("{text:?} in the log of {}", self.id), || {
            self.logged("stdout").contains(text).then_some(())
        });
    }

    fn call<R: prost::Message + Default>(&self, method: &str) -> Result<R, Status> {
        self.pod.cri.call(method, &api::ContainerId { container_id: self.id.clone() })
    }
}

/// Parses a line of a log: time, stream, tag, text.
fn line(line: &str) -> Line {
    let mut fields = line.splitn(4, ' ');
    let mut field = || fields.next().unwrap_or_else(|| panic!("not a line of a container's log: {line:?}"));
    let time = field();
    assert!(time.starts_with("20") && time.contains('T'), "no time in {line:?}");
    let stream = field().to_owned();
    let full = match field() {
        "F" => true,
        "P" => false,
        other => panic!("tag {other:?} in {line:?}"),
    };
    Line { stream, full, text: field().to_owned() }
}

fn words(words: &[&str]) -> Vec<String> {
    words.iter().map(ToString::to_string).collect()
}
