//! Statistics of the legacy controllers, as `io.containerd.cgroups.v1.Metrics`.
//!
//! Owns which file fills which field; the same files as containerd's Go shim reads, so that graphs go on when
//! a node changes its shim. Network counters are not among them: those belong to the pod. Called by `Cgroup`.
//!
//! Files: Linux, Documentation/admin-guide/cgroup-v1.

use std::collections::{BTreeMap, HashMap};
use std::path::{Path, PathBuf};

use containerd_shim_protos::cgroups::metrics::{
    BlkIOEntry, BlkIOStat, CPUStat, CPUUsage, HugetlbStat, MemoryEntry, MemoryOomControl, MemoryStat, Metrics,
    PidsStat, RdmaEntry, RdmaStat, Throttle,
};

use super::{Error, Usage, file, tree};

/// cpuacct.stat counts in USER_HZ, which is 100 wherever containerd runs.
const NANOSECONDS_PER_TICK: u64 = 1_000_000_000 / 100;

/// A limit of `max` is 0 here, as clients of the v1 message expect.
const NO_LIMIT: u64 = 0;

/// Cgroups whose OOM counters are added up: more than a node in a container has, read in a few milliseconds.
const MAX_COUNTED: usize = 1_000;

/// The file that counts OOM kills, and an OOM's notification is registered for.
pub(super) const OOM_CONTROL: &str = "memory.oom_control";

/// What the controllers among `directories` have to tell.
/// Of the statistics of all, those of one.
pub(super) fn of_one(all: Metrics, usage: &Usage) -> Metrics {
    let memory = MemoryEntry { usage: usage.memory, limit: all.memory.usage.limit, ..MemoryEntry::default() };
    Metrics {
        pids: Some(PidsStat { current: usage.pids, limit: all.pids.limit, ..PidsStat::default() }).into(),
        cpu: Some(CPUStat {
            usage: Some(CPUUsage { total: usage.cpu_ns, ..CPUUsage::default() }).into(),
            ..CPUStat::default()
        })
        .into(),
        memory: Some(MemoryStat { usage: Some(memory).into(), ..MemoryStat::default() }).into(),
        ..Metrics::default()
    }
}

pub(super) fn metrics(directories: &BTreeMap<String, PathBuf>, page_sizes: &[String]) -> Result<Metrics, Error> {
    let mut metrics = Metrics::new();
    let directory = |controller| directories.get(controller).map(PathBuf::as_path);

    if let Some(directory) = directory("pids") {
        metrics.pids = pids(directory)?.into();
    }
    metrics.cpu = Some(CPUStat {
        usage: Some(usage(directory("cpuacct"))?).into(),
        throttling: Some(throttling(directory("cpu"))?).into(),
        ..CPUStat::default()
    })
    .into();
    if let Some(directory) = directory("memory") {
        metrics.memory = memory(directory)?.into();
        metrics.memory_oom_control = oom_control(directory)?.into();
    }
    if let Some(directory) = directory("blkio") {
        let partitions = file::read(Path::new("/proc"), "partitions")?.unwrap_or_default();
        metrics.blkio = Some(blkio(directory, &partitions)?).into();
    }
    if let Some(directory) = directory("hugetlb") {
        metrics.hugetlb = hugetlb(directory, page_sizes)?;
    }
    if let Some(directory) = directory("rdma") {
        metrics.rdma = rdma(directory)?.into();
    }
    Ok(metrics)
}

/// The kernel counts a kill in the victim's own cgroup only, so that those of nested ones are added. A tree
/// too large to be read at every wake-up (a tenant may make one) has the container's own count alone.
pub(super) fn oom_kills(directory: &Path) -> Result<u64, Error> {
    let Some(own) = oom_control(directory)? else {
        return Err(Error::Gone(directory.into()));
    };
    let mut kills = 0;
    let walked = tree::walk(directory, MAX_COUNTED, &mut |directory| {
        kills += oom_control(directory)?.map_or(0, |control| control.oom_kill);
        Ok(())
    });
    match walked {
        Ok(()) => Ok(kills),
        Err(Error::TooLarge(_)) => Ok(own.oom_kill),
        Err(error) => Err(error),
    }
}

fn pids(directory: &Path) -> Result<Option<PidsStat>, Error> {
    let Some(current) = file::number(directory, "pids.current", NO_LIMIT)? else {
        return Ok(None);
    };
    Ok(Some(PidsStat {
        current,
        limit: file::number(directory, "pids.max", NO_LIMIT)?.unwrap_or(NO_LIMIT),
        ..PidsStat::default()
    }))
}

