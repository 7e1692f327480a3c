//! The watch over a container's memory: which of its processes the kernel has killed for want of it.
//!
//! Owns the descriptor that wakes the shim and the count of kills told so far; the truth is always the
//! `oom_kill` counter, and a wake-up only a reason to read it. Never publishes: the container's actor does,
//! before the exit that follows.

use std::fs::{self, File};
use std::future;
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use nix::sys::eventfd::{EfdFlags, EventFd};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;
use tokio::{task, time};

use super::v1::OOM_CONTROL;
use super::v2::MEMORY_EVENTS;
use super::{Cgroup, Error, Hierarchy, v1, v2};
use crate::fd;

/// On v1 the kernel notifies before it chooses its victim (mm/memcontrol-v1.c, mem_cgroup_oom_notify), so
/// that the counter grows a little after the wake-up: mostly within this time, in which it is read again and
/// again, since tokio's timers know nothing shorter than a millisecond.
const HURRY: Duration = Duration::from_micros(500);

/// The pauses before further readings. What comes later still is found by the next notification or by
/// [`OomWatch::check`].
const SETTLING: &[Duration] = &[
    Duration::from_millis(1),
    Duration::from_millis(1),
    Duration::from_millis(2),
    Duration::from_millis(4),
    Duration::from_millis(20),
    Duration::from_millis(100),
    Duration::from_millis(400),
];

/// Watches one container. An idle one holds a descriptor and causes no wake-up; dropping it ends it.
#[derive(Debug)]
pub struct OomWatch {
    hierarchy: Hierarchy,
    directory: PathBuf,
    /// `None` once the cgroup is gone: nothing can be killed in it any more.
    signal: Option<AsyncFd<OwnedFd>>,
    /// The counter when it was last read.
    seen: u64,
    /// Until when there is no pause between readings, after a notification.
    hurry: Option<Instant>,
    /// Pauses before further readings, then.
    settling: &'static [Duration],
}

impl OomWatch {
    /// Begins to watch, counting from now. To be called right after the container's creation, so that a kill
    /// cannot come first, and within a tokio runtime with I/O and time enabled: it panics outside of one.
    pub fn arm(cgroup: &Cgroup) -> Result<Self, Error> {
        let directory = cgroup.controller("memory")?.to_owned();
        // Read before the registration: a kill in between is found by the first wait, not lost.
        let seen = cgroup.oom_kills()?;
        let hierarchy = cgroup.hierarchy();
        let (descriptor, name) = match hierarchy {
            Hierarchy::V1 => (oom_eventfd(&directory), OOM_CONTROL),
            Hierarchy::V2 => (memory_events(&directory), MEMORY_EVENTS),
        };
        let signal = descriptor
            .and_then(|descriptor| fd::watch(descriptor, interest(hierarchy)))
            .map_err(|source| Error::Watch { path: directory.join(name), source })?;
        Ok(Self { hierarchy, directory, signal: Some(signal), seen, hurry: None, settling: &[] })
    }

    /// Waits until processes have been killed and tells how many, each once over this and [`Self::check`].
    /// Stays pending for ever once the cgroup is gone. Cancel-safe: what was not told is told by the next call.
    pub async fn wait(&mut self) -> u64 {
        loop {
            let kills = self.check();
            if kills > 0 {
                return kills;
            }
            let Some(signal) = &self.signal else {
                return future::pending().await;
            };
            if self.hurry.is_some_and(|until| Instant::now() < until) {
                task::yield_now().await;
                continue;
            }
            if let Some((pause, rest)) = self.settling.split_first() {
                time::sleep(*pause).await;
                self.settling = rest;
                continue;
            }
            match signal.ready(interest(self.hierarchy)).await {
                // tokio registers for edges, so that a descriptor which is never read wakes once for each change.
                Ok(mut ready) => ready.clear_ready(),
                Err(error) => {
                    log::warn!("OOM watch of {}: {error}", self.directory.display());
                    self.signal = None;
                }
            }
            if self.hierarchy == Hierarchy::V1 {
                self.hurry = Some(Instant::now() + HURRY);
                self.settling = SETTLING;
            }
        }
    }

