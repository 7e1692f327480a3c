//! A container's execs, from their request to their delete. Each has its files in the bundle under a name of the shim's.

use containerd_shim_protos::events::task as event;

use super::{Container, Deleted, Report};
use crate::bundle::{Bundle, Id};
use crate::runtime::{ExecStreams, Runtime, Started};
use crate::shim::reaper::Exit;
use crate::stdio::{Console, ConsoleSocket, Origin, Stdio, StreamNames};
use crate::task::process::{Process, State, killed};
use crate::task::{Reply, TaskError};

impl Container {
    pub(super) fn add_exec(&mut self, id: Id, spec: Vec<u8>, names: StreamNames) -> Result<(), TaskError> {
        if self.execs.contains_key(&id) || id == self.id {
            return Err(TaskError::AlreadyExists(format!("exec {id} already exists in container {}", self.id)));
        }
        if self.init.exit().is_some() {
            return Err(TaskError::WrongState(format!(
                "container {} has ended; nothing can be executed in it",
                self.id
            )));
        }
        self.events.publish(event::TaskExecAdded {
            container_id: self.id.to_string(),
            exec_id: id.to_string(),
            ..Default::default()
        });
        self.execs.insert(id.clone(), Process::created(None, names, None));
        self.exec_specs.insert(id, spec);
        Ok(())
    }

    pub(super) fn start_exec(&mut self, id: Id, reply: Reply<u32>) {
        let ended = self.init.exit().is_some();
        // runc's containers have their namespaces from their creation on.
        let is_created = !self.runtime.is_gvisor() && matches!(self.init.state, State::Created { .. });
        let begun = match self.execs.get_mut(&id) {
            None if !ended => Err(TaskError::no_exec(id.as_str())),
            _ if !(self.init.is_alive() || is_created) => {
                Err(TaskError::WrongState(format!("container {} does not run; nothing can be executed in it", self.id)))
            }
            None => Err(TaskError::no_exec(id.as_str())),
            Some(exec) => exec.begin().map(|()| exec.names.clone()),
        };
        let names = match begun {
            Ok(names) => names,
            Err(error) => return drop(reply.send(Err(error))),
        };
        self.exec_count += 1;
        let name = format!("exec-{}", self.exec_count);
        let spec = self.exec_specs.get(&id).cloned().unwrap_or_default();
        let (runtime, bundle, origin) = (self.runtime.clone(), self.bundle.clone(), self.origin.clone());
        self.report(async move {
            let result = run_exec(&runtime, &bundle, &name, &spec, &names, &origin, &id).await;
            Report::ExecStarted(id, result, reply)
        });
    }

    pub(super) fn exec_started(&mut self, id: &Id, result: Result<(Started, Stdio), TaskError>, reply: Reply<u32>) {
        let Some(exec) = self.execs.get_mut(id) else {
            return;
        };
        match result {
            Ok((started, stdio)) => {
                exec.started(started.pid);
                exec.connect(stdio);
                self.exec_specs.remove(id);
                exec.inner_pid = started.inner_pid;
                let pid = exec.pid();
                self.events.publish(event::TaskExecStarted {
                    container_id: self.id.to_string(),
                    exec_id: id.to_string(),
                    pid,
                    ..Default::default()
                });
                let _ = reply.send(Ok(pid));
                if let Some(claim) = started.exit {
                    self.watch(Some(id.clone()), claim);
                }
            }
            Err(error) => {
                log::error!(container_id = self.id.as_str(), exec_id = id.as_str(), error = error.to_string().as_str(); "exec failed");
                // It never ran: it can be deleted or started once more, and there is no exit to announce.
                exec.not_started();
                let _ = reply.send(Err(error));
                self.announce_init_exit_if_last();
            }
        }
    }

    pub(super) fn delete_exec(&mut self, id: Id, reply: Reply<Deleted>) {
        let Some(exec) = self.execs.get_mut(&id) else {
            return drop(reply.send(Err(TaskError::no_exec(id.as_str()))));
        };
        let exit = match exec.state {
            State::Stopped { exit, .. } => exit,
            State::Created { .. } => Exit { code: 0, ..killed() },
            State::Starting { .. } | State::Running { .. } => {
                let running = format!("exec {id} runs; kill it before you delete it");
                return drop(reply.send(Err(TaskError::WrongState(running))));
            }
        };
        exec.deletes.push(reply);
        if exec.deletes.len() > 1 {
            // It is being deleted, and the answer will be the same.
            return;
        }
        let end = Deleted { pid: exec.pid(), exit };
        let stdio = exec.stdio.take().unwrap_or_default();
        self.exec_specs.remove(&id);
        self.report(async move {
            stdio.drain().await;
            Report::ExecDrained(id, end)
        });
    }
}

async fn run_exec(
    runtime: &Runtime,
    bundle: &Bundle,
    name: &str,
    spec: &[u8],
    names: &StreamNames,
    origin: &Origin,
    id: &Id,
) -> Result<(Started, Stdio), TaskError> {
    let file = format!("{name}.json");
    bundle.write(&file, spec)?;
    let path = bundle.join(&file);
    let run = async {
        if names.terminal && runtime.is_gvisor() {
            // runsc takes a console socket only with --detach, which we do not use.
            let (console, terminal) = Console::pair()?;
            let started = runtime.exec(name, &path, ExecStreams::Terminal(terminal)).await?;
            Ok((started, Stdio::terminal(names, console, origin, id.as_str()).await?))
        } else if names.terminal {
            let socket = ConsoleSocket::listen(bundle.path(), &format!("{name}.sock"))?;
            let started = runtime.exec(name, &path, ExecStreams::Socket(socket.name())).await?;
            let console = socket.receive().await?;
            Ok((started, Stdio::terminal(names, console, origin, id.as_str()).await?))
        } else {
            let (stdio, streams) = Stdio::pipes(names, origin, id.as_str()).await?;
            Ok((runtime.exec(name, &path, ExecStreams::Pipes(streams)).await?, stdio))
        }
    };
    let result = run.await;
    bundle.remove(&file);
    result
}
