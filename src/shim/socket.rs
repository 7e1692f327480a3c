//! The shim's socket: where it is, how it is bound, and whether somebody still answers on it.

use std::fs;
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::fs::{DirBuilderExt, PermissionsExt};
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};

use nix::errno::Errno;
use nix::sys::socket::{AddressFamily, SockFlag, SockType, UnixAddr, connect, socket};
use sha2::{Digest, Sha256};
use thiserror::Error;

/// Where every shim's socket is unless containerd says where, under a hashed name: a socket's path may have 107 bytes only
/// (unix(7)).
const DIRECTORY: &str = "/run/containerd/s";

/// Why there is no socket.
#[derive(Debug, Error)]
pub enum SocketError {
    /// A system call failed.
    #[error("cannot {what} {}: {error}", path.display())]
    Io {
        /// The call, in words.
        what: &'static str,
        /// The socket or its directory.
        path: PathBuf,
        /// The system's reason.
        error: io::Error,
    },
}

/// The address of one shim's socket.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Address(PathBuf);

/// What became of the attempt to be the one who listens.
pub enum Bound {
    /// We listen now.
    New(UnixListener),
    /// A shim of the same group listens already and is alive.
    Alive,
}

impl Address {
    /// The address for a group (a pod, or a container by itself) of one containerd: the same inputs, the same
    /// address, so that a later container of the pod finds the pod's shim.
    pub fn of_group(directory: Option<&Path>, containerd: &Path, namespace: &str, group: &str) -> Self {
        // Put together as text: a group is a pod author's, and joined as a path it could begin anew.
        let text = format!("{}/{namespace}/{group}", containerd.display());
        let digest = Sha256::digest(text.as_bytes());
        let mut name = String::with_capacity(64);
        for byte in digest {
            name.push_str(&format!("{byte:02x}"));
        }
        Self(directory.unwrap_or(Path::new(DIRECTORY)).join(name))
    }

    /// Reads what `to_string` printed, as the bundle's `address` file has it. `None` if it is not the address of a
    /// shim's socket.
    pub fn parse(text: &str) -> Option<Self> {
        let path = text.trim().strip_prefix("unix://")?;
        let (directory, name) = path.rsplit_once('/')?;
        // A digest in hexadecimal, and nothing that a file system reads otherwise (`..`).
        let is_digest = name.len() == 64 && name.bytes().all(|byte| byte.is_ascii_hexdigit());
        let is_clean = directory.starts_with('/') && !directory.split('/').any(|part| part == "..");
        (is_digest && is_clean).then(|| Self(path.into()))
    }

    /// The socket's path.
    pub fn path(&self) -> &Path {
        &self.0
    }

    /// Listens here, unless a living shim does. A dead shim's socket file is replaced.
    pub fn bind(&self) -> Result<Bound, SocketError> {
        let fail = |what, path: &Path| {
            let path = path.to_owned();
            move |error| SocketError::Io { what, path, error }
        };
        let directory = self.0.parent().unwrap_or(Path::new("/"));
        fs::DirBuilder::new().recursive(true).mode(0o711).create(directory).map_err(fail("create", directory))?;
        let listener = match UnixListener::bind(&self.0) {
            Err(error) if error.kind() == io::ErrorKind::AddrInUse => {
                if self.is_alive() {
                    return Ok(Bound::Alive);
                }
                self.remove();
                UnixListener::bind(&self.0)
            }
            result => result,
        }
        .map_err(fail("listen on", &self.0))?;
        fs::set_permissions(&self.0, fs::Permissions::from_mode(0o600)).map_err(fail("restrict", &self.0))?;
        Ok(Bound::New(listener))
    }

    /// Whether somebody listens. Answers at once: a connection to a unix socket does not wait for the accept.
    pub fn is_alive(&self) -> bool {
        let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
        let connected = socket(AddressFamily::Unix, SockType::Stream, flags, None)
            .and_then(|socket| connect(socket.as_raw_fd(), &UnixAddr::new(&self.0)?));
        // EAGAIN is a full backlog: a living but busy shim.
        matches!(connected, Ok(()) | Err(Errno::EAGAIN))
    }

    /// Removes the socket file; one that is gone already is fine.
    pub fn remove(&self) {
        if let Err(error) = fs::remove_file(&self.0)
            && error.kind() != io::ErrorKind::NotFound
        {
            log::warn!(path = self.0.display().to_string().as_str(), error = error.to_string().as_str(); "cannot remove a socket");
        }
    }
}

impl std::fmt::Display for Address {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "unix://{}", self.0.display())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn an_address_is_the_hash_of_containerd_namespace_and_group() {
        let address = Address::of_group(None, Path::new("/run/containerd/containerd.sock"), "default", "c1");
        // printf %s /run/containerd/containerd.sock/default/c1 | sha256sum
        let hash = "d25aa4ef11a84e954e74a5bcff06557d0b6ea8d0c00243896f29826694bbd888";
        assert_eq!(address.to_string(), format!("unix:///run/containerd/s/{hash}"));
        assert_eq!(Address::parse(&address.to_string()), Some(address));
        let elsewhere = Path::new("/run/other");
        let address = Address::of_group(Some(elsewhere), Path::new("/run/containerd/containerd.sock"), "default", "c1");
        assert_eq!(address.to_string(), format!("unix:///run/other/{hash}"));
        assert_eq!(Address::parse(&address.to_string()), Some(address));
    }

    #[test]
    fn only_a_shims_socket_is_an_address() {
        for text in [
            "",
            "unix:///etc/passwd",
            "unix:///run/containerd/s/../../../etc/passwd",
            "/run/containerd/s/x",
            "unix://s/x",
        ] {
            assert_eq!(Address::parse(text), None, "{text}");
        }
    }

    proptest! {
        #[test]
        fn what_is_an_address_is_a_file_in_the_directory(name in "[a-f0-9]{64}|[./a-f0-9]{0,8}|[./a-f0-9]{64}|(?s).{0,20}") {
            if let Some(address) = Address::parse(&format!("unix://{DIRECTORY}/{name}")) {
                let name = address.path().strip_prefix(DIRECTORY).unwrap();
                let parts: Vec<_> = name.components().collect();
                prop_assert!(matches!(parts[..], [std::path::Component::Normal(_)]), "{}", address);
                prop_assert_eq!(Address::parse(&address.to_string()), Some(address));
            }
        }

        #[test]
        fn every_group_has_an_address_that_fits(namespace in "[a-z.]{1,20}", group in "(?s).{0,200}") {
            let address = Address::of_group(None, Path::new("/run/containerd/containerd.sock"), &namespace, &group);
            prop_assert!(address.path().as_os_str().len() < 108);
            prop_assert_eq!(Address::parse(&address.to_string()), Some(address));
        }
    }
}
