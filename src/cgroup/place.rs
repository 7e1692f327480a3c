//! Where a process's cgroups lie in the file system.
//!
//! Owns the meaning of `/proc/<pid>/cgroup` and of `/proc/<pid>/mountinfo` (cgroups(7), proc(5)); pure, and
//! ready for anything in them, as tenants choose the names of nested cgroups. Called by `Cgroup` alone.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::io::{self, BufRead};
use std::os::unix::ffi::OsStringExt;
use std::path::{Component, Path, PathBuf};

/// One line of `/proc/<pid>/cgroup`: the process's place in one hierarchy.
#[derive(Debug, PartialEq, Eq)]
pub struct Membership {
    /// The controllers bound to the hierarchy, or its name (`name=systemd`); empty for v2.
    pub controllers: Vec<String>,
    /// The cgroup, seen from the hierarchy's root.
    pub path: PathBuf,
}

/// One mounted cgroup hierarchy, or a part of one.
#[derive(Debug, PartialEq, Eq)]
pub struct Mount {
    /// The cgroup that is mounted; `/` for a whole hierarchy.
    pub root: PathBuf,
    /// Where it is mounted.
    pub point: PathBuf,
    /// The options of a v1 hierarchy, its controllers among them; `None` for v2.
    pub options: Option<Vec<String>>,
}

/// Reads `/proc/<pid>/cgroup`. A line without three fields is passed over, and so is the place of a zombie
/// whose v2 cgroup has been removed: the kernel marks it with ` (deleted)`, on v2 only.
///
/// The kernel refuses line feeds in the names of cgroups, so that a line is always one entry.
pub fn parse_proc_cgroup(text: &[u8]) -> Vec<Membership> {
    text.split(|byte| *byte == b'\n')
        .filter_map(|line| {
            let mut fields = line.splitn(3, |byte| *byte == b':').skip(1);
            let (controllers, path) = (fields.next()?, fields.next()?);
            if controllers.is_empty() && path.ends_with(b" (deleted)") {
                return None;
            }
            Some(Membership { controllers: list(controllers), path: OsString::from_vec(path.to_vec()).into() })
        })
        .collect()
}

/// Reads the cgroup mounts out of a `mountinfo`, line by line, as a node's may have thousands of lines.
pub fn parse_mountinfo(mut text: impl BufRead) -> io::Result<Vec<Mount>> {
    let mut mounts = Vec::new();
    let mut line = Vec::new();
    while text.read_until(b'\n', &mut line)? > 0 {
        mounts.extend(parse_mount(line.trim_ascii_end()));
        line.clear();
    }
    Ok(mounts)
}

/// A line is: id parent major:minor ROOT POINT options [optional…] - TYPE source SUPER-OPTIONS.
fn parse_mount(line: &[u8]) -> Option<Mount> {
    let mut fields = line.split(|byte| *byte == b' ');
    let (root, point) = (fields.nth(3)?, fields.next()?);
    fields.find(|field| *field == b"-")?;
    let options = match fields.next()? {
        b"cgroup" => Some(list(fields.nth(1)?)),
        b"cgroup2" => None,
        _ => return None,
    };
    Some(Mount { root: unescape(root), point: unescape(point), options })
}

/// Joins the two: the directory for each controller that is mounted where the caller can see it.
pub(super) fn directories(memberships: Vec<Membership>, mounts: &[Mount]) -> BTreeMap<String, PathBuf> {
    let mut directories = BTreeMap::new();
    for Membership { controllers, path } in memberships {
        if controllers.is_empty() {
            let unified = mounts.iter().filter(|mount| mount.options.is_none());
            directories.extend(directory(unified, &path).map(|found| (String::new(), found)));
        }
        for controller in controllers {
            let bound = mounts.iter().filter(|mount| {
                let options = mount.options.as_deref().unwrap_or_default();
                options.contains(&controller)
            });
            directories.extend(directory(bound, &path).map(|found| (controller, found)));
        }
    }
    directories
}

