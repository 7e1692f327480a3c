//! The Task service: requests in containerd's words, translated for the pod and its containers, and their answers back.
//!
//! It holds no state and waits for nothing but the answer it was asked for; a request whose caller goes away is
//! carried out by the actor all the same.

use std::path::Path;
use std::sync::Arc;

use async_trait::async_trait;
use containerd_shim_protos::api::{
    CheckpointTaskRequest, CloseIORequest, ConnectRequest, ConnectResponse, CreateTaskRequest, CreateTaskResponse,
    DeleteRequest, DeleteResponse, ExecProcessRequest, KillRequest, PauseRequest, PidsRequest, PidsResponse,
    ProcessInfo, ResizePtyRequest, ResumeRequest, ShutdownRequest, StartRequest, StartResponse, StateRequest,
    StateResponse, StatsRequest, StatsResponse, Status as ApiStatus, UpdateTaskRequest, WaitRequest, WaitResponse,
};
use containerd_shim_protos::protobuf::well_known_types::any::Any;
use containerd_shim_protos::protobuf::well_known_types::empty::Empty;
use containerd_shim_protos::protobuf::{Message as _, MessageField};
use containerd_shim_protos::shim::oci::ProcessDetails;
use containerd_shim_protos::shim_async::{Task, create_task};
use serde_json::{Map, Value};
use tokio::sync::oneshot;
use ttrpc::r#async::TtrpcContext;

use super::container::{Deleted, Handle, Request, Status};
use super::pod::{Found, Message, Pod};
use super::{TaskError, checkpoint, create};
use crate::bundle::{Bundle, Id};
use crate::events::timestamp;
use crate::rpc::Services;
use crate::stdio::StreamNames;

/// The service, for one pod.
pub struct TaskService {
    pod: Pod,
}

impl TaskService {
    /// The service under both of its names: v2 and v3 differ in the package alone.
    pub fn services(pod: Pod) -> Services {
        let service = Arc::new(Self { pod });
        let mut services = create_task(service.clone());
        services
            .extend(create_task(service).into_values().map(|service| ("containerd.task.v2.Task".to_owned(), service)));
        services
    }

    async fn container(&self, id: &str) -> Result<Handle, TaskError> {
        match self.pod.find(id).await {
            Found::Here(container) => Ok(container),
            Found::Deleted(_) | Found::Unknown => Err(TaskError::no_container(id)),
        }
    }
}

/// The exec that a request names; the empty name is the init.
fn exec(id: &str) -> Result<Option<Id>, TaskError> {
    if id.is_empty() { Ok(None) } else { Ok(Some(Id::parse(id)?)) }
}

fn deleted(end: Deleted) -> DeleteResponse {
    DeleteResponse {
        pid: end.pid,
        exit_status: end.exit.code,
        exited_at: MessageField::some(timestamp(end.exit.at)),
        ..DeleteResponse::default()
    }
}

type Answer<T> = ttrpc::Result<T>;

#[async_trait]
impl Task for TaskService {
    async fn create(&self, _: &TtrpcContext, request: CreateTaskRequest) -> Answer<CreateTaskResponse> {
        let (reply, pid) = oneshot::channel();
        let id = Id::parse(&request.id).map_err(TaskError::from)?;
        if !request.parent_checkpoint.is_empty() {
            let named = "no runtime is told of a checkpoint's parent: an incremental checkpoint names it itself";
            return Err(TaskError::Invalid(named.into()).into());
        }
        if !request.checkpoint.is_empty() {
            checkpoint::directory("path", &request.checkpoint)?;
        }
        let bundle = Path::new(&request.bundle);
        if !bundle.is_absolute() {
            return Err(TaskError::Invalid(format!("bundle {:?} is not an absolute path", request.bundle)).into());
        }
        self.pod.send(Message::Create(Box::new(create::Request {
            id,
            bundle: Bundle::at(bundle),
            rootfs: request.rootfs,
            names: StreamNames {
                stdin: request.stdin,
                stdout: request.stdout,
                stderr: request.stderr,
                terminal: request.terminal,
            },
            checkpoint: request.checkpoint,
            options: request.options.into_option(),
            reply,
        })));
        let pid = pid.await.map_err(|_| TaskError::Ending)??;
        Ok(CreateTaskResponse { pid, ..CreateTaskResponse::default() })
    }

    async fn start(&self, _: &TtrpcContext, request: StartRequest) -> Answer<StartResponse> {
        let exec = exec(&request.exec_id)?;
        let container = self.container(&request.id).await?;
        let pid = container.ask(|reply| Request::Start { exec, reply }).await?;
        Ok(StartResponse { pid, ..StartResponse::default() })
    }

