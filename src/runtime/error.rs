//! What a runtime's failure means: its log and its words, understood here and nowhere else.

use std::fs::File;
use std::io::{Read as _, Seek as _, SeekFrom};
use std::path::Path;

use serde::Deserialize;
use thiserror::Error;

use crate::runtime::command::{CommandError, Output};

/// The longest part of a runtime's log that is read for one failure.
const LONGEST_LOG: u64 = 4 << 20;
/// What a sandbox prints when it breaks, beside the runtime's log.
pub(super) const PANIC_LOG: &str = "panic.log";
/// The longest reason that is passed on.
const LONGEST_REASON: usize = 2000;

/// Why a runtime's command failed.
#[derive(Debug, Error)]
pub enum RuntimeError {
    /// The runtime does not know the container.
    #[error("{0}")]
    NotFound(String),
    /// The container or process has ended already.
    #[error("{0}")]
    NotRunning(String),
    /// The runtime as it is installed, or what it was given, does not allow it; the words say what to do.
    #[error("{0}")]
    Unable(String),
    /// This release of the runtime has no such command.
    #[error("{0}")]
    Unsupported(String),
    /// Anything else, in the runtime's own words.
    #[error("{0}")]
    Failed(String),
    /// The command did not finish, or could not even be started.
    #[error(transparent)]
    Command(#[from] CommandError),
}

impl RuntimeError {
    /// The meaning of a failed command's words. runc 1.1 to 1.3, crun 1.8 to 1.28 and runsc 20221219 to 20240729 were
    /// read for this; an unknown text is [`RuntimeError::Failed`].
    ///
    /// Only where the words are the runtime's own: a create, start, exec, checkpoint or restore may quote the tenant's.
    fn from_words(command: &str, words: String) -> Self {
        if ["create", "start", "exec", "checkpoint", "restore"].contains(&command) {
            return Self::Failed(words);
        }
        let any = |texts: &[&str]| texts.iter().any(|text| words.contains(text));
        // crun says which file of its state it lacks.
        let lacks_state = words.ends_with("/status`: No such file or directory")
            || (words.contains("cannot open directory") && words.ends_with("No such file or directory"));
        if lacks_state || any(&["does not exist", "container not found", "no such container"]) {
            Self::NotFound(words)
        } else if any(&[
            "process already finished",
            "container not running",
            "no such process",
            "No such process",
            "not running",
            "is stopped",
        ]) {
            Self::NotRunning(words)
        } else {
            Self::Failed(words)
        }
    }

