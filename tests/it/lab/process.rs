//! What /proc says of processes: who descends from whom, what they are called and what they hold. Only reads.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::PathBuf,
};

use nix::unistd::Pid;

/// A process at the moment it was looked at.
#[derive(Clone, Debug)]
pub struct Process {
    pub pid: i32,
    /// Its arguments; empty for a zombie.
    pub command: Vec<String>,
    parent: i32,
    state: char,
}

impl Process {
    /// The process of this pid, unless it is gone.
    pub fn find(pid: i32) -> Option<Self> {
        let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
        // The name, in parentheses, may hold anything, spaces and parentheses included.
        let mut fields = stat.rsplit_once(')')?.1.split_whitespace();
        let state = fields.next()?.chars().next()?;
        let parent = fields.next()?.parse().ok()?;
        let command = fs::read(format!("/proc/{pid}/cmdline")).ok()?;
        let command = String::from_utf8_lossy(&command).split_terminator('\0').map(String::from).collect();
        Some(Self { pid, command, parent, state })
    }

    /// Whether it runs: a zombie does not.
    pub fn is_alive(&self) -> bool {
        !matches!(self.state, 'Z' | 'X')
    }

    /// The value that follows `flag` among its arguments.
    pub fn argument(&self, flag: &str) -> Option<&str> {
        let at = self.command.iter().position(|argument| argument == flag)?;
        self.command.get(at + 1).map(String::as_str)
    }

    /// Open descriptors.
    pub fn descriptors(&self) -> usize {
        fs::read_dir(format!("/proc/{}/fd", self.pid)).map_or(0, Iterator::count)
    }

    /// The sockets in the file system that it listens on or has connections from.
    pub fn socket_files(&self) -> BTreeSet<PathBuf> {
        let descriptors = fs::read_dir(format!("/proc/{}/fd", self.pid)).into_iter().flatten().flatten();
        let links = descriptors.filter_map(|entry| fs::read_link(entry.path()).ok());
        let inodes: BTreeSet<String> =
            links.filter_map(|link| Some(link.to_str()?.strip_prefix("socket:[")?.strip_suffix(']')?.into())).collect();
        let table = fs::read_to_string("/proc/net/unix").unwrap();
        // Num RefCount Protocol Flags Type St Inode Path
        let rows = table.lines().map(|line| line.split_whitespace().skip(6));
        rows.filter_map(|mut row| Some((row.next()?, row.next()?)))
            .filter(|(inode, _)| inodes.contains(*inode))
            .map(|(_, path)| path.into())
            .collect()
    }

    /// Resident memory, in KiB.
    pub fn resident(&self) -> u64 {
        let status = fs::read_to_string(format!("/proc/{}/status", self.pid)).unwrap_or_default();
        let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
        line.and_then(|value| value.split_whitespace().next()?.parse().ok()).unwrap_or(0)
    }
}

/// All that run below `ancestor`, itself not included.
pub fn descendants(ancestor: Pid) -> Vec<Process> {
    let all: BTreeMap<i32, Process> = fs::read_dir("/proc")
        .into_iter()
        .flatten()
        .filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok())
        .filter_map(|pid| Some((pid, Process::find(pid)?)))
        .collect();
    let descends = |process: &Process| {
        let mut parent = process.parent;
        while parent != ancestor.as_raw() {
            match all.get(&parent) {
                Some(process) => parent = process.parent,
                None => return false,
            }
        }
        true
    };
    all.values().filter(|process| process.is_alive() && descends(process)).cloned().collect()
}
