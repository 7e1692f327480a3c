//! What lies on disk for one container: the bundle that containerd made, and what the shim adds to it.
//!
//! Everything here is plain files read and written at once, so that `delete` can work from disk alone when the shim
//! that wrote them is dead. Nothing here knows a runtime's command line.

pub mod record;
pub mod rewrite;
pub mod rootfs;
pub mod volumes;

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{self, Read as _, Write as _};
use std::path::{Path, PathBuf};

use serde::Deserialize;
use thiserror::Error;

/// A config.json larger than this is refused: no real one comes near, and the shim's memory is the node's.
const LARGEST_CONFIG: u64 = 16 << 20;

/// What is wrong with a bundle.
#[derive(Debug, Error)]
pub enum BundleError {
    /// An identifier that cannot safely be part of a path or a command line.
    #[error(
        "id {0:?} is not valid: it must have 1 to 128 characters of A-Z a-z 0-9 _ . - and begin and end with a letter or digit"
    )]
    Id(String),
    /// A file cannot be read or written.
    #[error("cannot {what} {}: {error}", path.display())]
    Io {
        /// The call, in words.
        what: &'static str,
        /// The file.
        path: PathBuf,
        /// The system's reason.
        error: io::Error,
    },
    /// A file of the bundle is larger than any real one.
    #[error("{} is larger than {LARGEST_CONFIG} bytes", .0.display())]
    TooLarge(PathBuf),
    /// Not JSON, or not of the expected form.
    #[error("{}: {error}; it must be an OCI runtime configuration", path.display())]
    Json {
        /// The file.
        path: PathBuf,
        /// serde_json's words, with line and column.
        error: serde_json::Error,
    },
}

/// A container's, exec's or namespace's identifier: safe as a file name and never taken for a flag.
///
/// The rule is containerd's own (pkg/identifiers), but for the length: 76 there, more here, since other clients of the
/// protocol exist.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Id(String);

impl Id {
    /// Checks and takes an id.
    pub fn parse(text: &str) -> Result<Self, BundleError> {
        let edge = |byte: Option<&u8>| byte.is_some_and(u8::is_ascii_alphanumeric);
        let bytes = text.as_bytes();
        let valid = (1..=128).contains(&bytes.len())
            && edge(bytes.first())
            && edge(bytes.last())
            && bytes.iter().all(|byte| byte.is_ascii_alphanumeric() || b"_.-".contains(byte));
        if valid { Ok(Self(text.to_owned())) } else { Err(BundleError::Id(text.chars().take(100).collect())) }
    }

    /// The id's text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl std::fmt::Display for Id {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.0)
    }
}

/// The annotations of a spec.
pub type Annotations = BTreeMap<String, String>;

/// A bundle's directory.
#[derive(Clone, Debug)]
pub struct Bundle(PathBuf);

impl Bundle {
    /// The bundle at a path, which need not exist.
    pub fn at(path: &Path) -> Self {
        Self(path.to_owned())
    }

    /// The directory.
    pub fn path(&self) -> &Path {
        &self.0
    }

    /// A file or directory in it.
    pub fn join(&self, name: &str) -> PathBuf {
        self.0.join(name)
    }

    /// The container's root file system, where containerd's mounts go.
    pub fn rootfs(&self) -> PathBuf {
        self.join("rootfs")
    }

    /// Reads one of its files, whole, up to a bound.
    pub fn read(&self, name: &str) -> Result<Vec<u8>, BundleError> {
        let path = self.join(name);
        let io = |error| BundleError::Io { what: "read", path: path.clone(), error };
        let file = File::open(&path).map_err(io)?;
        let mut content = Vec::new();
        file.take(LARGEST_CONFIG + 1).read_to_end(&mut content).map_err(io)?;
        if content.len() as u64 > LARGEST_CONFIG { Err(BundleError::TooLarge(path)) } else { Ok(content) }
    }

    /// Reads config.json, whole.
    pub fn config(&self) -> Result<Vec<u8>, BundleError> {
        self.read("config.json")
    }

