//! Statistics of the unified hierarchy, as `io.containerd.cgroups.v2.Metrics`.
//!
//! Owns which file fills which field, with one directory for all controllers. Called by `Cgroup`.
//!
//! Files: Linux, Documentation/admin-guide/cgroup-v2.rst and Documentation/accounting/psi.rst.

use std::path::Path;

use containerd_shim_protos::cgroups_v2::metrics::{
    CPUStat, HugeTlbStat, IOEntry, IOStat, MemoryEvents, MemoryStat, Metrics, PSIData, PSIStats, PidsStat, RdmaEntry,
    RdmaStat,
};

use super::{Error, Usage, file};

/// A limit of `max` is the greatest number, as clients of the v2 message expect.
const NO_LIMIT: u64 = u64::MAX;

/// The file whose change tells of an OOM kill.
pub(super) const MEMORY_EVENTS: &str = "memory.events";

/// What the controllers that are enabled for `directory` have to tell.
/// Of the statistics of all, those of one.
pub(super) fn of_one(all: Metrics, usage: &Usage) -> Metrics {
    Metrics {
        pids: Some(PidsStat { current: usage.pids, limit: all.pids.limit, ..PidsStat::default() }).into(),
        cpu: Some(CPUStat { usage_usec: usage.cpu_ns / 1000, ..CPUStat::default() }).into(),
        memory: Some(MemoryStat { usage: usage.memory, usage_limit: all.memory.usage_limit, ..MemoryStat::default() })
            .into(),
        ..Metrics::default()
    }
}

pub(super) fn metrics(directory: &Path, page_sizes: &[String]) -> Result<Metrics, Error> {
    Ok(Metrics {
        pids: pids(directory)?.into(),
        cpu: cpu(directory)?.into(),
        memory: memory(directory)?.into(),
        memory_events: memory_events(directory)?.into(),
        io: io(directory)?.into(),
        rdma: rdma(directory)?.into(),
        hugetlb: hugetlb(directory, page_sizes)?,
        ..Metrics::default()
    })
}

/// memory.events counts the kills of nested cgroups as well.
pub(super) fn oom_kills(directory: &Path) -> Result<u64, Error> {
    match memory_events(directory)? {
        Some(events) => Ok(events.oom_kill),
        None if directory.exists() => Err(Error::NoController { controller: "memory", path: directory.into() }),
        None => Err(Error::Gone(directory.into())),
    }
}

fn number(directory: &Path, name: &str) -> Result<u64, Error> {
    Ok(file::number(directory, name, NO_LIMIT)?.unwrap_or(0))
}

fn pids(directory: &Path) -> Result<Option<PidsStat>, Error> {
    let Some(current) = file::number(directory, "pids.current", NO_LIMIT)? else {
        return Ok(None);
    };
    Ok(Some(PidsStat { current, limit: number(directory, "pids.max")?, ..PidsStat::default() }))
}

fn cpu(directory: &Path) -> Result<Option<CPUStat>, Error> {
    let Some(text) = file::read(directory, "cpu.stat")? else {
        return Ok(None);
    };
    let mut stat = CPUStat { psi: pressure(directory, "cpu.pressure")?.into(), ..CPUStat::default() };
    for (key, value) in file::pairs(&text) {
        let field = match key {
            "usage_usec" => &mut stat.usage_usec,
            "user_usec" => &mut stat.user_usec,
            "system_usec" => &mut stat.system_usec,
            "nr_periods" => &mut stat.nr_periods,
            "nr_throttled" => &mut stat.nr_throttled,
            "throttled_usec" => &mut stat.throttled_usec,
            "nr_bursts" => &mut stat.nr_bursts,
            "burst_usec" => &mut stat.burst_usec,
            _ => continue,
        };
        *field = value;
    }
    Ok(Some(stat))
}

