//! The container's root file system: the mounts that containerd asks for, made and unmade.

use std::ffi::OsStr;
use std::fs::{self, File};
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::path::{Path, PathBuf};

use containerd_shim_protos::types::mount::Mount;
use nix::errno::Errno;
use nix::fcntl::{OFlag, OpenHow, ResolveFlag, openat2};
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use thiserror::Error;

use crate::cwd::Within;

/// mount(2) takes one page of options at most, the terminating zero included.
const LONGEST_OPTIONS: usize = 4095;

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
    #[error("cannot mount {kind}: its options have {length} bytes, and the kernel takes {LONGEST_OPTIONS}")]
    TooLong {
        /// The file system's type.
        kind: String,
        /// The options' length, shortened as far as possible.
        length: usize,
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

/// Makes `mounts` on `rootfs`, in order; all or none.
pub fn mount_all(mounts: &[Mount], rootfs: &Path) -> Result<(), MountError> {
    if mounts.is_empty() {
        return Ok(());
    }
    fs::create_dir_all(rootfs).map_err(|error| MountError::Directory { path: rootfs.to_owned(), error })?;
    mounts.iter().try_for_each(|mount| mount_one(mount, rootfs)).inspect_err(|_| unmount_all(rootfs))
}

/// Unmounts whatever is mounted on `rootfs` and below, however often. What is busy goes when its last user does.
pub fn unmount_all(rootfs: &Path) {
    // The table has real paths; the bundle's may lead through a link (/var/run).
    let Ok(rootfs) = fs::canonicalize(rootfs) else {
        return;
    };
    let table = fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
    let mut points: Vec<PathBuf> =
        table.lines().filter_map(mount_point).filter(|point| point.starts_with(&rootfs)).collect();
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
    use std::os::unix::ffi::OsStrExt;
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
    let (target, _held) = inside(rootfs, &request.target)?;
    let options = Options::parse(&request.options);
    let failed = |error: Errno| MountError::Mount {
        kind: request.type_.clone(),
        source_path: request.source.clone(),
        target: target.clone(),
        error: error.into(),
    };
    let (directory, data) = options.shortened(&request.type_)?;
    let call = || {
        mount(
            Some(request.source.as_str()),
            &target,
            Some(request.type_.as_str()),
            options.first(),
            Some(data.as_str()),
        )
    };
    match directory {
        None => call().map_err(failed)?,
        Some(directory) => {
            let _there = Within::enter(&directory).map_err(failed)?;
            call().map_err(failed)?;
        }
    }
    // Linux ignores most flags on the bind itself (mount(2)): they take a second call.
    if options.needs_remount() {
        let flags = options.flags | MsFlags::MS_REMOUNT;
        mount(None::<&str>, &target, None::<&str>, flags, None::<&str>).map_err(failed)?;
    }
    if !options.propagation.is_empty() {
        mount(None::<&str>, &target, None::<&str>, options.propagation, None::<&str>).map_err(failed)?;
    }
    Ok(())
}

/// The mount point for a target, which is the root itself or, seldom, a path in it; what is there already belongs to the
/// image, and a link in it must not lead out. The descriptor, if any, must live as long as the path is used.
fn inside(rootfs: &Path, target: &str) -> Result<(PathBuf, Option<OwnedFd>), MountError> {
    let relative = target.trim_start_matches('/');
    if relative.is_empty() {
        return Ok((rootfs.to_owned(), None));
    }
    let outside = |_| MountError::Target(target.to_owned());
    let root = File::open(rootfs).map_err(|error| MountError::Directory { path: rootfs.to_owned(), error })?;
    let how = OpenHow::new().flags(OFlag::O_PATH | OFlag::O_CLOEXEC).resolve(ResolveFlag::RESOLVE_IN_ROOT);
    let point = openat2(&root, relative, how).map_err(outside)?;
    Ok((format!("/proc/self/fd/{}", point.as_raw_fd()).into(), Some(point)))
}

/// fstab-style options, taken apart as mount(8) does.
#[derive(Debug, PartialEq, Eq)]
pub struct Options {
    flags: MsFlags,
    propagation: MsFlags,
    data: Vec<String>,
}

impl Options {
    /// Takes them apart; what is not the kernel's is the file system's own.
    pub fn parse(options: &[String]) -> Self {
        let mut parsed = Self { flags: MsFlags::empty(), propagation: MsFlags::empty(), data: Vec::new() };
        for option in options {
            let (clear, flag) = match option.as_str() {
                "async" => (true, MsFlags::MS_SYNCHRONOUS),
                "atime" => (true, MsFlags::MS_NOATIME),
                "bind" => (false, MsFlags::MS_BIND),
                "defaults" => (false, MsFlags::empty()),
                "dev" => (true, MsFlags::MS_NODEV),
                "diratime" => (true, MsFlags::MS_NODIRATIME),
                "dirsync" => (false, MsFlags::MS_DIRSYNC),
                "exec" => (true, MsFlags::MS_NOEXEC),
                "mand" => (false, MsFlags::MS_MANDLOCK),
                "noatime" => (false, MsFlags::MS_NOATIME),
                "nodev" => (false, MsFlags::MS_NODEV),
                "nodiratime" => (false, MsFlags::MS_NODIRATIME),
                "noexec" => (false, MsFlags::MS_NOEXEC),
                "nomand" => (true, MsFlags::MS_MANDLOCK),
                "norelatime" => (true, MsFlags::MS_RELATIME),
                "nostrictatime" => (true, MsFlags::MS_STRICTATIME),
                "nosuid" => (false, MsFlags::MS_NOSUID),
                "rbind" => (false, MsFlags::MS_BIND | MsFlags::MS_REC),
                "relatime" => (false, MsFlags::MS_RELATIME),
                "remount" => (false, MsFlags::MS_REMOUNT),
                "ro" => (false, MsFlags::MS_RDONLY),
                "rw" => (true, MsFlags::MS_RDONLY),
                "strictatime" => (false, MsFlags::MS_STRICTATIME),
                "suid" => (true, MsFlags::MS_NOSUID),
                "sync" => (false, MsFlags::MS_SYNCHRONOUS),
                other => {
                    match propagation(other) {
                        Some(flag) => parsed.propagation |= flag,
                        None => parsed.data.push(option.clone()),
                    }
                    continue;
                }
            };
            parsed.flags.set(flag, !clear);
        }
        parsed
    }

    /// The flags of the first call: a bind takes MS_BIND and MS_REC only.
    fn first(&self) -> MsFlags {
        if self.flags.contains(MsFlags::MS_BIND) {
            self.flags & (MsFlags::MS_BIND | MsFlags::MS_REC)
        } else {
            self.flags
        }
    }

    fn needs_remount(&self) -> bool {
        self.flags.contains(MsFlags::MS_BIND) && self.flags.intersects(!(MsFlags::MS_BIND | MsFlags::MS_REC))
    }

    /// The file system's own options as one string, and the directory that it is relative to, if it had to be
    /// shortened. An image of many layers has more lower directories than fit into a page with their full names.
    pub fn shortened(&self, kind: &str) -> Result<(Option<PathBuf>, String), MountError> {
        let data = self.data.join(",");
        if data.len() <= LONGEST_OPTIONS {
            return Ok((None, data));
        }
        let too_long = |length| MountError::TooLong { kind: kind.to_owned(), length };
        let lower = self.data.iter().find_map(|option| option.strip_prefix("lowerdir=")).ok_or(too_long(data.len()))?;
        let common = common_directory(lower.split(':')).ok_or(too_long(data.len()))?;
        let prefix = format!("{}/", common.display());
        let shorten = |option: &String| match option.strip_prefix("lowerdir=") {
            Some(lower) => {
                let relative: Vec<&str> =
                    lower.split(':').map(|path| path.strip_prefix(&prefix).unwrap_or(path)).collect();
                format!("lowerdir={}", relative.join(":"))
            }
            None => option.clone(),
        };
        let data = self.data.iter().map(shorten).collect::<Vec<_>>().join(",");
        if data.len() <= LONGEST_OPTIONS { Ok((Some(common), data)) } else { Err(too_long(data.len())) }
    }
}

fn propagation(option: &str) -> Option<MsFlags> {
    let (kind, recursive) = match option.strip_prefix('r') {
        Some(kind) => (kind, MsFlags::MS_REC),
        None => (option, MsFlags::empty()),
    };
    let flag = match kind {
        "private" => MsFlags::MS_PRIVATE,
        "shared" => MsFlags::MS_SHARED,
        "slave" => MsFlags::MS_SLAVE,
        "unbindable" => MsFlags::MS_UNBINDABLE,
        _ => return None,
    };
    Some(flag | recursive)
}

/// The deepest directory that all `paths` are in.
fn common_directory<'a>(mut paths: impl Iterator<Item = &'a str>) -> Option<PathBuf> {
    let mut common = Path::new(paths.next()?).parent()?;
    for path in paths {
        while !Path::new(path).starts_with(common) {
            common = common.parent()?;
        }
    }
    (common.is_absolute() && common != Path::new("/")).then(|| common.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn options(list: &[&str]) -> Options {
        Options::parse(&list.iter().map(ToString::to_string).collect::<Vec<_>>())
    }

    #[test]
    fn a_read_only_bind_takes_a_second_call() {
        let ro = options(&["rbind", "ro", "nosuid"]);
        assert_eq!(ro.first(), MsFlags::MS_BIND | MsFlags::MS_REC);
        assert!(ro.needs_remount());
        assert!(!options(&["rbind", "rw"]).needs_remount());
    }

    #[test]
    fn a_later_option_undoes_an_earlier_one() {
        assert_eq!(options(&["ro", "rw", "noexec", "exec"]).flags, MsFlags::empty());
    }

    #[test]
    fn propagation_is_set_apart_and_data_is_kept_in_order() {
        let parsed = options(&["rslave", "lowerdir=/a", "upperdir=/b", "relatime"]);
        assert_eq!(parsed.propagation, MsFlags::MS_SLAVE | MsFlags::MS_REC);
        assert_eq!(parsed.data, ["lowerdir=/a", "upperdir=/b"]);
        assert_eq!(parsed.flags, MsFlags::MS_RELATIME);
    }

    #[test]
    fn lower_directories_too_long_for_a_page_become_relative() {
        let layers: Vec<String> = (0..100).map(|n| format!("/var/lib/containerd/snapshots/{n}/fs")).collect();
        let lower = format!("lowerdir={}", layers.join(":"));
        // 100 layers fit only without their common directory.
        let long = options(&[&lower, &format!("upperdir=/{}", "u".repeat(2000))]);
        let (directory, data) = long.shortened("overlay").unwrap();
        assert_eq!(directory.as_deref(), Some(Path::new("/var/lib/containerd/snapshots")));
        assert!(data.starts_with("lowerdir=0/fs:1/fs:"), "{data}");
        assert!(data.contains(",upperdir=/uuu"));
    }

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
            let (point, _held) = inside(&rootfs, target)?;
            Ok::<_, MountError>(fs::canonicalize(point).unwrap())
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
        fn no_options_make_the_parser_panic(
            list in proptest::collection::vec("[a-z]{1,12}|r?(private|shared|slave)|lowerdir=[/a.:]{0,20}|(?s).{0,20}", 0..8),
            layers in 0..400usize,
            stem in "(/[a-z.]{1,8}){0,4}",
        ) {
            let mut list = list;
            let lower: Vec<_> = (0..layers).map(|n| format!("{stem}/{n}/fs")).collect();
            list.push(format!("lowerdir={}", lower.join(":")));
            let parsed = Options::parse(&list);
            prop_assert!(parsed.first().bits() & !parsed.flags.bits() == 0);
            match parsed.shortened("overlay") {
                Ok((directory, data)) => {
                    prop_assert!(data.len() <= LONGEST_OPTIONS);
                    prop_assert!(directory.is_none_or(|path| path.is_absolute() && path != Path::new("/")));
                }
                Err(error) => prop_assert!(matches!(error, MountError::TooLong { .. }), "{}", error),
            }
        }

        #[test]
        fn shortened_directories_are_the_same_directories(
            layers in 100..300usize,
            stem in "/[a-z]{20}(/[a-z]{1,8}){0,3}",
        ) {
            let lower: Vec<_> = (0..layers).map(|n| format!("{stem}/{n}/fs")).collect();
            let parsed = Options::parse(&[format!("lowerdir={}", lower.join(":"))]);
            let shortened = parsed.shortened("overlay");
            if let Ok((directory, data)) = shortened {
                let directory = directory.unwrap_or_else(|| "/".into());
                let given = data.strip_prefix("lowerdir=").unwrap().split(':');
                let given: Vec<_> = given.map(|path| directory.join(path)).collect();
                prop_assert_eq!(given, lower.iter().map(PathBuf::from).collect::<Vec<_>>());
            }
        }

        #[test]
        fn no_line_makes_the_reader_panic(line in "(?s).{0,60}|1 2 3 / [/a-z0-7\\\\]{0,20} rw") {
            let _ = mount_point(&line);
        }
    }
}
