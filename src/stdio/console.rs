//! The terminal of a process: the socket on which the runtime sends its master side, and that master.

use std::fs;
use std::io::{self, IoSliceMut};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::time::Duration;

use nix::cmsg_space;
use nix::fcntl::{FcntlArg, FdFlag, fcntl};
use nix::libc;
use nix::pty::{Winsize, openpty};
use nix::sys::socket::{ControlMessageOwned, MsgFlags, recvmsg};
use tokio::net::UnixListener;

use super::StdioError;

/// How long the terminal may be on its way once the runtime has finished. It is in the socket by then.
const ARRIVAL: Duration = Duration::from_secs(2);

nix::ioctl_write_ptr_bad!(set_size, libc::TIOCSWINSZ, Winsize);

/// A socket that a runtime sends one terminal to (runc's docs/terminals.md). Its file goes with this value.
pub struct ConsoleSocket {
    listener: UnixListener,
    path: PathBuf,
    name: String,
}

impl ConsoleSocket {
    /// Listens in `directory` under `name`. The runtime must run there and be given the name alone: the whole path may
    /// be longer than a socket's address can be.
    pub fn listen(directory: &Path, name: &str) -> Result<Self, StdioError> {
        let io = |error| StdioError::Io { what: "make the console socket", error };
        let handle = fs::File::open(directory).map_err(io)?;
        let short = format!("/proc/self/fd/{}/{name}", handle.as_raw_fd());
        let listener = UnixListener::bind(short).map_err(io)?;
        Ok(Self { listener, path: directory.join(name), name: name.to_owned() })
    }

    /// The socket's path, for a runtime whose working directory is the socket's.
    pub fn name(&self) -> &Path {
        Path::new(&self.name)
    }

    /// Takes the terminal from the runtime, which has finished.
    pub async fn receive(self) -> Result<Console, StdioError> {
        let io = |error| StdioError::Io { what: "receive the terminal", error };
        let arrival = async {
            let (stream, _) = self.listener.accept().await.map_err(io)?;
            loop {
                stream.readable().await.map_err(io)?;
                match stream.try_io(tokio::io::Interest::READABLE, || receive_descriptor(stream.as_raw_fd())) {
                    Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                    result => return result.map(Console).map_err(io),
                }
            }
        };
        tokio::time::timeout(ARRIVAL, arrival).await.map_err(|_| StdioError::NoConsole(ARRIVAL))?
    }
}

impl Drop for ConsoleSocket {
    fn drop(&mut self) {
        // Only a file that is gone already cannot be removed.
        let _ = fs::remove_file(&self.path);
    }
}

fn receive_descriptor(socket: i32) -> io::Result<OwnedFd> {
    let mut name = [0; 4096];
    let mut parts = [IoSliceMut::new(&mut name)];
    let mut space = cmsg_space!([i32; 1]);
    let message = recvmsg::<()>(socket, &mut parts, Some(&mut space), MsgFlags::MSG_CMSG_CLOEXEC)?;
    for part in message.cmsgs()? {
        if let ControlMessageOwned::ScmRights(descriptors) = part {
            // SAFETY: the kernel has just made these descriptors for us; nobody else owns them.
            let mut descriptors = descriptors.into_iter().map(|fd| unsafe { OwnedFd::from_raw_fd(fd) });
            // More than one was not asked for; whatever there is must be closed.
            let terminal = descriptors.next();
            descriptors.for_each(drop);
            if let Some(terminal) = terminal {
                return Ok(terminal);
            }
        }
    }
    Err(io::Error::other("the runtime closed the console socket without sending a terminal"))
}

/// The master side of a process's terminal.
#[derive(Debug)]
pub struct Console(OwnedFd);

impl Console {
    /// A new terminal: its master, and the side that a process gets.
    pub fn pair() -> Result<(Self, OwnedFd), StdioError> {
        let pair =
            openpty(None, None).map_err(|error| StdioError::Io { what: "make a terminal", error: error.into() })?;
        // The process must not inherit its own master, nor a runtime that starts meanwhile any of both.
        for side in [&pair.master, &pair.slave] {
            fcntl(side, FcntlArg::F_SETFD(FdFlag::FD_CLOEXEC))
                .map_err(|error| StdioError::Io { what: "make a terminal", error: error.into() })?;
        }
        Ok((Self(pair.master), pair.slave))
    }

    /// Another descriptor for it, for a task that reads or writes.
    pub(super) fn duplicate(&self) -> Result<OwnedFd, StdioError> {
        self.0.try_clone().map_err(|error| StdioError::Io { what: "duplicate the terminal", error })
    }

    /// Sets its size, in characters.
    pub(super) fn resize(&self, width: u16, height: u16) -> Result<(), StdioError> {
        let size = Winsize { ws_row: height, ws_col: width, ws_xpixel: 0, ws_ypixel: 0 };
        // SAFETY: the descriptor is open and `size` is what this request reads.
        let done = unsafe { set_size(self.0.as_raw_fd(), &size) };
        done.map(drop).map_err(|error| StdioError::Io { what: "resize the terminal", error: error.into() })
    }
}
