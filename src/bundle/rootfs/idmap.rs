//! Mounts whose files belong to other users than on disk (mount_setattr(2)), and the user namespaces that say to whom.

use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::path::Path;

use nix::errno::Errno;
use nix::libc;
use nix::mount::MsFlags;
use nix::sys::signal::{Signal, kill};
use nix::sys::wait::waitpid;
use nix::unistd::Pid;

use super::path;

/// A mapping of users and one of groups, each as `container-id:host-id:size[,…]`, whose form has been checked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct IdMap {
    uid: String,
    gid: String,
}

impl IdMap {
    /// Checks both; what is wrong otherwise.
    pub(super) fn parse(uid: &str, gid: &str) -> Result<Self, String> {
        let wrong = |text: &str| format!("{text:?} is no id mapping; it must be container-id:host-id:size[,…]");
        let whole = |text: &str| lines(text).map(|_| text.to_owned()).ok_or_else(|| wrong(text));
        Ok(Self { uid: whole(uid)?, gid: whole(gid)? })
    }

    /// A user namespace with this mapping, alive for as long as the descriptor.
    pub(super) fn namespace(&self) -> io::Result<OwnedFd> {
        let flags = libc::CLONE_NEWUSER | libc::SIGCHLD;
        // SAFETY: as fork, with its own copy of the memory and stack; the child makes nothing but system calls.
        let pid = unsafe { libc::syscall(libc::SYS_clone, flags, 0, 0, 0, 0) };
        if Errno::result(pid)? == 0 {
            // SAFETY: plain system calls. The child waits to be killed, and does not outlive us.
            unsafe {
                libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL);
                loop {
                    libc::pause();
                }
            }
        }
        let holder = Holder(Pid::from_raw(pid as i32));
        let file = |name: &str| format!("/proc/{}/{name}", holder.0);
        for (name, map) in [("uid_map", &self.uid), ("gid_map", &self.gid)] {
            // One write, as user_namespaces(7) wants it.
            std::fs::write(file(name), lines(map).unwrap_or_default())?;
        }
        File::open(file("ns/user")).map(OwnedFd::from)
    }
}

/// The process that holds a user namespace until somebody else does.
struct Holder(Pid);

impl Drop for Holder {
    fn drop(&mut self) {
        // A child of ours that is not reaped: the reaper, which would, does not run meanwhile.
        let _ = kill(self.0, Signal::SIGKILL);
        while waitpid(self.0, None) == Err(Errno::EINTR) {}
    }
}

/// A mapping in the kernel's form, one range a line.
fn lines(text: &str) -> Option<String> {
    text.split(',')
        .map(range)
        .map(|range| range.map(|[inside, outside, size]| format!("{inside} {outside} {size}\n")))
        .collect()
}

fn range(text: &str) -> Option<[u32; 3]> {
    let mut numbers = text.split(':').map(|number| number.parse().ok());
    let range = [numbers.next()??, numbers.next()??, numbers.next()??];
    numbers.next().is_none().then_some(range)
}

/// A mount and what is below it, cloned and not yet anywhere.
pub(super) struct Tree(OwnedFd);

impl Tree {
    /// Clones what is at `from`.
    pub(super) fn clone(from: &Path) -> nix::Result<Self> {
        let from = path(from)?;
        let flags = libc::OPEN_TREE_CLONE | libc::OPEN_TREE_CLOEXEC | libc::AT_RECURSIVE as libc::c_uint;
        // SAFETY: the path is a string that lives through the call.
        let fd = unsafe { libc::syscall(libc::SYS_open_tree, libc::AT_FDCWD, from.as_ptr(), flags) };
        let fd = Errno::result(fd)? as RawFd;
        // SAFETY: the kernel has just made it; nobody else owns it.
        Ok(Self(unsafe { OwnedFd::from_raw_fd(fd) }))
    }

    /// Maps its files' owners by a user namespace; changes to it stay to itself.
    pub(super) fn map(&self, namespace: &OwnedFd, read_only: bool) -> nix::Result<()> {
        let read_only = if read_only { libc::MOUNT_ATTR_RDONLY } else { 0 };
        let attributes = libc::mount_attr {
            attr_set: libc::MOUNT_ATTR_IDMAP | read_only,
            attr_clr: 0,
            propagation: MsFlags::MS_PRIVATE.bits(),
            userns_fd: namespace.as_raw_fd().unsigned_abs().into(),
        };
        set_attributes(self.0.as_raw_fd(), c"", libc::AT_EMPTY_PATH, &attributes)
    }

    /// Puts it somewhere.
    pub(super) fn attach(self, to: &Path) -> nix::Result<()> {
        let to = path(to)?;
        let flags = libc::MOVE_MOUNT_F_EMPTY_PATH | libc::MOVE_MOUNT_T_SYMLINKS;
        // SAFETY: the descriptor is open; the paths are strings that live through the call.
        let moved = unsafe {
            libc::syscall(libc::SYS_move_mount, self.0.as_raw_fd(), c"".as_ptr(), libc::AT_FDCWD, to.as_ptr(), flags)
        };
        Errno::result(moved).map(drop)
    }
}

/// Makes a mount and all below it read-only.
pub(super) fn make_read_only(target: &Path) -> nix::Result<()> {
    let attributes = libc::mount_attr { attr_set: libc::MOUNT_ATTR_RDONLY, attr_clr: 0, propagation: 0, userns_fd: 0 };
    set_attributes(libc::AT_FDCWD, &path(target)?, 0, &attributes)
}

fn set_attributes(at: RawFd, path: &std::ffi::CStr, flags: i32, attributes: &libc::mount_attr) -> nix::Result<()> {
    let size = size_of::<libc::mount_attr>();
    let flags = flags | libc::AT_RECURSIVE;
    // SAFETY: the path and the attributes live through the call, which reads as many bytes of them as it is told.
    let set = unsafe { libc::syscall(libc::SYS_mount_setattr, at, path.as_ptr(), flags, attributes, size) };
    Errno::result(set).map(drop)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn a_mapping_has_ranges_of_three_numbers() {
        assert_eq!(lines("0:1000:65536").as_deref(), Some("0 1000 65536\n"));
        assert_eq!(lines("0:1:2,3:4:5").as_deref(), Some("0 1 2\n3 4 5\n"));
        for wrong in ["", "0", "0:1", "0:1:2:3", "0:1:2,", "a:b:c", "0:-1:2", "0:1:99999999999"] {
            let error = IdMap::parse("0:1:2", wrong).unwrap_err();
            assert!(error.contains(wrong) && error.contains("container-id:host-id:size"), "{error}");
        }
    }

    proptest! {
        #[test]
        fn no_text_makes_the_parser_panic(text in "[0-9:,]{0,30}|(?s).{0,30}") {
            if let Some(lines) = lines(&text) {
                prop_assert_eq!(lines.lines().count(), text.split(',').count());
            }
        }
    }
}