    /// Reads the annotations alone.
    pub fn annotations(&self) -> Result<Annotations, BundleError> {
        #[derive(Deserialize)]
        struct Shallow {
            #[serde(default)]
            annotations: Option<Annotations>,
        }
        let config = self.config()?;
        let spec: Shallow = self.parse("config.json", &config)?;
        Ok(spec.annotations.unwrap_or_default())
    }

    /// Parses the content of one of its JSON files, naming the file in the error.
    pub fn parse<'a, T: Deserialize<'a>>(&self, name: &str, content: &'a [u8]) -> Result<T, BundleError> {
        serde_json::from_slice(content).map_err(|error| BundleError::Json { path: self.join(name), error })
    }

    /// Replaces a file as a whole: readers see the old or the new one.
    pub fn write(&self, name: &str, content: &[u8]) -> Result<(), BundleError> {
        let (new, file) = (self.join(&format!(".{name}.new")), self.join(name));
        let write = || {
            let mut out = File::create(&new)?;
            out.write_all(content)?;
            fs::rename(&new, &file)
        };
        write().map_err(|error| {
            let _ = fs::remove_file(&new);
            BundleError::Io { what: "write", path: file.clone(), error }
        })
    }

    /// Removes a file that the shim made; one that is gone already is fine.
    pub fn remove(&self, name: &str) {
        if let Err(error) = fs::remove_file(self.join(name))
            && error.kind() != io::ErrorKind::NotFound
        {
            log::warn!(file = name, error = error.to_string().as_str(); "cannot remove a file of the bundle");
        }
    }

    /// The pid that a runtime wrote into `name`, if it did.
    pub fn pid(&self, name: &str) -> Option<i32> {
        fs::read_to_string(self.join(name)).ok()?.trim().parse().ok().filter(|pid| *pid > 0)
    }
}

/// The group whose containers share one shim, if the annotations name one: the first of these, as in the Go shim. Of a
/// pod it is the pod, whatever its author says, for a shim holds to its first container's decision.
pub fn group(annotations: &Annotations) -> Option<&str> {
    const GROUPS: [&str; 2] = ["io.containerd.runc.v2.group", "io.kubernetes.cri.sandbox-id"];
    let is_pods = annotations.contains_key("io.kubernetes.cri.container-type");
    let groups = if is_pods { &GROUPS[1..] } else { &GROUPS };
    groups.iter().find_map(|key| annotations.get(*key)).map(String::as_str)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn an_id_is_safe_in_a_path_and_on_a_command_line() {
        for id in ["c1", "a", "a.b_c-d", &"x".repeat(128)] {
            assert_eq!(Id::parse(id).unwrap().as_str(), id);
        }
        for id in ["", ".", "..", "-rf", "a/b", "../x", "a b", "a\n", "ä", "a\0", "x-", &"x".repeat(129)] {
            assert!(Id::parse(id).is_err(), "{id:?}");
        }
    }

    #[test]
    fn the_runc_group_label_comes_before_the_pods() {
        let mut annotations = Annotations::new();
        assert_eq!(group(&annotations), None);
        annotations.insert("io.kubernetes.cri.sandbox-id".into(), "pod".into());
        assert_eq!(group(&annotations), Some("pod"));
        annotations.insert("io.containerd.runc.v2.group".into(), "mine".into());
        assert_eq!(group(&annotations), Some("mine"));
        annotations.insert("io.kubernetes.cri.container-type".into(), "container".into());
        assert_eq!(group(&annotations), Some("pod"), "a pod's author cannot choose another pod's shim");
    }

    proptest! {
        #[test]
        fn what_is_an_id_is_one_name(text in "[a-zA-Z0-9_./-]{0,130}|(?s).{0,20}") {
            if let Ok(id) = Id::parse(&text) {
                let parts: Vec<_> = Path::new(id.as_str()).components().collect();
                prop_assert!(matches!(parts[..], [std::path::Component::Normal(_)]));
                prop_assert!(!text.starts_with('-'));
            }
        }
    }
}
