//! The tree of cgroups below a container's, which the tenant may have made.
//!
//! Owns the walk over it and its bounds, so that no tenant's tree can exhaust the shim. Called by `Cgroup`
//! and `v1`.

use std::fs::{self, File};
use std::io::{self, BufRead, BufReader};
use std::path::Path;

use nix::libc::EBUSY;

use super::{Error, file};

/// Levels below the container's cgroup. One directory is open for each while the walk is that deep.
const MAX_DEPTH: usize = 32;
/// Cgroups in one tree, when they are listed or removed.
const MAX_CGROUPS: usize = 10_000;
/// Processes in one tree: beyond any pids limit in use, and a quarter of a MiB.
const MAX_PIDS: usize = 65_536;

/// Calls `visit` for `root` and every cgroup below it, children before their parents; [`Error::TooLarge`]
/// beyond `max_cgroups`. What vanishes meanwhile is passed over.
pub(super) fn walk(
    root: &Path,
    mut max_cgroups: usize,
    visit: &mut dyn FnMut(&Path) -> Result<(), Error>,
) -> Result<(), Error> {
    descend(root, MAX_DEPTH, &mut max_cgroups, visit)
}

fn descend(
    directory: &Path,
    depth: usize,
    left: &mut usize,
    visit: &mut dyn FnMut(&Path) -> Result<(), Error>,
) -> Result<(), Error> {
    let read = |source| Error::Read { path: directory.into(), source };
    *left = left.checked_sub(1).ok_or_else(|| Error::TooLarge(directory.into()))?;
    let Some(entries) = present(fs::read_dir(directory)).map_err(read)? else {
        return Ok(());
    };
    for entry in entries {
        let Some(entry) = present(entry).map_err(read)? else {
            break;
        };
        // The entry's own type: nothing is followed out of the tree.
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            let depth = depth.checked_sub(1).ok_or_else(|| Error::TooLarge(directory.into()))?;
            descend(&entry.path(), depth, left, visit)?;
        }
    }
    visit(directory)
}

/// The pids in the whole tree, ascending.
pub(super) fn procs(root: &Path) -> Result<Vec<i32>, Error> {
    let mut pids = Vec::new();
    walk(root, MAX_CGROUPS, &mut |directory| {
        let path = directory.join("cgroup.procs");
        present(append_pids(&path, &mut pids)).map_err(|source| Error::Read { path: path.clone(), source })?;
        match pids.len() {
            0..=MAX_PIDS => Ok(()),
            _ => Err(Error::TooLarge(path)),
        }
    })?;
    // A process that moves during the walk is met twice, and v1 may list one twice by itself.
    pids.sort_unstable();
    pids.dedup();
    Ok(pids)
}

fn append_pids(path: &Path, pids: &mut Vec<i32>) -> io::Result<()> {
    for line in BufReader::new(File::open(path)?).lines() {
        if pids.len() > MAX_PIDS {
            break;
        }
        // 0 stands for a process outside the reader's pid namespace.
        pids.extend(line?.parse::<i32>().ok().filter(|pid| *pid > 0));
    }
    Ok(())
}

/// Removes the whole tree.
pub(super) fn remove(root: &Path) -> Result<(), Error> {
    walk(root, MAX_CGROUPS, &mut |directory| match fs::remove_dir(directory) {
        Err(source) if source.raw_os_error() == Some(EBUSY) => Err(Error::Busy(directory.into())),
        outcome => present(outcome).map(drop).map_err(|source| Error::Remove { path: directory.into(), source }),
    })
}

fn present<T>(outcome: io::Result<T>) -> io::Result<Option<T>> {
    match outcome {
        Ok(value) => Ok(Some(value)),
        Err(error) if file::is_absent(&error) => Ok(None),
        Err(error) => Err(error),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cgroup::lab::Folder;

    #[test]
    fn children_come_before_their_parents() {
        let folder = Folder::new();
        fs::create_dir_all(folder.path().join("a/b")).unwrap();
        let mut seen = Vec::new();
        walk(folder.path(), MAX_CGROUPS, &mut |directory| {
            seen.push(directory.strip_prefix(folder.path()).unwrap().to_owned());
            Ok(())
        })
        .unwrap();
        assert_eq!(seen, ["a/b", "a", ""].map(Into::<std::path::PathBuf>::into));
    }

    #[test]
    fn a_tree_that_is_too_deep_is_refused() {
        let folder = Folder::new();
        let deep = vec!["d"; MAX_DEPTH + 1].join("/");
        fs::create_dir_all(folder.path().join(deep)).unwrap();
        assert!(matches!(procs(folder.path()), Err(Error::TooLarge(_))));
    }

    #[test]
    fn pids_of_the_whole_tree_are_gathered_once_each() {
        let folder = Folder::new();
        folder.write("cgroup.procs", "30\n0\n7\n");
        folder.write("a/cgroup.procs", "7\n8\n");
        fs::create_dir(folder.path().join("b")).unwrap();
        assert_eq!(procs(folder.path()).unwrap(), [7, 8, 30]);
    }

    #[test]
    fn a_flood_of_pids_is_refused() {
        let folder = Folder::new();
        folder.write("cgroup.procs", &"1\n".repeat(2 * MAX_PIDS));
        assert!(matches!(procs(folder.path()), Err(Error::TooLarge(_))));
    }

    #[test]
    fn a_link_out_of_the_tree_is_not_followed() {
        let folder = Folder::new();
        std::os::unix::fs::symlink("/proc", folder.path().join("out")).unwrap();
        assert!(procs(folder.path()).unwrap().is_empty());
    }

    #[test]
    fn a_tree_that_is_not_there_is_empty_and_removed() {
        let nowhere = Path::new("/sys/fs/cgroup/not-there");
        assert!(procs(nowhere).unwrap().is_empty());
        remove(nowhere).unwrap();
    }
}
