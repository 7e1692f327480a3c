//! The container's root file system: the mounts that containerd asks for, made and unmade.
//!
//! Accepts what containerd's own mount package does (core/mount): binds, overlays of any length, id-mapped ones, files as
//! block devices, and FUSE file systems by their helper.

mod idmap;
mod loopback;
mod options;

use std::ffi::{CString, OsStr};
use std::fs::{self, File};
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{DirBuilderExt, symlink};
use std::path::{Path, PathBuf};
use std::time::Duration;

use containerd_shim_protos::types::mount::Mount;
use nix::errno::Errno;
use nix::fcntl::{OFlag, OpenHow, ResolveFlag, openat2};
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sys::statvfs::{FsFlags, statvfs};
use thiserror::Error;

use crate::cwd::Within;
use crate::runtime::command::{Command, CommandError};
use crate::shim::reaper::Reaper;
use idmap::{IdMap, Tree, make_read_only};
use loopback::Loop;
pub use options::{Lower, Options};

/// How long a FUSE file system may take to be there.
const HELPER: Duration = Duration::from_secs(30);
/// The place beside a root file system that lower directories are named in while an overlay is mounted.
const SCRATCH: &str = "lower";

/// Why a mount was not made. What was made before it is unmade again.
#[derive(Debug, Error)]
pub enum MountError {
    /// The system refused.
    #[error("cannot mount {kind} {source_path} on {}: {error}", target.display())]
    Mount {
        /// The file system's type.
        kind: String,
        /// What was to be mounted.
        source_path: String,
        /// Where.
        target: PathBuf,
        /// The system's reason.
        error: io::Error,
    },
    /// The options are longer than the kernel takes.
    #[error("cannot mount {kind}: its options have {length} bytes, and the kernel takes {}", options::LONGEST)]
    TooLong {
        /// The file system's type.
        kind: String,
        /// The options' length, shortened as far as possible.
        length: usize,
    },
    /// An option makes no sense.
    #[error("mount option: {0}")]
    Option(String),
    /// The file cannot be made a block device.
    #[error("cannot make {} a loop device: {error}", path.display())]
    Loop {
        /// The file.
        path: PathBuf,
        /// The system's reason.
        error: io::Error,
    },
    /// Users cannot be mapped.
    #[error("cannot map the users of {}: {error}; it takes a file system and a kernel that know idmapped mounts", path.display())]
    Map {
        /// What was to be mapped.
        path: PathBuf,
        /// The system's reason.
        error: io::Error,
    },
    /// The helper cannot be run, or took too long.
    #[error("cannot mount {kind}: {error}")]
    Helper {
        /// The file system's type.
        kind: String,
        /// Why.
        error: CommandError,
    },
    /// The helper failed.
    #[error("cannot mount {kind}: {helper} ended with exit code {code}: {words}")]
    HelperFailed {
        /// The file system's type.
        kind: String,
        /// Its program.
        helper: &'static str,
        /// Its exit code.
        code: u32,
        /// What it said.
        words: String,
    },
    /// A mount's target is not there, or not in the root file system.
    #[error("mount target {0:?} does not exist inside the root file system")]
    Target(String),
    /// The mount point cannot be made.
    #[error("cannot create {}: {error}", path.display())]
    Directory {
        /// The mount point.
        path: PathBuf,
        /// The system's reason.
        error: io::Error,
    },
}

/// Makes `mounts` on `rootfs`, in order; all or none. On cancel, whoever cancels unmounts.
pub async fn mount_all(mounts: &[Mount], rootfs: &Path, reaper: &Reaper) -> Result<(), MountError> {
    if mounts.is_empty() {
        return Ok(());
    }
    // Others than root pass through here: to the root of a user namespace, it is theirs.
    let made = fs::DirBuilder::new().recursive(true).mode(0o711).create(rootfs);
    made.map_err(|error| MountError::Directory { path: rootfs.to_owned(), error })?;
    for request in mounts {
        let result = match helper(&request.type_) {
            Some((helper, kind)) => mount_by_helper(request, rootfs, helper, kind, reaper).await,
            None => mount_one(request, rootfs),
        };
        if result.is_err() {
            unmount_all(rootfs);
            return result;
        }
    }
    Ok(())
}