fn memory(directory: &Path) -> Result<Option<MemoryStat>, Error> {
    let Some(text) = file::read(directory, "memory.stat")? else {
        return Ok(None);
    };
    let mut stat = MemoryStat {
        usage: number(directory, "memory.current")?,
        usage_limit: number(directory, "memory.max")?,
        max_usage: number(directory, "memory.peak")?,
        swap_usage: number(directory, "memory.swap.current")?,
        swap_limit: number(directory, "memory.swap.max")?,
        swap_max_usage: number(directory, "memory.swap.peak")?,
        psi: pressure(directory, "memory.pressure")?.into(),
        ..MemoryStat::default()
    };
    for (key, value) in file::pairs(&text) {
        let field = match key {
            "anon" => &mut stat.anon,
            "file" => &mut stat.file,
            "kernel_stack" => &mut stat.kernel_stack,
            "slab" => &mut stat.slab,
            "sock" => &mut stat.sock,
            "shmem" => &mut stat.shmem,
            "file_mapped" => &mut stat.file_mapped,
            "file_dirty" => &mut stat.file_dirty,
            "file_writeback" => &mut stat.file_writeback,
            "anon_thp" => &mut stat.anon_thp,
            "inactive_anon" => &mut stat.inactive_anon,
            "active_anon" => &mut stat.active_anon,
            "inactive_file" => &mut stat.inactive_file,
            "active_file" => &mut stat.active_file,
            "unevictable" => &mut stat.unevictable,
            "slab_reclaimable" => &mut stat.slab_reclaimable,
            "slab_unreclaimable" => &mut stat.slab_unreclaimable,
            "pgfault" => &mut stat.pgfault,
            "pgmajfault" => &mut stat.pgmajfault,
            "workingset_refault" => &mut stat.workingset_refault,
            "workingset_activate" => &mut stat.workingset_activate,
            "workingset_nodereclaim" => &mut stat.workingset_nodereclaim,
            "pgrefill" => &mut stat.pgrefill,
            "pgscan" => &mut stat.pgscan,
            "pgsteal" => &mut stat.pgsteal,
            "pgactivate" => &mut stat.pgactivate,
            "pgdeactivate" => &mut stat.pgdeactivate,
            "pglazyfree" => &mut stat.pglazyfree,
            "pglazyfreed" => &mut stat.pglazyfreed,
            "thp_fault_alloc" => &mut stat.thp_fault_alloc,
            "thp_collapse_alloc" => &mut stat.thp_collapse_alloc,
            _ => continue,
        };
        *field = value;
    }
    Ok(Some(stat))
}

fn memory_events(directory: &Path) -> Result<Option<MemoryEvents>, Error> {
    let Some(text) = file::read(directory, MEMORY_EVENTS)? else {
        return Ok(None);
    };
    let mut events = MemoryEvents::new();
    for (key, value) in file::pairs(&text) {
        let field = match key {
            "low" => &mut events.low,
            "high" => &mut events.high,
            "max" => &mut events.max,
            "oom" => &mut events.oom,
            "oom_kill" => &mut events.oom_kill,
            "oom_group_kill" => &mut events.oom_group_kill,
            _ => continue,
        };
        *field = value;
    }
    Ok(Some(events))
}

/// The pressure is there without the io controller, too.
fn io(directory: &Path) -> Result<Option<IOStat>, Error> {
    let text = file::read(directory, "io.stat")?;
    let psi = pressure(directory, "io.pressure")?;
    if text.is_none() && psi.is_none() {
        return Ok(None);
    }
    Ok(Some(IOStat {
        usage: text.unwrap_or_default().lines().filter_map(io_entry).collect(),
        psi: psi.into(),
        ..IOStat::default()
    }))
}

/// A line `MAJOR:MINOR key=number…`. A device without counters is a line with nothing after its number.
fn io_entry(line: &str) -> Option<IOEntry> {
    let (device, counters) = line.split_once(' ')?;
    let (major, minor) = device.split_once(':')?;
    let mut entry = IOEntry { major: major.parse().ok()?, minor: minor.parse().ok()?, ..IOEntry::default() };
    let mut counted = false;
    for (key, value) in assignments(counters) {
        let field = match key {
            "rbytes" => &mut entry.rbytes,
            "wbytes" => &mut entry.wbytes,
            "rios" => &mut entry.rios,
            "wios" => &mut entry.wios,
            _ => continue,
        };
        *field = value.parse().ok()?;
        counted = true;
    }
    counted.then_some(entry)
}

fn assignments(text: &str) -> impl Iterator<Item = (&str, &str)> {
    text.split_ascii_whitespace().filter_map(|word| word.split_once('='))
}

