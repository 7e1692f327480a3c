//! Checkpoints: the command lines that take one and that restore one, and the reason where CRIU says it only in its log.
//!
//! runc leaves the work to CRIU, which it looks up in PATH; runsc's images are its own. Which of a request's options mean
//! what was read in containerd's runc shim (process/init.go, go-runc) and is kept, so that a client sees no difference.

use std::fs::{self, File};
use std::io::{self, Read as _, Seek as _, SeekFrom};
use std::path::{Path, PathBuf};
use std::time::Duration;

use super::{INIT_PID, Kind, ProcessStreams, Runtime, RuntimeError, Started, USER_LOG, path, probe, words};
use crate::bundle::Bundle;

/// Taking a checkpoint or restoring from one: all of a container's memory goes to a disk or comes from it. At 100 MB a
/// second this is enough for 60 GB.
const TRANSFER: Duration = Duration::from_secs(600);
/// CRIU's log of a checkpoint that failed, in the bundle, as containerd's runc shim has it.
const DUMP_LOG: &str = "criu-dump.log";
/// The longest part of CRIU's log that is read or kept: its end.
const LONGEST_LOG: u64 = 1 << 20;
/// The longest reason of CRIU's that is passed on.
const LONGEST_REASON: usize = 500;

/// A checkpoint to be taken.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Checkpoint {
    /// The directory for its images.
    pub image: PathBuf,
    /// The container ends with it.
    pub exit: bool,
    /// What only CRIU knows.
    pub criu: Criu,
}

/// What only CRIU knows; gVisor has nothing of the kind and does as it can.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Criu {
    /// Established TCP connections may be there.
    pub open_tcp: bool,
    /// Connections to Unix sockets outside may be there.
    pub external_unix_sockets: bool,
    /// Terminals may be there that come from outside.
    pub terminal: bool,
    /// File locks may be there.
    pub file_locks: bool,
    /// These namespaces are kept without what is in them.
    pub empty_namespaces: Vec<String>,
    /// How much of the cgroups is kept: soft, full, strict; CRIU's default if empty.
    pub cgroups_mode: String,
    /// The directory for CRIU's log and scratch files, which stays; if empty, one that goes with the checkpoint.
    pub work: PathBuf,
}

impl Runtime {
    /// Writes a checkpoint of the running or paused container. One that fails leaves the container as it was, as far as
    /// the runtime can: what was cut off at its deadline may leave images that are no checkpoint.
    ///
    /// # Errors
    /// The reason, with CRIU's own where it has one, and where its log is. On cancel the runtime is killed.
    pub async fn checkpoint(&self, checkpoint: &Checkpoint) -> Result<(), RuntimeError> {
        if self.kind == Kind::Runsc {
            if !checkpoint.exit && !self.restores_in_place().await? {
                return Err(RuntimeError::Unable(format!(
                    "{} can only checkpoint a container that ends with it; ask for that (exit), or install a runsc of \
                     May 2024 or later",
                    self.program
                )));
            }
            return self.run_checkpoint(checkpoint, Path::new("")).await;
        }
        let own = checkpoint.criu.work.as_os_str().is_empty();
        let work = if own { self.work().join("criu-work") } else { checkpoint.criu.work.clone() };
        // Nothing is in it that anybody could want afterwards.
        let _scratch = own.then(|| Scratch(&work));
        // runc makes the last directory of a path alone.
        fs::create_dir_all(&work).map_err(|error| cannot("make", &work, &error))?;
        let result = self.run_checkpoint(checkpoint, &work).await;
        result.map_err(|error| self.explained(error, &work.join("dump.log"), &self.bundle.join(DUMP_LOG)))
    }

    async fn run_checkpoint(&self, checkpoint: &Checkpoint, work: &Path) -> Result<(), RuntimeError> {
        let args = checkpoint_args(self.kind, checkpoint, work, &self.name);
        self.run(args, super::Streams::Captured, TRANSFER).await.map(drop)
    }

