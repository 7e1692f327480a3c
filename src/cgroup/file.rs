//! The kernel's flat files: read one, and the shapes that several controllers share.
//!
//! Owns the rule that a file which is not there is no error: controllers come and go with kernels and nodes,
//! and a cgroup may vanish under the reader. Called by `v1`, `v2` and `Cgroup`.

use std::fs;
use std::io;
use std::path::Path;

use nix::libc::{ENODEV, ENOENT, EOPNOTSUPP, ESRCH};

use super::Error;

/// The text of a file, or `None` when the kernel does not offer it here.
pub(super) fn read(directory: &Path, name: &str) -> Result<Option<String>, Error> {
    let path = directory.join(name);
    match fs::read_to_string(&path) {
        Ok(text) => Ok(Some(text)),
        Err(source) if is_absent(&source) => Ok(None),
        Err(source) => Err(Error::Read { path, source }),
    }
}

/// Whether an error only says that something is not there: ENODEV comes from an open file of a removed
/// cgroup, ESRCH from procfs, EOPNOTSUPP from pressure files that are switched off and from threaded cgroups.
pub(super) fn is_absent(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(ENOENT | ENODEV | ESRCH | EOPNOTSUPP))
}

/// A file of one number, where `max` stands for no limit.
pub(super) fn number(directory: &Path, name: &str, max: u64) -> Result<Option<u64>, Error> {
    let text = read(directory, name)?;
    Ok(text.and_then(|text| match text.trim() {
        "max" => Some(max),
        number => number.parse().ok(),
    }))
}

/// The lines of a file of `key number`; others are passed over.
pub(super) fn pairs(text: &str) -> impl Iterator<Item = (&str, u64)> {
    text.lines().filter_map(|line| {
        let (key, value) = line.split_once(' ')?;
        Some((key, value.trim().parse().ok()?))
    })
}

/// One line of `rdma.current` or `rdma.max`.
#[derive(Debug, PartialEq)]
pub(super) struct Rdma<'a> {
    pub(super) device: &'a str,
    pub(super) handles: u32,
    pub(super) objects: u32,
}

/// The lines `DEVICE hca_handle=N hca_object=N`.
pub(super) fn rdma(text: &str) -> impl Iterator<Item = Rdma<'_>> {
    text.lines().filter_map(|line| {
        let mut words = line.split_ascii_whitespace();
        let device = words.next()?;
        let mut field = |key: &str| match words.next()?.strip_prefix(key)?.strip_prefix('=')? {
            "max" => Some(u32::MAX),
            number => number.parse().ok(),
        };
        Some(Rdma { device, handles: field("hca_handle")?, objects: field("hca_object")? })
    })
}

/// The huge page sizes of this host, as hugetlb's file names have them: `2MB`, `1GB`.
pub(super) fn page_sizes() -> Result<Vec<String>, Error> {
    let path = Path::new("/sys/kernel/mm/hugepages");
    match fs::read_dir(path) {
        Ok(entries) => Ok(entries.filter_map(|entry| page_size(entry.ok()?.file_name().to_str()?)).collect()),
        Err(source) if is_absent(&source) => Ok(Vec::new()),
        Err(source) => Err(Error::Read { path: path.into(), source }),
    }
}

fn page_size(entry: &str) -> Option<String> {
    let kib: u64 = entry.strip_prefix("hugepages-")?.strip_suffix("kB")?.parse().ok()?;
    Some(match kib {
        0..0x400 => format!("{kib}KB"),
        0x400..0x10_0000 => format!("{}MB", kib >> 10),
        _ => format!("{}GB", kib >> 20),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn page_sizes_are_named_as_hugetlb_names_them() {
        for (entry, size) in [
            ("hugepages-64kB", Some("64KB")),
            ("hugepages-2048kB", Some("2MB")),
            ("hugepages-524288kB", Some("512MB")),
            ("hugepages-1048576kB", Some("1GB")),
            ("hugepages-16777216kB", Some("16GB")),
            ("hugepages-x", None),
            ("other", None),
        ] {
            assert_eq!(page_size(entry).as_deref(), size, "{entry}");
        }
    }

    #[test]
    fn a_missing_file_is_no_error() {
        assert_eq!(read(Path::new("/proc"), "not-there").unwrap(), None);
        assert_eq!(number(Path::new("/proc"), "not-there", 0).unwrap(), None);
    }

    #[test]
    fn an_unreadable_file_is_named() {
        let error = read(Path::new("/"), "proc").unwrap_err().to_string();
        assert!(error.starts_with("read /proc: "), "{error}");
    }

    #[test]
    fn rdma_devices_without_a_limit_have_the_greatest_one() {
        let text = "mlx4_0 hca_handle=2 hca_object=2000\nocrdma1 hca_handle=3 hca_object=max\nbroken 1\n";
        let entry = |device, handles, objects| Rdma { device, handles, objects };
        assert_eq!(rdma(text).collect::<Vec<_>>(), [entry("mlx4_0", 2, 2000), entry("ocrdma1", 3, u32::MAX)]);
    }

    proptest! {
        #[test]
        fn no_text_makes_the_parsers_panic(text in "[a-z_=0-9 :\n\\PC]{0,80}") {
            pairs(&text).count();
            rdma(&text).count();
            page_size(&text);
        }
    }
}