fn pressure(directory: &Path, name: &str) -> Result<Option<PSIStats>, Error> {
    let Some(text) = file::read(directory, name)? else {
        return Ok(None);
    };
    let mut stats = PSIStats::new();
    for line in text.lines() {
        let Some((kind, values)) = line.split_once(' ') else {
            continue;
        };
        let data = match kind {
            "some" => &mut stats.some,
            "full" => &mut stats.full,
            _ => continue,
        };
        *data = Some(pressure_data(values)).into();
    }
    Ok(Some(stats))
}

fn pressure_data(values: &str) -> PSIData {
    let mut data = PSIData::new();
    for (key, value) in assignments(values) {
        let average = match key {
            "avg10" => &mut data.avg10,
            "avg60" => &mut data.avg60,
            "avg300" => &mut data.avg300,
            "total" => {
                data.total = value.parse().unwrap_or(0);
                continue;
            }
            _ => continue,
        };
        *average = value.parse().unwrap_or(0.0);
    }
    data
}

fn rdma(directory: &Path) -> Result<Option<RdmaStat>, Error> {
    let list = |name| {
        let text = file::read(directory, name)?;
        Ok::<_, Error>(text.map(|text| {
            file::rdma(&text)
                .map(|entry| RdmaEntry {
                    device: entry.device.to_owned(),
                    hca_handles: entry.handles,
                    hca_objects: entry.objects,
                    ..RdmaEntry::default()
                })
                .collect()
        }))
    };
    let Some(current) = list("rdma.current")? else {
        return Ok(None);
    };
    Ok(Some(RdmaStat { current, limit: list("rdma.max")?.unwrap_or_default(), ..RdmaStat::default() }))
}

