//! A container's cgroup: where it is, what it has used, which processes it holds, and its removal.
//!
//! Owns the host's cgroup mode and one container's directories, which are read from a living process and
//! never computed from the spec: runtimes place containers in their own ways. One that a runtime left behind without a
//! process is the exception, and can only be removed. Never sets a limit and never kills. Called by the container's
//! actor (statistics, pids, OOM), and by `runtime` when a container is deleted.

mod file;
mod oom;
mod place;
mod tree;
mod v1;
mod v2;

#[cfg(test)]
mod lab;

use std::collections::BTreeMap;
use std::fs;
use std::io::{self, BufReader};
use std::path::{Component, Path, PathBuf};

use containerd_shim_protos::protobuf::well_known_types::any::Any;
use containerd_shim_protos::protobuf::{self, Message};
use nix::sys::statfs::{self, CGROUP2_SUPER_MAGIC};
use serde::{Deserialize, Serialize};

pub use oom::OomWatch;
pub use place::{Membership, Mount, parse_mountinfo, parse_proc_cgroup};

const MOUNT_POINT: &str = "/sys/fs/cgroup";

/// Why a cgroup could not be found, read, watched or removed.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The cgroup, or the process it was looked up by, has ended. The caller's answer is "not found".
    #[error("no cgroup at {0}: the container has ended, or its runtime made none for it")]
    Gone(PathBuf),
    /// The node offers no such controller to this cgroup.
    #[error("no {controller} controller at {path}: enable it on the node")]
    NoController {
        /// The controller's name.
        controller: &'static str,
        /// Where it was looked for.
        path: PathBuf,
    },
    /// Processes are left in a cgroup that was to be removed.
    #[error("cgroup {0} still holds processes: kill them, wait for their exit and try again")]
    Busy(PathBuf),
    /// The tree below a container's cgroup is beyond what the shim is ready to walk.
    #[error("cgroup tree at {0} is too large to walk")]
    TooLarge(PathBuf),
    /// A file of a cgroup or of procfs could not be read.
    #[error("read {path}: {source}")]
    Read {
        /// The file or directory.
        path: PathBuf,
        /// The system's reason.
        source: io::Error,
    },
    /// A cgroup directory could not be removed.
    #[error("remove cgroup {path}: {source}")]
    Remove {
        /// The directory.
        path: PathBuf,
        /// The system's reason.
        source: io::Error,
    },
    /// This process could not be moved into a cgroup.
    #[error("join {path}: {source}")]
    Join {
        /// The file that was written.
        path: PathBuf,
        /// The system's reason.
        source: io::Error,
    },
    /// The OOM watch could not be set up.
    #[error("watch {path} for OOM kills: {source}")]
    Watch {
        /// The file to be watched.
        path: PathBuf,
        /// The system's reason.
        source: io::Error,
    },
    /// The statistics could not be put into their message.
    #[error("encode cgroup metrics: {0}")]
    Encode(#[from] protobuf::Error),
}

/// What one of the containers in a cgroup has used, as far as it is known.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Usage {
    /// Processor time, in nanoseconds.
    pub cpu_ns: u64,
    /// Memory, in bytes.
    pub memory: u64,
    /// Processes.
    pub pids: u64,
}

/// The host's cgroup mode, which decides the statistics message that containerd expects.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Hierarchy {
    /// Legacy, or hybrid: resources are controlled by v1 controllers.
    V1,
    /// Unified: one tree for everything.
    V2,
}

impl Hierarchy {
    /// The mode of this host, as containerd tells it: by the file system at `/sys/fs/cgroup`.
    pub fn of_host() -> Result<Self, Error> {
        let stat = statfs::statfs(MOUNT_POINT)
            .map_err(|errno| Error::Read { path: MOUNT_POINT.into(), source: errno.into() })?;
        Ok(match stat.filesystem_type() {
            CGROUP2_SUPER_MAGIC => Self::V2,
            _ => Self::V1,
        })
    }
}