    /// Reads the counter at once: how many processes have been killed since it was last read. The last look
    /// before the exit event, as the kernel counts a kill before it sends the signal.
    pub fn check(&mut self) -> u64 {
        if self.signal.is_none() {
            return 0;
        }
        let kills = match self.hierarchy {
            Hierarchy::V1 => v1::oom_kills(&self.directory),
            Hierarchy::V2 => v2::oom_kills(&self.directory),
        };
        match kills {
            Ok(now) => {
                // It shrinks when a nested v1 cgroup is removed together with its count.
                let grown = now.saturating_sub(self.seen);
                self.seen = now;
                grown
            }
            Err(Error::Gone(_)) => {
                self.signal = None;
                0
            }
            Err(error) => {
                log::warn!("OOM watch: {error}");
                0
            }
        }
    }
}

/// An eventfd that an OOM notifies, and the removal of the cgroup as well.
fn oom_eventfd(directory: &Path) -> io::Result<OwnedFd> {
    let event = EventFd::from_flags(EfdFlags::EFD_CLOEXEC | EfdFlags::EFD_NONBLOCK)?;
    let control = File::open(directory.join(OOM_CONTROL))?;
    // The kernel takes what it needs of both descriptors during the write (cgroup-v1/memory.rst, "OOM Control").
    fs::write(directory.join("cgroup.event_control"), format!("{} {}", event.as_raw_fd(), control.as_raw_fd()))?;
    Ok(event.into())
}

/// The file itself, which polls as urgent after each change (cgroup-v2.rst, "file modified event"). Unlike
/// inotify it needs no instance, of which a user has 128 by default and a node may have more containers.
fn memory_events(directory: &Path) -> io::Result<OwnedFd> {
    Ok(File::open(directory.join(MEMORY_EVENTS))?.into())
}