/// Unmounts whatever is mounted on `rootfs` and below, however often. What is busy goes when its last user does.
pub fn unmount_all(rootfs: &Path) {
    // The table has real paths; the bundle's may lead through a link (/var/run). The root file system itself is not
    // asked: behind it may be somebody who does not answer.
    let (Some(bundle), Some(name)) = (rootfs.parent(), rootfs.file_name()) else {
        return;
    };
    let Ok(bundle) = fs::canonicalize(bundle) else {
        return;
    };
    unmount_below(&bundle.join(name));
    // Left only by a shim that was killed while it mounted.
    let scratch = bundle.join(SCRATCH);
    if scratch.is_dir() {
        unmount_below(&scratch);
        let _ = fs::remove_dir(&scratch);
    }
}

fn unmount_below(top: &Path) {
    // The thread's, which is the process's in the shim.
    let table = fs::read("/proc/thread-self/mountinfo").unwrap_or_else(|error| {
        log::error!(error = error.to_string().as_str(); "cannot read which mounts there are; some are left");
        Vec::new()
    });
    // Tenants can give mounts of theirs any name; ours are UTF-8.
    let table = String::from_utf8_lossy(&table);
    let mut points: Vec<PathBuf> =
        table.lines().filter_map(mount_point).filter(|point| point.starts_with(top)).collect();
    // Later mounts lie on earlier ones.
    points.reverse();
    for point in points {
        match umount2(&point, MntFlags::MNT_DETACH | MntFlags::UMOUNT_NOFOLLOW) {
            Ok(()) | Err(Errno::EINVAL | Errno::ENOENT) => {}
            Err(error) => {
                log::warn!(path = point.display().to_string().as_str(), error = error.desc(); "cannot unmount");
            }
        }
    }
}

/// The fifth field of a line of mountinfo, unescaped (proc_pid_mountinfo(5): `\ooo` for space, tab, newline, backslash).
pub fn mount_point(line: &str) -> Option<PathBuf> {
    let mut bytes = line.split(' ').nth(4)?.bytes();
    let mut path = Vec::new();
    while let Some(byte) = bytes.next() {
        if byte != b'\\' {
            path.push(byte);
            continue;
        }
        let digits = [bytes.next()?, bytes.next()?, bytes.next()?];
        path.push(u8::from_str_radix(std::str::from_utf8(&digits).ok()?, 8).ok()?);
    }
    Some(OsStr::from_bytes(&path).into())
}

fn mount_one(request: &Mount, rootfs: &Path) -> Result<(), MountError> {
    let options = Options::parse(&request.options)?;
    let failed = |error: Errno| MountError::Mount {
        kind: request.type_.clone(),
        source_path: request.source.clone(),
        target: rootfs.join(request.target.trim_start_matches('/')),
        error: error.into(),
    };
    // Looked up anew for each step, since a step changes what is there.
    let at = || Point::inside(rootfs, &request.target);
    if options.first().is_some() {
        make(request, &options, rootfs, at()?, failed)?;
        // An overlay's files are those of its lower directories, which have been mapped.
        if let Some(map) = options.map.as_ref().filter(|_| request.type_ != "overlay") {
            let unmapped = |error| MountError::Map { path: request.source.clone().into(), error };
            let (point, namespace) = (at()?, map.namespace().map_err(unmapped)?);
            let tree = Tree::clone(&point.path).and_then(|tree| {
                tree.map(&namespace, false)?;
                // In place of the one that it was cloned from, and not on top of it.
                umount2(&point.path, MntFlags::MNT_DETACH)?;
                Ok(tree)
            });
            let tree = tree.map_err(|error| unmapped(error.into()))?;
            tree.attach(&at()?.path).map_err(|error| unmapped(error.into()))?;
        }
    }
    let again = |flags| mount(None::<&str>, &at()?.path, None::<&str>, flags, None::<&str>).map_err(failed);
    if options.is_bind()
        && let Some(flags) = options.second(flags_of(&at()?.path).map_err(failed)?)
    {
        again(flags)?;
    }
    if options.read_only_tree {
        make_read_only(&at()?.path).map_err(failed)?;
    }
    if !options.propagation.is_empty() {
        again(options.propagation)?;
    }
    Ok(())
}