/// Clients read the CPU's message and both its parts without asking whether they are there: so they are, and
/// empty where the controller is missing.
fn usage(directory: Option<&Path>) -> Result<CPUUsage, Error> {
    let mut usage = CPUUsage::new();
    let Some(directory) = directory else {
        return Ok(usage);
    };
    usage.total = file::number(directory, "cpuacct.usage", 0)?.unwrap_or(0);
    let text = file::read(directory, "cpuacct.stat")?.unwrap_or_default();
    for (key, ticks) in file::pairs(&text) {
        let field = match key {
            "user" => &mut usage.user,
            "system" => &mut usage.kernel,
            _ => continue,
        };
        *field = ticks.saturating_mul(NANOSECONDS_PER_TICK);
    }
    usage.per_cpu = file::read(directory, "cpuacct.usage_percpu")?
        .unwrap_or_default()
        .split_ascii_whitespace()
        .filter_map(|nanoseconds| nanoseconds.parse().ok())
        .collect();
    Ok(usage)
}

fn throttling(directory: Option<&Path>) -> Result<Throttle, Error> {
    let mut throttle = Throttle::new();
    let text = match directory {
        Some(directory) => file::read(directory, "cpu.stat")?.unwrap_or_default(),
        None => String::new(),
    };
    for (key, value) in file::pairs(&text) {
        let field = match key {
            "nr_periods" => &mut throttle.periods,
            "nr_throttled" => &mut throttle.throttled_periods,
            "throttled_time" => &mut throttle.throttled_time,
            _ => continue,
        };
        *field = value;
    }
    Ok(throttle)
}

fn memory(directory: &Path) -> Result<Option<MemoryStat>, Error> {
    let Some(text) = file::read(directory, "memory.stat")? else {
        return Ok(None);
    };
    let mut stat = MemoryStat {
        usage: Some(memory_entry(directory, "")?).into(),
        swap: Some(memory_entry(directory, "memsw.")?).into(),
        kernel: Some(memory_entry(directory, "kmem.")?).into(),
        kernel_tcp: Some(memory_entry(directory, "kmem.tcp.")?).into(),
        ..MemoryStat::default()
    };
    for (key, value) in file::pairs(&text) {
        let field = match key {
            "cache" => &mut stat.cache,
            "rss" => &mut stat.rss,
            "rss_huge" => &mut stat.rss_huge,
            "mapped_file" => &mut stat.mapped_file,
            "dirty" => &mut stat.dirty,
            "writeback" => &mut stat.writeback,
            "pgpgin" => &mut stat.pg_pg_in,
            "pgpgout" => &mut stat.pg_pg_out,
            "pgfault" => &mut stat.pg_fault,
            "pgmajfault" => &mut stat.pg_maj_fault,
            "inactive_anon" => &mut stat.inactive_anon,
            "active_anon" => &mut stat.active_anon,
            "inactive_file" => &mut stat.inactive_file,
            "active_file" => &mut stat.active_file,
            "unevictable" => &mut stat.unevictable,
            "hierarchical_memory_limit" => &mut stat.hierarchical_memory_limit,
            "hierarchical_memsw_limit" => &mut stat.hierarchical_swap_limit,
            "total_cache" => &mut stat.total_cache,
            "total_rss" => &mut stat.total_rss,
            "total_rss_huge" => &mut stat.total_rss_huge,
            "total_mapped_file" => &mut stat.total_mapped_file,
            "total_dirty" => &mut stat.total_dirty,
            "total_writeback" => &mut stat.total_writeback,
            "total_pgpgin" => &mut stat.total_pg_pg_in,
            "total_pgpgout" => &mut stat.total_pg_pg_out,
            "total_pgfault" => &mut stat.total_pg_fault,
            "total_pgmajfault" => &mut stat.total_pg_maj_fault,
            "total_inactive_anon" => &mut stat.total_inactive_anon,
            "total_active_anon" => &mut stat.total_active_anon,
            "total_inactive_file" => &mut stat.total_inactive_file,
            "total_active_file" => &mut stat.total_active_file,
            "total_unevictable" => &mut stat.total_unevictable,
            _ => continue,
        };
        *field = value;
    }
    Ok(Some(stat))
}

