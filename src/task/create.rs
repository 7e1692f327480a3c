//! The making of a container: decision, record, spec, root file system, streams, runtime, cgroup; in this order, and
//! unmade in reverse if a step fails.

use std::path::PathBuf;

use containerd_shim_protos::events::task::{TaskCreate, TaskIO};
use containerd_shim_protos::protobuf::MessageField;
use containerd_shim_protos::protobuf::well_known_types::any::Any;
use containerd_shim_protos::types::mount::Mount;
use tokio::sync::OnceCell;

use super::checkpoint::Restore;
use super::container::Container;
use super::pod::Shim;
use super::process::Process;
use super::sandbox::{Guest, Host, Place, Sandbox};
use super::{Reply, TaskError};
use crate::bundle::record::Record;
use crate::bundle::rewrite::Rules;
use crate::bundle::volumes::Volumes;
use crate::bundle::{Annotations, Bundle, Id, rewrite, rootfs};
use crate::cgroup::{self, Cgroup, OomWatch};
use crate::config::file::{ENVIRONMENT, load};
use crate::config::{ContainerRuntime, HandlerOptions, RuncOptions};
use crate::runtime::{ProcessStreams, Runtime, RuntimeError, Started, probe, runsc_name};
use crate::select::{Decision, SpecView, Workload, plan};
use crate::shim::log::emit;
use crate::shim::reaper::Claim;
use crate::stdio::{ConsoleSocket, Origin, Owner, Stdio, StreamNames};

/// CRI's annotations of a container that belongs to a pod.
const CONTAINER_TYPE: &str = "io.kubernetes.cri.container-type";
const SANDBOX_ID: &str = "io.kubernetes.cri.sandbox-id";

/// The name of the console socket in the bundle.
pub(super) const CONSOLE: &str = "console.sock";

/// A Create request, checked as far as it can be without looking at the bundle.
pub(super) struct Request {
    pub(super) id: Id,
    pub(super) bundle: Bundle,
    pub(super) rootfs: Vec<Mount>,
    pub(super) names: StreamNames,
    pub(super) checkpoint: String,
    pub(super) options: Option<Any>,
    pub(super) reply: Reply<u32>,
}

/// What the pod's first container decided for all of them.
#[derive(Clone, Debug)]
pub(super) struct PodDecision {
    decision: Decision,
    record: Record,
}

/// The parts that are unmade if the making fails, by being dropped before it is disarmed.
struct Undo<'a> {
    bundle: &'a Bundle,
    armed: bool,
}

impl Drop for Undo<'_> {
    fn drop(&mut self) {
        if self.armed {
            rootfs::unmount_all(&self.bundle.rootfs());
            Record::remove(self.bundle);
        }
    }
}