/// The directories of one container. Plain data: it may be written to disk and read back by `delete`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Cgroup {
    /// A directory for each controller or named hierarchy (`name=systemd`); the empty name stands for the
    /// v2 tree of a hybrid host, as it does in `/proc/<pid>/cgroup`. Co-mounted controllers share one.
    V1(BTreeMap<String, PathBuf>),
    /// The one directory of the unified hierarchy.
    V2(PathBuf),
}

impl Cgroup {
    /// The cgroup that the process `pid` is in now. [`Error::Gone`] when the process has ended, or is
    /// nowhere but in the root cgroup, which is never a container's.
    pub fn of_pid(pid: i32) -> Result<Self, Error> {
        let (mut memberships, path) = memberships(&pid.to_string())?;
        // An exiting process shows the root on every v1 hierarchy (cgroupfs's proc_cgroup_show): without this
        // a container that died at once would be given the statistics of the whole host.
        memberships.retain(|membership| membership.path != Path::new("/"));
        let directories = place::directories(memberships, &mounts()?);
        Self::from_directories(Hierarchy::of_host()?, directories).ok_or(Error::Gone(path))
    }

    /// Where a runtime that makes cgroups by itself makes one for the container `id` whose spec has this cgroupsPath; whether
    /// it did is another question. `None` unless the last part of the path is the container's id: others' are not ours
    /// to remove, and that is all that this is good for.
    pub fn of_spec(path: &str, id: &str) -> Result<Option<Self>, Error> {
        let path = Path::new("/").join(path.trim_start_matches('/'));
        let plain = path.components().skip(1).all(|part| matches!(part, Component::Normal(_)));
        if !plain || path.file_name().is_none_or(|name| name != id) {
            return Ok(None);
        }
        let mounts = mounts()?;
        let everywhere = mounts
            .iter()
            .map(|mount| Membership { controllers: mount.options.clone().unwrap_or_default(), path: path.clone() });
        Ok(Self::from_directories(Hierarchy::of_host()?, place::directories(everywhere.collect(), &mounts)))
    }

    fn from_directories(hierarchy: Hierarchy, mut directories: BTreeMap<String, PathBuf>) -> Option<Self> {
        let is_controller = |name: &String| !name.is_empty() && !name.contains('=');
        match hierarchy {
            Hierarchy::V2 => directories.remove("").map(Self::V2),
            Hierarchy::V1 => directories.keys().any(is_controller).then_some(Self::V1(directories)),
        }
    }

    /// The statistics, as `io.containerd.cgroups.v1.Metrics` or `.v2.Metrics`: the messages that containerd
    /// and its clients decode by their type url. What a controller does not offer here is left unset.
    pub fn metrics(&self) -> Result<Any, Error> {
        self.ensure_there()?;
        match self {
            Self::V1(directories) => {
                any("io.containerd.cgroups.v1.Metrics", &v1::metrics(directories, &file::page_sizes()?)?)
            }
            Self::V2(directory) => {
                any("io.containerd.cgroups.v2.Metrics", &v2::metrics(directory, &file::page_sizes()?)?)
            }
        }
    }

    /// The statistics of one of several containers that this cgroup is the cgroup of, in the same messages: what it used
    /// is `usage`, what it may use is what all of them may.
    pub fn metrics_of_one(&self, usage: &Usage) -> Result<Any, Error> {
        self.ensure_there()?;
        match self {
            Self::V1(directories) => {
                any("io.containerd.cgroups.v1.Metrics", &v1::of_one(v1::metrics(directories, &[])?, usage))
            }
            Self::V2(directory) => {
                any("io.containerd.cgroups.v2.Metrics", &v2::of_one(v2::metrics(directory, &[])?, usage))
            }
        }
    }

    /// How many processes of this cgroup, and of those nested in it, the OOM killer has killed so far.
    pub fn oom_kills(&self) -> Result<u64, Error> {
        let directory = self.controller("memory")?;
        match self {
            Self::V1(_) => v1::oom_kills(directory),
            Self::V2(_) => v2::oom_kills(directory),
        }
    }

