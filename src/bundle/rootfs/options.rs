//! fstab-style mount options, taken apart; and what to do with more of them than the kernel takes at once. No I/O.

use std::path::{Path, PathBuf};

use nix::mount::MsFlags;

use super::MountError;
use super::idmap::IdMap;

/// mount(2) takes one page of options at most, the terminating zero included.
pub(super) const LONGEST: usize = 4095;

/// Options as mount(8) understands them, and containerd's own.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Options {
    /// What the kernel takes as flags.
    pub(super) flags: MsFlags,
    /// Flags that were asked not to be set: a bind keeps its source's others.
    cleared: MsFlags,
    pub(super) propagation: MsFlags,
    /// The file system's own options, in order.
    pub(super) data: Vec<String>,
    /// The source is a file that is to be a block device.
    pub(super) loopback: Option<Loopback>,
    pub(super) map: Option<IdMap>,
    /// Read-only down to the last mount of a bound tree.
    pub(super) read_only_tree: bool,
}

/// How a file is made a block device.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Loopback {
    /// Past the page cache of the host's file system.
    pub(super) direct: bool,
}

/// Where an overlay's lower directories are named from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Lower {
    /// By whole paths.
    Whole,
    /// Relative to a directory that all of them are in.
    In(PathBuf),
    /// By number, in a directory in which these have to be found under their numbers.
    Numbered(Vec<PathBuf>),
}

impl Options {
    /// Takes them apart; what is not the kernel's or containerd's is the file system's own.
    pub fn parse(options: &[String]) -> Result<Self, MountError> {
        let none = MsFlags::empty();
        let mut parsed = Self {
            flags: none,
            cleared: none,
            propagation: none,
            data: Vec::new(),
            loopback: None,
            map: None,
            read_only_tree: false,
        };
        let (mut uid, mut gid) = ("", "");
        for option in options {
            if let Some((flag, set)) = flag(option) {
                parsed.flags.set(flag, set);
                parsed.cleared.set(flag, !set);
            } else if let Some(flag) = propagation(option) {
                parsed.propagation |= flag;
            } else if option == "loop" {
                parsed.loopback = Some(Loopback { direct: false });
            } else if option == "rro" {
                parsed.read_only_tree = true;
            } else if let Some(map) = option.strip_prefix("uidmap=") {
                uid = map;
            } else if let Some(map) = option.strip_prefix("gidmap=") {
                gid = map;
            } else if option.starts_with("X-containerd.") {
                return Err(MountError::Option(format!("{option:?} is for containerd, which should have acted on it")));
            } else {
                parsed.data.push(option.clone());
            }
        }
        // Both or none, as with containerd.
        if !uid.is_empty() && !gid.is_empty() {
            parsed.map = Some(IdMap::parse(uid, gid).map_err(MountError::Option)?);
        }
        if let (Some(loopback), Some(at)) =
            (&mut parsed.loopback, parsed.data.iter().position(|option| option == "direct-io"))
        {
            loopback.direct = true;
            parsed.data.remove(at);
        }
        Ok(parsed)
    }

    pub(super) fn is_bind(&self) -> bool {
        self.flags.contains(MsFlags::MS_BIND)
    }

    /// The flags of the first call, if there is one: a bind takes MS_BIND and MS_REC only, and a bind that is there
    /// already is only changed.
    pub(super) fn first(&self) -> Option<MsFlags> {
        match (self.is_bind(), self.flags.contains(MsFlags::MS_REMOUNT)) {
            (true, true) => None,
            (true, false) => Some(self.flags & (MsFlags::MS_BIND | MsFlags::MS_REC)),
            (false, _) => Some(self.flags),
        }
    }

    /// The flags of the second call, which a bind takes for all others (mount(2)); it keeps those that it `has` and that
    /// nobody wants cleared.
    pub(super) fn second(&self, has: MsFlags) -> Option<MsFlags> {
        let most = self.flags | self.cleared;
        (self.is_bind() && most.intersects(!(MsFlags::MS_BIND | MsFlags::MS_REC)))
            .then(|| (self.flags - MsFlags::MS_REC) | (has - self.cleared) | MsFlags::MS_REMOUNT)
    }

