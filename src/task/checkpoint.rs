//! Checkpoints, as a task has them: a request understood, one taken, and a container made from one.
//!
//! The runtime's command lines are in `runtime::checkpoint`; the container's actor says when, and never waits here.

use std::path::{Path, PathBuf};
use std::time::Duration;

use containerd_shim_protos::api::CheckpointTaskRequest;
use containerd_shim_protos::protobuf::Message as _;
use containerd_shim_protos::protobuf::well_known_types::any::Any;
use containerd_shim_protos::shim::oci;
use tokio::sync::oneshot;

use super::TaskError;
use super::create::{CONSOLE, accounts};
use crate::bundle::{Bundle, Id};
use crate::cgroup::{Cgroup, OomWatch};
use crate::config::quote;
use crate::runtime::checkpoint::{Checkpoint, Criu};
use crate::runtime::command::CommandError;
use crate::runtime::{INIT_PID, ProcessStreams, Runtime, RuntimeError, Started};
use crate::shim::reaper::Exit;
use crate::stdio::{ConsoleSocket, Origin, Stdio, StreamNames};

/// How long a checkpoint may go on when its container has ended, and how long a container when its checkpoint has.
const AFTERWARDS: Duration = Duration::from_secs(5);
const OPTIONS: &str = "containerd.runc.v1.CheckpointOptions";
/// What clients of containerd 1 make of the same where the runtime's type is not runc's own; its two paths have each
/// other's numbers.
const OLD_OPTIONS: &str = "containerd.linux.runc.CheckpointOptions";

/// How a container that comes from a checkpoint is started.
#[derive(Clone, Debug)]
pub(super) enum Restore {
    /// It exists like any other, and gets what the checkpoint holds instead of its program.
    Into(PathBuf),
    /// Nothing of it exists before.
    Anew(PathBuf),
}

/// A container that was made from a checkpoint.
pub(super) struct Restored {
    pub(super) started: Started,
    pub(super) stdio: Stdio,
    pub(super) cgroup: Option<Cgroup>,
    pub(super) oom: Option<OomWatch>,
}

/// Understands a Checkpoint request.
pub(super) fn requested(request: &CheckpointTaskRequest) -> Result<Checkpoint, TaskError> {
    let options = options(request.options.as_ref())?;
    // containerd passes its clients' path on as the request's own; what is only in the options comes past it.
    let image = if request.path.is_empty() { options.image_path } else { request.path.clone() };
    Ok(Checkpoint {
        image: directory("image path", &image)?,
        exit: options.exit,
        criu: Criu {
            open_tcp: options.open_tcp,
            external_unix_sockets: options.external_unix_sockets,
            terminal: options.terminal,
            file_locks: options.file_locks,
            empty_namespaces: options.empty_namespaces,
            cgroups_mode: options.cgroups_mode,
            work: if options.work_path.is_empty() {
                PathBuf::new()
            } else {
                directory("work path", &options.work_path)?
            },
        },
    })
}

fn options(any: Option<&Any>) -> Result<oci::CheckpointOptions, TaskError> {
    let Some(any) = any.filter(|any| !(any.type_url.is_empty() && any.value.is_empty())) else {
        return Ok(oci::CheckpointOptions::default());
    };
    let name = any.type_url.rsplit('/').next().unwrap_or_default();
    if ![OPTIONS, OLD_OPTIONS].contains(&name) {
        let found = quote(&any.type_url);
        return Err(TaskError::Invalid(format!("a checkpoint's options are of type {OPTIONS}, not {found}")));
    }
    let mut options = oci::CheckpointOptions::parse_from_bytes(&any.value)
        .map_err(|error| TaskError::Invalid(format!("{name} is malformed: {error}")))?;
    if name == OLD_OPTIONS {
        std::mem::swap(&mut options.image_path, &mut options.work_path);
    }
    Ok(options)
}

/// A directory that containerd names; the shim's own working directory is nobody's business.
pub(super) fn directory(what: &str, name: &str) -> Result<PathBuf, TaskError> {
    let directory = PathBuf::from(name);
    if directory.is_absolute() {
        Ok(directory)
    } else {
        Err(TaskError::Invalid(format!("the checkpoint's {what} {} is not an absolute path", quote(name))))
    }
}

/// Takes a checkpoint of container `id`; it is paused already, by the pause of `paused`, or not, and `ended` tells its end. On failure it is as it was.
pub(super) async fn take(
    runtime: &Runtime,
    checkpoint: &Checkpoint,
    id: &Id,
    paused: Option<Id>,
    mut ended: oneshot::Receiver<Result<Exit, TaskError>>,
) -> Result<(), RuntimeError> {
    let mut over = false;
    let overdue = async {
        let _ = (&mut ended).await;
        over = true;
        tokio::time::sleep(AFTERWARDS).await;
    };
    let result = tokio::select! {
        result = runtime.checkpoint(checkpoint) => result,
        () = overdue => Err(RuntimeError::Failed("the container ended, and its checkpoint does not".into())),
    };
    let thaw = match &result {
        // A paused sandbox is dead only when it goes on: the end of its processes is decided, but waits.
        Ok(()) => paused.filter(|_| checkpoint.exit && runtime.is_gvisor()),
        // CRIU freezes the cgroup itself, and was killed before it could thaw it.
        Err(RuntimeError::Command(CommandError::Deadline { .. })) => {
            (paused.is_none() && !runtime.is_gvisor()).then(|| id.clone())
        }
        Err(_) => None,
    };
    if let Some(paused) = thaw
        && let Err(error) = runtime.resume(&paused).await
    {
        log::debug!(error = error.to_string().as_str(); "nothing to resume after a checkpoint");
    }
    if checkpoint.exit && result.is_ok() && !over {
        // Who has the answer may delete the container.
        let _ = tokio::time::timeout(AFTERWARDS, ended).await;
    }
    result
}