/// Makes the container. Its create event is published before this returns, so that nothing of it can come earlier.
pub(super) async fn create(
    shim: &Shim,
    pod: &OnceCell<PodDecision>,
    sandbox: Option<&Sandbox>,
    request: &Request,
) -> Result<Container, TaskError> {
    let Request { id, bundle, names, .. } = request;
    let config = bundle.config()?;
    let spec: SpecView = bundle.parse("config.json", &config)?;
    drop(config);
    let workload = Workload::from_spec(&spec);
    let annotations = spec.annotations();
    let options = HandlerOptions::decode(request.options.as_ref())?;
    let decided = pod.get_or_try_init(|| decide(shim, id, &options, &spec, &annotations, &workload)).await?;
    decided.decision.admit(&workload, &annotations)?;

    let guest = guest(&decided.decision, &annotations, sandbox)?;
    let mut record = decided.record.clone();
    record.in_sandbox = guest.is_some();
    if matches!(decided.decision.runtime, crate::select::Runtime::Gvisor(_)) && !record.systemd_cgroup {
        record.cgroup =
            spec.cgroups_path().and_then(|path| Cgroup::of_spec(path, id.as_str()).transpose()).transpose()?;
    }
    if decided.decision.runtime.kind() == ContainerRuntime::Runc {
        // Of a gVisor pod all commands have the same flags; runc's containers are each by themselves.
        record.follow(&options.runc, spec.systemd_cgroup() && probe::systemd_runs());
    }
    record.write(bundle)?;
    let mut undo = Undo { bundle, armed: true };
    let runtime = Runtime::new(record, bundle.clone(), id.clone(), shim.reaper.clone());
    let mut volumes = Volumes::default();
    if let crate::select::Runtime::Gvisor(gvisor) = &decided.decision.runtime {
        let devices = gvisor.nvproxy && workload.asks_for_gpu();
        let rules = Rules { devices, keep: &|key| decided.decision.passes_annotation(key) };
        match &guest {
            Some(guest) => {
                let sandbox = guest.sandbox();
                rewrite::for_guest(bundle, &rules, sandbox.volumes(), &runsc_name(sandbox.id()))?;
            }
            None => volumes = rewrite::for_sandbox(bundle, &rules, &annotations, gvisor.release)?,
        }
        if gvisor.nvproxy {
            log::info!(container_id = id.as_str(), nvproxy_enabled = true; "starting container with nvproxy");
        }
    }
    let restore = from_checkpoint(&runtime, &decided.decision, &request.checkpoint).await?;
    if let Some(Restore::Anew(_)) = restore {
        runtime.refuse_duplicate().await?;
    }
    rootfs::mount_all(&request.rootfs, &bundle.rootfs(), &shim.reaper).await?;
    let origin = Origin {
        namespace: shim.namespace.clone(),
        directory: bundle.path().to_owned(),
        owner: pipe_owner(&options.runc, &spec),
        reaper: shim.reaper.clone(),
    };
    let made = match restore {
        Some(Restore::Anew(_)) => Made { pid: None, exit: None, stdio: None, held: None, cgroup: None, oom: None },
        None | Some(Restore::Into(_)) => make(&runtime, request, &origin).await?,
    };
    undo.armed = false;

    shim.events.publish(TaskCreate {
        container_id: id.to_string(),
        bundle: bundle.path().to_string_lossy().into_owned(),
        rootfs: request.rootfs.clone(),
        io: MessageField::some(TaskIO {
            stdin: names.stdin.clone(),
            stdout: names.stdout.clone(),
            stderr: names.stderr.clone(),
            terminal: names.terminal,
            ..TaskIO::default()
        }),
        checkpoint: request.checkpoint.clone(),
        pid: made.pid.map_or(0, i32::unsigned_abs),
        ..TaskCreate::default()
    });
    let init = Process::created(made.pid, names.clone(), made.stdio);
    let (claim, shares_pids) = (made.exit, spec.shares_pids());
    let Made { held, cgroup, oom, .. } = made;
    let place = match (guest, made.pid) {
        (Some(guest), _) => Place::Guest(guest),
        (None, Some(pid)) if runtime.is_gvisor() => Place::Host(Host::new(id.clone(), pid, volumes)),
        (None, _) => Place::Alone,
    };
    let (id, bundle) = (id.clone(), bundle.clone());
    Ok(Container::new(shim, id, bundle, runtime, init, claim, held, restore, cgroup, oom, shares_pids, origin, place))
}

/// What a container is made of; nothing yet, if a restore is to make it.
struct Made {
    pid: Option<i32>,
    exit: Option<Claim>,
    stdio: Option<Stdio>,
    held: Option<ProcessStreams>,
    cgroup: Option<Cgroup>,
    oom: Option<OomWatch>,
}

/// Has the runtime create the container, and finds out what it is accounted by.
async fn make(runtime: &Runtime, request: &Request, origin: &Origin) -> Result<Made, TaskError> {
    let Request { id, bundle, names, .. } = request;
    let (started, stdio, held) = start_process(runtime, bundle, names, origin, id.as_str()).await?;
    let (cgroup, oom) = accounts(id, started.pid);
    Ok(Made { pid: Some(started.pid), exit: started.exit, stdio: Some(stdio), held, cgroup, oom })
}

/// The cgroup of a container's first process, and the watch over it. Without it the container runs all the same: its init
/// may have been killed already, which is its end to be told of and no failure to create it (containerd #9103).
pub(super) fn accounts(id: &Id, pid: i32) -> (Option<Cgroup>, Option<OomWatch>) {
    let warn = |what: &str, error: &cgroup::Error| log::warn!(container_id = id.as_str(), error = error.to_string().as_str(); "{what}");
    let cgroup = Cgroup::of_pid(pid).inspect_err(|error| warn("this container has no statistics", error)).ok();
    let oom = cgroup.as_ref().and_then(|cgroup| {
        let watch = OomWatch::arm(cgroup);
        watch.inspect_err(|error| warn("OOM kills of this container will not be noticed", error)).ok()
    });
    (cgroup, oom)
}