    async fn state(&self, _: &TtrpcContext, request: StateRequest) -> Answer<StateResponse> {
        let exec = exec(&request.exec_id)?;
        let container = self.container(&request.id).await?;
        let process = container.ask(|reply| Request::State { exec, reply }).await?;
        let status = match process.status {
            Status::Created => ApiStatus::CREATED,
            Status::Running => ApiStatus::RUNNING,
            Status::Pausing => ApiStatus::PAUSING,
            Status::Paused => ApiStatus::PAUSED,
            Status::Stopped => ApiStatus::STOPPED,
        };
        Ok(StateResponse {
            // The process's, as Go's shim has it.
            id: if request.exec_id.is_empty() { request.id } else { request.exec_id.clone() },
            exec_id: request.exec_id,
            bundle: process.bundle,
            pid: process.pid,
            status: status.into(),
            stdin: process.names.stdin,
            stdout: process.names.stdout,
            stderr: process.names.stderr,
            terminal: process.names.terminal,
            exit_status: process.exit.map_or(0, |exit| exit.code),
            exited_at: process.exit.map(|exit| timestamp(exit.at)).into(),
            ..StateResponse::default()
        })
    }

    async fn wait(&self, _: &TtrpcContext, request: WaitRequest) -> Answer<WaitResponse> {
        let exec = exec(&request.exec_id)?;
        let exit = match self.pod.find(&request.id).await {
            Found::Here(container) => container.ask(|reply| Request::Wait { exec, reply }).await?,
            Found::Deleted(end) if exec.is_none() => end.exit,
            Found::Deleted(_) | Found::Unknown => {
                return Err(TaskError::no_container(&request.id).into());
            }
        };
        Ok(WaitResponse {
            exit_status: exit.code,
            exited_at: MessageField::some(timestamp(exit.at)),
            ..WaitResponse::default()
        })
    }

    async fn kill(&self, _: &TtrpcContext, request: KillRequest) -> Answer<Empty> {
        let exec = exec(&request.exec_id)?;
        let container = self.container(&request.id).await?;
        container.ask(|reply| Request::Kill { exec, signal: request.signal, all: request.all, reply }).await?;
        Ok(Empty::new())
    }

    async fn delete(&self, _: &TtrpcContext, request: DeleteRequest) -> Answer<DeleteResponse> {
        let exec = exec(&request.exec_id)?;
        if exec.is_some() {
            let container = self.container(&request.id).await?;
            return Ok(deleted(container.ask(|reply| Request::Delete { exec, reply }).await?));
        }
        // Asked again where the answer does not come: the container was deleted for somebody else while this one waited for
        // its turn, and the pod knows its end. containerd takes a NOT_FOUND for a reason to publish that end once more.
        for _ in 0..2 {
            let (reply, end) = oneshot::channel();
            self.pod.send(Message::Delete(request.id.clone(), reply));
            if let Ok(end) = end.await {
                return Ok(deleted(end?));
            }
        }
        Err(TaskError::no_container(&request.id).into())
    }

    async fn exec(&self, _: &TtrpcContext, request: ExecProcessRequest) -> Answer<Empty> {
        let id = Id::parse(&request.exec_id).map_err(TaskError::from)?;
        let spec = process_spec(request.spec.into_option().unwrap_or_default().value, request.terminal)
            .ok_or_else(|| TaskError::Invalid(format!("the spec of exec {id} is not a process in JSON")))?;
        let names = StreamNames {
            stdin: request.stdin,
            stdout: request.stdout,
            stderr: request.stderr,
            terminal: request.terminal,
        };
        let container = self.container(&request.id).await?;
        container.ask(|reply| Request::Exec { id, spec, names, reply }).await?;
        Ok(Empty::new())
    }

    async fn pids(&self, _: &TtrpcContext, request: PidsRequest) -> Answer<PidsResponse> {
        let container = self.container(&request.id).await?;
        let pids = container.ask(|reply| Request::Pids { reply }).await?;
        let mut response = PidsResponse::new();
        for (pid, exec) in pids {
            let mut info = ProcessInfo { pid, ..ProcessInfo::default() };
            if let Some(exec) = exec {
                let details = ProcessDetails { exec_id: exec.to_string(), ..ProcessDetails::default() };
                let value = details.write_to_bytes().unwrap_or_default();
                let type_url = "containerd.runc.v1.ProcessDetails".to_owned();
                info.info = MessageField::some(Any { type_url, value, ..Any::default() });
            }
            response.processes.push(info);
        }
        Ok(response)
    }