/// Makes a container from a checkpoint. Given up, or failed, it leaves nothing but the log that the error names.
pub(super) async fn restore(
    runtime: &Runtime,
    bundle: &Bundle,
    id: &Id,
    image: &Path,
    names: &StreamNames,
    origin: &Origin,
    give_up: oneshot::Receiver<()>,
) -> Result<Restored, TaskError> {
    // Nothing of it is deleted when it is not ours.
    runtime.refuse_duplicate().await?;
    let given_up = async {
        if give_up.await.is_err() {
            std::future::pending::<()>().await;
        }
    };
    let result = tokio::select! {
        restored = run(runtime, bundle, id, image, names, origin) => restored,
        () = given_up => Err(TaskError::WrongState(format!("container {id} was killed while it was being restored"))),
    };
    if result.is_err() {
        if let Err(error) = runtime.delete(true).await {
            log::warn!(container_id = id.as_str(), error = error.to_string().as_str(); "a failed restore may have left something behind");
        }
        bundle.remove(INIT_PID);
    }
    result
}

async fn run(
    runtime: &Runtime,
    bundle: &Bundle,
    id: &Id,
    image: &Path,
    names: &StreamNames,
    origin: &Origin,
) -> Result<Restored, TaskError> {
    let (started, stdio) = if names.terminal {
        let socket = ConsoleSocket::listen(bundle.path(), CONSOLE)?;
        let started = runtime.restore(image, ProcessStreams::default(), Some(socket.name())).await?;
        (started, Stdio::terminal(names, socket.receive().await?, origin, id.as_str()).await?)
    } else {
        let (stdio, streams) = Stdio::pipes(names, origin, id.as_str()).await?;
        (runtime.restore(image, streams, None).await?, stdio)
    };
    let (cgroup, oom) = accounts(id, started.pid);
    Ok(Restored { started, stdio, cgroup, oom })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn request(path: &str, options: Option<(&str, oci::CheckpointOptions)>) -> CheckpointTaskRequest {
        let options = options.map(|(type_url, options)| Any {
            type_url: type_url.into(),
            value: options.write_to_bytes().unwrap(),
            ..Any::default()
        });
        CheckpointTaskRequest { path: path.into(), options: options.into(), ..CheckpointTaskRequest::default() }
    }

    #[test]
    fn a_request_without_options_leaves_the_container_running() {
        let checkpoint = requested(&request("/images", None)).unwrap();
        assert_eq!(checkpoint, Checkpoint { image: "/images".into(), ..Checkpoint::default() });
    }

    #[test]
    fn each_option_of_containerd_s_arrives() {
        let options = oci::CheckpointOptions {
            exit: true,
            open_tcp: true,
            external_unix_sockets: true,
            terminal: true,
            file_locks: true,
            empty_namespaces: vec!["network".into()],
            cgroups_mode: "soft".into(),
            image_path: "/other".into(),
            work_path: "/work".into(),
            ..oci::CheckpointOptions::default()
        };
        let checkpoint = requested(&request("/images", Some((OPTIONS, options.clone())))).unwrap();
        let criu = Criu {
            open_tcp: true,
            external_unix_sockets: true,
            terminal: true,
            file_locks: true,
            empty_namespaces: vec!["network".into()],
            cgroups_mode: "soft".into(),
            work: "/work".into(),
        };
        assert_eq!(checkpoint, Checkpoint { image: "/images".into(), exit: true, criu });
        let checkpoint = requested(&request("", Some((&format!("types.containerd.io/{OPTIONS}"), options)))).unwrap();
        assert_eq!(checkpoint.image, Path::new("/other"));

        let swapped = oci::CheckpointOptions {
            image_path: "/work".into(),
            work_path: "/images".into(),
            exit: true,
            ..oci::CheckpointOptions::default()
        };
        let checkpoint = requested(&request("", Some((OLD_OPTIONS, swapped)))).unwrap();
        let criu = Criu { work: "/work".into(), ..Criu::default() };
        assert_eq!(checkpoint, Checkpoint { image: "/images".into(), exit: true, criu });
    }

    #[test]
    fn what_cannot_be_meant_is_refused() {
        let work = oci::CheckpointOptions { work_path: "work".into(), ..oci::CheckpointOptions::default() };
        let table = [
            (request("", None), "image path"),
            (request("images", None), "image path"),
            (request("/images", Some((OPTIONS, work))), "work path"),
            (request("/images", Some(("example.com/odd", oci::CheckpointOptions::default()))), "example.com/odd"),
        ];
        for (request, named) in table {
            let refused = requested(&request).unwrap_err();
            assert!(matches!(refused, TaskError::Invalid(_)), "{refused:?}");
            assert!(refused.to_string().contains(named), "{refused}");
        }
    }
}