/// Zero where the kernel does not account (swap without swapaccount, kernel memory on newer kernels).
fn memory_entry(directory: &Path, kind: &str) -> Result<MemoryEntry, Error> {
    let number = |name| {
        let value = file::number(directory, &format!("memory.{kind}{name}"), NO_LIMIT)?;
        Ok::<_, Error>(value.unwrap_or(0))
    };
    Ok(MemoryEntry {
        usage: number("usage_in_bytes")?,
        max: number("max_usage_in_bytes")?,
        failcnt: number("failcnt")?,
        limit: number("limit_in_bytes")?,
        ..MemoryEntry::default()
    })
}

fn oom_control(directory: &Path) -> Result<Option<MemoryOomControl>, Error> {
    let Some(text) = file::read(directory, OOM_CONTROL)? else {
        return Ok(None);
    };
    let mut control = MemoryOomControl::new();
    for (key, value) in file::pairs(&text) {
        let field = match key {
            "oom_kill_disable" => &mut control.oom_kill_disable,
            "under_oom" => &mut control.under_oom,
            "oom_kill" => &mut control.oom_kill,
            _ => continue,
        };
        *field = value;
    }
    Ok(Some(control))
}

type List = fn(&mut BlkIOStat) -> &mut Vec<BlkIOEntry>;

/// Files of the CFQ scheduler, which kernels since 5.0 no longer have.
const CFQ: [(&str, List); 8] = [
    ("sectors_recursive", |s| &mut s.sectors_recursive),
    ("io_service_bytes_recursive", |s| &mut s.io_service_bytes_recursive),
    ("io_serviced_recursive", |s| &mut s.io_serviced_recursive),
    ("io_queued_recursive", |s| &mut s.io_queued_recursive),
    ("io_service_time_recursive", |s| &mut s.io_service_time_recursive),
    ("io_wait_time_recursive", |s| &mut s.io_wait_time_recursive),
    ("io_merged_recursive", |s| &mut s.io_merged_recursive),
    ("time_recursive", |s| &mut s.io_time_recursive),
];

/// What the block layer counts itself, whatever the scheduler: read where CFQ has nothing to tell.
const THROTTLE: [(&str, List); 2] = [
    ("throttle.io_serviced", |s| &mut s.io_serviced_recursive),
    ("throttle.io_service_bytes", |s| &mut s.io_service_bytes_recursive),
];

fn blkio(directory: &Path, partitions: &str) -> Result<BlkIOStat, Error> {
    let devices = devices(partitions);
    let mut stat = BlkIOStat::new();
    for files in [&CFQ[..], &THROTTLE[..]] {
        let mut found = false;
        for (name, list) in files {
            let text = file::read(directory, &format!("blkio.{name}"))?.unwrap_or_default();
            let entries = blkio_entries(&text, &devices);
            found |= !entries.is_empty();
            *list(&mut stat) = entries;
        }
        if found {
            break;
        }
    }
    Ok(stat)
}

/// The lines `MAJOR:MINOR [OPERATION] NUMBER`; the last line, a total, has no device and is left out.
fn blkio_entries(text: &str, devices: &HashMap<(u64, u64), &str>) -> Vec<BlkIOEntry> {
    text.lines()
        .filter_map(|line| {
            let fields: Vec<_> = line.split([' ', ':']).filter(|field| !field.is_empty()).collect();
            let (major, minor, op, value) = match fields[..] {
                [major, minor, value] => (major, minor, "", value),
                [major, minor, op, value] => (major, minor, op, value),
                _ => return None,
            };
            let (major, minor) = (major.parse().ok()?, minor.parse().ok()?);
            Some(BlkIOEntry {
                op: op.to_owned(),
                device: match devices.get(&(major, minor)) {
                    Some(name) => format!("/dev/{name}"),
                    None => String::new(),
                },
                major,
                minor,
                value: value.parse().ok()?,
                ..BlkIOEntry::default()
            })
        })
        .collect()
}

/// The lines `major minor #blocks name` of `/proc/partitions`.
fn devices(partitions: &str) -> HashMap<(u64, u64), &str> {
    partitions
        .lines()
        .filter_map(|line| {
            let mut fields = line.split_ascii_whitespace();
            let number = (fields.next()?.parse().ok()?, fields.next()?.parse().ok()?);
            Some((number, fields.nth(1)?))
        })
        .collect()
}