    /// The failure of `command` (a subcommand's name), from what its log gained since `mark`, else from its output.
    pub(super) fn of(program: &str, command: &str, output: &Output, log: &Path, mark: u64) -> Self {
        let reason = reason_in(log, mark);
        // Of a command that it does not know, runsc knows no more than its own usage.
        let is_usage = |output: &[u8]| output.starts_with(b"Usage: runsc <flags> <subcommand>");
        if reason.is_none() && (is_usage(&output.stdout) || is_usage(&output.stderr)) {
            return Self::Unsupported(format!("this runsc has no command {command}; a newer release may have it"));
        }
        let said = reason
            .or_else(|| last_line(&output.stderr))
            .or_else(|| last_line(&output.stdout))
            .unwrap_or_else(|| format!("exit status {}, and not a word of why", output.exit.code));
        let name = Path::new(program).file_name().map_or(program.into(), |name| name.to_string_lossy());
        let said: String = said.chars().take(LONGEST_REASON).collect();
        Self::from_words(command, in_containerds_words(&name, command, &said))
    }
}

/// The error text as containerd's own shim has it: engines and people search for it. That shim knows runc alone; with
/// two runtimes on a node it matters whose words they are.
fn in_containerds_words(name: &str, command: &str, said: &str) -> String {
    match name {
        "runc" => format!("OCI runtime {command} failed: {said}"),
        name => format!("OCI runtime {command} failed: {name}: {said}"),
    }
}

/// The length of a log so far: the mark from which a command's own records begin.
pub(super) fn mark(log: &Path) -> u64 {
    log.metadata().map_or(0, |metadata| metadata.len())
}

/// The reason in what `log` gained since `mark`.
fn reason_in(log: &Path, mark: u64) -> Option<String> {
    let mut file = File::open(log).ok()?;
    file.seek(SeekFrom::Start(mark)).ok()?;
    let mut content = Vec::new();
    file.take(LONGEST_LOG).read_to_end(&mut content).ok()?;
    let last = last_error_in(&content)?;
    if !last.ends_with("EOF") {
        return Some(last);
    }
    // runsc lost its sandbox, whose own words, or those of its gofer, stand before; what died first knows why.
    let first = errors_in(&content).next().filter(|first| *first != last);
    let cause = first.or_else(|| panic_in(&log.with_file_name(PANIC_LOG)));
    Some(cause.map_or(last.clone(), |cause| format!("{cause} ({last})")))
}

/// Why a gVisor sandbox broke, if it did: the first line of the panic that Go printed there.
pub(super) fn panic_in(panic_log: &Path) -> Option<String> {
    let mut content = Vec::new();
    File::open(panic_log).ok()?.take(LONGEST_REASON as u64 * 4).read_to_end(&mut content).ok()?;
    let content = String::from_utf8_lossy(&content);
    let is_cause =
        |line: &&str| ["panic: ", "fatal error: ", "FATAL ERROR: "].iter().any(|start| line.starts_with(start));
    content.lines().find(is_cause).map(|line| line.chars().take(LONGEST_REASON).collect())
}

/// The message of the last record at level error in a runtime's log. Records follow each other with (runc) or without
/// (runsc) a newline; what is cut short ends the search.
pub fn last_error_in(content: &[u8]) -> Option<String> {
    errors_in(content).last()
}

fn errors_in(content: &[u8]) -> impl Iterator<Item = String> {
    #[derive(Deserialize)]
    struct Entry {
        #[serde(default)]
        level: String,
        #[serde(default)]
        msg: String,
    }
    serde_json::Deserializer::from_slice(content)
        .into_iter::<Entry>()
        .map_while(Result::ok)
        .filter(|entry| ["error", "fatal", "panic"].contains(&entry.level.as_str()) && !entry.msg.trim().is_empty())
        .map(|entry| entry.msg.trim().to_owned())
}

fn last_line(text: &[u8]) -> Option<String> {
    let text = String::from_utf8_lossy(text);
    text.lines().map(str::trim).rfind(|line| !line.is_empty()).map(str::to_owned)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn the_last_error_of_a_log_is_the_reason() {
        let runc = b"{\"level\":\"error\",\"msg\":\"first\"}\n{\"level\":\"warning\",\"msg\":\"w\"}\n{\"level\":\"error\",\"msg\":\"last\"}\n";
        assert_eq!(last_error_in(runc).as_deref(), Some("last"));
        let runsc = b"{\"msg\":\"a\",\"level\":\"info\"}{\"msg\":\"boom\",\"level\":\"error\",\"time\":\"t\"}{\"msg\":\"b\",\"level\":\"info\"}";
        assert_eq!(last_error_in(runsc).as_deref(), Some("boom"));
    }

    #[test]
    fn a_sandbox_that_was_lost_has_said_why_before() {
        let folder = std::env::temp_dir().join(format!("beta9-reason-{}", std::process::id()));
        std::fs::create_dir_all(&folder).unwrap();
        let (log, panic) = (folder.join("log.json"), folder.join(PANIC_LOG));
        let record = |message: &str| serde_json::json!({"level": "error", "msg": message}).to_string();
        let lost = "creating container: waiting for sandbox to start: EOF";
        std::fs::write(&log, [record("unknown capability"), record("a consequence"), record(lost)].concat()).unwrap();
        assert_eq!(reason_in(&log, 0), Some(format!("unknown capability ({lost})")));
        std::fs::write(&log, record(lost)).unwrap();
        assert_eq!(reason_in(&log, 0).as_deref(), Some(lost));
        std::fs::write(&panic, "noise\npanic: no driver\n\ngoroutine 1 [running]:\n").unwrap();
        assert_eq!(reason_in(&log, 0), Some(format!("panic: no driver ({lost})")));
        std::fs::write(&log, [record("first"), record("last")].concat()).unwrap();
        assert_eq!(reason_in(&log, 0).as_deref(), Some("last"));
        std::fs::remove_dir_all(&folder).unwrap();
    }

    #[test]
    fn a_log_that_is_no_log_has_no_reason() {
        for content in
            [&b""[..], b"garbage", b"{\"level\":", b"[1,2]", b"{\"level\":\"error\",\"msg\":\" \"}", b"\xff\xfe"]
        {
            assert_eq!(last_error_in(content), None, "{content:?}");
        }
        let cut = b"{\"level\":\"error\",\"msg\":\"whole\"}{\"level\":\"error\",\"msg\":\"cu";
        assert_eq!(last_error_in(cut).as_deref(), Some("whole"));
    }

    #[test]
    fn the_runtimes_words_mean_the_same_for_all_of_them() {
        use RuntimeError::{Failed, NotFound, NotRunning};
        let meaning = |words: &str| RuntimeError::from_words("kill", words.to_owned());
        for words in [
            "container does not exist",
            "loading container: file does not exist",
            "error opening file `/run/crun/c1/status`: No such file or directory",
            "cannot open directory `/run/crun/c1`: No such file or directory",
            "container `c1` does not exist: open `/run/crun/c1/status`: No such file or directory",
        ] {
            assert!(matches!(meaning(words), NotFound(_)), "{words}");
        }
        for words in [
            "container not running",
            "sandbox is not running",
            "os: process already finished",
            "kill container: No such process",
        ] {
            assert!(matches!(meaning(words), NotRunning(_)), "{words}");
        }
        assert!(matches!(meaning("exec: \"nope\": executable file not found in $PATH"), Failed(_)));
    }

    #[test]
    fn an_error_is_in_containerds_words_and_names_the_runtime_if_it_is_not_runc() {
        for (name, said, expected) in [
            ("runc", "runc create failed: no such file", "OCI runtime create failed: runc create failed: no such file"),
            ("runsc", "creating container: EOF", "OCI runtime create failed: runsc: creating container: EOF"),
            ("crun", "no such file", "OCI runtime create failed: crun: no such file"),
        ] {
            assert_eq!(in_containerds_words(name, "create", said), expected);
        }
    }

    proptest! {
        #[test]
        fn no_log_makes_the_reader_panic(content: Vec<u8>, error: String, message: String) {
            let _ = last_error_in(&content);
            let _ = last_line(&content);
            let record = serde_json::json!({"level": "error", "msg": message}).to_string();
            let expected = Some(message.trim()).filter(|message| !message.is_empty());
            let reason = last_error_in(record.as_bytes());
            prop_assert_eq!(reason.as_deref(), expected);
            let _ = RuntimeError::from_words("kill", error);
        }
    }
}