    /// The file system's own options as one string, and where lower directories in it are named from. An image of many
    /// layers has more of them than fit into a page with their full names; and mapped ones are somewhere else.
    pub fn layout(&self, kind: &str) -> Result<(Lower, String), MountError> {
        let data = self.data.join(",");
        let mapped = self.map.is_some();
        let lower = self.data.iter().rev().find_map(|option| option.strip_prefix("lowerdir="));
        let overlay = (kind == "overlay").then_some(lower).flatten();
        let too_long = |length| Err(MountError::TooLong { kind: kind.to_owned(), length });
        let lower = match overlay {
            Some(lower) if mapped || data.len() > LONGEST => lower,
            None if mapped && kind == "overlay" => {
                return Err(MountError::Option("an overlay without lowerdir= has nothing to map".into()));
            }
            _ if data.len() > LONGEST => return too_long(data.len()),
            _ => return Ok((Lower::Whole, data)),
        };
        let named = |names: String| {
            let rename = |option: &String| match option.strip_prefix("lowerdir=") {
                Some(_) => format!("lowerdir={names}"),
                None => option.clone(),
            };
            self.data.iter().map(rename).collect::<Vec<_>>().join(",")
        };
        let layers = split_layers(lower);
        if !mapped && let Some(common) = common_directory(&layers) {
            let prefix = format!("{}/", common.display());
            let relative: Vec<_> = layers.iter().map(|path| path.strip_prefix(&prefix).unwrap_or(path)).collect();
            let data = named(relative.join(":"));
            if data.len() <= LONGEST {
                return Ok((Lower::In(common), data));
            }
        }
        let mut directories = Vec::new();
        let numbers = layers.iter().map(|layer| match *layer {
            // Two colons in a row begin the layers that hold data alone.
            "" => String::new(),
            layer => {
                directories.push(PathBuf::from(unescape(layer)));
                (directories.len() - 1).to_string()
            }
        });
        let data = named(numbers.collect::<Vec<_>>().join(":"));
        if data.len() <= LONGEST { Ok((Lower::Numbered(directories), data)) } else { too_long(data.len()) }
    }
}

