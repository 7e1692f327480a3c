//! The `delete` action: what is left of a container whose shim is dead, removed from disk alone.
//!
//! containerd runs it after a shim was lost, and gives it five seconds. It reads the same decision record that the shim
//! wrote, so it calls the same runtime in the same way. On standard output stands the answer and nothing else.

use std::fs::{self, File};
use std::io::{self, Write as _};
use std::path::Path;
use std::time::{Duration, SystemTime};

use containerd_shim_protos::api::DeleteResponse;
use containerd_shim_protos::protobuf::{Message as _, MessageField};
use nix::errno::Errno;
use nix::fcntl::{Flock, FlockArg};
use thiserror::Error;

use crate::bundle::record::Record;
use crate::bundle::{Bundle, BundleError, Id, group, rootfs};
use crate::cli::flags::Flags;
use crate::events::timestamp;
use crate::runtime::{INIT_PID, Runtime};
use crate::shim::reaper::Reaper;
use crate::shim::socket::Address;

/// What the runtime gets of containerd's five seconds.
const RUNTIME: Duration = Duration::from_secs(4);
/// What waiting for another deletion in the same sandbox may take of it.
const TURN: Duration = Duration::from_secs(1);
/// A process whose end nobody saw counts as killed.
const KILLED: u32 = 137;

/// Why nothing was cleaned up.
#[derive(Debug, Error)]
pub enum CleanupError {
    /// The bundle or an id is not usable.
    #[error(transparent)]
    Bundle(#[from] BundleError),
    /// The system refused something basic.
    #[error("cannot {what}: {error}")]
    Io {
        /// The step, in words.
        what: &'static str,
        /// The system's reason.
        error: io::Error,
    },
}

/// Runs the action for the container whose bundle this is.
pub fn delete(flags: &Flags, bundle: &Path) -> Result<(), CleanupError> {
    let io = |what| move |error| CleanupError::Io { what, error };
    super::log::to_stderr(flags.debug);
    let id = Id::parse(&flags.id)?;
    let bundle = Bundle::at(bundle);
    let pid = bundle.pid(INIT_PID).unwrap_or_default();
    match Record::read(&bundle) {
        Ok(Some(record)) => {
            // Orphans of the dead shim may be left to us, and a gofer that is not reaped makes runsc wait for it.
            let _ = nix::sys::prctl::set_child_subreaper(true);
            let event_loop = tokio::runtime::Builder::new_current_thread().enable_all().build();
            event_loop
                .map_err(io("start the event loop"))?
                .block_on(remove(record, &bundle, &id))
                .map_err(io("reap"))?;
        }
        Ok(None) => {
            log::debug!(container_id = id.as_str(); "no decision record: nothing was created for this container, or its shim has removed it all")
        }
        // Unreadable is no reason to leave the mounts as well.
        Err(error) => {
            log::error!(container_id = id.as_str(), error = error.to_string().as_str(); "the decision record is lost; the runtime's state may be left")
        }
    }
    rootfs::unmount_all(&bundle.rootfs());
    Record::remove(&bundle);
    remove_socket(&bundle);
    let response = DeleteResponse {
        pid: pid.unsigned_abs(),
        exit_status: KILLED,
        exited_at: MessageField::some(timestamp(SystemTime::now())),
        ..DeleteResponse::default()
    };
    let answer = response.write_to_bytes().unwrap_or_default();
    let mut out = io::stdout();
    out.write_all(&answer).and_then(|()| out.flush()).map_err(io("print the answer"))
}

async fn remove(record: Record, bundle: &Bundle, id: &Id) -> io::Result<()> {
    let runtime = Runtime::new(record, bundle.clone(), id.clone(), Reaper::start()?);
    let removal = async {
        let turn =
            if runtime.is_gvisor() { tokio::time::timeout(TURN, turn(bundle)).await.ok().flatten() } else { None };
        // A guest goes alone: for its sandbox there is a call of its own.
        let removed = match runtime.is_gvisor() && !runtime.is_in_sandbox() {
            true => runtime.end_sandbox(bundle.pid(INIT_PID)).await,
            false => runtime.delete(true).await,
        };
        drop(turn);
        removed
    };
    let failed = match tokio::time::timeout(RUNTIME, removal).await {
        Ok(Ok(())) => return Ok(()),
        Ok(Err(error)) => error.to_string(),
        Err(_) => format!("no end within {RUNTIME:?}"),
    };
    log::error!(container_id = id.as_str(), error = failed.as_str(); "the runtime did not delete the container");
    Ok(())
}

/// Waits for the deletions of other containers in the same sandbox, for as long as the result is kept; `None` if there is
/// nothing to wait for. containerd deletes all containers of a dead shim at once, and a runsc that deletes one fails,
/// and leaves what it has not come to, when another one ends the sandbox under it.
async fn turn(bundle: &Bundle) -> Option<Flock<File>> {
    let annotations = bundle.annotations().ok()?;
    let pod = Id::parse(group(&annotations)?).ok()?;
    let mut place = File::open(bundle.path().parent()?.join(pod.as_str())).ok()?;
    loop {
        match Flock::lock(place, FlockArg::LockExclusiveNonblock) {
            Ok(turn) => return Some(turn),
            Err((back, Errno::EWOULDBLOCK)) => place = back,
            Err(_) => return None,
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

/// The dead shim's socket, unless it is a pod's and a living shim's again.
fn remove_socket(bundle: &Bundle) {
    let address = fs::read_to_string(bundle.join("address")).ok().and_then(|text| Address::parse(&text));
    if let Some(address) = address.filter(|address| !address.is_alive()) {
        address.remove();
    }
}