    /// The pids of all processes in this cgroup and in those nested in it, ascending. Empty when it is gone.
    pub fn procs(&self) -> Result<Vec<i32>, Error> {
        // On v1 every hierarchy has its own membership; these are the ones that runtimes fill and tenants do
        // not rearrange.
        ["pids", "memory", "devices"]
            .iter()
            .find_map(|controller| self.controller(controller).ok())
            .map_or_else(|| Ok(Vec::new()), tree::procs)
    }

    /// Removes the directories of this cgroup and those nested in it, as far as they exist.
    ///
    /// [`Error::Busy`] when processes are left; the kernel may count a killed process until it is reaped.
    /// A directory that the caller itself lives in (where the runtime made none of its own) is let be.
    pub fn remove(&self) -> Result<(), Error> {
        let (memberships, _) = memberships("self")?;
        let own = place::directories(memberships, &mounts()?);
        let mut directories = self.directories();
        directories.retain(|directory| !own.values().any(|own| own.starts_with(directory)));

        for directory in &directories {
            if !tree::procs(directory)?.is_empty() {
                return Err(Error::Busy(directory.to_path_buf()));
            }
        }
        directories.into_iter().try_for_each(tree::remove)
    }

    fn hierarchy(&self) -> Hierarchy {
        match self {
            Self::V1(_) => Hierarchy::V1,
            Self::V2(_) => Hierarchy::V2,
        }
    }

    /// Each directory once, though controllers may share it.
    fn directories(&self) -> Vec<&Path> {
        match self {
            Self::V1(directories) => {
                let mut all: Vec<_> = directories.values().map(PathBuf::as_path).collect();
                all.sort_unstable();
                all.dedup();
                all
            }
            Self::V2(directory) => vec![directory],
        }
    }

    fn controller(&self, controller: &'static str) -> Result<&Path, Error> {
        match self {
            Self::V1(directories) => directories
                .get(controller)
                .map(PathBuf::as_path)
                .ok_or_else(|| Error::NoController { controller, path: MOUNT_POINT.into() }),
            Self::V2(directory) => Ok(directory),
        }
    }

    fn ensure_there(&self) -> Result<(), Error> {
        let directories = self.directories();
        if directories.iter().any(|directory| directory.exists()) {
            return Ok(());
        }
        let first = directories.first().copied();
        Err(Error::Gone(first.unwrap_or(Path::new(MOUNT_POINT)).into()))
    }
}

/// Moves this process into an existing cgroup, named from the top of the tree; on v1 in every hierarchy that has it, as the
/// Go shim does. Children come along.
///
/// # Errors
/// There is none of this name, or the kernel refuses: a cgroup that others are delegated from, or a cpuset without CPUs.
pub fn join(name: &str) -> Result<(), Error> {
    let hierarchy = Hierarchy::of_host()?;
    let points = mounts()?.into_iter().filter(|mount| mount.root == Path::new("/"));
    let points = points.filter(|mount| mount.options.is_none() == (hierarchy == Hierarchy::V2));
    let name = name.trim_start_matches('/');
    let mut directories: Vec<_> = points.map(|mount| mount.point.join(name)).filter(|path| path.is_dir()).collect();
    directories.sort_unstable();
    directories.dedup();
    if directories.is_empty() {
        return Err(Error::Gone(Path::new(MOUNT_POINT).join(name)));
    }
    for path in directories.into_iter().map(|directory| directory.join("cgroup.procs")) {
        // 0 is the writer.
        fs::write(&path, "0").map_err(|source| Error::Join { path, source })?;
    }
    Ok(())
}

fn memberships(pid: &str) -> Result<(Vec<Membership>, PathBuf), Error> {
    let path = Path::new("/proc").join(pid).join("cgroup");
    match fs::read(&path) {
        Ok(text) => Ok((parse_proc_cgroup(&text), path)),
        Err(source) if file::is_absent(&source) => Err(Error::Gone(path)),
        Err(source) => Err(Error::Read { path, source }),
    }
}

