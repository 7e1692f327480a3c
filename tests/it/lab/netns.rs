//! A network namespace: where a daemon with a CNI bridge of its own runs, so that bridges, addresses and ports of daemons side by
//! side are apart and go with the last process. Held by a descriptor alone: it has no name and needs no clean-up.

use std::{
    fs::File,
    net::{Ipv4Addr, SocketAddr, TcpStream, UdpSocket},
    os::fd::AsRawFd,
    thread,
    time::Duration,
};

use nix::{
    errno::Errno,
    libc,
    sched::{CloneFlags, setns, unshare},
};

/// How long a connection may take to be accepted.
const CONNECT: Duration = Duration::from_secs(5);

/// An open network namespace.
#[derive(Debug)]
pub struct Netns(File);

impl Netns {
    /// A new one, with its loopback device up.
    pub fn new() -> Self {
        // A namespace belongs to a thread: this one's ends with it, and the descriptor keeps the namespace.
        let made = thread::spawn(|| {
            unshare(CloneFlags::CLONE_NEWNET).unwrap();
            raise_loopback().unwrap();
            File::open("/proc/thread-self/ns/net").unwrap()
        });
        Self(made.join().unwrap())
    }

    /// Does something on a thread that is in the namespace: sockets made there and processes started there stay in it.
    pub fn inside<T: Send>(&self, act: impl FnOnce() -> T + Send) -> T {
        thread::scope(|scope| {
            let inside = scope.spawn(|| {
                setns(&self.0, CloneFlags::CLONE_NEWNET).unwrap();
                act()
            });
            inside.join().unwrap()
        })
    }

    /// A connection made from within the namespace; `None` if nobody answers.
    pub fn connect(&self, to: SocketAddr) -> Option<TcpStream> {
        self.inside(|| TcpStream::connect_timeout(&to, CONNECT).ok())
    }
}

/// Brings the current namespace's loopback device up.
fn raise_loopback() -> Result<(), Errno> {
    let socket = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0)).unwrap();
    // SAFETY: all zeroes is a valid ifreq.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    for (to, from) in request.ifr_name.iter_mut().zip(b"lo") {
        *to = from.cast_signed();
    }
    request.ifr_ifru.ifru_flags = i16::try_from(libc::IFF_UP).unwrap();
    // SAFETY: the request is a complete ifreq that outlives the call.
    Errno::result(unsafe { libc::ioctl(socket.as_raw_fd(), libc::SIOCSIFFLAGS, &raw mut request) }).map(drop)
}
