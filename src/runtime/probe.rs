//! What this host has, as far as a decision needs to know: runsc and what it can do, KVM, an NVIDIA driver, systemd.
//!
//! Every look that could hang is a process of its own under a deadline. A runsc binary is asked once; the answer is
//! kept for the whole node, by path, size and time of change, until the next boot.

use std::fs::{self, DirBuilder, File};
use std::io::{self, Write as _};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::runtime::command::{Command, Output};
use crate::select::{HostFacts, Needs, RunscFact};
use crate::shim::reaper::Reaper;

/// Where answers are kept. Gone with the next boot.
const KEPT: &str = "/run/beta9-shim/runsc.json";
/// How many binaries' answers are kept: a node has one runsc, during an upgrade two.
const MOST_KEPT: usize = 8;
/// How long a runsc may take to say what it is (it takes some 30 ms).
const RUNSC: Duration = Duration::from_secs(10);
/// How long KVM may take to run one instruction (it takes a few ms where it works; there are hosts where it hangs).
const KVM: Duration = Duration::from_secs(2);
/// The driver's control device; runsc's own check is to open it.
const NVIDIA: &str = "/dev/nvidiactl";
/// The hidden subcommand that [`kvm`] is run by.
pub const KVM_ACTION: &str = "probe-kvm";

/// Whether systemd manages this host, and its cgroups with it (sd_booted(3)).
pub fn systemd_runs() -> bool {
    Path::new("/run/systemd/system").is_dir()
}

/// Looks up those facts that are needed; `runsc` is the configured program.
pub async fn facts(needs: &Needs, runsc: &str, reaper: &Reaper) -> HostFacts {
    let mut facts = HostFacts::default();
    if needs.runsc {
        facts.runsc = Some(match ask_runsc(runsc, reaper).await {
            Ok(Answer { version, nvproxy, capabilities, .. }) => RunscFact::Found { version, nvproxy, capabilities },
            Err(tried) => RunscFact::Missing { tried },
        });
    }
    if needs.kvm {
        facts.kvm = Some(ask_kvm(reaper).await);
    }
    if needs.nvidia_driver {
        facts.nvidia_driver = Some(Path::new(NVIDIA).exists());
    }
    facts
}

/// Whether this runsc restores a checkpoint into a container that was created before, and leaves one running that it
/// checkpoints: since spring 2024, as its `restore` knows `--direct` (flags of those two themselves there are none). One
/// in between that can do the first alone is taken for one that can do neither.
///
/// # Errors
/// runsc cannot be asked; the error says what was tried.
pub async fn runsc_restores_in_place(runsc: &str, reaper: &Reaper) -> Result<bool, String> {
    ask_runsc(runsc, reaper).await.map(|answer| answer.restores_in_place)
}

/// What a runsc binary said of itself.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Answer {
    path: PathBuf,
    size: u64,
    changed_s: i64,
    changed_ns: i64,
    version: String,
    nvproxy: bool,
    /// It knows the flag that limits what a driver may be used for.
    capabilities: bool,
    restores_in_place: bool,
}

impl Answer {
    /// Whether it is about this very file.
    fn is_about(&self, path: &Path, file: &fs::Metadata) -> bool {
        (self.path.as_path(), self.size, self.changed_s, self.changed_ns)
            == (path, file.size(), file.mtime(), file.mtime_nsec())
    }
}

/// The error says what was tried.
async fn ask_runsc(program: &str, reaper: &Reaper) -> Result<Answer, String> {
    let path = find(program).ok_or_else(|| match program.contains('/') {
        true => format!("{program}: there is no such program"),
        false => format!("{program} is not in PATH ({})", std::env::var("PATH").unwrap_or_default()),
    })?;
    let shown = path.display();
    let file = fs::metadata(&path).map_err(|error| format!("{shown}: {error}"))?;
    let mut kept = kept();
    if let Some(answer) = kept.iter().find(|answer| answer.is_about(&path, &file)) {
        return Ok(answer.clone());
    }
    let ask = async |question: &str| {
        let output = Command::new(&path.to_string_lossy(), question.split(' ').map(str::to_owned).collect(), RUNSC)
            .run(reaper)
            .await;
        match output {
            Ok(output) if output.exit.code == 0 => Ok(text(&output)),
            Ok(output) => {
                Err(format!("{shown} {question}: exit status {}: {}", output.exit.code, text(&output).trim()))
            }
            Err(error) => Err(error.to_string()),
        }
    };
    let said = ask("--version").await?;
    let version =
        version(&said).ok_or_else(|| format!("{shown} --version said {:?}, which is not runsc", first_line(&said)))?;
    let flags = ask("flags").await?;
    let answer = Answer {
        size: file.size(),
        changed_s: file.mtime(),
        changed_ns: file.mtime_nsec(),
        nvproxy: knows_flag(&flags, "nvproxy"),
        capabilities: knows_flag(&flags, "nvproxy-allowed-driver-capabilities"),
        restores_in_place: knows_flag(&ask("help restore").await?, "direct"),
        version,
        path: path.clone(),
    };
    kept.retain(|other| other.path != answer.path);
    kept.push(answer.clone());
    kept.drain(..kept.len().saturating_sub(MOST_KEPT));
    if let Err(error) = keep(&kept) {
        log::warn!(path = KEPT, error = error.to_string().as_str(); "cannot keep what runsc said; it will be asked again");
    }
    Ok(answer)
}

