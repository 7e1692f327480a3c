//! The laboratory: daemons, an image, and clients, all private to this run.
//!
//! `House` is what all trials share; `Lab` is one trial's view of it, which remembers whom the trial worked with so that a
//! failure can show their logs.

pub mod bundle;
pub mod cgroup;
pub mod command;
pub mod container;
pub mod cri;
pub mod daemon;
pub mod docker;
pub mod events;
pub mod fake;
pub mod image;
pub mod keeper;
pub mod leaks;
pub mod netns;
pub mod packages;
pub mod process;
pub mod pty;
pub mod shim;

use std::{
    collections::BTreeMap,
    fs,
    panic::{AssertUnwindSafe, catch_unwind},
    path::{Path, PathBuf},
    sync::{
        Arc, Mutex, MutexGuard, Once, OnceLock, PoisonError,
        atomic::{AtomicUsize, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

use self::{
    container::Container,
    daemon::{Daemon, Options},
    docker::Docker,
    image::Image,
};
use crate::case::DockerCase;

/// How long anything may take that is expected to happen by itself.
pub const PATIENCE: Duration = Duration::from_secs(20);

/// Log lines that a failed trial shows for each of its daemons.
const LOG_LINES: usize = 40;

/// What all trials share. Everything lies in the keeper's tmpfs, so it ends with the run.
pub struct House {
    dir: PathBuf,
    image: OnceLock<Image>,
    shared: Mutex<BTreeMap<Options, Arc<OnceLock<Arc<Daemon>>>>>,
    dockers: Mutex<BTreeMap<Options, Arc<OnceLock<Arc<Docker>>>>>,
    names: AtomicUsize,
}

impl House {
    /// An empty house: daemons and the image come with the first trial that asks.
    pub fn new() -> Arc<Self> {
        Arc::new(Self {
            dir: PathBuf::from(keeper::WORK),
            image: OnceLock::new(),
            shared: Mutex::default(),
            dockers: Mutex::default(),
            names: AtomicUsize::new(1),
        })
    }

    /// Stops the daemons and returns what is still there that nobody owns any more, each in words.
    pub fn close(&self) -> Vec<String> {
        let dockers: Vec<_> = lock(&self.dockers).values().filter_map(|docker| docker.get().cloned()).collect();
        dockers.iter().for_each(|docker| docker.close());
        let daemons: Vec<_> = lock(&self.shared).values().filter_map(|daemon| daemon.get().cloned()).collect();
        let mut leaks: Vec<_> = daemons.iter().flat_map(|daemon| daemon.close()).collect();
        drop(daemons);
        leaks.extend(leaks::in_house());
        leaks
    }

    fn image(&self) -> &Image {
        self.image.get_or_init(|| Image::build(&self.dir.join("image")))
    }

    fn number(&self) -> usize {
        self.names.fetch_add(1, Ordering::Relaxed)
    }

    fn start(&self, options: &Options) -> Daemon {
        Daemon::start(
            &self.dir,
            &format!("{}{}", keeper::namespace_prefix(std::process::id()), self.number()),
            options,
            self.image(),
        )
    }
}

/// One trial's view of the house.
pub struct Lab {
    house: Arc<House>,
    used: Mutex<Vec<Arc<Daemon>>>,
    /// Docker daemons of the trial's own.
    dockers: Mutex<Vec<Arc<Docker>>>,
}

impl Lab {
    /// Runs a trial; a panic in it becomes the error, with the place where it happened and the ends of the daemons' logs.
    /// One of Go's shim, the measure, shows once what can be had: that shim loses an event or a tail of output now and then.
    pub fn trial(house: &Arc<House>, ours: bool, run: impl Fn(&Self)) -> Result<(), String> {
        let mut tries = if ours { 1 } else { 3 };
        loop {
            let outcome = Self::try_once(Arc::clone(house), &run);
            tries -= 1;
            if outcome.is_ok() || tries == 0 {
                return outcome;
            }
        }
    }

    fn try_once(house: Arc<House>, run: &impl Fn(&Self)) -> Result<(), String> {
        note_where_panics_happen();
        let lab = Self { house, used: Mutex::default(), dockers: Mutex::default() };
        let outcome = catch_unwind(AssertUnwindSafe(|| run(&lab)));
        outcome.map_err(|panic| {
            let message = panic
                .downcast_ref::<String>()
                .cloned()
                .or_else(|| panic.downcast_ref::<&str>().map(ToString::to_string));
            let place = WHERE.with_borrow(Clone::clone);
            let logs: String = lock(&lab.used).iter().map(|daemon| daemon.log_tail(LOG_LINES)).collect();
            format!("{}\nat {place}\n{logs}", message.unwrap_or_default())
        })?;
        // A daemon of the trial's own goes with it; a leak there is the trial's failure.
        std::mem::take(&mut *lock(&lab.dockers)).iter().for_each(|docker| docker.close());
        let used = std::mem::take(&mut *lock(&lab.used));
        let mut logs = String::new();
        let close = |daemon: Daemon| {
            let leaks = daemon.close();
            if !leaks.is_empty() {
                logs += &daemon.log_tail(LOG_LINES)
            }
            leaks
        };
        let leaks: Vec<_> = used.into_iter().filter_map(Arc::into_inner).flat_map(close).collect();
        if leaks.is_empty() { Ok(()) } else { Err(format!("left behind: {}\n{logs}", leaks.join("; "))) }
    }

    /// The daemon that all trials with these options share.
    pub fn daemon(&self, options: &Options) -> Arc<Daemon> {
        let place = Arc::clone(lock(&self.house.shared).entry(options.clone()).or_default());
        let daemon = Arc::clone(place.get_or_init(|| Arc::new(self.house.start(options))));
        lock(&self.used).push(Arc::clone(&daemon));
        daemon
    }

    /// A daemon for this trial alone, to be stopped, restarted and starved at will.
    pub fn own_daemon(&self, options: &Options) -> Arc<Daemon> {
        let daemon = Arc::new(self.house.start(options));
        lock(&self.used).push(Arc::clone(&daemon));
        daemon
    }

    /// The dockerd that all trials of this case share, and those of the others on the same containerd.
    pub fn docker(&self, case: &DockerCase) -> Arc<Docker> {
        let daemon = self.daemon(case.daemon());
        let place = Arc::clone(lock(&self.house.dockers).entry(case.daemon().clone()).or_default());
        Arc::clone(place.get_or_init(|| Arc::new(Docker::start(daemon, self.house.image()))))
    }

    /// A dockerd for this trial alone, on a containerd for it alone.
    pub fn own_docker(&self, case: &DockerCase) -> Arc<Docker> {
        let docker = Arc::new(Docker::start(self.own_daemon(case.daemon()), self.house.image()));
        lock(&self.dockers).push(Arc::clone(&docker));
        docker
    }

    /// A container id that nobody else uses.
    pub fn id(&self, purpose: &str) -> String {
        format!("{purpose}-{}", self.house.number())
    }

    /// A guard over a container of this id: whatever the trial does, it is gone afterwards.
    pub fn container(&self, daemon: &Arc<Daemon>, purpose: &str) -> Container {
        Container::new(Arc::clone(daemon), self.id(purpose))
    }

    /// An empty directory of the trial's own.
    pub fn dir(&self, purpose: &str) -> PathBuf {
        let dir = self.house.dir.join(self.id(purpose));
        fs::create_dir_all(&dir).unwrap();
        dir
    }

    /// A writable copy of the lab image's root file system, for bundles that do not come from an image.
    pub fn rootfs(&self) -> PathBuf {
        let dir = self.dir("rootfs");
        self.house.image().copy_rootfs(&dir);
        dir
    }
}

/// A limit for this machine: longer where BETA9_LAB_SLOWNESS says how many times slower it is, as an emulated one is.
pub fn unhurried(limit: Duration) -> Duration {
    let slowness = std::env::var("BETA9_LAB_SLOWNESS").ok().and_then(|times| times.parse().ok());
    limit * slowness.unwrap_or(1)
}

/// Waits until `check` gives something, and fails with `what` in words when it does not in time.
pub fn eventually<T>(what: &str, mut check: impl FnMut() -> Option<T>) -> T {
    let (begin, patience) = (Instant::now(), unhurried(PATIENCE));
    loop {
        if let Some(found) = check() {
            return found;
        }
        assert!(begin.elapsed() < patience, "not within {patience:?}: {what}");
        thread::sleep(Duration::from_millis(10));
    }
}

/// A lock that a failed trial's panic does not spoil for the others.
pub fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The checkout that is being tested.
pub fn checkout() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

thread_local! {
    static WHERE: std::cell::RefCell<String> = const { std::cell::RefCell::new(String::new()) };
}

/// Keeps a panic's place for the trial's report instead of printing it between other trials' lines.
fn note_where_panics_happen() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        std::panic::set_hook(Box::new(|panic| {
            let place = panic.location().map(ToString::to_string).unwrap_or_default();
            if std::thread::current().name().is_some_and(|name| name == "main") {
                eprintln!("{panic}");
            }
            WHERE.set(place);
        }));
    });
}
