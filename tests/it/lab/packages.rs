//! Where `tests/lab/fetch.sh` put the Debian packages. Nothing here downloads: a missing package is an error that says what to run.

use std::path::PathBuf;

use super::checkout;

/// A Debian release that packages come from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Suite {
    Bookworm,
    Trixie,
    Sid,
}

impl Suite {
    fn dir(self) -> PathBuf {
        checkout().join("target/lab").join(match self {
            Self::Bookworm => "bookworm",
            Self::Trixie => "trixie",
            Self::Sid => "sid",
        })
    }

    /// A program of this suite, wherever its package has it; `None` if it was not fetched.
    pub fn find(self, program: &str) -> Option<PathBuf> {
        ["usr/bin", "usr/sbin", "bin", "sbin"]
            .iter()
            .map(|bin| self.dir().join(bin).join(program))
            .find(|path| path.is_file())
    }

    /// As `find`, where a test cannot do without.
    pub fn program(self, program: &str) -> PathBuf {
        self.find(program).unwrap_or_else(|| {
            panic!("no {program} of {self:?}: run tests/lab/fetch.sh first (it takes SUITE/PACKAGE arguments)")
        })
    }

    /// The directory of its CNI plugins.
    pub fn cni_plugins(self) -> PathBuf {
        self.dir().join("usr/lib/cni")
    }
}
