//! How long things take that somebody waits for: a shim's start, a container from run to end, an exec, many at once.

use std::{
    fs,
    path::{Path, PathBuf},
    process::{Command, Stdio},
    thread,
    time::{Duration, Instant},
};

use nix::{
    sys::{
        signal::{Signal, kill},
        stat::Mode,
    },
    unistd::{Pid, mkfifo},
};
use serde_json::Value;

use crate::{
    lab::{bundle, container::Container, eventually, image::IMAGE, keeper, process},
    sides::{Bench, Both, Samples, Side, median},
    stopwatch::{self, milliseconds},
    table::{Row, Target, Unit},
};

/// Containers that are run at the same time.
const BURST: usize = 20;
/// Between two measurements: what the last one left to be done in the background is not the next one's.
const REST: Duration = Duration::from_millis(30);

/// The rows of commands.
pub fn rows(bench: &Bench) -> Vec<Row> {
    let mut rows = vec![start(bench)];
    let bare = Bare::new(bench);
    rows.extend(run(bench, &bare));
    rows.push(exec(bench, &bare));
    rows.push(burst(bench));
    rows
}

fn row(what: String, samples: &Both<Samples>, target: Target) -> Row {
    Row { what, unit: Unit::Milliseconds, values: Some(samples.map(|samples| median(samples))), target }
}

/// The `start` action by itself, as containerd calls it; its server is ended at once.
fn start(bench: &Bench) -> Row {
    let samples = bench.turns(bench.rounds, |side| {
        let id = bench.lab.id("start");
        let dir = bench.lab.dir("bundle");
        let spec = bundle::spec(Path::new("rootfs"), &format!("/{id}"), &["true"]);
        fs::write(dir.join("config.json"), spec.to_string()).unwrap();
        mkfifo(&dir.join("log"), Mode::S_IRWXU).unwrap();
        // containerd reads the log; a shim that opens it for writing waits for that.
        let _reader = fs::File::options().read(true).write(true).open(dir.join("log")).unwrap();
        let elapsed = stopwatch::time(&mut start_command(bench, side, &id, &dir));
        end_server(&id, &dir);
        elapsed
    });
    row("`start` alone".into(), &samples, Target::Ratio(0.25))
}

fn start_command(bench: &Bench, side: &Side, id: &str, bundle: &Path) -> Command {
    let home = bench.home();
    let mut command = Command::new(&side.program);
    command
        .current_dir(bundle)
        .env_clear()
        .env("PATH", "/usr/sbin:/usr/bin:/sbin:/bin")
        .env("GOMAXPROCS", "2")
        .env("TTRPC_ADDRESS", home.join("ttrpc"))
        .env("GRPC_ADDRESS", home.join("sock"))
        .args(["-namespace", bench.daemon.namespace()])
        .arg("-address")
        .arg(home.join("sock"))
        .arg("-publish-binary")
        .arg(home.join("bin/containerd"))
        .args(["-id", id, "start"]);
    command
}

fn end_server(id: &str, bundle: &Path) {
    let find = || {
        process::descendants(Pid::from_raw(keeper::pid()))
            .into_iter()
            .find(|process| process.argument("-id") == Some(id))
    };
    let server = eventually("the server that was started", find);
    kill(Pid::from_raw(server.pid), Signal::SIGKILL).unwrap();
    eventually("the server's end", || find().is_none().then_some(()));
    let address = fs::read_to_string(bundle.join("address")).unwrap();
    fs::remove_file(address.trim().trim_start_matches("unix://")).unwrap();
}

/// A container from its creation to its removal; what of that is not runc, and what of the rest is the shim's.
fn run(bench: &Bench, bare: &Bare) -> [Row; 3] {
    let (mut runc, mut client) = (Samples::new(), Samples::new());
    let mut samples = Both::<Samples>::default();
    for _ in 0..bench.rounds {
        samples.ours.push(run_once(bench, &bench.sides.ours));
        runc.push(bare.run());
        samples.go.push(run_once(bench, &bench.sides.go));
        client.push(without_shim(bench));
    }
    let less = |samples: &Both<Samples>, others: &Samples| {
        samples.map(|samples| {
            let pairs = samples.iter().zip(others);
            pairs.map(|(all, part)| all - part).collect::<Samples>()
        })
    };
    let added = less(&samples, &runc);
    [
        row(format!("`ctr run --rm … true` (`runc run`: {:.1} ms)", median(&runc)), &samples, Target::Nothing),
        row("what that adds to `runc run`".into(), &added, Target::Ratio(0.5)),
        row(
            format!("the same without ctr and containerd ({:.1} ms)", median(&client)),
            &less(&added, &client),
            Target::Nothing,
        ),
    ]
}