    /// Makes the container anew from a checkpoint and starts it.
    ///
    /// # Errors
    /// The reason, with CRIU's own where it has one. Something may be left; `delete` removes it. On cancel the runtime is
    /// killed.
    pub async fn restore(
        &self,
        image: &Path,
        streams: ProcessStreams,
        console: Option<&Path>,
    ) -> Result<Started, RuntimeError> {
        let work = self.restore_work();
        fs::create_dir_all(&work).map_err(|error| cannot("make", &work, &error))?;
        let mut args = restore_args(self.kind, self.record.no_pivot_root, &self.bundle, image, &work);
        if self.keeps_user_log() {
            args.extend(["--user-log".into(), path(&self.bundle.join(USER_LOG))]);
        }
        self.console(&mut args, console);
        args.push(self.name.clone());
        let _kept = self.reaper.expect();
        let restored = self.run(args, streams.into(), TRANSFER).await;
        restored.map_err(|error| match self.kind {
            Kind::Runc => self.explained(error, &work.join("restore.log"), &work.join("restore.log")),
            Kind::Runsc => error,
        })?;
        let missing = || RuntimeError::Failed(format!("{} restore wrote no pid file", self.program));
        let pid = self.bundle.pid(INIT_PID).ok_or_else(missing)?;
        Ok(Started { pid, inner_pid: None, exit: Some(self.reaper.claim(pid)) })
    }

    /// Starts the container, which exists already, with what a checkpoint holds instead of its own program. The streams
    /// are for a container in another one's sandbox, which gets them here.
    pub async fn restore_into(&self, image: &Path, streams: Option<ProcessStreams>) -> Result<(), RuntimeError> {
        let streams = streams.map_or(super::Streams::Captured, Into::into);
        let args = vec!["restore".into(), "--detach".into(), "--image-path".into(), path(image), self.name.clone()];
        self.run(args, streams, TRANSFER).await.map(drop)
    }

    /// Whether a checkpoint is restored into a container that was created before ([`Runtime::restore_into`]), and leaves
    /// its own container running. runsc can do both since spring 2024; CRIU makes the container anew.
    pub async fn restores_in_place(&self) -> Result<bool, RuntimeError> {
        match self.kind {
            Kind::Runc => Ok(false),
            Kind::Runsc => {
                probe::runsc_restores_in_place(&self.program, &self.reaper).await.map_err(RuntimeError::Failed)
            }
        }
    }

    /// Whether `image` is a directory with a checkpoint of this runtime, by the file that each has.
    ///
    /// # Errors
    /// It is not, in words that say what was missed.
    pub fn expects_image(&self, image: &Path) -> Result<(), RuntimeError> {
        let (file, whose) = match self.kind {
            Kind::Runc => ("inventory.img", "CRIU's"),
            Kind::Runsc => ("checkpoint.img", "gVisor's"),
        };
        let file = image.join(file);
        match fs::metadata(&file) {
            Ok(_) => Ok(()),
            Err(error) => Err(RuntimeError::Unable(format!(
                "there is no checkpoint of {whose} to restore from: {}: {error}",
                file.display()
            ))),
        }
    }

    /// The directory that containerd keeps for a container's scratch files.
    fn work(&self) -> PathBuf {
        self.bundle.join("work")
    }

    fn restore_work(&self) -> PathBuf {
        if self.record.criu_work_path.as_os_str().is_empty() { self.work() } else { self.record.criu_work_path.clone() }
    }

    /// A failure with CRIU's own reason, and the place of its log, which is kept under `kept`.
    fn explained(&self, error: RuntimeError, log: &Path, kept: &Path) -> RuntimeError {
        let RuntimeError::Failed(said) = error else {
            return error;
        };
        let Ok(content) = end_of(log) else {
            return RuntimeError::Failed(said);
        };
        if log != kept
            && let Err(error) = fs::write(kept, &content)
        {
            log::warn!(path = path(kept).as_str(), error = error.to_string().as_str(); "cannot keep CRIU's log");
        }
        let said = said.lines().next().unwrap_or_default();
        let reason = criu_reason(&content).map(|reason| format!(": {reason}")).unwrap_or_default();
        RuntimeError::Failed(format!("{said}{reason}; CRIU's log: {}", kept.display()))
    }
}

/// A directory that goes with this value.
struct Scratch<'a>(&'a Path);

impl Drop for Scratch<'_> {
    fn drop(&mut self) {
        // It may never have been made.
        let _ = fs::remove_dir_all(self.0);
    }
}

fn cannot(what: &str, directory: &Path, error: &io::Error) -> RuntimeError {
    RuntimeError::Failed(format!("cannot {what} {}: {error}", directory.display()))
}

