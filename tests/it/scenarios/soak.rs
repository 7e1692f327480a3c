//! Many containers at once that end in every way and at any moment, their clients' deaths included. What happens to each
//! comes from a fixed seed; when everything is over nothing may be left, which the daemon's leak check sees to, and what
//! containerd heard of each must be whole and in order.

use std::{
    fs,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

use beta9_shim::shim::socket::Address;
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};

use super::Scenario;
use crate::{
    case::RuntimeCase,
    lab::{Lab, PATIENCE, container::Container, eventually, process::Process},
};

pub const SCENARIOS: &[Scenario] =
    &[("containers that end at any moment in any way leave nothing, and their events are whole and in order", soak)];

const SEED: u64 = 0x0beb_a9e5;

/// Containers that live at the same time.
const WIDTH: usize = 10;

/// How long one client may take, with all the others beside it.
const LIMIT: Duration = Duration::from_secs(60);

/// What ends a container.
#[derive(Clone, Copy, Debug)]
enum End {
    /// Its process, with this code.
    Itself(i32),
    /// SIGKILL, from the moment on, until it is heard.
    Killed(Duration),
    /// A forced delete by somebody else, at the moment.
    Forced(Duration),
    /// Its client is killed at the moment, and whatever is there by then is removed.
    Forsaken(Duration),
}

impl End {
    /// Whether its client may die in the middle of a request.
    fn kills_client(self) -> bool {
        matches!(self, Self::Forced(_) | Self::Forsaken(_))
    }

    fn draw(random: &mut Random) -> Self {
        // A container comes to be within this.
        let moment = Duration::from_millis(random.below(600));
        match random.below(4) {
            0 => Self::Itself(i32::try_from(random.below(100)).unwrap()),
            1 => Self::Killed(moment),
            2 => Self::Forced(moment),
            _ => Self::Forsaken(moment),
        }
    }
}

/// SplitMix64: small, and the same everywhere.
struct Random(u64);

impl Random {
    fn below(&mut self, limit: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ mixed >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ mixed >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
        (mixed ^ mixed >> 31) % limit
    }
}

fn soak(lab: &Lab, case: &RuntimeCase) {
    let daemon = lab.own_daemon(case.daemon());
    // A sandbox costs several times as much.
    let count = if case.is_runc() { 100 } else { 40 };
    let mut random = Random(SEED);
    let lives: Vec<_> = (0..count).map(|_| (lab.id("soak"), End::draw(&mut random))).collect();
    let next = AtomicUsize::new(0);
    thread::scope(|scope| {
        for _ in 0..WIDTH {
            scope.spawn(|| {
                while let Some((id, end)) = lives.get(next.fetch_add(1, Ordering::Relaxed)) {
                    live(&Container::new(Arc::clone(&daemon), id.clone()), case, *end);
                }
            });
        }
    });
    for (id, end) in &lives {
        let begin = Instant::now();
        while !is_whole(*end, &daemon.events().topics(id)) {
            assert!(begin.elapsed() < PATIENCE, "{id}, {end:?}: {:?}", daemon.events().topics(id));
            thread::sleep(Duration::from_millis(10));
        }
    }
    // A client that dies between a shim's start and its first request, or between its Delete and its Shutdown, leaves one that
    // would wait a minute for another container. Of these containerd has removed the bundle.
    let lonely = eventually("no shim with anything left to do", || {
        let shims = daemon.shims();
        let is_forsaken = |id: &str| lives.iter().any(|(life, end)| life == id && end.kills_client());
        let is_done =
            |shim: &Process| shim.argument("-id").is_some_and(|id| is_forsaken(id) && !daemon.bundle(id).exists());
        shims.iter().all(is_done).then_some(shims)
    });
    for shim in lonely {
        let _ = kill(Pid::from_raw(shim.pid), Signal::SIGTERM);
    }
    eventually("the ends of the shims", || daemon.shims().is_empty().then_some(()));
    // And one that dies in a shim's start has containerd kill that, with a socket that nobody has come to own.
    for (id, _) in lives.iter().filter(|(id, _)| daemon.events().topics(id).is_empty()) {
        let address = Address::of_group(None, &daemon.socket(), daemon.namespace(), id);
        let _ = fs::remove_file(address.path());
    }
    daemon.unmount_after_clients();
    assert_eq!(daemon.ctr(&["tasks", "list", "--quiet"]).success().text(), "");
}

/// Lets a container begin, and end like this.
fn live(container: &Container, case: &RuntimeCase, end: End) {
    let idle = ["sleep", "1000"];
    match end {
        End::Itself(code) => {
            container.run(case, &[], &["sh", "-c", &format!("sleep 0.0{code}; exit {code}")]).exit(code);
        }
        End::Killed(moment) => {
            let client = container.start(case, &[], &idle);
            let over = AtomicBool::new(false);
            let output = thread::scope(|scope| {
                scope.spawn(|| {
                    thread::sleep(moment);
                    while !over.load(Ordering::Relaxed) {
                        container.kill("SIGKILL");
                    }
                });
                let output = client.end(LIMIT);
                over.store(true, Ordering::Relaxed);
                output
            });
            let output = output.unwrap_or_else(|output| panic!("{} does not end: {output:?}", container.id()));
            assert!(output.code == 137 || !container.topics().iter().any(|topic| topic == "start"), "{output:?}");
        }
        End::Forced(moment) => {
            let client = container.start(case, &[], &idle);
            thread::sleep(moment);
            container.task("delete", &["--force"]);
            drop(client);
        }
        End::Forsaken(moment) => {
            let client = container.start(case, &[], &idle);
            thread::sleep(moment);
            drop(client);
        }
    }
}

/// Whether these are all the events that there can be of a container that ended like this.
fn is_whole(end: End, topics: &[String]) -> bool {
    let topics: Vec<_> = topics.iter().map(String::as_str).collect();
    match (end, topics.as_slice()) {
        (_, ["create", "start", "exit", "delete"]) => true,
        (End::Itself(_), _) => false,
        // Its end came before its start, or before it was made at all.
        (_, [] | ["create", "delete"] | ["create", "exit", "delete"]) => true,
        _ => false,
    }
}