fn interest(hierarchy: Hierarchy) -> Interest {
    match hierarchy {
        Hierarchy::V1 => Interest::READABLE,
        Hierarchy::V2 => Interest::PRIORITY,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cgroup::lab::Lab;
    use std::pin::pin;
    use std::task::Poll;

    fn runtime() -> tokio::runtime::Runtime {
        tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap()
    }

    /// Fails after a time that no healthy machine needs.
    async fn soon<T>(future: impl Future<Output = T>) -> T {
        time::timeout(Duration::from_secs(20), future).await.expect("in time")
    }

    async fn is_pending(future: impl Future) -> bool {
        let mut future = pin!(future);
        future::poll_fn(|context| Poll::Ready(future.as_mut().poll(context).is_pending())).await
    }

    #[test]
    fn a_kill_ends_the_wait_and_counts_once() {
        runtime().block_on(async {
            let lab = Lab::new();
            let mut watch = OomWatch::arm(&lab.cgroup()).unwrap();
            let mut child = lab.greedy_child();
            assert_eq!(soon(watch.wait()).await, 1);
            child.wait();
            assert_eq!(watch.check(), 0);
            assert!(is_pending(watch.wait()).await);
            assert_eq!(lab.cgroup().oom_kills().unwrap(), 1);
        });
    }

    #[test]
    fn the_next_kill_is_told_too() {
        runtime().block_on(async {
            let lab = Lab::new();
            let mut watch = OomWatch::arm(&lab.cgroup()).unwrap();
            for _ in 0..2 {
                let mut child = lab.greedy_child();
                assert_eq!(soon(watch.wait()).await, 1);
                child.wait();
            }
        });
    }

    #[test]
    fn a_kill_that_was_not_waited_for_is_found_by_the_last_check() {
        runtime().block_on(async {
            let lab = Lab::new();
            let mut watch = OomWatch::arm(&lab.cgroup()).unwrap();
            lab.greedy_child().wait();
            assert_eq!(watch.check(), 1);
            assert_eq!(watch.check(), 0);
            assert!(is_pending(watch.wait()).await);
        });
    }

    #[test]
    fn a_wait_that_is_cancelled_again_and_again_loses_nothing() {
        runtime().block_on(async {
            let lab = Lab::new();
            let mut watch = OomWatch::arm(&lab.cgroup()).unwrap();
            let mut child = lab.greedy_child();
            let kills = soon(async {
                loop {
                    tokio::select! {
                        biased;
                        kills = watch.wait() => break kills,
                        () = tokio::task::yield_now() => {}
                    }
                }
            });
            assert_eq!(kills.await, 1);
            child.wait();
            assert_eq!(watch.check(), 0);
        });
    }

    #[test]
    fn a_kill_in_a_nested_cgroup_is_the_containers() {
        runtime().block_on(async {
            let lab = Lab::new();
            let nested = lab.nested("a");
            let mut watch = OomWatch::arm(&lab.cgroup()).unwrap();
            let mut child = nested.greedy_child();
            assert_eq!(soon(watch.wait()).await, 1);
            child.wait();
        });
    }

    #[test]
    fn removal_is_no_kill_and_ends_the_watch() {
        runtime().block_on(async {
            let lab = Lab::new();
            let mut watch = OomWatch::arm(&lab.cgroup()).unwrap();
            lab.cgroup().remove().unwrap();
            // v1 notifies of it; v2 does not before Linux 7.1.
            if let Hierarchy::V1 = watch.hierarchy {
                let signal = watch.signal.as_ref().unwrap();
                soon(signal.readable()).await.unwrap().retain_ready();
            }
            assert!(is_pending(watch.wait()).await);
            assert!(watch.signal.is_none());
            assert_eq!(watch.check(), 0);
        });
    }

    #[test]
    fn an_exit_without_a_kill_is_none() {
        runtime().block_on(async {
            let lab = Lab::new();
            let mut watch = OomWatch::arm(&lab.cgroup()).unwrap();
            drop(lab.idle_child());
            assert_eq!(watch.check(), 0);
            assert!(is_pending(watch.wait()).await);
        });
    }

    #[test]
    fn kills_before_the_watch_are_not_told() {
        runtime().block_on(async {
            let lab = Lab::new();
            lab.greedy_child().wait();
            let mut watch = OomWatch::arm(&lab.cgroup()).unwrap();
            assert_eq!(watch.check(), 0);
        });
    }

    #[test]
    fn the_descriptor_is_not_inherited_by_runtimes() {
        runtime().block_on(async {
            let lab = Lab::new();
            let watch = OomWatch::arm(&lab.cgroup()).unwrap();
            let descriptor = watch.signal.as_ref().unwrap().as_raw_fd();
            let info = fs::read_to_string(format!("/proc/self/fdinfo/{descriptor}")).unwrap();
            let flags = info.lines().find_map(|line| line.strip_prefix("flags:"));
            let flags = i32::from_str_radix(flags.unwrap().trim(), 8).unwrap();
            assert_ne!(flags & nix::libc::O_CLOEXEC, 0);
        });
    }

    #[test]
    fn a_change_of_a_v2_file_wakes_once() {
        // Hybrid hosts have no memory.events; cgroup.events tells of its changes in the same way.
        let tree = ["/sys/fs/cgroup/unified", "/sys/fs/cgroup"]
            .map(Path::new)
            .into_iter()
            .find(|root| root.join("cgroup.controllers").exists());
        let Some(tree) = tree else { return };
        runtime().block_on(async {
            let lab = Lab::unified(tree);
            let Cgroup::V2(directory) = lab.cgroup() else { unreachable!() };
            let events = File::open(directory.join("cgroup.events")).unwrap();
            let signal = fd::watch(events.into(), interest(Hierarchy::V2)).unwrap();
            // A file that has not been read since it was opened may count as changed.
            let settled = async {
                let changed = signal.ready(Interest::PRIORITY);
                if let Ok(ready) = time::timeout(Duration::from_millis(20), changed).await {
                    ready.unwrap().clear_ready();
                }
            };
            settled.await;
            assert!(is_pending(signal.ready(Interest::PRIORITY)).await);
            let child = lab.idle_child();
            soon(signal.ready(Interest::PRIORITY)).await.unwrap().clear_ready();
            tokio::task::yield_now().await;
            assert!(is_pending(signal.ready(Interest::PRIORITY)).await);
            drop(child);
            soon(signal.ready(Interest::PRIORITY)).await.unwrap().clear_ready();
        });
    }

    #[test]
    fn a_cgroup_that_is_gone_cannot_be_watched() {
        runtime().block_on(async {
            let lab = Lab::new();
            lab.cgroup().remove().unwrap();
            assert!(matches!(OomWatch::arm(&lab.cgroup()), Err(Error::Gone(_))));
        });
    }
}