/// The mount nearest to the hierarchy's root wins over bind mounts of parts of it.
fn directory<'a>(mounts: impl Iterator<Item = &'a Mount>, path: &Path) -> Option<PathBuf> {
    mounts
        .filter_map(|mount| Some((mount, path.strip_prefix(&mount.root).ok()?)))
        // `/..` is the kernel's way to show a cgroup that lies outside the reader's cgroup namespace.
        .filter(|(_, below)| below.components().all(|part| matches!(part, Component::Normal(_))))
        .min_by_key(|(mount, _)| mount.root.components().count())
        .map(|(mount, below)| mount.point.components().chain(below.components()).collect())
}

fn list(field: &[u8]) -> Vec<String> {
    field
        .split(|byte| *byte == b',')
        .filter(|name| !name.is_empty())
        .map(|name| String::from_utf8_lossy(name).into_owned())
        .collect()
}

/// The kernel writes blank, tab, line feed and backslash as three octal digits after a backslash.
fn unescape(field: &[u8]) -> PathBuf {
    let mut bytes = Vec::with_capacity(field.len());
    let mut rest = field;
    while let Some((first, tail)) = rest.split_first() {
        let byte;
        (byte, rest) = match (first, tail) {
            (b'\\', [a @ b'0'..=b'3', b @ b'0'..=b'7', c @ b'0'..=b'7', tail @ ..]) => {
                ((a - b'0') << 6 | (b - b'0') << 3 | (c - b'0'), tail)
            }
            _ => (*first, tail),
        };
        bytes.push(byte);
    }
    OsString::from_vec(bytes).into()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// What is found for a process, given the two files' texts, as `controller=directory`.
    fn found(cgroup: &str, mountinfo: &str) -> Vec<String> {
        let mounts = parse_mountinfo(mountinfo.as_bytes()).unwrap();
        directories(parse_proc_cgroup(cgroup.as_bytes()), &mounts)
            .into_iter()
            .map(|(controller, path)| format!("{controller}={}", path.display()))
            .collect()
    }

    #[test]
    fn each_controller_leads_to_its_directory() {
        let legacy = "\
            32 31 0:29 / /sys/fs/cgroup/cpu,cpuacct rw,relatime shared:9 master:1 - cgroup cgroup rw,cpu,cpuacct\n\
            35 31 0:32 / /sys/fs/cgroup/memory rw,relatime - cgroup cgroup rw,memory\n\
            40 31 0:37 / /sys/fs/cgroup/systemd rw - cgroup cgroup rw,xattr,release_agent=/lib/agent,name=systemd\n\
            41 31 0:38 / /sys/fs/cgroup/unified rw - cgroup2 cgroup2 rw,nsdelegate\n\
            42 31 8:1 / /data rw,relatime - ext4 /dev/sda1 rw,memory\n";
        let unified = "30 23 0:26 / /sys/fs/cgroup rw shared:4 - cgroup2 cgroup2 rw\n";
        // A container's own view: its cgroup alone is mounted, and the process's path starts at the host's root.
        let inside = "35 31 0:32 /docker/abc /sys/fs/cgroup/memory ro - cgroup cgroup rw,memory\n";
        let spaced = "35 31 0:32 /a\\040b /mnt/with\\011tab\\134 rw - cgroup cgroup rw,memory\n";
        let twice = "\
            35 31 0:32 /k /bind rw - cgroup cgroup rw,memory\n\
            36 31 0:32 / /sys/fs/cgroup/memory rw - cgroup cgroup rw,memory\n";

        for (case, cgroup, mountinfo, expected) in [
            (
                "co-mounted, named and hybrid",
                "4:memory:/k/a\n2:cpu,cpuacct:/k/b\n1:name=systemd:/k/c\n0::/k/d\n",
                legacy,
                vec![
                    "=/sys/fs/cgroup/unified/k/d",
                    "cpu=/sys/fs/cgroup/cpu,cpuacct/k/b",
                    "cpuacct=/sys/fs/cgroup/cpu,cpuacct/k/b",
                    "memory=/sys/fs/cgroup/memory/k/a",
                    "name=systemd=/sys/fs/cgroup/systemd/k/c",
                ],
            ),
            ("not mounted", "8:pids:/k\n", legacy, vec![]),
            ("unified", "0::/k/d\n", unified, vec!["=/sys/fs/cgroup/k/d"]),
            ("colons in a name", "0::/k:8s/a:b\n", unified, vec!["=/sys/fs/cgroup/k:8s/a:b"]),
            ("the root itself", "0::/\n", unified, vec!["=/sys/fs/cgroup"]),
            ("a removed v2 cgroup", "0::/k/d (deleted)\n", unified, vec![]),
            (
                "a v1 cgroup that is called so",
                "4:memory:/k (deleted)\n",
                legacy,
                vec!["memory=/sys/fs/cgroup/memory/k (deleted)"],
            ),
            ("a mounted part", "4:memory:/docker/abc/k\n", inside, vec!["memory=/sys/fs/cgroup/memory/k"]),
            ("the mounted part", "4:memory:/docker/abc\n", inside, vec!["memory=/sys/fs/cgroup/memory"]),
            ("a sibling of the mounted part", "4:memory:/docker/abcd/k\n", inside, vec![]),
            ("outside the cgroup namespace", "0::/../k\n", unified, vec![]),
            (
                "escapes, in the mount's fields only",
                "4:memory:/a b/\\040\n",
                spaced,
                vec!["memory=/mnt/with\ttab\\/\\040"],
            ),
            ("two mounts", "4:memory:/k/a\n", twice, vec!["memory=/sys/fs/cgroup/memory/k/a"]),
        ] {
            assert_eq!(found(cgroup, mountinfo), expected, "{case}");
        }
    }

    #[test]
    fn broken_lines_are_passed_over() {
        assert_eq!(parse_proc_cgroup(b"\n0\n0:\n4:memory\n"), []);
        for line in ["", "1 2 3", "1 2 3 / /m rw - ", "1 2 3 / /m rw cgroup cgroup rw"] {
            assert_eq!(parse_mountinfo(line.as_bytes()).unwrap(), [], "{line:?}");
        }
    }

    proptest! {
        #[test]
        fn no_bytes_make_the_parsers_panic(cgroup: Vec<u8>, mountinfo: Vec<u8>) {
            let mounts = parse_mountinfo(&mountinfo[..]).unwrap();
            directories(parse_proc_cgroup(&cgroup), &mounts);
        }

        #[test]
        fn no_line_leads_out_of_its_mount(
            path in "[/.a ]{0,12}",
            root in "/[/.a]{0,4}",
            controllers in "(memory)?",
        ) {
            let line = format!("1:{controllers}:{path}\n");
            let mountinfo = format!(
                "1 2 0:3 {root} /m rw - cgroup c rw,memory\n1 2 0:3 {root} /m rw - cgroup2 c rw\n"
            );
            let mounts = parse_mountinfo(mountinfo.as_bytes()).unwrap();
            for directory in directories(parse_proc_cgroup(line.as_bytes()), &mounts).values() {
                prop_assert!(directory.starts_with("/m"));
                prop_assert!(!directory.components().any(|part| part == Component::ParentDir));
            }
        }

        #[test]
        fn escaping_is_undone(bytes: Vec<u8>) {
            let escaped: Vec<u8> = bytes
                .iter()
                .flat_map(|byte| match byte {
                    b' ' | b'\t' | b'\n' | b'\\' => format!("\\{byte:03o}").into_bytes(),
                    other => vec![*other],
                })
                .collect();
            prop_assert_eq!(unescape(&escaped).into_os_string().into_vec(), bytes);
        }
    }
}
