//! Cgroups and processes for this room's tests: real ones, in the mode of the host, removed when dropped.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio, id};
use std::sync::atomic::{AtomicU32, Ordering};

use super::{Cgroup, Hierarchy, MOUNT_POINT};

const CONTROLLERS: [&str; 5] = ["cpu", "cpuacct", "memory", "pids", "blkio"];
const MEMORY_LIMIT: &str = "8388608";

fn unique() -> String {
    static NEXT: AtomicU32 = AtomicU32::new(0);
    format!("beta9-test-{}-{}", id(), NEXT.fetch_add(1, Ordering::Relaxed))
}

/// A cgroup with a memory limit of 8 MiB.
pub(super) struct Lab(Cgroup);

impl Lab {
    pub(super) fn new() -> Self {
        let name = unique();
        let root = Path::new(MOUNT_POINT);
        let lab = Self(match Hierarchy::of_host().unwrap() {
            Hierarchy::V1 => Cgroup::V1(
                CONTROLLERS.map(|controller| (controller.to_owned(), root.join(controller).join(&name))).into(),
            ),
            Hierarchy::V2 => Cgroup::V2(root.join(&name)),
        });
        lab.make();
        match &lab.0 {
            Cgroup::V1(all) => {
                fs::write(all["memory"].join("memory.limit_in_bytes"), MEMORY_LIMIT).unwrap();
            }
            Cgroup::V2(directory) => {
                fs::write(directory.join("memory.max"), MEMORY_LIMIT).unwrap();
            }
        }
        lab
    }

    /// A cgroup without limits in the v2 tree at `root`, which a hybrid host has too.
    pub(super) fn unified(root: &Path) -> Self {
        let lab = Self(Cgroup::V2(root.join(unique())));
        lab.make();
        lab
    }

    /// A cgroup below this one, without limits of its own.
    pub(super) fn nested(&self, path: &str) -> Self {
        let lab = Self(match &self.0 {
            Cgroup::V1(all) => Cgroup::V1(
                all.iter().map(|(controller, directory)| (controller.clone(), directory.join(path))).collect(),
            ),
            Cgroup::V2(directory) => Cgroup::V2(directory.join(path)),
        });
        lab.make();
        lab
    }

    fn make(&self) {
        for directory in self.directories() {
            fs::create_dir_all(directory).unwrap();
        }
    }

    pub(super) fn cgroup(&self) -> Cgroup {
        self.0.clone()
    }

    pub(super) fn directories(&self) -> impl Iterator<Item = &Path> {
        self.0.directories().into_iter()
    }

    /// A process in the cgroup that waits for its input's end.
    pub(super) fn idle_child(&self) -> LabChild {
        let child = LabChild(Command::new("cat").stdin(Stdio::piped()).stdout(Stdio::null()).spawn().unwrap());
        for directory in self.directories() {
            fs::write(directory.join("cgroup.procs"), child.pid().to_string()).unwrap();
        }
        child
    }

    /// A process in the cgroup that fills 64 MiB of memory, and is killed over it.
    pub(super) fn greedy_child(&self) -> LabChild {
        let enter: String = self
            .directories()
            .map(|directory| format!("echo $$ > '{}/cgroup.procs' && ", directory.display()))
            .collect();
        LabChild(
            Command::new("sh")
                .arg("-c")
                .arg(format!("{enter}exec dd if=/dev/zero of=/dev/null bs=64M count=1 2>/dev/null"))
                .stdin(Stdio::null())
                .stdout(Stdio::null())
                .spawn()
                .unwrap(),
        )
    }
}

impl Drop for Lab {
    fn drop(&mut self) {
        // A nested one may have been removed along with its parent, and a killed process may take its time.
        for _ in 0..100 {
            match self.0.remove() {
                Err(super::Error::Busy(_)) => std::thread::sleep(std::time::Duration::from_millis(10)),
                _ => return,
            }
        }
    }
}

/// A child that is killed and reaped when dropped.
pub(super) struct LabChild(Child);

impl LabChild {
    pub(super) fn pid(&self) -> i32 {
        self.0.id().try_into().unwrap()
    }

    pub(super) fn wait(&mut self) {
        self.0.wait().unwrap();
    }

    /// Leaves a zombie behind, until this is dropped.
    pub(super) fn kill_without_reaping(&self) {
        use nix::sys::wait::{Id, WaitPidFlag, waitid};
        use nix::unistd::Pid;
        let pid = Pid::from_raw(self.pid());
        nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGKILL).unwrap();
        waitid(Id::Pid(pid), WaitPidFlag::WEXITED | WaitPidFlag::WNOWAIT).unwrap();
    }
}

impl Drop for LabChild {
    fn drop(&mut self) {
        let _already_dead: io::Result<()> = self.0.kill();
        let _already_reaped = self.0.wait();
    }
}

/// What `measure` finds while the kernel's texts, read before and after it, stand still: a process that has
/// just been started goes on for a moment.
pub(super) fn steady<T, const N: usize>(read: impl Fn() -> [String; N], measure: impl Fn() -> T) -> ([String; N], T) {
    for _ in 0..10_000 {
        let before = read();
        let measured = measure();
        if read() == before {
            return (before, measured);
        }
    }
    panic!("the numbers never stand still");
}

/// A temporary folder in which plain files stand for a cgroup's.
pub(super) struct Folder(PathBuf);

impl Folder {
    pub(super) fn new() -> Self {
        let path = std::env::temp_dir().join(unique());
        fs::create_dir(&path).unwrap();
        Self(path)
    }

    pub(super) fn path(&self) -> &Path {
        &self.0
    }

    pub(super) fn write(&self, name: &str, text: &str) {
        let path = self.0.join(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, text).unwrap();
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}