fn mounts() -> Result<Vec<Mount>, Error> {
    let path = "/proc/self/mountinfo";
    fs::File::open(path)
        .and_then(|file| parse_mountinfo(BufReader::new(file)))
        .map_err(|source| Error::Read { path: path.into(), source })
}

/// The type url is the bare message name: that is how containerd's typeurl packs what Go's shim sends, where
/// `Any::pack` would put a host name before it.
fn any(name: &str, message: &impl Message) -> Result<Any, Error> {
    Ok(Any { type_url: name.to_owned(), value: message.write_to_bytes()?, ..Any::default() })
}

#[cfg(test)]
mod tests {
    use super::lab::Lab;
    use super::*;
    use containerd_shim_protos::{cgroups, cgroups_v2};

    fn directories(names: &[&str]) -> BTreeMap<String, PathBuf> {
        names.iter().map(|name| (name.to_string(), Path::new("/cg").join(name))).collect()
    }

    #[test]
    fn a_process_is_found_in_the_cgroup_it_was_put_in() {
        let lab = Lab::new();
        let child = lab.idle_child();
        let found = Cgroup::of_pid(child.pid()).unwrap();
        for directory in lab.directories() {
            assert!(found.directories().contains(&directory), "{found:?}");
        }
        assert_eq!(found.procs().unwrap(), [child.pid()]);
    }

    #[test]
    fn a_process_that_has_ended_has_no_cgroup() {
        let lab = Lab::new();
        let child = lab.idle_child();
        let pid = child.pid();
        drop(child);
        assert!(matches!(Cgroup::of_pid(pid), Err(Error::Gone(_))));
    }

    #[test]
    fn a_zombie_is_not_taken_for_a_process_of_the_root_cgroup() {
        let lab = Lab::new();
        let child = lab.idle_child();
        child.kill_without_reaping();
        match Cgroup::of_pid(child.pid()) {
            Err(Error::Gone(_)) => {}
            // v2 remembers where a zombie was.
            Ok(found) => assert_eq!(found, lab.cgroup()),
            Err(other) => panic!("{other}"),
        }
    }

    #[test]
    fn a_container_known_to_named_hierarchies_alone_has_no_v1_cgroup() {
        let names = directories(&["", "name=systemd"]);
        assert_eq!(Cgroup::from_directories(Hierarchy::V1, names), None);
    }

    #[test]
    fn a_hybrid_host_is_v1_and_keeps_the_unified_directory_for_removal() {
        let names = directories(&["", "memory", "name=systemd"]);
        let cgroup = Cgroup::from_directories(Hierarchy::V1, names.clone());
        assert_eq!(cgroup, Some(Cgroup::V1(names)));
    }

    #[test]
    fn a_unified_host_ignores_named_v1_hierarchies() {
        let names = directories(&["", "name=systemd"]);
        let cgroup = Cgroup::from_directories(Hierarchy::V2, names);
        assert_eq!(cgroup, Some(Cgroup::V2("/cg/".into())));
    }

    #[test]
    fn what_a_runtime_would_make_is_where_its_processes_would_be() {
        let lab = Lab::new();
        let child = lab.idle_child();
        let memberships = memberships(&child.pid().to_string()).unwrap().0;
        let unnamed = |membership: &&Membership| membership.controllers.iter().all(|name| !name.contains('='));
        let own = memberships.iter().filter(unnamed).find(|membership| membership.path != Path::new("/")).unwrap();
        let (path, id) = (own.path.to_str().unwrap(), own.path.file_name().unwrap().to_str().unwrap());
        let planned = Cgroup::of_spec(path, id).unwrap().unwrap();
        assert!(lab.directories().all(|directory| planned.directories().contains(&directory)), "{planned:?}");
        for other in ["/", "", "a", "/a/b", "/a/../id", "../id", "slice:prefix:id", "/id/"] {
            let other = Cgroup::of_spec(other, "id").unwrap();
            assert!(other.is_none() || other.unwrap().directories().iter().all(|path| path.ends_with("id")));
        }
    }

