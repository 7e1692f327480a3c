//! A long standard output, from a container through the shim to a client that throws it away.

use crate::{
    lab::container::Container,
    sides::{Bench, Both, Samples, median},
    stopwatch,
    table::{Row, Target, Unit},
    usage,
};

/// MiB of output.
const LENGTH: usize = 1000;

/// The rows of the long output. An exec writes it, so that the shim is there before and after.
pub fn rows(bench: &Bench) -> Vec<Row> {
    let containers = bench.sides.map(|side| bench.sleeper(side));
    let count = format!("count={LENGTH}");
    let (mut wall, mut cpu) = (Both::<Samples>::default(), Both::<Samples>::default());
    let measure = |container: &Container| {
        let exec = bench.lab.id("stream");
        let line = ["tasks", "exec", "--exec-id", &exec, container.id()];
        let dd = ["dd", "if=/dev/zero", "bs=1M", &count];
        let shim = container.shim();
        let before = usage::cpu(&shim);
        let elapsed = stopwatch::time(&mut bench.daemon.ctr_command(&[&line[..], &dd[..]].concat()));
        (elapsed / 1000.0, usage::cpu(&shim) - before)
    };
    for _ in 0..bench.few() {
        let round = containers.map(measure);
        wall.ours.push(round.ours.0);
        wall.go.push(round.go.0);
        cpu.ours.push(round.ours.1);
        cpu.go.push(round.go.1);
    }
    let row = |what, samples: &Both<Samples>, most| Row {
        what,
        unit: Unit::Seconds,
        values: Some(samples.map(|samples| median(samples))),
        target: Target::Ratio(most),
    };
    vec![row(format!("{LENGTH} MiB of stdout"), &wall, 0.5), row("the shim's CPU time for it".into(), &cpu, 0.1)]
}
