//! How soon a subscriber of containerd's knows that a container has ended or run out of memory. The subscriber is
//! `ctr events`; its own way to us is in the numbers of both.

use std::{
    fs,
    io::{BufRead, BufReader, Write},
    os::{fd::AsFd, fd::AsRawFd, unix::process::CommandExt},
    path::{Path, PathBuf},
    process::{Child, Stdio},
    sync::mpsc::{self, Receiver},
    thread,
    time::{Duration, Instant},
};

use nix::{
    poll::{PollFd, PollFlags, PollTimeout, poll},
    sys::{
        eventfd::EventFd,
        signal::{Signal, kill},
    },
    unistd::Pid,
};

use crate::{
    lab::{PATIENCE, daemon::Daemon},
    sides::{Bench, Both, Samples, Side, median},
    stopwatch::milliseconds,
    table::{Row, Target, Unit},
};

/// A container's limit while it runs out of memory.
const MEMORY: u64 = 24 << 20;
/// How long everything that the start of a container sets off may take.
const SETTLING: Duration = Duration::from_millis(200);

/// The rows of reactions.
pub fn rows(bench: &Bench) -> Vec<Row> {
    let subscriber = Subscriber::new(&bench.daemon);
    let row = |what: &str, samples: Option<Both<Samples>>| Row {
        what: what.into(),
        unit: Unit::Milliseconds,
        values: samples.map(|samples| samples.map(|samples| median(samples))),
        target: Target::Less,
    };
    let exits = bench.turns(bench.rounds, |side| exit(bench, &subscriber, side));
    let kills = Path::new(MEMORY_V1).is_dir().then(|| bench.turns(bench.rounds, |side| oom(bench, &subscriber, side)));
    vec![row("SIGKILL of the init to TaskExit", Some(exits)), row("the kernel's OOM notice to TaskOOM", kills)]
}

fn exit(bench: &Bench, subscriber: &Subscriber, side: &Side) -> f64 {
    let container = bench.sleeper(side);
    let pid = container.pid();
    thread::sleep(SETTLING);
    let begin = Instant::now();
    kill(Pid::from_raw(pid), Signal::SIGKILL).unwrap();
    milliseconds(subscriber.arrival("/tasks/exit", container.id()) - begin)
}

fn oom(bench: &Bench, subscriber: &Subscriber, side: &Side) -> f64 {
    let container = bench.lab.container(&bench.daemon, "bench");
    // It waits for a file, so that the notice is ordered before the memory runs out.
    let command = "until [ -e /tmp/go ]; do sleep 0.02; done; exec tail /dev/zero";
    container.detach(&side.case, &[&format!("--memory-limit={MEMORY}")], &["sh", "-c", command]);
    let cgroup = Path::new(MEMORY_V1).join(bench.daemon.namespace()).join(container.id());
    let notice = OomNotice::of(cgroup);
    thread::sleep(SETTLING);
    fs::write(format!("/proc/{}/root/tmp/go", container.pid()), "").unwrap();
    let noticed = notice.arrival();
    let told = subscriber.arrival("/tasks/oom", container.id());
    // Whoever is woken first by the same notice may be the shim.
    milliseconds(told.saturating_duration_since(noticed))
}

/// The memory controller of cgroup v1, which alone tells of an OOM as it happens, by an eventfd.
const MEMORY_V1: &str = "/sys/fs/cgroup/memory";

/// The kernel's own notice of an OOM (cgroup-v1/memory.rst, section 10).
struct OomNotice(EventFd);

impl OomNotice {
    fn of(cgroup: PathBuf) -> Self {
        let events = EventFd::new().unwrap();
        let control = fs::File::open(cgroup.join("memory.oom_control")).unwrap();
        let order = format!("{} {}", events.as_fd().as_raw_fd(), control.as_raw_fd());
        fs::File::options()
            .write(true)
            .open(cgroup.join("cgroup.event_control"))
            .and_then(|mut file| file.write_all(order.as_bytes()))
            .unwrap();
        Self(events)
    }

    fn arrival(&self) -> Instant {
        let mut ready = [PollFd::new(self.0.as_fd(), PollFlags::POLLIN)];
        let count = poll(&mut ready, PollTimeout::try_from(PATIENCE).unwrap()).unwrap();
        let now = Instant::now();
        assert!(count > 0, "no OOM within {PATIENCE:?}");
        now
    }
}

/// A client that prints every event, and when each of its lines came.
struct Subscriber {
    client: Child,
    lines: Receiver<(Instant, String)>,
}

impl Subscriber {
    fn new(daemon: &Daemon) -> Self {
        let mut client = daemon
            .ctr_command(&["events"])
            .process_group(0)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let output = BufReader::new(client.stdout.take().unwrap());
        let (sender, lines) = mpsc::channel();
        thread::spawn(move || {
            for line in output.lines().map_while(Result::ok) {
                if sender.send((Instant::now(), line)).is_err() {
                    return;
                }
            }
        });
        let subscriber = Self { client, lines };
        subscriber.settle(daemon);
        subscriber
    }

    /// The client does not say when its subscription stands: events are caused until one comes.
    fn settle(&self, daemon: &Daemon) {
        let begin = Instant::now();
        loop {
            let label = format!("poke={}", begin.elapsed().as_nanos());
            daemon.ctr(&["namespaces", "label", daemon.namespace(), &label]).success();
            if self.lines.recv_timeout(Duration::from_millis(200)).is_ok() {
                return;
            }
            assert!(begin.elapsed() < PATIENCE, "`ctr events` prints none of them");
        }
    }

    /// When the event of this topic about this container came; it may have come already.
    fn arrival(&self, topic: &str, id: &str) -> Instant {
        let begin = Instant::now();
        let topic = format!(" {topic} ");
        let id = format!("\"{id}\"");
        loop {
            let left = PATIENCE.saturating_sub(begin.elapsed());
            let (at, line) =
                self.lines.recv_timeout(left).unwrap_or_else(|_| panic!("no{topic}of {id} within {PATIENCE:?}"));
            if line.contains(&topic) && line.contains(&id) {
                return at;
            }
        }
    }
}

impl Drop for Subscriber {
    fn drop(&mut self) {
        let _ = self.client.kill();
        let _ = self.client.wait();
    }
}
