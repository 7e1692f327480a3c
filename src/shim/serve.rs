//! The server process: one for a pod, one thread, asleep unless something happens.

use std::io;
use std::os::fd::{FromRawFd, OwnedFd};
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::time::Duration;

use thiserror::Error;
use tokio::signal::unix::{SignalKind, signal};

use crate::bundle::{BundleError, Id};
use crate::cli::flags::Flags;
use crate::events::Events;
use crate::rpc;
use crate::shim::reaper::Reaper;
use crate::shim::socket::Address;
use crate::shim::start::{EVENTS, LISTENER_FD};
use crate::task::{Pod, Shim, TaskService};

/// How long the last events may take to reach containerd when the shim ends.
const FAREWELL: Duration = Duration::from_secs(10);
/// The answer to the Shutdown that ended us is on its way.
const LAST_ANSWER: Duration = Duration::from_millis(20);

/// Why the server does not run.
#[derive(Debug, Error)]
pub enum ServeError {
    /// Started by hand: `start` makes the server and gives it its listener.
    #[error("there is no listener at descriptor {LISTENER_FD}: containerd starts the shim with the action `start`")]
    NoListener,
    /// An id is not usable.
    #[error(transparent)]
    Id(#[from] BundleError),
    /// The process could not be set up.
    #[error("cannot {what}: {error}")]
    SetUp {
        /// The step, in words.
        what: &'static str,
        /// The system's reason.
        error: io::Error,
    },
}

/// Serves until the pod is done or a signal ends it. The working directory is the bundle of the pod's first container.
pub fn serve(flags: &Flags) -> Result<(), ServeError> {
    let set_up = |what| move |error: io::Error| ServeError::SetUp { what, error };
    let id = Id::parse(&flags.id)?;
    let namespace = Id::parse(&flags.namespace)?;
    let listener = listener()?;
    super::log::to_fifo(Path::new("log"), flags.debug, format!("shim={id} namespace={namespace}"));
    super::log::panics();
    // The first container's bundle goes before the last container of the pod does.
    std::env::set_current_dir("/").map_err(set_up("leave the bundle"))?;
    nix::sys::prctl::set_child_subreaper(true).map_err(io::Error::from).map_err(set_up("become a subreaper"))?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let served = runtime.map_err(set_up("start the event loop"))?.block_on(run(
        listener,
        namespace.as_str(),
        events_address(flags),
    ));
    served.map_err(set_up("serve"))
}

/// Takes over the listener that `start` left at its place.
fn listener() -> Result<UnixListener, ServeError> {
    use nix::fcntl::{FcntlArg, FdFlag, fcntl};
    use std::os::fd::{AsFd, BorrowedFd};
    // SAFETY: it is only asked whether the descriptor is open at all.
    let borrowed = unsafe { BorrowedFd::borrow_raw(LISTENER_FD) };
    let is_listener = nix::sys::socket::getsockopt(&borrowed, nix::sys::socket::sockopt::AcceptConn);
    if !is_listener.unwrap_or(false) {
        return Err(ServeError::NoListener);
    }
    // SAFETY: it is a listener, put there for us by `start`; nothing else in this process knows of it.
    let fd = unsafe { OwnedFd::from_raw_fd(LISTENER_FD) };
    let set_up = |error| ServeError::SetUp { what: "take over the listener", error };
    fcntl(fd.as_fd(), FcntlArg::F_SETFD(FdFlag::FD_CLOEXEC)).map_err(io::Error::from).map_err(set_up)?;
    let listener = UnixListener::from(fd);
    listener.set_nonblocking(true).map_err(set_up)?;
    Ok(listener)
}

/// containerd's socket for events: as it says, or where it is by default, beside the other one.
fn events_address(flags: &Flags) -> PathBuf {
    match std::env::var(EVENTS) {
        Ok(address) if !address.is_empty() => address.trim_start_matches("unix://").into(),
        _ => format!("{}.ttrpc", flags.address.display()).into(),
    }
}

async fn run(listener: UnixListener, namespace: &str, containerd: PathBuf) -> io::Result<()> {
    let address = listener.local_addr()?;
    let address = address.as_pathname().and_then(|path| Address::parse(&format!("unix://{}", path.display())));
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    let events = Events::start(containerd, namespace);
    let shim = Shim { namespace: namespace.to_owned(), events: events.clone(), reaper: Reaper::start()? };
    let (pod, done) = Pod::start(shim);
    let server = tokio::spawn(rpc::serve(tokio::net::UnixListener::from_std(listener)?, TaskService::services(pod)));
    tokio::select! {
        _ = done => log::debug!("the pod is done"),
        _ = terminate.recv() => log::info!("ended by SIGTERM"),
        _ = interrupt.recv() => log::info!("ended by SIGINT"),
    }
    if let Some(address) = address {
        address.remove();
    }
    tokio::time::sleep(LAST_ANSWER).await;
    server.abort();
    events.flush(FAREWELL).await;
    Ok(())
}
