//! A runtime that stands in for runc or runsc: it records how it was called, misbehaves as the test asks, and otherwise hands
//! over to the real one. The program itself is `tests/fake/runtime.sh`.

use std::{
    ffi::OsStr,
    fs,
    os::unix::fs::symlink,
    path::{Path, PathBuf},
};

use serde_json::Value;

use super::checkout;

/// A fake that is installed in a directory of its own.
pub struct Fake {
    dir: PathBuf,
}

impl Fake {
    /// Installs a fake in an empty directory; it hands over to `real`.
    pub fn install(dir: &Path, real: &Path) -> Self {
        fs::copy(checkout().join("tests/fake/runtime.sh"), dir.join("runtime")).unwrap();
        symlink(real, dir.join("real")).unwrap();
        fs::create_dir(dir.join("calls")).unwrap();
        Self { dir: dir.into() }
    }

    /// The program to install as the runtime.
    pub fn program(&self) -> PathBuf {
        self.dir.join("runtime")
    }

    /// From now on, behaves as these lines say; the program's opening comment has their grammar.
    pub fn behave(&self, lines: &str) {
        let next = self.dir.join("behaviour.next");
        fs::write(&next, format!("{lines}\n")).unwrap();
        fs::rename(next, self.dir.join("behaviour")).unwrap();
    }

    /// The arguments of each call so far, in the order of the calls.
    pub fn calls(&self) -> Vec<Vec<String>> {
        let arguments = |file: &PathBuf| {
            String::from_utf8_lossy(&fs::read(file).unwrap()).split_terminator('\0').map(String::from).collect()
        };
        self.records(None).iter().map(arguments).collect()
    }

    /// The working directory of each call so far, in the order of the calls.
    pub fn directories(&self) -> Vec<PathBuf> {
        let directory = |file: &PathBuf| fs::read_to_string(file).unwrap().trim_end().into();
        self.records(Some("cwd")).iter().map(directory).collect()
    }

    /// The config.json that each create so far found, in the order of the calls.
    pub fn specs(&self) -> Vec<Value> {
        let spec = |file: &PathBuf| serde_json::from_slice(&fs::read(file).unwrap()).unwrap();
        self.records(Some("json")).iter().map(spec).collect()
    }

    /// The files of this kind that the calls so far left, in the order of the calls.
    fn records(&self, extension: Option<&str>) -> Vec<PathBuf> {
        let mut files: Vec<_> =
            fs::read_dir(self.dir.join("calls")).unwrap().map(|entry| entry.unwrap().path()).collect();
        files.retain(|file| file.extension() == extension.map(OsStr::new));
        files.sort();
        files
    }
}

/// Installs a containerd, in an empty directory, whose node has NVIDIA's driver as far as a shim looks: it and its shims see
/// a /dev of their own with `/dev/nvidiactl`. The program itself is `tests/fake/driver.sh`.
pub fn containerd_with_driver(dir: &Path, real: &Path) -> PathBuf {
    let program = dir.join("containerd");
    fs::copy(checkout().join("tests/fake/driver.sh"), &program).unwrap();
    fs::create_dir(dir.join("dev")).unwrap();
    symlink(real, dir.join("real")).unwrap();
    program
}