    #[test]
    fn a_cgroup_survives_being_written_to_disk() {
        for cgroup in [Cgroup::V1(directories(&["", "memory", "pids"])), Cgroup::V2("/cg".into())] {
            let text = serde_json::to_string(&cgroup).unwrap();
            assert_eq!(serde_json::from_str::<Cgroup>(&text).unwrap(), cgroup);
        }
    }

    #[test]
    fn statistics_carry_the_type_url_of_the_hosts_mode() {
        let lab = Lab::new();
        let child = lab.idle_child();
        let any = lab.cgroup().metrics().unwrap();
        let pids = match lab.cgroup() {
            Cgroup::V1(_) => {
                assert_eq!(any.type_url, "io.containerd.cgroups.v1.Metrics");
                let metrics = cgroups::metrics::Metrics::parse_from_bytes(&any.value).unwrap();
                metrics.pids.current
            }
            Cgroup::V2(_) => {
                assert_eq!(any.type_url, "io.containerd.cgroups.v2.Metrics");
                let metrics = cgroups_v2::metrics::Metrics::parse_from_bytes(&any.value).unwrap();
                metrics.pids.current
            }
        };
        assert_eq!(pids, 1);
        drop(child);
    }

    #[test]
    fn one_of_several_has_its_own_usage_and_the_limits_of_all() {
        let lab = Lab::new();
        let child = lab.idle_child();
        let usage = Usage { cpu_ns: 7_000_000, memory: 4096, pids: 3 };
        let (whole, one) = (lab.cgroup().metrics().unwrap(), lab.cgroup().metrics_of_one(&usage).unwrap());
        assert_eq!(one.type_url, whole.type_url);
        let numbers = |any: &Any| match lab.cgroup() {
            Cgroup::V1(_) => {
                let metrics = cgroups::metrics::Metrics::parse_from_bytes(&any.value).unwrap();
                (
                    metrics.cpu.usage.total / 1000,
                    metrics.memory.usage.usage,
                    metrics.memory.usage.limit,
                    metrics.pids.current,
                )
            }
            Cgroup::V2(_) => {
                let metrics = cgroups_v2::metrics::Metrics::parse_from_bytes(&any.value).unwrap();
                (metrics.cpu.usage_usec, metrics.memory.usage, metrics.memory.usage_limit, metrics.pids.current)
            }
        };
        assert_eq!(numbers(&one), (7000, 4096, numbers(&whole).2, 3));
        drop(child);
    }

    #[test]
    fn a_cgroup_that_is_gone_says_so() {
        let lab = Lab::new();
        lab.cgroup().remove().unwrap();
        assert!(matches!(lab.cgroup().metrics(), Err(Error::Gone(_))));
        assert!(matches!(lab.cgroup().oom_kills(), Err(Error::Gone(_))));
        assert!(lab.cgroup().procs().unwrap().is_empty());
        lab.cgroup().remove().unwrap();
    }

    #[test]
    fn removal_takes_nested_cgroups_along_but_no_living_process() {
        let lab = Lab::new();
        let nested = lab.nested("a/b");
        let child = nested.idle_child();
        assert_eq!(lab.cgroup().procs().unwrap(), [child.pid()]);
        assert!(matches!(lab.cgroup().remove(), Err(Error::Busy(_))));
        assert!(nested.directories().all(Path::exists));

        drop(child);
        lab.cgroup().remove().unwrap();
        assert!(!lab.directories().any(Path::exists));
    }

    #[test]
    fn removal_lets_the_callers_own_cgroup_be() {
        let (own, _) = memberships("self").unwrap();
        let own = place::directories(own, &mounts().unwrap());
        let cgroup = match Hierarchy::of_host().unwrap() {
            Hierarchy::V1 => Cgroup::V1(own.clone()),
            Hierarchy::V2 => Cgroup::V2(own[""].clone()),
        };
        cgroup.remove().unwrap();
        assert!(own.values().all(|directory| directory.exists()));
    }
}