fn hugetlb(directory: &Path, page_sizes: &[String]) -> Result<Vec<HugetlbStat>, Error> {
    let mut stats = Vec::new();
    for size in page_sizes {
        let number = |name| file::number(directory, &format!("hugetlb.{size}.{name}"), NO_LIMIT);
        let Some(usage) = number("usage_in_bytes")? else {
            continue;
        };
        stats.push(HugetlbStat {
            usage,
            max: number("max_usage_in_bytes")?.unwrap_or(0),
            failcnt: number("failcnt")?.unwrap_or(0),
            pagesize: size.clone(),
            ..HugetlbStat::default()
        });
    }
    Ok(stats)
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cgroup::Cgroup;
    use crate::cgroup::lab::{Folder, Lab, steady};
    use proptest::prelude::*;
    use std::fs;

    /// All controllers in one folder, as the names of their files never clash.
    fn all(folder: &Folder) -> Metrics {
        let directories = ["pids", "cpu", "cpuacct", "memory", "blkio", "hugetlb", "rdma"]
            .map(|controller| (controller.to_owned(), folder.path().to_owned()));
        metrics(&directories.into(), &["2MB".to_owned(), "1GB".to_owned()]).unwrap()
    }

    #[test]
    fn every_controllers_files_reach_their_fields() {
        let folder = Folder::new();
        for (name, text) in [
            ("pids.current", "3\n"),
            ("pids.max", "max\n"),
            ("cpuacct.usage", "4000000123\n"),
            ("cpuacct.stat", "user 250\nsystem 50\n"),
            ("cpuacct.usage_percpu", "3000000000 1000000123 \n"),
            ("cpu.stat", "nr_periods 10\nnr_throttled 4\nthrottled_time 77\nnr_bursts 0\n"),
            ("memory.stat", "cache 1\nrss 2\nhierarchical_memsw_limit 9\ntotal_pgmajfault 5\n"),
            ("memory.usage_in_bytes", "100\n"),
            ("memory.max_usage_in_bytes", "200\n"),
            ("memory.failcnt", "1\n"),
            ("memory.limit_in_bytes", "9223372036854771712\n"),
            ("memory.kmem.tcp.usage_in_bytes", "6\n"),
            ("memory.oom_control", "oom_kill_disable 0\nunder_oom 1\noom_kill 2\n"),
            ("hugetlb.2MB.usage_in_bytes", "2097152\n"),
            ("hugetlb.2MB.max_usage_in_bytes", "4194304\n"),
            ("hugetlb.2MB.failcnt", "3\n"),
            ("rdma.current", "mlx4_0 hca_handle=1 hca_object=20\n"),
            ("rdma.max", "mlx4_0 hca_handle=max hca_object=max\n"),
        ] {
            folder.write(name, text);
        }
        let found = all(&folder);
        assert_eq!((found.pids.current, found.pids.limit), (3, 0));
        let usage = &found.cpu.usage;
        assert_eq!((usage.total, usage.user, usage.kernel), (4_000_000_123, 2_500_000_000, 500_000_000));
        assert_eq!(usage.per_cpu, [3_000_000_000, 1_000_000_123]);
        let throttling = &found.cpu.throttling;
        assert_eq!((throttling.periods, throttling.throttled_periods, throttling.throttled_time), (10, 4, 77));
        let memory = &found.memory;
        assert_eq!((memory.cache, memory.rss), (1, 2));
        assert_eq!((memory.hierarchical_swap_limit, memory.total_pg_maj_fault), (9, 5));
        let usage = &memory.usage;
        assert_eq!((usage.usage, usage.max, usage.failcnt, usage.limit), (100, 200, 1, 9_223_372_036_854_771_712));
        assert_eq!(memory.kernel_tcp.usage, 6);
        assert_eq!(memory.swap.as_ref(), Some(&MemoryEntry::new()));
        let control = &found.memory_oom_control;
        assert_eq!((control.oom_kill_disable, control.under_oom, control.oom_kill), (0, 1, 2));
        assert_eq!(found.hugetlb.len(), 1);
        let huge = &found.hugetlb[0];
        assert_eq!((huge.pagesize.as_str(), huge.usage, huge.max, huge.failcnt), ("2MB", 2_097_152, 4_194_304, 3));
        assert_eq!(found.rdma.current[0].hca_objects, 20);
        assert_eq!(found.rdma.limit[0].hca_handles, u32::MAX);
        assert!(found.network.is_empty());
    }

    #[test]
    fn a_controller_without_files_is_left_unset() {
        let found = all(&Folder::new());
        assert!(found.pids.is_none() && found.memory.is_none() && found.rdma.is_none());
        assert!(found.memory_oom_control.is_none() && found.hugetlb.is_empty());
        // Go clients dereference these two without a check.
        assert!(found.cpu.usage.is_some() && found.cpu.throttling.is_some());
    }

    const PARTITIONS: &str = "major minor  #blocks  name\n\n 254        0  268435456 vda\n";

    #[test]
    fn block_io_names_its_devices() {
        let folder = Folder::new();
        folder.write("blkio.throttle.io_serviced", "254:0 Read 5\n254:0 Write 6\n7:1 Read 1\nTotal 12\n");
        let stat = blkio(folder.path(), PARTITIONS).unwrap();
        let found: Vec<_> = stat
            .io_serviced_recursive
            .iter()
            .map(|e| (e.device.as_str(), e.major, e.minor, e.op.as_str(), e.value))
            .collect();
        assert_eq!(found, [("/dev/vda", 254, 0, "Read", 5), ("/dev/vda", 254, 0, "Write", 6), ("", 7, 1, "Read", 1)]);
    }

    #[test]
    fn block_io_comes_from_the_scheduler_where_it_counts() {
        let folder = Folder::new();
        folder.write("blkio.sectors_recursive", "254:0 88\n");
        folder.write("blkio.throttle.io_serviced", "254:0 Read 5\n");
        let stat = blkio(folder.path(), PARTITIONS).unwrap();
        assert_eq!(stat.sectors_recursive[0].value, 88);
        assert!(stat.io_serviced_recursive.is_empty());

        folder.write("blkio.sectors_recursive", "Total 0\n");
        let stat = blkio(folder.path(), PARTITIONS).unwrap();
        assert!(stat.sectors_recursive.is_empty());
        assert_eq!(stat.io_serviced_recursive[0].value, 5);
    }

    #[test]
    fn kills_in_nested_cgroups_count() {
        let folder = Folder::new();
        folder.write("memory.oom_control", "oom_kill_disable 0\nunder_oom 0\noom_kill 1\n");
        folder.write("a/b/memory.oom_control", "oom_kill 2\n");
        assert_eq!(oom_kills(folder.path()).unwrap(), 3);
    }

    #[test]
    fn a_flood_of_nested_cgroups_leaves_the_containers_own_count() {
        let folder = Folder::new();
        folder.write(OOM_CONTROL, "oom_kill 1\n");
        for nested in 0..MAX_COUNTED {
            folder.write(&format!("{nested}/{OOM_CONTROL}"), "oom_kill 1\n");
        }
        assert_eq!(oom_kills(folder.path()).unwrap(), 1);
    }

    #[test]
    fn the_kernels_own_numbers_are_reported() {
        let lab = Lab::new();
        let Cgroup::V1(directories) = lab.cgroup() else {
            return;
        };
        let child = lab.idle_child();
        let file = |controller: &str, name: &str| {
            let path = directories[controller].join(name);
            fs::read_to_string(path).unwrap().trim().to_owned()
        };
        let read = || {
            [
                file("cpuacct", "cpuacct.usage"),
                file("cpuacct", "cpuacct.usage_percpu"),
                file("pids", "pids.current"),
                file("memory", "memory.stat"),
                file("memory", "memory.max_usage_in_bytes"),
                file("memory", "memory.limit_in_bytes"),
                file("memory", "memory.memsw.limit_in_bytes"),
            ]
        };
        let (texts, found) = steady(read, || metrics(&directories, &[]).unwrap());
        let [usage, per_cpu, pids, stat, max, limit, swap_limit] = texts;
        assert_eq!(found.cpu.usage.total.to_string(), usage);
        let found_per_cpu: Vec<_> = found.cpu.usage.per_cpu.iter().map(u64::to_string).collect();
        assert_eq!(found_per_cpu.join(" "), per_cpu);
        assert_eq!(found.pids.current.to_string(), pids);
        let faults = format!("\ntotal_pgfault {}\n", found.memory.total_pg_fault);
        assert!(stat.contains(&faults), "{stat}");
        assert_eq!(found.memory.usage.max.to_string(), max);
        assert_eq!(found.memory.usage.limit.to_string(), limit);
        assert_eq!(found.memory.swap.limit.to_string(), swap_limit);
        drop(child);
    }

    proptest! {
        #[test]
        fn no_text_makes_the_parsers_panic(text in "[0-9a-zA-Z: \n\\PC]{0,80}") {
            blkio_entries(&text, &devices(&text));
        }
    }
}
