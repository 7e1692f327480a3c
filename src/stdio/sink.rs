//! Where an output stream ends: a fifo or a file.

use std::fs::{self, File};
use std::os::fd::OwnedFd;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use nix::fcntl::OFlag;
use tokio::io::unix::AsyncFd;

use super::{StdioError, open_nonblocking, watched};

/// The end of an output stream.
pub(super) enum Sink {
    /// A fifo that containerd reads.
    Fifo {
        /// Our end.
        writer: AsyncFd<OwnedFd>,
        /// A reader that keeps the fifo writable while nobody else reads.
        reader: OwnedFd,
    },
    /// A file, appended to.
    File(File),
}

impl Sink {
    /// Opens the sink that `name` means; `stream` is for the error.
    pub(super) fn open(stream: &'static str, name: &str) -> Result<Self, StdioError> {
        let (scheme, path) = name.split_once("://").unwrap_or(("fifo", name));
        let path = Path::new(path);
        let open = |error| StdioError::Open { stream, path: path.to_owned(), error };
        match scheme {
            "fifo" if path.is_absolute() => {
                let reader = open_nonblocking(path, OFlag::O_RDONLY).map_err(open)?;
                let writer = open_nonblocking(path, OFlag::O_WRONLY).map_err(open)?;
                Ok(Self::Fifo { writer: watched(writer)?, reader })
            }
            "file" if path.is_absolute() => {
                let directory = path.parent().map(PathBuf::from).unwrap_or_default();
                fs::create_dir_all(&directory).map_err(open)?;
                File::options().append(true).create(true).mode(0o644).open(path).map(Self::File).map_err(open)
            }
            _ => Err(StdioError::Name { stream, name: name.chars().take(200).collect() }),
        }
    }
}