/// What ctr and containerd do for a container that never has a shim: its record and its snapshot, made and removed, by
/// two clients of which one start is taken off again. Less than what they do in a run, which has a task besides.
fn without_shim(bench: &Bench) -> f64 {
    let id = bench.lab.id("record");
    let ctr = |line: &[&str]| stopwatch::time(&mut bench.daemon.ctr_command(line));
    let both = ctr(&["containers", "create", IMAGE, &id]) + ctr(&["containers", "delete", &id]);
    both - ctr(&["version"])
}

fn run_once(bench: &Bench, side: &Side) -> f64 {
    let elapsed = stopwatch::time(&mut run_command(bench, side, &bench.lab.id("run")));
    thread::sleep(REST);
    elapsed
}

fn run_command(bench: &Bench, side: &Side, id: &str) -> Command {
    let mut line = vec!["run", "--rm"];
    line.extend(side.case.flags());
    line.extend([IMAGE, id, "true"]);
    bench.daemon.ctr_command(&line)
}

fn exec(bench: &Bench, bare: &Bare) -> Row {
    let containers = bench.sides.map(|side| bench.sleeper(side));
    let mut runc = Samples::new();
    let mut samples = Both::<Samples>::default();
    for _ in 0..bench.rounds {
        samples.ours.push(exec_once(bench, &containers.ours));
        runc.push(bare.exec());
        samples.go.push(exec_once(bench, &containers.go));
    }
    row(format!("`ctr tasks exec … true` (`runc exec`: {:.1} ms)", median(&runc)), &samples, Target::Ratio(0.8))
}

fn exec_once(bench: &Bench, container: &Container) -> f64 {
    let exec = bench.lab.id("exec");
    let line = ["tasks", "exec", "--exec-id", &exec, container.id(), "true"];
    let elapsed = stopwatch::time(&mut bench.daemon.ctr_command(&line));
    thread::sleep(REST);
    elapsed
}

/// Many containers at once, until the last one is gone.
fn burst(bench: &Bench) -> Row {
    let samples = bench.turns(bench.few(), |side| {
        let commands: Vec<_> = (0..BURST).map(|_| run_command(bench, side, &bench.lab.id("burst"))).collect();
        let begin = Instant::now();
        let running: Vec<_> = commands.into_iter().map(|mut command| stopwatch::start(&mut command)).collect();
        for running in running {
            running.finish();
        }
        let elapsed = milliseconds(begin.elapsed());
        thread::sleep(10 * REST);
        elapsed
    });
    row(format!("{BURST} × `ctr run --rm … true` at once"), &samples, Target::Ratio(0.8))
}

/// runc without a shim: a bundle that is equal to what containerd makes, and a container of it that sleeps.
struct Bare {
    runc: PathBuf,
    root: PathBuf,
    bundle: PathBuf,
    sleeper: String,
}

impl Bare {
    fn new(bench: &Bench) -> Self {
        let model = bench.sleeper(&bench.sides.go);
        let config = fs::read(bench.daemon.bundle(model.id()).join("config.json")).unwrap();
        let config: Value = serde_json::from_slice(&config).unwrap();
        let furnish = |id: &str, command: &[&str]| {
            let dir = bench.lab.dir("bare");
            let mut config = config.clone();
            config["process"]["args"] = command.into();
            config["root"]["path"] = bench.lab.rootfs().to_str().unwrap().into();
            config["linux"]["cgroupsPath"] = format!("/{}/{id}", bench.daemon.namespace()).into();
            fs::write(dir.join("config.json"), config.to_string()).unwrap();
            dir
        };
        let bare = Self {
            runc: bench.runc(),
            root: bench.lab.dir("runc"),
            bundle: furnish("bare-run", &["true"]),
            sleeper: "bare-sleeper".into(),
        };
        let bundle = furnish(&bare.sleeper, &["sleep", "1000"]);
        // Not by the stopwatch: the container keeps the standard error that it waits for.
        let status = bare
            .command(&["run", "--detach", "--bundle"])
            .arg(bundle)
            .arg(&bare.sleeper)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .status();
        assert!(status.unwrap().success(), "could not start bare runc");
        bare
    }

    fn run(&self) -> f64 {
        let elapsed = stopwatch::time(self.command(&["run", "--bundle"]).arg(&self.bundle).arg("bare-run"));
        thread::sleep(REST);
        elapsed
    }

    fn exec(&self) -> f64 {
        let elapsed = stopwatch::time(&mut self.command(&["exec", &self.sleeper, "true"]));
        thread::sleep(REST);
        elapsed
    }

    fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(&self.runc);
        command.env_clear().env("PATH", "/usr/sbin:/usr/bin:/sbin:/bin").arg("--root").arg(&self.root).args(arguments);
        command
    }
}

impl Drop for Bare {
    fn drop(&mut self) {
        stopwatch::time(&mut self.command(&["delete", "--force", &self.sleeper]));
    }
}