/// `work` is runc's alone.
fn checkpoint_args(kind: Kind, checkpoint: &Checkpoint, work: &Path, name: &str) -> Vec<String> {
    let mut args = words(&["checkpoint", "--image-path"]);
    args.push(path(&checkpoint.image));
    if kind == Kind::Runc {
        let criu = &checkpoint.criu;
        args.extend(["--work-path".into(), path(work)]);
        let flags = [
            (criu.open_tcp, "--tcp-established"),
            (criu.external_unix_sockets, "--ext-unix-sk"),
            (criu.terminal, "--shell-job"),
            (criu.file_locks, "--file-locks"),
        ];
        args.extend(flags.iter().filter(|(wanted, _)| *wanted).map(|(_, flag)| (*flag).to_owned()));
        if !criu.cgroups_mode.is_empty() {
            args.extend(["--manage-cgroups-mode".into(), criu.cgroups_mode.clone()]);
        }
        args.extend(criu.empty_namespaces.iter().flat_map(|namespace| ["--empty-ns".into(), namespace.clone()]));
    }
    args.extend((!checkpoint.exit).then(|| "--leave-running".into()));
    args.push(name.to_owned());
    args
}

/// Without the console socket and the container's name, which end the line.
fn restore_args(kind: Kind, no_pivot: bool, bundle: &Bundle, image: &Path, work: &Path) -> Vec<String> {
    let mut args = words(&["restore", "--detach", "--image-path"]);
    args.extend([path(image), "--pid-file".into(), path(&bundle.join(INIT_PID))]);
    args.extend(["--bundle".into(), path(bundle.path())]);
    if kind == Kind::Runc {
        args.extend(["--work-path".into(), path(work), "--no-subreaper".into()]);
        args.extend(no_pivot.then(|| "--no-pivot".into()));
    }
    args
}

/// The end of a log, whole if it is short.
fn end_of(log: &Path) -> io::Result<Vec<u8>> {
    let mut file = File::open(log)?;
    let length = file.metadata()?.len();
    file.seek(SeekFrom::Start(length.saturating_sub(LONGEST_LOG)))?;
    let mut content = Vec::new();
    file.take(LONGEST_LOG).read_to_end(&mut content)?;
    Ok(content)
}

/// The first thing that went wrong, by CRIU's log: what comes after it are consequences. A line is
/// `(00.220096) Error (criu/files-reg.c:1790): Can't lookup mount=27 for fd=2`, for what a helper of CRIU's says without
/// the time, and in a process that is being restored with its pid: `(00.028319)      1: Error (…`.
pub fn criu_reason(log: &[u8]) -> Option<String> {
    /// Said for every failed helper, for a limit that need not be raised, at the end of everything, and by who waits for
    /// more.
    const VAGUE: [&str; 4] = ["exited, status=", "rlimit: ", " FAILED.", "cgroupd: recv req error"];
    let log = String::from_utf8_lossy(log);
    let mut errors = log.lines().filter_map(|line| {
        let (before, error) = line.split_once("Error (")?;
        let (_, said) = error.split_once("): ")?;
        begins_a_line(before.trim_end()).then_some(said.trim())
    });
    let reason = errors.find(|error| !VAGUE.iter().any(|vague| error.contains(vague)))?;
    Some(reason.chars().take(LONGEST_REASON).collect())
}

