//! The outer process: it makes the place that the tests run in, starts them as its child, inherits every orphan of theirs,
//! and when they are done names and ends whoever is still alive. It never looks at what is tested.
//!
//! The place is a mount namespace with a tmpfs on /run and one on /var/lib: shim sockets, runtime roots, what CNI remembers
//! and the lab's own files are apart from the host's and from other runs, and are gone with the last process.

use std::{
    env, fs,
    os::unix::process::{CommandExt, ExitStatusExt},
    path::Path,
    process::{Child, Command, ExitCode, ExitStatus},
    thread,
    time::{Duration, Instant},
};

use nix::{
    errno::Errno,
    mount::{MsFlags, mount},
    sched::{CloneFlags, unshare},
    sys::{
        prctl,
        signal::{SigSet, Signal, kill},
        wait::{WaitPidFlag, WaitStatus, waitpid},
    },
    unistd::{Pid, geteuid},
};

use super::{leaks, process, unhurried};

/// Where everything of a run lies. Short, because a socket's path may have 107 bytes.
pub const WORK: &str = "/run/lab";

/// Set for the inner process; its value is the keeper's pid.
const INSIDE: &str = "BETA9_LAB_KEEPER";

/// What services of the host's stay visible under the lab's /run: runc's systemd driver talks to these.
const HOST_SERVICES: [&str; 2] = ["/run/systemd", "/run/dbus"];

/// How long the processes of a finished run may take to end by themselves.
const GRACE: Duration = Duration::from_secs(5);

/// Splits the program in two. In the keeper, returns the exit code of the whole run when it is over; in the tests, `None` at once.
pub fn keep() -> Option<ExitCode> {
    if env::var_os(INSIDE).is_some() {
        // The keeper's own mask came along, and everything that the tests start would inherit it.
        SigSet::empty().thread_set_mask().unwrap();
        return None;
    }
    if !geteuid().is_root() {
        eprintln!("the integration tests start daemons and containers: run them as root");
        return Some(ExitCode::FAILURE);
    }
    furnish().unwrap_or_else(|error| panic!("could not make a private /run: {error}"));
    prctl::set_child_subreaper(true).unwrap();

    // Blocked before the child exists, so that none of its signals is missed.
    let mut signals = SigSet::empty();
    for signal in [Signal::SIGCHLD, Signal::SIGINT, Signal::SIGTERM] {
        signals.add(signal);
    }
    signals.thread_block().unwrap();
    #[expect(clippy::zombie_processes, reason = "attend() reaps it with all the others")]
    let tests = Command::new("/proc/self/exe")
        .arg0("it")
        .args(env::args_os().skip(1))
        .env(INSIDE, std::process::id().to_string())
        .spawn()
        .unwrap();

    let status = attend(&tests, &signals);
    let left = leftovers();
    leaks::sweep_cgroups(&namespace_prefix(tests.id()));
    for command in &left {
        eprintln!("left running: {command}");
    }
    // A shell's convention for a child that a signal ended; nothing sensible was printed by it then.
    let code = status.code().unwrap_or_else(|| 128 + status.signal().unwrap_or_default());
    Some(if code == 0 && !left.is_empty() {
        ExitCode::from(101)
    } else {
        ExitCode::from(u8::try_from(code).unwrap_or(u8::MAX))
    })
}

/// How the containerd namespaces of a run begin, and so its cgroups; by the pid of its tests, because runs may go on side by side.
pub fn namespace_prefix(tests: u32) -> String {
    format!("lab{tests}-")
}

/// The pid that orphans of the tests come to.
pub fn pid() -> i32 {
    env::var(INSIDE).expect("inside the lab").parse().unwrap()
}

/// A mount namespace of our own whose /run is empty but for the host's services, and whose /var/lib is empty.
fn furnish() -> Result<(), Errno> {
    const NONE: Option<&str> = None;
    let bind = |from: &Path, to: &Path| mount(Some(from), to, NONE, MsFlags::MS_BIND | MsFlags::MS_REC, NONE);

    unshare(CloneFlags::CLONE_NEWNS)?;
    mount(NONE, "/", NONE, MsFlags::MS_REC | MsFlags::MS_PRIVATE, NONE)?;
    let services: Vec<_> =
        HOST_SERVICES.iter().map(Path::new).filter_map(|path| Some((path, fs::File::open(path).ok()?))).collect();
    for private in ["/run", "/var/lib"] {
        mount(Some("lab"), private, Some("tmpfs"), MsFlags::empty(), Some("mode=0755"))?;
    }
    for (path, directory) in services {
        use std::os::fd::AsRawFd;
        fs::create_dir(path).map_err(|_| Errno::last())?;
        bind(Path::new(&format!("/proc/self/fd/{}", directory.as_raw_fd())), path)?;
    }
    fs::create_dir_all(WORK).map_err(|_| Errno::last())
}

/// Reaps whoever ends until the tests themselves have. A signal to end is an order to them as well.
fn attend(tests: &Child, signals: &SigSet) -> ExitStatus {
    let tests = Pid::from_raw(i32::try_from(tests.id()).unwrap());
    loop {
        if signals.wait().unwrap() != Signal::SIGCHLD {
            let _ = kill(tests, Signal::SIGKILL);
        }
        while let Some(ended) = reap() {
            match ended {
                WaitStatus::Exited(pid, code) if pid == tests => {
                    return ExitStatus::from_raw(code << 8);
                }
                WaitStatus::Signaled(pid, signal, _) if pid == tests => {
                    return ExitStatus::from_raw(signal as i32);
                }
                _ => {}
            }
        }
    }
}

/// One ended child, if there is any.
fn reap() -> Option<WaitStatus> {
    match waitpid(None, Some(WaitPidFlag::WNOHANG)) {
        Ok(WaitStatus::StillAlive) | Err(_) => None,
        Ok(status) => Some(status),
    }
}

/// The command lines of the descendants that outlived the tests by more than the grace; they are killed.
fn leftovers() -> Vec<String> {
    let begin = Instant::now();
    let mut named = Vec::new();
    loop {
        while reap().is_some() {}
        let alive = process::descendants(Pid::this());
        if alive.is_empty() {
            return named;
        }
        if begin.elapsed() > unhurried(GRACE) {
            if named.is_empty() {
                named = alive.iter().map(|process| format!("{} {}", process.pid, process.command.join(" "))).collect();
            }
            for process in alive {
                let _ = kill(Pid::from_raw(process.pid), Signal::SIGKILL);
            }
        }
        thread::sleep(Duration::from_millis(20));
    }
}