/// A program's file: as it is if it is a path, else the first in PATH that can be executed.
fn find(program: &str) -> Option<PathBuf> {
    let executable =
        |path: &Path| fs::metadata(path).is_ok_and(|file| file.is_file() && file.permissions().mode() & 0o111 != 0);
    if program.contains('/') {
        return Some(PathBuf::from(program)).filter(|path| executable(path));
    }
    let path = std::env::var_os("PATH")?;
    std::env::split_paths(&path).map(|directory| directory.join(program)).find(|path| executable(path))
}

/// Both streams: `runsc flags` prints to standard error.
fn text(output: &Output) -> String {
    format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr))
}

fn first_line(text: &str) -> String {
    text.lines().next().unwrap_or_default().chars().take(100).collect()
}

/// The version in `runsc version release-20240729.0` and the like.
fn version(said: &str) -> Option<String> {
    let version = said.lines().find_map(|line| line.strip_prefix("runsc version "))?.trim();
    (!version.is_empty()).then(|| version.chars().take(100).collect())
}

/// Whether a list of flags, as Go's `flag` package prints it, has this one.
fn knows_flag(flags: &str, name: &str) -> bool {
    flags
        .lines()
        .filter_map(|line| line.trim_start().strip_prefix('-'))
        .any(|line| line.split_whitespace().next() == Some(name))
}

fn kept() -> Vec<Answer> {
    // What another user could have written says nothing.
    let trusted =
        fs::symlink_metadata(KEPT).is_ok_and(|file| file.is_file() && file.uid() == 0 && file.mode() & 0o022 == 0);
    let content = if trusted { fs::read(KEPT).unwrap_or_default() } else { Vec::new() };
    serde_json::from_slice(&content).unwrap_or_default()
}

fn keep(answers: &[Answer]) -> io::Result<()> {
    let kept = Path::new(KEPT);
    if let Some(directory) = kept.parent() {
        DirBuilder::new().recursive(true).mode(0o700).create(directory)?;
    }
    // A name of our own: several shims may be asking at once.
    let new = kept.with_extension(std::process::id().to_string());
    let mut file = File::options().write(true).create(true).truncate(true).mode(0o600).open(&new)?;
    file.write_all(&serde_json::to_vec(answers)?)?;
    fs::rename(&new, kept)
}

async fn ask_kvm(reaper: &Reaper) -> Result<(), String> {
    let own =
        std::env::current_exe().map_err(|error| format!("cannot find the shim's own program to probe KVM: {error}"))?;
    let output = Command::new(&own.to_string_lossy(), vec![KVM_ACTION.to_owned()], KVM).run(reaper).await;
    match output {
        Ok(output) if output.exit.code == 0 => Ok(()),
        Ok(output) => Err(text(&output).trim().to_owned()),
        Err(_) => Err(format!("/dev/kvm is there, but a virtual CPU did not run one instruction within {KVM:?}")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn a_runsc_says_its_version() {
        let debian = "runsc version 0.0~20221219.0\nspec: 1.0.2-dev\n";
        assert_eq!(version(debian).as_deref(), Some("0.0~20221219.0"));
        assert_eq!(version("runsc version release-20240729.0\n").as_deref(), Some("release-20240729.0"));
        for other in ["", "runc version 1.1.5\n", "runsc version \n"] {
            assert_eq!(version(other), None, "{other:?}");
        }
    }

    #[test]
    fn a_flag_is_known_by_its_whole_name() {
        let flags = "  -network value\n    \tspecifies which network\n  -nvproxy\n    \tEXPERIMENTAL: enable support for Nvidia GPUs\n";
        assert!(knows_flag(flags, "nvproxy"));
        assert!(!knows_flag("  -nvproxy-docker\n    \tdeprecated; nvproxy\n", "nvproxy"));
    }

    #[test]
    fn a_changed_binary_is_asked_again() {
        let file = fs::metadata("/proc/self/exe").unwrap();
        let path = PathBuf::from("/usr/bin/runsc");
        let answer = Answer {
            path: path.clone(),
            size: file.size(),
            changed_s: file.mtime(),
            changed_ns: file.mtime_nsec(),
            version: "1".into(),
            nvproxy: true,
            capabilities: true,
            restores_in_place: true,
        };
        assert!(answer.is_about(&path, &file));
        assert!(!Answer { changed_ns: -1, ..answer.clone() }.is_about(&path, &file));
        assert!(!answer.is_about(Path::new("/opt/runsc"), &file));
    }

    proptest! {
        #[test]
        fn no_words_of_a_runsc_make_the_readers_panic(said in "(runsc version )?(?s).{0,200}", flag in "-{0,2}\\PC{0,20}") {
            prop_assert!(version(&said).is_none_or(|version| version.chars().count() <= 100));
            let _ = knows_flag(&said, &flag);
            prop_assert!(first_line(&said).chars().count() <= 100);
        }
    }
}
