//! The `start` action: find the pod's shim or make one, answer where it is, be gone.
//!
//! No async runtime and no configuration here: the listener is bound in this process and handed to the server, so the
//! answer needs not wait for the server to be up; whoever connects waits in the listener's backlog. containerd reads
//! standard output and error as one, so the answer is all that is ever printed.

use std::fs;
use std::io::{self, Read as _, Write as _};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::os::unix::net::UnixListener;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Child, Command, Stdio};

use nix::libc;
use thiserror::Error;

use crate::bundle::{Bundle, BundleError, Id, group};
use crate::cgroup;
use crate::cli::flags::Flags;
use crate::shim::bootstrap::{Bootstrap, LONGEST};
use crate::shim::socket::{Address, Bound, SocketError};

/// The descriptor on which the server finds its listener.
pub const LISTENER_FD: i32 = 3;
/// Names containerd's socket for events.
pub const EVENTS: &str = "TTRPC_ADDRESS";

/// Why no shim was started.
#[derive(Debug, Error)]
pub enum StartError {
    /// The bundle or an id is not usable.
    #[error(transparent)]
    Bundle(#[from] BundleError),
    /// The socket is not to be had.
    #[error(transparent)]
    Socket(#[from] SocketError),
    /// The handler's `ShimCgroup` cannot be joined.
    #[error("ShimCgroup: {0}")]
    Cgroup(#[from] cgroup::Error),
    /// The server process could not be made.
    #[error("cannot start the shim's server: {0}")]
    Spawn(io::Error),
    /// Something small around it failed.
    #[error("cannot {what}: {error}")]
    Io {
        /// The step, in words.
        what: &'static str,
        /// The system's reason.
        error: io::Error,
    },
}

/// Runs the action. The working directory is the bundle; standard input is what containerd has to say besides.
pub fn start(flags: &Flags, bundle: &Path) -> Result<(), StartError> {
    let id = Id::parse(&flags.id)?;
    Id::parse(&flags.namespace)?;
    let io = |what| move |error| StartError::Io { what, error };
    let mut input = Vec::new();
    io::stdin().take(LONGEST).read_to_end(&mut input).map_err(io("read standard input"))?;
    let bootstrap = Bootstrap::of(&input, flags);

    let annotations = Bundle::at(bundle).annotations()?;
    let group = group(&annotations).unwrap_or(id.as_str());
    let containerd = if flags.address.as_os_str().is_empty() { &bootstrap.grpc } else { &flags.address };
    let address = Address::of_group(bootstrap.socket_directory.as_deref(), containerd, &flags.namespace, group);
    if let Bound::New(listener) = address.bind()? {
        let announced = spawn_server(flags, &bootstrap, containerd, bundle, listener)
            .and_then(|server| announce(bundle, &bootstrap, &address).inspect_err(|_| kill(server)));
        return announced.inspect_err(|_| address.remove());
    }
    announce(bundle, &bootstrap, &address)
}

/// Starts the server in the bundle, with the listener as its third descriptor and nothing else of ours.
fn spawn_server(
    flags: &Flags,
    bootstrap: &Bootstrap,
    containerd: &Path,
    bundle: &Path,
    listener: UnixListener,
) -> Result<Child, StartError> {
    let io = |what| move |error| StartError::Io { what, error };
    let listener = at_descriptor(listener.into(), LISTENER_FD).map_err(io("pass on the listener"))?;
    let program = std::env::current_exe().map_err(io("find the shim's own program"))?;
    let mut command = Command::new(program);
    command.args(["-namespace", &flags.namespace, "-id", &flags.id]).arg("-address").arg(containerd);
    if flags.debug || bootstrap.debug {
        command.arg("-debug");
    }
    if std::env::var_os(EVENTS).is_none() && !bootstrap.ttrpc.is_empty() {
        command.env(EVENTS, &bootstrap.ttrpc);
    }
    // containerd waits for the end of our output, and signals to its group are not for us.
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).process_group(0);
    // containerd starts us in the bundle. A directory of its own would cost the server's process a fork.
    if std::env::current_dir().ok().as_deref() != Some(bundle) {
        command.current_dir(bundle);
    }
    keep_stray_descriptors();
    if !bootstrap.shim_cgroup.is_empty() {
        // This process is about to end; its child is there from its first moment.
        cgroup::join(&bootstrap.shim_cgroup)?;
    }
    adjust_oom_score();
    share_core_cookie();
    let server = command.spawn().map_err(StartError::Spawn);
    drop(listener);
    server
}

/// Moves a descriptor to a number, open across exec. This process is single-threaded and about to end.
fn at_descriptor(from: OwnedFd, number: i32) -> io::Result<OwnedFd> {
    if from.as_raw_fd() == number {
        // dup2 onto itself would leave close-on-exec set.
        nix::fcntl::fcntl(&from, nix::fcntl::FcntlArg::F_SETFD(nix::fcntl::FdFlag::empty()))?;
        return Ok(from);
    }
    // SAFETY: whatever has this number (nothing, or a stray descriptor that containerd leaked) is not owned by any
    // value in this process; afterwards the number is owned by the returned value alone.
    unsafe {
        if libc::dup2(from.as_raw_fd(), number) < 0 {
            return Err(io::Error::last_os_error());
        }
        Ok(OwnedFd::from_raw_fd(number))
    }
}

/// Tells containerd where the shim is, now on standard output and after its restart in the bundle's `address` file.
/// containerd 2 keeps what was answered in a file of its own.
fn announce(bundle: &Path, bootstrap: &Bootstrap, address: &Address) -> Result<(), StartError> {
    let io = |what| move |error| StartError::Io { what, error };
    let (new, file) = (bundle.join(".address"), bundle.join("address"));
    fs::write(&new, address.to_string())
        .and_then(|()| fs::rename(&new, &file))
        .map_err(io("write the address file"))?;
    let mut out = io::stdout();
    out.write_all(&bootstrap.answer(address)).and_then(|()| out.flush()).map_err(io("print the address"))
}

fn kill(mut server: Child) {
    // Both fail only if it is dead already.
    let _ = server.kill();
    let _ = server.wait();
}

/// Keeps descriptors that some ancestor left open from living on in the server: one of them may be the pipe that
/// somebody waits for the end of. Best effort: kernels before 5.11 do not know the flag.
fn keep_stray_descriptors() {
    let first = LISTENER_FD.unsigned_abs() + 1;
    // SAFETY: nothing is closed here; the descriptors only do not survive an exec.
    unsafe { libc::syscall(libc::SYS_close_range, first, u32::MAX, libc::CLOSE_RANGE_CLOEXEC) };
}

/// Makes the kernel prefer the shim over containerd as a victim: containerd's score and one more, inherited by the
/// server. Best effort, as in the Go shim.
fn adjust_oom_score() {
    let read = |path: String| fs::read_to_string(path).ok()?.trim().parse::<i32>().ok();
    let parent = nix::unistd::getppid();
    if let Some(score) = read(format!("/proc/{parent}/oom_score_adj")) {
        let _ = fs::write("/proc/self/oom_score_adj", (score + 1).min(1000).to_string());
    }
}

/// With `SCHED_CORE` the shim and its containers get a core-scheduling cookie of their own, so that no other pod runs
/// on a sibling hyperthread (Linux, core-scheduling.rst). Best effort: a kernel without it says EINVAL.
fn share_core_cookie() {
    if std::env::var_os("SCHED_CORE").is_none_or(|value| value.is_empty()) {
        return;
    }
    const PROCESS_GROUP: libc::c_int = 2;
    // SAFETY: plain integers; pid 0 is the caller.
    unsafe { libc::prctl(libc::PR_SCHED_CORE, libc::PR_SCHED_CORE_CREATE, 0, PROCESS_GROUP, 0) };
}