/// Whether this is what CRIU begins a line with, all of it optional: the time, its restorer's name, a process's pid.
fn begins_a_line(text: &str) -> bool {
    let whose = text.strip_prefix('(').and_then(|timed| timed.split_once(')')).map_or(text, |(_, whose)| whose.trim());
    let whose = whose.strip_prefix("pie: ").unwrap_or(whose);
    whose.is_empty() || whose.strip_suffix(':').is_some_and(|pid| pid.bytes().all(|byte| byte.is_ascii_digit()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn each_option_of_a_checkpoint_is_an_argument() {
        let all = Criu {
            open_tcp: true,
            external_unix_sockets: true,
            terminal: true,
            file_locks: true,
            empty_namespaces: vec!["network".into(), "uts".into()],
            cgroups_mode: "full".into(),
            work: PathBuf::new(),
        };
        let every = "--tcp-established --ext-unix-sk --shell-job --file-locks --manage-cgroups-mode full --empty-ns network \
                     --empty-ns uts";
        let one = |set: fn(&mut Criu)| {
            let mut criu = Criu::default();
            set(&mut criu);
            criu
        };
        let table = [
            (Kind::Runc, true, Criu::default(), ""),
            (Kind::Runc, false, Criu::default(), "--leave-running"),
            (Kind::Runc, true, one(|criu| criu.open_tcp = true), "--tcp-established"),
            (Kind::Runc, true, one(|criu| criu.external_unix_sockets = true), "--ext-unix-sk"),
            (Kind::Runc, true, one(|criu| criu.terminal = true), "--shell-job"),
            (Kind::Runc, true, one(|criu| criu.file_locks = true), "--file-locks"),
            (Kind::Runc, true, one(|criu| criu.cgroups_mode = "soft".into()), "--manage-cgroups-mode soft"),
            (Kind::Runc, true, one(|criu| criu.empty_namespaces = vec!["network".into()]), "--empty-ns network"),
            (Kind::Runc, true, all.clone(), every),
            (Kind::Runc, false, all.clone(), &format!("{every} --leave-running")),
            (Kind::Runsc, true, all.clone(), ""),
            (Kind::Runsc, false, all, "--leave-running"),
        ];
        for (kind, exit, criu, flags) in table {
            let checkpoint = Checkpoint { image: "/i".into(), exit, criu };
            let work = if kind == Kind::Runc { "--work-path /w " } else { "" };
            let line = checkpoint_args(kind, &checkpoint, Path::new("/w"), "c1").join(" ");
            let flags = if flags.is_empty() { String::new() } else { format!("{flags} ") };
            assert_eq!(line, format!("checkpoint --image-path /i {work}{flags}c1"));
        }
    }

    #[test]
    fn a_restore_names_image_and_bundle_and_what_its_runtime_knows() {
        let table = [
            (Kind::Runc, false, " --work-path /w --no-subreaper"),
            (Kind::Runc, true, " --work-path /w --no-subreaper --no-pivot"),
            (Kind::Runsc, false, ""),
            (Kind::Runsc, true, ""),
        ];
        for (kind, no_pivot, flags) in table {
            let line =
                restore_args(kind, no_pivot, &Bundle::at(Path::new("/b")), Path::new("/i"), Path::new("/w")).join(" ");
            assert_eq!(line, format!("restore --detach --image-path /i --pid-file /b/init.pid --bundle /b{flags}"));
        }
    }

    #[test]
    fn the_first_error_that_says_something_is_criu_s_reason() {
        let failed = "(00.064227) Error (criu/cr-dump.c:2111): Dumping FAILED.\n";
        let limit = "(00.050672) Error (criu/util.c:1533): rlimit: Can't setup RLIMIT_NOFILE for self: EPERM\n";
        let table = [
            (String::new(), None),
            (failed.to_owned(), None),
            (
                format!("{limit}(00.22) Error (criu/files-reg.c:1790): Can't lookup mount=27 for fd=2\n{failed}"),
                Some("Can't lookup mount=27 for fd=2"),
            ),
            (
                format!(
                    "Error (criu/util.c:641): execvp(\"iptables-restore\", ...) failed: No such file\n(00.05) Error (criu/util.c:656): exited, status=1\n{failed}"
                ),
                Some("execvp(\"iptables-restore\", ...) failed: No such file"),
            ),
            (
                format!(
                    "{limit}(00.028319)      1: Error (criu/pagemap.c:557): Can't read async pr bytes\n(00.032931) Error (criu/cgroup.c:1998): cg: cgroupd: recv req error: No such file or directory\n"
                ),
                Some("Can't read async pr bytes"),
            ),
            (
                "(00.03) pie: 9: Error (criu/pie/restorer.c:1945): Unable to create a thread: 4\n".to_owned(),
                Some("Unable to create a thread: 4"),
            ),
            ("(00.03) Error (criu/cgroup.c:1998): cg: cgroupd: recv req error: No such file\n".to_owned(), None),
            (format!("(00.1) a name with Error (in it): x\n{failed}"), None),
        ];
        for (log, reason) in table {
            assert_eq!(criu_reason(log.as_bytes()).as_deref(), reason, "{log}");
        }
    }

    proptest! {
        #[test]
        fn no_log_of_criu_s_makes_its_reader_panic(log in "(\\(0\\) )?Error \\(a\\): (?s).{0,200}") {
            prop_assert!(criu_reason(log.as_bytes()).is_none_or(|reason| reason.chars().count() <= LONGEST_REASON));
        }
    }
}