/// Makes the mount itself, without what takes another call.
fn make(
    request: &Mount,
    options: &Options,
    rootfs: &Path,
    point: Point,
    failed: impl Fn(Errno) -> MountError + Copy,
) -> Result<(), MountError> {
    let flags = options.first().unwrap_or(MsFlags::empty());
    let (lower, data) = options.layout(&request.type_)?;
    let source = Path::new(&request.source);
    let device = options.loopback.map(|how| Loop::over(source, flags.contains(MsFlags::MS_RDONLY), how.direct));
    let device = device.transpose().map_err(|error| MountError::Loop { path: source.to_owned(), error })?;
    let source = device.as_ref().map_or(source, Loop::path);
    let call = || mount(Some(source), &point.path, Some(request.type_.as_str()), flags, Some(data.as_str()));
    match lower {
        Lower::Whole => call().map_err(failed),
        Lower::In(directory) => {
            let _there = Within::enter(&directory).map_err(failed)?;
            call().map_err(failed)
        }
        Lower::Numbered(directories) => {
            let scratch = Scratch::beside(rootfs).map_err(failed)?;
            match &options.map {
                None => scratch.link(&directories).map_err(failed)?,
                Some(map) => scratch.map(&directories, map)?,
            }
            let _there = Within::enter(&scratch.0).map_err(failed)?;
            call().map_err(failed)
        }
    }
}

/// The flags of the mount that is at a path, as far as a bind may have them.
fn flags_of(target: &Path) -> nix::Result<MsFlags> {
    let has = statvfs(target)?.flags();
    let pairs = [
        (FsFlags::ST_RDONLY, MsFlags::MS_RDONLY),
        (FsFlags::ST_NODEV, MsFlags::MS_NODEV),
        (FsFlags::ST_NOEXEC, MsFlags::MS_NOEXEC),
        (FsFlags::ST_NOSUID, MsFlags::MS_NOSUID),
        (FsFlags::ST_NOATIME, MsFlags::MS_NOATIME),
        (FsFlags::ST_NODIRATIME, MsFlags::MS_NODIRATIME),
        (FsFlags::ST_RELATIME, MsFlags::MS_RELATIME),
    ];
    Ok(pairs.into_iter().filter(|(flag, _)| has.contains(*flag)).map(|(_, flag)| flag).collect())
}

/// The helper for a type that has one, and the type as the helper knows it: `fuse3.fuse-overlayfs`.
fn helper(kind: &str) -> Option<(&'static str, &str)> {
    let prefixes = [("fuse.", "mount.fuse"), ("fuse3.", "mount.fuse3")];
    prefixes.into_iter().find_map(|(prefix, helper)| Some((helper, kind.strip_prefix(prefix)?)))
}

async fn mount_by_helper(
    request: &Mount,
    rootfs: &Path,
    helper: &'static str,
    kind: &str,
    reaper: &Reaper,
) -> Result<(), MountError> {
    let point = Point::inside(rootfs, &request.target)?;
    // A descriptor's name is ours alone.
    let target = fs::canonicalize(&point.path).unwrap_or(point.path);
    let mut args = vec![request.source.clone(), target.to_string_lossy().into_owned()];
    args.extend(request.options.iter().flat_map(|option| ["-o".to_owned(), option.clone()]));
    args.extend(["-t".to_owned(), kind.to_owned()]);
    let output = Command::new(helper, args, HELPER).run(reaper).await;
    let output = output.map_err(|error| MountError::Helper { kind: request.type_.clone(), error })?;
    if output.exit.code == 0 {
        return Ok(());
    }
    let words = String::from_utf8_lossy(&[output.stderr, output.stdout].concat()).trim().to_owned();
    Err(MountError::HelperFailed { kind: request.type_.clone(), helper, code: output.exit.code, words })
}

/// A place to name lower directories in, which takes all of it along when it goes. An overlay has its own hold on them
/// once it is mounted.
struct Scratch(PathBuf);

impl Scratch {
    /// A file system of its own: what a killed shim leaves is then a mount, and no way into an image's layers for who
    /// removes the bundle.
    fn beside(rootfs: &Path) -> nix::Result<Self> {
        let scratch = Self(rootfs.with_file_name(SCRATCH));
        match fs::create_dir(&scratch.0) {
            Err(error) if error.kind() != io::ErrorKind::AlreadyExists => return Err(Errno::last()),
            Ok(()) | Err(_) => {}
        }
        mount(Some("lower"), &scratch.0, Some("tmpfs"), MsFlags::empty(), Some("mode=0700"))?;
        // What is mounted in it is nobody else's business.
        mount(None::<&str>, &scratch.0, None::<&str>, MsFlags::MS_PRIVATE, None::<&str>)?;
        Ok(scratch)
    }

