//! What a shim costs while nothing happens: memory, threads, wakeups, and whether it keeps what passed through it.

use std::{fs, path::Path, thread, time::Duration};

use crate::{
    lab::{bundle, container::Container, process::Process},
    sides::{Bench, Both, Samples, Side, median},
    table::{Row, Target, Unit},
    usage,
};

/// Shims that are looked at, of each kind.
const SHIMS: usize = 5;
/// How long a shim may take to come to rest after its container has started.
const SETTLING: Duration = Duration::from_secs(2);
/// How long nothing happens while wakeups are counted.
const IDLE: Duration = Duration::from_secs(5);

/// Containers of the pod, and how many such pods are looked at.
const POD: usize = 10;
const PODS: usize = 3;

/// Execs before the growth is watched (code that runs for the first time, buffers at their usual size), and while it is.
const WARMING: usize = 50;
const EXECS: usize = 500;
/// Execs that are on their way at the same time.
const CLIENTS: usize = 2;
/// What counts as no growth, in KiB: sixteen pages.
const NO_GROWTH: f64 = 64.0;

/// The rows of shims at rest.
pub fn rows(bench: &Bench) -> Vec<Row> {
    let mut rows = idle(bench);
    rows.push(pod(bench));
    rows.extend(execs(bench));
    rows
}

/// The binaries' sizes.
pub fn binary(bench: &Bench) -> Vec<Row> {
    let bytes = |side: &Side| fs::metadata(&side.program).unwrap().len();
    let linked = if is_static(&bench.sides.ours.program) { "statically" } else { "DYNAMICALLY" };
    #[expect(clippy::cast_precision_loss, reason = "a file of less than 2⁵² bytes")]
    let values = bench.sides.map(|side| bytes(side) as f64 / 1e6);
    vec![Row {
        what: format!("binary (ours is linked {linked})"),
        unit: Unit::Megabytes,
        values: Some(values),
        target: Target::AtMost(2.0),
    }]
}

fn idle(bench: &Bench) -> Vec<Row> {
    let mut containers = Both::<Vec<Container>>::default();
    for _ in 0..SHIMS {
        containers.ours.push(bench.sleeper(&bench.sides.ours));
        containers.go.push(bench.sleeper(&bench.sides.go));
    }
    thread::sleep(SETTLING);
    let shims = containers.map(|containers| {
        let shims = containers.iter().map(Container::shim);
        shims.collect::<Vec<_>>()
    });
    let each = |look: fn(&Process) -> f64| shims.map(|shims| shims.iter().map(look).collect::<Samples>());

    let before = each(usage::switches);
    thread::sleep(IDLE);
    let after = each(usage::switches);
    let wakeups = before.zip(&after).map(|(before, after)| {
        let counts = before.iter().zip(*after).map(|(before, after)| after - before);
        counts.collect::<Samples>()
    });

    let row = |what: &str, unit, samples: Both<Samples>, target| Row {
        what: what.into(),
        unit,
        values: Some(samples.map(|samples| median(samples))),
        target,
    };
    let fifth = Target::Ratio(0.2);
    let mib = Unit::Mib;
    vec![
        row("idle RSS, one container", mib, each(usage::resident), fifth),
        row("idle PSS, one container", mib, each(usage::proportional), fifth),
        row("idle threads", Unit::Number, each(usage::threads), Target::AtMost(1.0)),
        row("idle wakeups in 5 s", Unit::Number, wakeups, Target::AtMost(0.0)),
    ]
}

fn pod(bench: &Bench) -> Row {
    let rootfs = bench.lab.rootfs();
    let samples = bench.turns(PODS, |side| {
        let pod = bench.lab.id("pod");
        let members: Vec<_> = (0..POD)
            .map(|_| {
                let member = bench.lab.container(&bench.daemon, "member");
                let cgroup = format!("/{}/{}", bench.daemon.namespace(), member.id());
                let mut spec = bundle::spec(&rootfs, &cgroup, &["sleep", "1000"]);
                spec["annotations"]["io.containerd.runc.v2.group"] = pod.as_str().into();
                member.detach_spec(&side.case, &spec, &bench.home().join(format!("{}.json", member.id())));
                member
            })
            .collect();
        thread::sleep(SETTLING);
        let shims = bench.daemon.shims();
        assert_eq!(shims.len(), 1, "shims of one pod: {shims:?}");
        let resident = usage::resident(&shims[0]);
        drop(members);
        resident
    });
    Row {
        what: "RSS, pod of ten containers".into(),
        unit: Unit::Mib,
        values: Some(samples.map(|samples| median(samples))),
        target: Target::Ratio(0.25),
    }
}

fn execs(bench: &Bench) -> [Row; 2] {
    let both = bench.sides.map(|side| {
        let container = bench.sleeper(side);
        exec_often(&container, "warming", WARMING);
        thread::sleep(SETTLING);
        let before = usage::resident(&container.shim());
        exec_often(&container, "watched", EXECS);
        thread::sleep(SETTLING);
        (before, usage::resident(&container.shim()))
    });
    [
        Row {
            what: format!("RSS after {EXECS} execs"),
            unit: Unit::Mib,
            values: Some(both.map(|(_, after)| *after)),
            target: Target::Ratio(0.25),
        },
        Row {
            what: "growth in these execs".into(),
            unit: Unit::Kib,
            values: Some(both.map(|(before, after)| (after - before) * 1024.0)),
            target: Target::AtMost(NO_GROWTH),
        },
    ]
}

fn exec_often(container: &Container, name: &str, count: usize) {
    thread::scope(|scope| {
        for client in 0..CLIENTS {
            scope.spawn(move || {
                for number in 0..count / CLIENTS {
                    let exec = format!("{name}-{client}-{number}");
                    container.exec(&exec, &[], &["true"]).success();
                }
            });
        }
    });
}

/// Whether a program needs no loader: an ELF file of 64 bits without a PT_INTERP entry (elf(5)).
fn is_static(program: &Path) -> bool {
    const INTERPRETER: usize = 3;
    let file = fs::read(program).unwrap();
    let number = |at: usize, size: usize| {
        let bytes = file[at..at + size].iter().rev();
        bytes.fold(0_usize, |value, byte| value << 8 | usize::from(*byte))
    };
    assert_eq!(&file[..6], b"\x7fELF\x02\x01", "not a program of this kind");
    let (table, size, count) = (number(32, 8), number(54, 2), number(56, 2));
    (0..count).all(|entry| number(table + entry * size, 4) != INTERPRETER)
}