/// How the container will be started if the request names a checkpoint; `None` if it does not.
async fn from_checkpoint(runtime: &Runtime, decision: &Decision, image: &str) -> Result<Option<Restore>, TaskError> {
    if image.is_empty() {
        return Ok(None);
    }
    decision.admit_checkpoint()?;
    let image = PathBuf::from(image);
    runtime.expects_image(&image)?;
    let in_place = runtime.restores_in_place().await?;
    if !in_place && runtime.is_in_sandbox() {
        let old = "this runsc restores pods of one container alone; install one of May 2024 or later";
        return Err(RuntimeError::Unable(old.into()).into());
    }
    Ok(Some(if in_place { Restore::Into(image) } else { Restore::Anew(image) }))
}

/// Has the runtime create the container with its streams. Streams that are for a later start are held back.
async fn start_process(
    runtime: &Runtime,
    bundle: &Bundle,
    names: &StreamNames,
    origin: &Origin,
    id: &str,
) -> Result<(Started, Stdio, Option<ProcessStreams>), TaskError> {
    if names.terminal {
        let socket = ConsoleSocket::listen(bundle.path(), CONSOLE)?;
        let started = runtime.create(ProcessStreams::default(), Some(socket.name())).await?;
        let connect = async { Stdio::terminal(names, socket.receive().await?, origin, id).await };
        let stdio = match connect.await {
            Ok(stdio) => stdio,
            Err(error) => {
                let _ = runtime.delete(true).await;
                return Err(error.into());
            }
        };
        return Ok((started, stdio, None));
    }
    let (stdio, streams) = Stdio::pipes(names, origin, id).await?;
    if runtime.is_in_sandbox() {
        let started = runtime.create(ProcessStreams::default(), None).await?;
        return Ok((started, stdio, Some(streams)));
    }
    let started = runtime.create(streams, None).await?;
    Ok((started, stdio, None))
}

/// Whom a container's pipes are to belong to: as the options say, else the user of its init if that is in a user
/// namespace. Outside of one runc gives them to the user itself.
fn pipe_owner(options: &RuncOptions, spec: &SpecView) -> Option<Owner> {
    match (options.io_uid, options.io_gid) {
        (0, 0) => spec.mapped_user().map(|(uid, gid)| Owner { uid, gid }),
        (uid, gid) => Some(Owner { uid, gid }),
    }
}

/// The pod's decision, made by its first container.
async fn decide(
    shim: &Shim,
    id: &Id,
    options: &HandlerOptions,
    spec: &SpecView,
    annotations: &Annotations,
    workload: &Workload,
) -> Result<PodDecision, TaskError> {
    let config = load(options, std::env::var_os(ENVIRONMENT))?;
    let plan = plan(&config, options.pool.as_deref(), annotations, workload)?;
    let facts = probe::facts(&plan.needs(), &config.runsc, &shim.reaper).await;
    let decision = plan.settle(&facts)?;
    for line in decision.log_lines(id.as_str()) {
        emit(&line);
    }
    for reason in &decision.reasons {
        log::debug!(container_id = id.as_str(), reason = reason.as_str(); "decided");
    }
    let record = Record {
        namespace: shim.namespace.clone(),
        decision: decision.clone(),
        in_sandbox: false,
        cgroup: None,
        systemd_cgroup: options.runc.systemd_cgroup || spec.systemd_cgroup() && probe::systemd_runs(),
        no_pivot_root: options.runc.no_pivot_root,
        no_new_keyring: options.runc.no_new_keyring,
        criu_work_path: options.runc.criu_work_path.clone().into(),
    };
    Ok(PodDecision { decision, record })
}

/// A container's place in its pod's sandbox, if it belongs into one: in gVisor, all of a pod's but the first. One without
/// CRI's annotations (ctr, BuildKit) has a sandbox of its own.
fn guest(
    decision: &Decision,
    annotations: &Annotations,
    sandbox: Option<&Sandbox>,
) -> Result<Option<Guest>, TaskError> {
    let gvisor = matches!(decision.runtime, crate::select::Runtime::Gvisor(_));
    if !gvisor || annotations.get(CONTAINER_TYPE).is_none_or(|kind| kind != "container") {
        return Ok(None);
    }
    let wanted = annotations.get(SANDBOX_ID).map(String::as_str).unwrap_or_default();
    let here = sandbox.filter(|sandbox| sandbox.id().as_str() == wanted);
    let guest = here.and_then(Sandbox::enter);
    guest.map(Some).ok_or_else(|| {
        let wanted = crate::config::quote(wanted);
        TaskError::WrongState(format!("the pod's sandbox {wanted} does not run; make a new one first"))
    })
}
