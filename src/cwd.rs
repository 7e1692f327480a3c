//! The working directory, of which a process has one: lent for the length of a call, and given back.

use std::os::fd::OwnedFd;
use std::path::Path;
use std::sync::{Mutex, MutexGuard, PoisonError};

use nix::fcntl::{OFlag, open};
use nix::sys::stat::Mode;
use nix::unistd::{chdir, fchdir};

/// The shim has one thread, so that nobody else sees the change; its unit tests have several.
static LENT: Mutex<()> = Mutex::new(());

/// While this lives, another directory is the working directory.
pub(crate) struct Within {
    back: OwnedFd,
    _alone: MutexGuard<'static, ()>,
}

impl Within {
    /// Goes to `directory`. Nothing must be awaited before the way back.
    ///
    /// # Errors
    /// The directory cannot be entered; the working directory is as before then.
    pub(crate) fn enter(directory: &Path) -> nix::Result<Self> {
        let alone = LENT.lock().unwrap_or_else(PoisonError::into_inner);
        // A descriptor finds the way back even if that directory has been removed or renamed.
        let back = open(".", OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC, Mode::empty())?;
        chdir(directory)?;
        Ok(Self { back, _alone: alone })
    }
}

impl Drop for Within {
    fn drop(&mut self) {
        // The process was there before and is root: it is let in again.
        let _ = fchdir(&self.back);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_working_directory_is_another_one_only_while_it_is_lent() {
        let here = || {
            let _alone = LENT.lock().unwrap();
            std::env::current_dir().unwrap()
        };
        let before = here();
        let within = Within::enter(Path::new("/proc")).unwrap();
        assert_eq!(std::env::current_dir().unwrap(), Path::new("/proc"));
        drop(within);
        assert!(Within::enter(Path::new("/no/such/directory")).is_err());
        assert_eq!(here(), before);
    }
}
