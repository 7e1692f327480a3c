//! The configuration file: where it is, and whether its words may be trusted.
//!
//! Owns: the search, the permission checks, and the read. A file that anyone but root could have written decides
//! isolation for everyone, so it is refused. Checked and read is one and the same open file: between a check by name
//! and a read by name it could be exchanged. Called once for each `start`, and by the commands for people.

use std::ffi::OsString;
use std::fs::{self, File, Metadata, OpenOptions};
use std::io::{self, Read};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use nix::unistd::geteuid;

use super::tree::MAX_BYTES;
use super::{Config, ConfigError, HandlerOptions};

/// Names the file where the handler's options do not.
pub const ENVIRONMENT: &str = "BETA9_SHIM_CONFIG";
/// Where the file is where nothing names it; it alone may be absent.
pub const DEFAULT_PATH: &str = "/etc/beta9/config.yaml";

/// The configuration that counts under these handler options; `environment` is the value of `BETA9_SHIM_CONFIG`.
pub fn load(options: &HandlerOptions, environment: Option<OsString>) -> Result<Config, ConfigError> {
    let config = match &options.inline {
        Some(inline) => Config::clone(inline),
        None => find(options.config_path.clone(), environment)?,
    };
    Ok(config.with_runc_options(&options.runc))
}

fn find(named: Option<PathBuf>, environment: Option<OsString>) -> Result<Config, ConfigError> {
    let named = named.or_else(|| environment.filter(|path| !path.is_empty()).map(PathBuf::from));
    match named {
        Some(path) => read(&path),
        None => match read(Path::new(DEFAULT_PATH)) {
            Err(ConfigError::Unreadable { source, .. }) if source.kind() == io::ErrorKind::NotFound => {
                Ok(Config::default())
            }
            other => other,
        },
    }
}

/// Reads one file, whoever named it.
pub fn read(path: &Path) -> Result<Config, ConfigError> {
    let unreadable = |advice| move |source| ConfigError::Unreadable { path: path.to_owned(), advice, source };
    if !path.is_absolute() {
        // containerd starts the shim in the bundle, which is no place to look.
        let source = io::Error::new(io::ErrorKind::InvalidInput, "the path is relative");
        return Err(unreadable("name it by an absolute path")(source));
    }
    let advice = "create it, or correct the path that names it";
    // A link's own directory decides where it points, its target's directory what is there.
    let target = path.canonicalize().map_err(unreadable(advice))?;
    for place in [path, &target] {
        let parent = place.parent().unwrap_or(Path::new("/"));
        safe_directories(&parent.canonicalize().map_err(unreadable(advice))?)?;
    }
    // A FIFO or a device put in its place must not hang the start of a pod: no wait for a writer, and no other kind
    // than a regular file is read.
    let flags = nix::fcntl::OFlag::O_NONBLOCK | nix::fcntl::OFlag::O_NOFOLLOW | nix::fcntl::OFlag::O_CLOEXEC;
    let file = OpenOptions::new().read(true).custom_flags(flags.bits()).open(&target).map_err(unreadable(advice))?;
    let metadata = file.metadata().map_err(unreadable(advice))?;
    safe_file(path, &metadata)?;
    let text = read_bounded(file).map_err(unreadable("a configuration is UTF-8 text of at most 1 MiB"))?;
    Config::from_yaml(&path.to_string_lossy(), &text)
}

fn read_bounded(file: File) -> io::Result<String> {
    let mut text = String::new();
    file.take(MAX_BYTES + 1).read_to_string(&mut text)?;
    if text.len() as u64 > MAX_BYTES {
        return Err(io::Error::new(io::ErrorKind::FileTooLarge, "it is larger than 1 MiB"));
    }
    Ok(text)
}

fn safe_file(path: &Path, metadata: &Metadata) -> Result<(), ConfigError> {
    let refuse = |problem, advice| Err(ConfigError::Unsafe { path: path.to_owned(), problem, advice });
    if !metadata.is_file() {
        return refuse("it is not a regular file".into(), "name a file");
    }
    if !is_trusted(metadata.uid()) {
        return refuse(format!("it belongs to user {}", metadata.uid()), "chown it to root");
    }
    if metadata.mode() & 0o022 != 0 {
        let mode = metadata.mode() & 0o7777;
        return refuse(format!("others than its owner may write it (mode {mode:04o})"), "chmod go-w it");
    }
    Ok(())
}

/// Who may rename in any directory on the way may put another file in place.
fn safe_directories(directory: &Path) -> Result<(), ConfigError> {
    for directory in directory.ancestors() {
        let advice = "give the file a directory that only root may write";
        let metadata = fs::metadata(directory).map_err(|source| ConfigError::Unreadable {
            path: directory.to_owned(),
            advice,
            source,
        })?;
        let refuse = |problem| Err(ConfigError::Unsafe { path: directory.to_owned(), problem, advice });
        if !is_trusted(metadata.uid()) {
            return refuse(format!("the directory belongs to user {}", metadata.uid()));
        }
        let (mode, sticky) = (metadata.mode(), metadata.mode() & 0o1000 != 0);
        let group_writes = mode & 0o020 != 0 && metadata.gid() != 0;
        if (mode & 0o002 != 0 || group_writes) && !sticky {
            return refuse(format!("others may write the directory (mode {:04o})", mode & 0o7777));
        }
    }
    Ok(())
}

/// Root, and whoever runs this: neither gains anything by it.
fn is_trusted(uid: u32) -> bool {
    uid == 0 || uid == geteuid().as_raw()
}

#[cfg(test)]
mod tests;