    /// Gives the directories their numbers as names.
    fn link(&self, directories: &[PathBuf]) -> nix::Result<()> {
        let mut numbered = directories.iter().enumerate();
        numbered.try_for_each(|(number, directory)| {
            symlink(directory, self.0.join(number.to_string())).map_err(|_| Errno::last())
        })
    }

    /// Mounts the directories under their numbers, with their users mapped; read-only, since a lower directory is.
    fn map(&self, directories: &[PathBuf], map: &IdMap) -> Result<(), MountError> {
        let unmapped = |path: &Path| {
            let path = path.to_owned();
            move |error| MountError::Map { path, error }
        };
        let namespace = map.namespace().map_err(unmapped(&self.0))?;
        for (number, directory) in directories.iter().enumerate() {
            let place = self.0.join(number.to_string());
            fs::create_dir(&place).map_err(unmapped(&place))?;
            let mapped = Tree::clone(directory).and_then(|tree| {
                tree.map(&namespace, true)?;
                tree.attach(&place)
            });
            mapped.map_err(|error| unmapped(directory)(error.into()))?;
        }
        Ok(())
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        // It fails only if there is nothing.
        let _ = umount2(&self.0, MntFlags::MNT_DETACH | MntFlags::UMOUNT_NOFOLLOW);
        let _ = fs::remove_dir(&self.0);
    }
}

/// A path for a system call.
fn path(path: &Path) -> nix::Result<CString> {
    CString::new(path.as_os_str().as_bytes()).map_err(|_| Errno::EINVAL)
}

/// Where a mount goes.
struct Point {
    path: PathBuf,
    /// Held for as long as the path is used, which may be its name in /proc.
    _held: Option<OwnedFd>,
}

impl Point {
    /// The root itself or, seldom, a path in it; what is there already belongs to the image, and a link in it must not
    /// lead out.
    fn inside(rootfs: &Path, target: &str) -> Result<Self, MountError> {
        let relative = target.trim_start_matches('/');
        if relative.is_empty() {
            return Ok(Self { path: rootfs.to_owned(), _held: None });
        }
        let outside = |_| MountError::Target(target.to_owned());
        let root = File::open(rootfs).map_err(|error| MountError::Directory { path: rootfs.to_owned(), error })?;
        let how = OpenHow::new().flags(OFlag::O_PATH | OFlag::O_CLOEXEC).resolve(ResolveFlag::RESOLVE_IN_ROOT);
        let point = openat2(&root, relative, how).map_err(outside)?;
        Ok(Self { path: format!("/proc/self/fd/{}", point.as_raw_fd()).into(), _held: Some(point) })
    }
}

#[cfg(test)]
mod real;

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn a_mount_point_is_unescaped() {
        let line = r"36 35 98:0 / /a\040b/rootfs rw - ext4 /dev/root rw";
        assert_eq!(mount_point(line), Some("/a b/rootfs".into()));
        for broken in ["", "1 2 3", r"1 2 3 4 /a\04"] {
            assert_eq!(mount_point(broken), None);
        }
    }

    #[test]
    fn no_target_leaves_the_root_file_system() {
        let root = std::env::temp_dir().join(format!("beta9-target-{}", std::process::id()));
        fs::create_dir_all(root.join("rootfs/data/etc")).unwrap();
        std::os::unix::fs::symlink("../../..", root.join("rootfs/out")).unwrap();
        std::os::unix::fs::symlink("/data", root.join("rootfs/in")).unwrap();
        let rootfs = root.join("rootfs");
        let found = |target: &str| {
            let point = Point::inside(&rootfs, target)?;
            Ok::<_, MountError>(fs::canonicalize(&point.path).unwrap())
        };
        let whole = fs::canonicalize(&rootfs).unwrap();
        for (target, expected) in [
            ("", ""),
            ("/", ""),
            ("/data", "data"),
            ("out", ""),
            ("out/data/etc", "data/etc"),
            ("in/etc", "data/etc"),
            ("../..", ""),
        ] {
            assert_eq!(found(target).unwrap(), whole.join(expected).components().collect::<PathBuf>(), "{target}");
        }
        assert!(found("out/usr").is_err());
        fs::remove_dir_all(&root).unwrap();
    }

    proptest! {
        #[test]
        fn no_line_makes_the_reader_panic(line in "(?s).{0,60}|1 2 3 / [/a-z0-7\\\\]{0,20} rw") {
            let _ = mount_point(&line);
        }
    }
}
