//! A runtime that stands in for runc or runsc: it records how it was called, misbehaves as the test asks, and otherwise hands
//! over to the real one. The program itself is `tests/fake/runtime.sh`.

use std::{
    fs,
    os::unix::fs::symlink,
    path::{Path, PathBuf},
};

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
        let mut files: Vec<_> =
            fs::read_dir(self.dir.join("calls")).unwrap().map(|entry| entry.unwrap().path()).collect();
        files.retain(|file| file.extension().is_none());
        files.sort();
        let arguments = |file: &PathBuf| {
            String::from_utf8_lossy(&fs::read(file).unwrap()).split_terminator('\0').map(String::from).collect()
        };
        files.iter().map(arguments).collect()
    }
}
