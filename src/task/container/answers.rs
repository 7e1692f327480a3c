//! What a container can tell: its state, its processes, what it uses. From memory where it can be.

use std::collections::HashMap;

use containerd_shim_protos::protobuf::well_known_types::any::Any;

use super::{Container, Snapshot, Status};
use crate::bundle::Id;
use crate::cgroup::Cgroup;
use crate::stdio::{Stdio, StdioError};
use crate::task::process::{Process, State};
use crate::task::standstill::Phase;
use crate::task::{Reply, TaskError};

impl Container {
    pub(super) fn process(&mut self, exec: Option<&Id>) -> Result<&mut Process, TaskError> {
        match exec {
            None => Ok(&mut self.init),
            Some(id) => self.execs.get_mut(id).ok_or_else(|| TaskError::no_exec(id.as_str())),
        }
    }

    pub(super) fn with_stdio(
        &mut self,
        exec: Option<&Id>,
        act: impl FnOnce(&mut Stdio) -> Result<(), StdioError>,
    ) -> Result<(), TaskError> {
        let process = self.process(exec)?;
        process.stdio.as_mut().map_or(Ok(()), act).map_err(TaskError::from)
    }

    pub(super) fn snapshot(&mut self, exec: Option<&Id>) -> Result<Snapshot, TaskError> {
        let (phase, bundle) = (self.standstill.phase(), self.bundle.path().to_string_lossy().into_owned());
        let process = self.process(exec)?;
        let status = match process.state {
            State::Created { .. } | State::Starting { .. } => Status::Created,
            State::Stopped { .. } => Status::Stopped,
            // Execs stand still with their init, and in a sandbox all do.
            State::Running { .. } => match phase {
                Phase::Moving => Status::Running,
                Phase::Pausing(_) => Status::Pausing,
                Phase::Paused(_) => Status::Paused,
            },
        };
        Ok(Snapshot { bundle, pid: process.pid(), status, names: process.names.clone(), exit: process.exit() })
    }

    /// A guest's cgroup is its sandbox's: what it used itself, the sandbox knows.
    pub(super) fn stats(&self, reply: Reply<Any>) {
        let Some(cgroup) = self.cgroup.clone() else {
            return drop(reply.send(Err(TaskError::NotFound(format!("container {} has no cgroup", self.id)))));
        };
        if !self.place.is_guest() {
            return drop(reply.send(cgroup.metrics().map_err(TaskError::from)));
        }
        let runtime = self.runtime.clone();
        tokio::spawn(async move {
            let usage = runtime.usage().await.map_err(TaskError::from);
            let _ = reply.send(usage.and_then(|usage| Ok(cgroup.metrics_of_one(&usage)?)));
        });
    }

    pub(super) fn pids(&mut self, reply: Reply<Vec<(u32, Option<Id>)>>) {
        let known: HashMap<u32, Id> = self
            .execs
            .iter()
            .filter(|(_, exec)| exec.is_alive())
            .map(|(id, exec)| (exec.inner_pid.map_or(exec.pid(), i32::unsigned_abs), id.clone()))
            .collect();
        let named = move |pids: Vec<u32>| pids.into_iter().map(|pid| (pid, known.get(&pid).cloned())).collect();
        // A container that has ended is still there until it is deleted: containerd 1.7 and later, back from a restart,
        // take a shim without any process for a leaked one and kill it, and its exit status with it.
        let init = self.init.pid();
        if self.init.exit().is_some() {
            return drop(reply.send(Ok(named(vec![init]))));
        }
        if !self.runtime.is_gvisor() {
            let pids = self.cgroup.as_ref().map_or(Ok(Vec::new()), Cgroup::procs).map_err(TaskError::from);
            return drop(reply.send(pids.map(|pids| named(pids.into_iter().map(i32::unsigned_abs).collect()))));
        }
        let runtime = self.runtime.clone();
        tokio::spawn(async move {
            let _ = reply.send(runtime.inner_pids().await.map(named).map_err(TaskError::from));
        });
    }
}
