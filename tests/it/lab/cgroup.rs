//! A pod's own cgroup: what a kubelet makes before it runs a pod, gives the pod's limits to, and removes after it.

use std::{
    collections::BTreeSet,
    fs,
    path::{Path, PathBuf},
    thread,
    time::{Duration, Instant},
};

const ROOT: &str = "/sys/fs/cgroup";

/// How long what is below a pod's cgroup may take to go.
const GRACE: Duration = Duration::from_secs(3);

/// A cgroup that has the same path in every hierarchy.
#[derive(Debug)]
pub struct Cgroup {
    path: String,
    dirs: Vec<PathBuf>,
}

impl Cgroup {
    /// Makes `/PARENT/NAME`.
    pub fn new(parent: &str, name: &str) -> Self {
        let path = format!("/{parent}/{name}");
        let dirs: Vec<_> = hierarchies().iter().map(|root| root.join(&path[1..])).collect();
        for dir in &dirs {
            fs::create_dir_all(dir).unwrap();
        }
        Self { path, dirs }
    }

    /// Its path within the hierarchies.
    pub fn path(&self) -> &str {
        &self.path
    }

    /// Limits the memory of all that is in it, in bytes.
    pub fn limit_memory(&self, bytes: u64) {
        let file = self.find("", &["memory.limit_in_bytes", "memory.max"]);
        fs::write(&file, bytes.to_string()).unwrap_or_else(|error| panic!("{}: {error}", file.display()));
    }

    /// The content of the one of these files that there is in a cgroup below it: version 1 and 2 have different names.
    pub fn read(&self, below: &str, names: &[&str]) -> String {
        fs::read_to_string(self.find(below, names)).unwrap().trim().into()
    }

    /// The pids in it and below it.
    pub fn pids(&self) -> BTreeSet<i32> {
        let mut pids = BTreeSet::new();
        let mut dirs = self.dirs.clone();
        while let Some(dir) = dirs.pop() {
            let procs = fs::read_to_string(dir.join("cgroup.procs")).unwrap_or_default();
            pids.extend(procs.lines().filter_map(|line| line.parse::<i32>().ok()));
            let entries = fs::read_dir(&dir).into_iter().flatten().flatten().map(|entry| entry.path());
            dirs.extend(entries.filter(|path| path.is_dir()));
        }
        pids
    }

    fn find(&self, below: &str, names: &[&str]) -> PathBuf {
        let files = self.dirs.iter().flat_map(|dir| names.iter().map(move |name| dir.join(below).join(name)));
        let found = files.into_iter().find(|file| file.exists());
        found.unwrap_or_else(|| panic!("none of {names:?} in {}/{below}", self.path))
    }
}

impl Drop for Cgroup {
    /// As a kubelet does it, more than once: the end of a pod whose shim has died may still be under way. What stays below it
    /// is the run's leak.
    fn drop(&mut self) {
        let begin = Instant::now();
        for dir in &self.dirs {
            while fs::remove_dir(dir).is_err() && begin.elapsed() < GRACE {
                thread::sleep(Duration::from_millis(20));
            }
        }
    }
}

/// The mounted hierarchies: several of version 1, or one of version 2.
fn hierarchies() -> Vec<PathBuf> {
    let root = Path::new(ROOT);
    if root.join("cgroup.procs").exists() {
        return vec![root.into()];
    }
    let entries = fs::read_dir(root).unwrap().map(|entry| entry.unwrap().path());
    // Of the version 1 hierarchies, some have a second name by a link.
    entries.filter(|dir| dir.join("cgroup.procs").exists() && !dir.is_symlink()).collect()
}