/// What an option means to the kernel: a flag, and whether it is set or cleared.
fn flag(option: &str) -> Option<(MsFlags, bool)> {
    Some(match option {
        "async" => (MsFlags::MS_SYNCHRONOUS, false),
        "atime" => (MsFlags::MS_NOATIME, false),
        "bind" => (MsFlags::MS_BIND, true),
        "defaults" => (MsFlags::empty(), true),
        "dev" => (MsFlags::MS_NODEV, false),
        "diratime" => (MsFlags::MS_NODIRATIME, false),
        "dirsync" => (MsFlags::MS_DIRSYNC, true),
        "exec" => (MsFlags::MS_NOEXEC, false),
        "mand" => (MsFlags::MS_MANDLOCK, true),
        "noatime" => (MsFlags::MS_NOATIME, true),
        "nodev" => (MsFlags::MS_NODEV, true),
        "nodiratime" => (MsFlags::MS_NODIRATIME, true),
        "noexec" => (MsFlags::MS_NOEXEC, true),
        "nomand" => (MsFlags::MS_MANDLOCK, false),
        "norelatime" => (MsFlags::MS_RELATIME, false),
        "nostrictatime" => (MsFlags::MS_STRICTATIME, false),
        "nosuid" => (MsFlags::MS_NOSUID, true),
        "rbind" => (MsFlags::MS_BIND | MsFlags::MS_REC, true),
        "relatime" => (MsFlags::MS_RELATIME, true),
        "remount" => (MsFlags::MS_REMOUNT, true),
        "ro" => (MsFlags::MS_RDONLY, true),
        "rw" => (MsFlags::MS_RDONLY, false),
        "strictatime" => (MsFlags::MS_STRICTATIME, true),
        "suid" => (MsFlags::MS_NOSUID, false),
        "sync" => (MsFlags::MS_SYNCHRONOUS, true),
        _ => return None,
    })
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

/// The lower directories of an overlay, still escaped: a colon that belongs to a name has a backslash before it (Linux,
/// overlayfs.rst).
fn split_layers(lower: &str) -> Vec<&str> {
    let (mut layers, mut begin, mut escaped) = (Vec::new(), 0, false);
    for (at, byte) in lower.bytes().enumerate() {
        match byte {
            b':' if !escaped => {
                layers.push(&lower[begin..at]);
                begin = at + 1;
            }
            _ => {}
        }
        escaped = byte == b'\\' && !escaped;
    }
    layers.push(&lower[begin..]);
    layers
}

fn unescape(layer: &str) -> String {
    let mut name = String::with_capacity(layer.len());
    let mut characters = layer.chars();
    while let Some(character) = characters.next() {
        name.extend(if character == '\\' { characters.next() } else { Some(character) });
    }
    name
}

/// The deepest directory that all of the layers are in.
fn common_directory(layers: &[&str]) -> Option<PathBuf> {
    let mut paths = layers.iter().filter(|path| !path.is_empty());
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

    fn try_options(list: &[&str]) -> Result<Options, MountError> {
        Options::parse(&list.iter().map(ToString::to_string).collect::<Vec<_>>())
    }

    fn options(list: &[&str]) -> Options {
        try_options(list).unwrap()
    }

    const NONE: MsFlags = MsFlags::empty();

    #[test]
    fn a_read_only_bind_takes_a_second_call() {
        let ro = options(&["rbind", "ro", "nosuid"]);
        assert_eq!(ro.first(), Some(MsFlags::MS_BIND | MsFlags::MS_REC));
        let wanted = MsFlags::MS_BIND | MsFlags::MS_REMOUNT | MsFlags::MS_RDONLY | MsFlags::MS_NOSUID;
        assert_eq!(ro.second(NONE), Some(wanted));
        assert_eq!(options(&["rbind"]).second(MsFlags::MS_NODEV), None);
        assert_eq!(options(&["ro"]).second(NONE), None);
    }

    #[test]
    fn a_bind_keeps_what_its_source_has_unless_it_is_told_otherwise() {
        let has = MsFlags::MS_NODEV | MsFlags::MS_NOSUID | MsFlags::MS_RDONLY;
        let second = options(&["bind", "suid", "noexec"]).second(has).unwrap();
        assert_eq!(
            second,
            MsFlags::MS_BIND | MsFlags::MS_REMOUNT | MsFlags::MS_NOEXEC | MsFlags::MS_NODEV | MsFlags::MS_RDONLY
        );
        assert!(!options(&["bind", "rw"]).second(has).unwrap().contains(MsFlags::MS_RDONLY));
    }

    #[test]
    fn a_bind_that_is_there_is_changed_and_not_made_again() {
        let remount = options(&["bind", "remount", "ro"]);
        assert_eq!(remount.first(), None);
        assert!(remount.second(NONE).unwrap().contains(MsFlags::MS_RDONLY));
        assert_eq!(options(&["remount", "ro"]).first(), Some(MsFlags::MS_REMOUNT | MsFlags::MS_RDONLY));
    }

    #[test]
    fn a_later_option_undoes_an_earlier_one() {
        assert_eq!(options(&["ro", "rw", "noexec", "exec"]).flags, NONE);
        assert_eq!(options(&["rw", "ro"]).flags, MsFlags::MS_RDONLY);
    }

    #[test]
    fn propagation_is_set_apart_and_data_is_kept_in_order() {
        let parsed = options(&["rslave", "lowerdir=/a", "upperdir=/b", "relatime", "index=off"]);
        assert_eq!(parsed.propagation, MsFlags::MS_SLAVE | MsFlags::MS_REC);
        assert_eq!(parsed.data, ["lowerdir=/a", "upperdir=/b", "index=off"]);
        assert_eq!(parsed.flags, MsFlags::MS_RELATIME);
    }

    #[test]
    fn containerds_own_options_are_not_the_file_systems() {
        let parsed = options(&["loop", "direct-io", "rro", "uidmap=0:1:2", "gidmap=0:3:4", "size=1m"]);
        assert_eq!(parsed.data, ["size=1m"]);
        assert_eq!(parsed.loopback, Some(Loopback { direct: true }));
        assert_eq!(parsed.map, Some(IdMap::parse("0:1:2", "0:3:4").unwrap()));
        assert!(parsed.read_only_tree);
        // It is an option of file systems too.
        assert_eq!(options(&["direct-io"]).data, ["direct-io"]);
        assert_eq!(options(&["uidmap=0:1:2"]).map, None);
        for wrong in ["X-containerd.mkdir.path=/x", "gidmap=7"] {
            let error = try_options(&["uidmap=0:1:2", wrong]).unwrap_err().to_string();
            assert!(error.contains(wrong.trim_start_matches("gidmap=")), "{error}");
        }
    }

    #[test]
    fn lower_directories_too_long_for_a_page_become_relative() {
        let layers: Vec<String> = (0..100).map(|n| format!("/var/lib/containerd/snapshots/{n}/fs")).collect();
        let lower = format!("lowerdir={}", layers.join(":"));
        // 100 layers fit only without their common directory.
        let long = options(&[&lower, &format!("upperdir=/{}", "u".repeat(2000))]);
        let (place, data) = long.layout("overlay").unwrap();
        assert_eq!(place, Lower::In("/var/lib/containerd/snapshots".into()));
        assert!(data.starts_with("lowerdir=0/fs:1/fs:"), "{data}");
        assert!(data.contains(",upperdir=/uuu"));
        assert!(matches!(long.layout("other"), Err(MountError::TooLong { .. })));
    }

    #[test]
    fn lower_directories_without_a_common_one_become_numbers() {
        let layers: Vec<_> = (0..200).map(|n| format!(r"/{n}/{}\:{}", "x".repeat(20), "y".repeat(20))).collect();
        let (place, data) = options(&[&format!("lowerdir={}::/data", layers.join(":"))]).layout("overlay").unwrap();
        let Lower::Numbered(directories) = place else { panic!("{place:?}") };
        assert_eq!(directories.len(), 201);
        assert_eq!(directories[7], PathBuf::from(format!("/7/{}:{}", "x".repeat(20), "y".repeat(20))));
        assert!(data.starts_with("lowerdir=0:1:2:") && data.ends_with(":199::200"), "{data}");
    }

    #[test]
    fn mapped_lower_directories_are_numbers_and_an_overlay_has_some() {
        let map = ["uidmap=0:1000:10", "gidmap=0:1000:10"];
        let (place, data) =
            options(&[&["lowerdir=/a/b:/a/c", "upperdir=/u"], &map[..]].concat()).layout("overlay").unwrap();
        assert_eq!(
            (place, data.as_str()),
            (Lower::Numbered(vec!["/a/b".into(), "/a/c".into()]), "lowerdir=0:1,upperdir=/u")
        );
        assert!(options(&map).layout("overlay").is_err());
        assert_eq!(options(&map).layout("ext4").unwrap(), (Lower::Whole, String::new()));
    }

    proptest! {
        #[test]
        fn no_options_make_the_parser_panic(
            list in proptest::collection::vec("[a-z]{1,12}|r?(private|shared|slave)|(lowerdir|uidmap|gidmap)=[/a.:\\\\0-9,]{0,20}|(?s).{0,20}", 0..8),
            layers in 0..400usize,
            stem in "(/[a-z.]{1,8}){0,4}",
        ) {
            let mut list = list;
            let lower: Vec<_> = (0..layers).map(|n| format!("{stem}/{n}/fs")).collect();
            list.push(format!("lowerdir={}", lower.join(":")));
            if let Ok(parsed) = Options::parse(&list) {
                prop_assert!(parsed.first().is_none_or(|first| parsed.flags.contains(first)));
                match parsed.layout("overlay") {
                    Ok((place, data)) => {
                        prop_assert!(data.len() <= LONGEST);
                        if let Lower::In(path) = place {
                            prop_assert!(path.is_absolute() && path != Path::new("/"));
                        }
                    }
                    Err(error) => prop_assert!(matches!(error, MountError::TooLong { .. }), "{}", error),
                }
            }
        }

        #[test]
        fn renamed_directories_are_the_same_directories(
            layers in 100..300usize,
            stem in "/[a-z]{20}(/[a-z]{1,8}){0,3}",
        ) {
            let lower: Vec<_> = (0..layers).map(|n| format!("{stem}/{n}/fs")).collect();
            let (place, data) = Options::parse(&[format!("lowerdir={}", lower.join(":"))]).unwrap().layout("overlay").unwrap();
            let given = data.strip_prefix("lowerdir=").unwrap().split(':');
            let given: Vec<_> = given.map(|name| match &place {
                Lower::Whole => name.into(),
                Lower::In(directory) => directory.join(name),
                Lower::Numbered(directories) => directories[name.parse::<usize>().unwrap()].clone(),
            }).collect();
            prop_assert_eq!(given, lower.iter().map(PathBuf::from).collect::<Vec<_>>());
        }

        #[test]
        fn layers_are_split_where_the_kernel_splits_them(names in proptest::collection::vec("[a-z:\\\\]{0,6}", 1..6)) {
            let escape = |name: &String| name.replace('\\', "\\\\").replace(':', "\\:");
            let lower = names.iter().map(escape).collect::<Vec<_>>().join(":");
            let split: Vec<_> = split_layers(&lower).into_iter().map(unescape).collect();
            prop_assert_eq!(split, names);
        }
    }
}
