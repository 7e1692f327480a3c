//! What must not be there when containers are gone: mounts, bundles, cgroups, sockets, runtimes' state. Looks, and takes away
//! only the empty cgroup parents that every runtime leaves to its caller.

use std::{
    fs,
    path::{Path, PathBuf},
};

use super::keeper::WORK;

/// What the lab's /run holds besides the files of containers: the lab itself, the host's services, ctr's fifos, whose
/// directories a detached ctr leaves to nobody, what our shim remembers of the node's runtimes, and CRIU of its kernel.
const NOT_THEIRS: [&str; 6] =
    [WORK, "/run/systemd", "/run/dbus", "/run/containerd/fifo", "/run/beta9-shim/runsc.json", "/run/criu.kdat"];

/// What a daemon that has ended still has on disk, mounted or in cgroups.
pub fn of_daemon(dir: &Path, namespace: &str, cgroup: &str) -> Vec<String> {
    let mounts = mounts_below(dir).into_iter().map(|mount| format!("mount {mount}"));
    let bundles = ["state", "root"]
        .iter()
        .flat_map(|top| entries(&dir.join(top).join("io.containerd.runtime.v2.task").join(namespace)));
    let bundles = bundles.map(|bundle| format!("bundle {}", bundle.display()));
    let cgroups = cgroups_of(cgroup).into_iter().map(|cgroup| format!("cgroup {}", cgroup.display()));
    mounts.chain(bundles).chain(cgroups).collect()
}

/// What shims, runtimes and CNI left in the lab's /run and /var/lib, apart from empty directories.
pub fn in_house() -> Vec<String> {
    let mut found = Vec::new();
    let mut dirs = vec![PathBuf::from("/run"), PathBuf::from("/var/lib")];
    while let Some(dir) = dirs.pop() {
        for entry in entries(&dir).into_iter().filter(|entry| !NOT_THEIRS.iter().any(|other| entry == Path::new(other)))
        {
            if entry.is_dir() && !entry.is_symlink() {
                dirs.push(entry)
            } else {
                found.push(format!("file {}", entry.display()))
            }
        }
    }
    found
}

/// The mount points below a directory.
pub fn mounts_below(dir: &Path) -> Vec<String> {
    let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap();
    let points = mounts.lines().filter_map(|line| line.split(' ').nth(4));
    points.filter(|point| Path::new(point).starts_with(dir) && Path::new(point) != dir).map(String::from).collect()
}

/// The cgroups of a daemon's containers, in every hierarchy.
fn cgroups_of(name: &str) -> Vec<PathBuf> {
    let hierarchies = entries(Path::new("/sys/fs/cgroup")).into_iter().chain([PathBuf::from("/sys/fs/cgroup")]);
    let mut left = Vec::new();
    for parent in hierarchies.map(|hierarchy| hierarchy.join(name)).filter(|parent| parent.is_dir()) {
        left.extend(entries(&parent).into_iter().filter(|entry| entry.is_dir()).flat_map(|cgroup| ends_of(&cgroup)));
        let _ = fs::remove_dir(parent);
    }
    left
}

/// The cgroups below this one that have none below them, or else itself.
fn ends_of(cgroup: &Path) -> Vec<PathBuf> {
    let ends: Vec<_> = entries(cgroup).iter().filter(|entry| entry.is_dir()).flat_map(|child| ends_of(child)).collect();
    if ends.is_empty() { vec![cgroup.into()] } else { ends }
}

/// Takes away the cgroups of every namespace with this prefix: after a run that failed or was interrupted.
pub fn sweep_cgroups(prefix: &str) {
    let root = Path::new("/sys/fs/cgroup");
    for hierarchy in entries(root).into_iter().chain([root.into()]) {
        let ours = |entry: &PathBuf| entry.file_name().is_some_and(|name| name.to_string_lossy().starts_with(prefix));
        entries(&hierarchy).into_iter().filter(ours).for_each(|cgroup| remove_cgroup(&cgroup));
    }
}

/// A cgroup's files go with it, so only the directories below are removed before it.
fn remove_cgroup(cgroup: &Path) {
    for child in entries(cgroup).into_iter().filter(|child| child.is_dir()) {
        remove_cgroup(&child);
    }
    let _ = fs::remove_dir(cgroup);
}

fn entries(dir: &Path) -> Vec<PathBuf> {
    fs::read_dir(dir).into_iter().flatten().flatten().map(|entry| entry.path()).collect()
}