    async fn pause(&self, _: &TtrpcContext, request: PauseRequest) -> Answer<Empty> {
        self.container(&request.id).await?.ask(|reply| Request::Pause { reply }).await?;
        Ok(Empty::new())
    }

    async fn resume(&self, _: &TtrpcContext, request: ResumeRequest) -> Answer<Empty> {
        self.container(&request.id).await?.ask(|reply| Request::Resume { reply }).await?;
        Ok(Empty::new())
    }

    async fn update(&self, _: &TtrpcContext, request: UpdateTaskRequest) -> Answer<Empty> {
        let resources = request.resources.into_option().unwrap_or_default().value;
        self.container(&request.id).await?.ask(|reply| Request::Update { resources, reply }).await?;
        Ok(Empty::new())
    }

    async fn checkpoint(&self, _: &TtrpcContext, request: CheckpointTaskRequest) -> Answer<Empty> {
        let container = self.container(&request.id).await?;
        let checkpoint = checkpoint::requested(&request)?;
        container.ask(|reply| Request::Checkpoint { checkpoint, reply }).await?;
        Ok(Empty::new())
    }

    async fn stats(&self, _: &TtrpcContext, request: StatsRequest) -> Answer<StatsResponse> {
        let metrics = self.container(&request.id).await?.ask(|reply| Request::Stats { reply }).await?;
        Ok(StatsResponse { stats: MessageField::some(metrics), ..StatsResponse::default() })
    }

    async fn resize_pty(&self, _: &TtrpcContext, request: ResizePtyRequest) -> Answer<Empty> {
        let exec = exec(&request.exec_id)?;
        let size = |characters: u32| u16::try_from(characters).unwrap_or(u16::MAX);
        let (width, height) = (size(request.width), size(request.height));
        let container = self.container(&request.id).await?;
        container.ask(|reply| Request::Resize { exec, width, height, reply }).await?;
        Ok(Empty::new())
    }

    async fn close_io(&self, _: &TtrpcContext, request: CloseIORequest) -> Answer<Empty> {
        let exec = exec(&request.exec_id)?;
        let container = self.container(&request.id).await?;
        if request.stdin {
            container.ask(|reply| Request::CloseStdin { exec, reply }).await?;
        }
        Ok(Empty::new())
    }

    async fn connect(&self, _: &TtrpcContext, request: ConnectRequest) -> Answer<ConnectResponse> {
        let task_pid = match self.pod.find(&request.id).await {
            Found::Here(container) => {
                container.ask(|reply| Request::State { exec: None, reply }).await.map_or(0, |task| task.pid)
            }
            // containerd connects to shims before they have a container.
            Found::Deleted(_) | Found::Unknown => 0,
        };
        Ok(ConnectResponse { shim_pid: std::process::id(), task_pid, ..ConnectResponse::default() })
    }

    async fn shutdown(&self, _: &TtrpcContext, _: ShutdownRequest) -> Answer<Empty> {
        let (reply, ends) = oneshot::channel();
        self.pod.send(Message::Shutdown(reply));
        let _ = ends.await;
        Ok(Empty::new())
    }
}

/// An exec's spec, with the terminal that the request asks for: clients set it there alone. `None` if it is no object.
fn process_spec(spec: Vec<u8>, terminal: bool) -> Option<Vec<u8>> {
    let mut process: Map<String, Value> = serde_json::from_slice(&spec).ok()?;
    if process.get("terminal").and_then(Value::as_bool).unwrap_or_default() == terminal {
        return Some(spec);
    }
    process.insert("terminal".into(), terminal.into());
    serde_json::to_vec(&process).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_exec_has_the_terminal_that_its_request_asks_for() {
        let cases: [(&str, bool, Option<&str>); 8] = [
            (r#"{"args": ["a"]}"#, false, Some(r#"{"args": ["a"]}"#)),
            (r#"{"args":["a"]}"#, true, Some(r#"{"args":["a"],"terminal":true}"#)),
            (r#"{"terminal": true}"#, true, Some(r#"{"terminal": true}"#)),
            (r#"{"terminal":true}"#, false, Some(r#"{"terminal":false}"#)),
            (r#"{"terminal":"odd"}"#, true, Some(r#"{"terminal":true}"#)),
            ("[]", true, None),
            ("}{", false, None),
            ("", false, None),
        ];
        for (spec, terminal, expected) in cases {
            let given = process_spec(spec.into(), terminal);
            assert_eq!(given.as_deref(), expected.map(str::as_bytes), "{spec}, {terminal}");
        }
    }
}