fn hugetlb(directory: &Path, page_sizes: &[String]) -> Result<Vec<HugeTlbStat>, Error> {
    let mut stats = Vec::new();
    for size in page_sizes {
        let name = |name| format!("hugetlb.{size}.{name}");
        let Some(current) = file::number(directory, &name("current"), NO_LIMIT)? else {
            continue;
        };
        let events = file::read(directory, &name("events"))?.unwrap_or_default();
        stats.push(HugeTlbStat {
            current,
            max: number(directory, &name("max"))?,
            pagesize: size.clone(),
            failcnt: file::pairs(&events).find_map(|(key, value)| (key == "max").then_some(value)).unwrap_or(0),
            ..HugeTlbStat::default()
        });
    }
    Ok(stats)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cgroup::Cgroup;
    use crate::cgroup::lab::{Folder, Lab, steady};
    use proptest::prelude::*;
    use std::fs;

    #[test]
    fn every_controllers_files_reach_their_fields() {
        let folder = Folder::new();
        for (name, text) in [
            ("pids.current", "3\n"),
            ("pids.max", "max\n"),
            (
                "cpu.stat",
                "usage_usec 9\nuser_usec 5\nsystem_usec 4\ncore_sched.force_idle_usec 0\n\
                 nr_periods 10\nnr_throttled 2\nthrottled_usec 77\nnr_bursts 1\nburst_usec 6\n",
            ),
            ("cpu.pressure", "some avg10=1.50 avg60=0.25 avg300=0.00 total=1234\n"),
            ("memory.stat", "anon 1\nfile 2\nslab_unreclaimable 3\nthp_collapse_alloc 4\n"),
            ("memory.current", "4096\n"),
            ("memory.max", "max\n"),
            ("memory.peak", "8192\n"),
            ("memory.swap.current", "1\n"),
            ("memory.swap.max", "2\n"),
            ("memory.swap.peak", "3\n"),
            ("memory.events", "low 1\nhigh 2\nmax 3\noom 4\noom_kill 5\noom_group_kill 6\n"),
            ("io.stat", "8:16 rbytes=1459200 wbytes=314773504 rios=192 wios=353 dbytes=0 dios=0\n7:0 \n"),
            (
                "io.pressure",
                "some avg10=0.00 avg60=0.00 avg300=0.00 total=1\n\
                 full avg10=0.00 avg60=0.00 avg300=0.75 total=2\n",
            ),
            ("hugetlb.2MB.current", "2097152\n"),
            ("hugetlb.2MB.max", "max\n"),
            ("hugetlb.2MB.events", "max 7\n"),
            ("rdma.current", "mlx4_0 hca_handle=1 hca_object=20\n"),
            ("rdma.max", "mlx4_0 hca_handle=max hca_object=30\n"),
        ] {
            folder.write(name, text);
        }
        let found = metrics(folder.path(), &["2MB".to_owned(), "1GB".to_owned()]).unwrap();

        assert_eq!((found.pids.current, found.pids.limit), (3, u64::MAX));
        let cpu = &found.cpu;
        assert_eq!((cpu.usage_usec, cpu.user_usec, cpu.system_usec), (9, 5, 4));
        assert_eq!((cpu.nr_periods, cpu.nr_throttled, cpu.throttled_usec), (10, 2, 77));
        assert_eq!((cpu.nr_bursts, cpu.burst_usec), (1, 6));
        assert_eq!((cpu.psi.some.avg10, cpu.psi.some.avg60, cpu.psi.some.total), (1.5, 0.25, 1234));
        assert!(cpu.psi.full.is_none());
        let memory = &found.memory;
        assert_eq!((memory.anon, memory.file), (1, 2));
        assert_eq!((memory.slab_unreclaimable, memory.thp_collapse_alloc), (3, 4));
        assert_eq!((memory.usage, memory.usage_limit, memory.max_usage), (4096, u64::MAX, 8192));
        assert_eq!((memory.swap_usage, memory.swap_limit, memory.swap_max_usage), (1, 2, 3));
        let events = &found.memory_events;
        assert_eq!((events.low, events.high, events.max), (1, 2, 3));
        assert_eq!((events.oom, events.oom_kill, events.oom_group_kill), (4, 5, 6));
        assert_eq!(found.io.usage.len(), 1);
        let device = &found.io.usage[0];
        assert_eq!((device.major, device.minor), (8, 16));
        assert_eq!((device.rbytes, device.wbytes), (1_459_200, 314_773_504));
        assert_eq!((device.rios, device.wios), (192, 353));
        assert_eq!((found.io.psi.some.total, found.io.psi.full.avg300), (1, 0.75));
        assert_eq!(found.hugetlb.len(), 1);
        let huge = &found.hugetlb[0];
        assert_eq!((huge.current, huge.max, huge.failcnt), (2_097_152, u64::MAX, 7));
        assert_eq!(found.rdma.current[0].hca_objects, 20);
        assert_eq!((found.rdma.limit[0].hca_handles, found.rdma.limit[0].hca_objects), (u32::MAX, 30));
        assert_eq!(oom_kills(folder.path()).unwrap(), 5);
    }

    #[test]
    fn a_controller_without_files_is_left_unset() {
        assert_eq!(metrics(Folder::new().path(), &["2MB".to_owned()]).unwrap(), Metrics::new());
    }

    #[test]
    fn a_cgroup_without_the_memory_controller_is_not_taken_for_a_removed_one() {
        let folder = Folder::new();
        assert!(matches!(oom_kills(folder.path()), Err(Error::NoController { .. })));
        assert!(matches!(oom_kills(&folder.path().join("gone")), Err(Error::Gone(_))));
    }

    #[test]
    fn the_kernels_own_numbers_are_reported() {
        let lab = Lab::new();
        let Cgroup::V2(directory) = lab.cgroup() else {
            return;
        };
        let child = lab.idle_child();
        let file = |name: &str| {
            let text = fs::read_to_string(directory.join(name)).unwrap();
            text.trim().to_owned()
        };
        let read = || ["cpu.stat", "memory.stat", "memory.current", "memory.max"].map(file);
        let (texts, found) = steady(read, || metrics(&directory, &[]).unwrap());
        let [cpu, stat, current, limit] = texts;
        let usage = format!("usage_usec {}\n", found.cpu.usage_usec);
        assert!(cpu.starts_with(&usage), "{cpu}");
        let faults = format!("\npgfault {}\n", found.memory.pgfault);
        assert!(stat.contains(&faults), "{stat}");
        assert_eq!(found.memory.usage.to_string(), current);
        assert_eq!(found.memory.usage_limit.to_string(), limit);
        assert_eq!(found.pids.current, 1);
        assert!(found.memory_events.is_some());
        drop(child);
    }

    proptest! {
        #[test]
        fn no_text_makes_the_parsers_panic(text in "[a-z0-9=:. \\PC]{0,80}") {
            io_entry(&text);
            pressure_data(&text);
        }
    }
}
