//! Programs timed from their start to their end, under a deadline. The end is taken from the closing of their standard
//! error, so nothing polls beside what is measured. Standard input and output are /dev/null.

use std::{
    io::Read,
    os::{fd::AsFd, unix::process::CommandExt},
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

use nix::{
    poll::{PollFd, PollFlags, PollTimeout, poll},
    sys::signal::{Signal, killpg},
    unistd::Pid,
};

/// How long anything that is timed may take.
const DEADLINE: Duration = Duration::from_secs(60);

/// A program on its way.
pub struct Running {
    child: Child,
    begin: Instant,
    line: String,
}

/// Starts the program and the clock.
pub fn start(command: &mut Command) -> Running {
    let line = format!("{command:?}");
    command.process_group(0).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped());
    let begin = Instant::now();
    let child = command.spawn().unwrap_or_else(|error| panic!("could not start {line}: {error}"));
    Running { child, begin, line }
}

/// Runs the program to its successful end; milliseconds.
pub fn time(command: &mut Command) -> f64 {
    start(command).finish()
}

impl Running {
    /// Waits for the successful end; milliseconds since the start.
    pub fn finish(mut self) -> f64 {
        let errors = self.errors();
        let status = match errors {
            Some(_) => self.child.wait().unwrap(),
            None => {
                let pid = Pid::from_raw(self.child.id().cast_signed());
                let _ = killpg(pid, Signal::SIGKILL);
                let _ = self.child.wait();
                panic!("not done within {DEADLINE:?}: {}", self.line);
            }
        };
        let elapsed = milliseconds(self.begin.elapsed());
        let errors = String::from_utf8_lossy(&errors.unwrap_or_default()).into_owned();
        assert!(status.success(), "{}: {status}: {errors}", self.line);
        elapsed
    }

    /// Standard error up to its end; `None` if that does not come in time.
    fn errors(&mut self) -> Option<Vec<u8>> {
        let mut pipe = self.child.stderr.take().unwrap();
        let mut errors = Vec::new();
        let mut buffer = [0; 4096];
        loop {
            let left = DEADLINE.checked_sub(self.begin.elapsed())?;
            let timeout = PollTimeout::try_from(left).unwrap();
            let mut ready = [PollFd::new(pipe.as_fd(), PollFlags::POLLIN)];
            if poll(&mut ready, timeout).unwrap() > 0 {
                match pipe.read(&mut buffer).unwrap() {
                    0 => return Some(errors),
                    count => errors.extend_from_slice(&buffer[..count]),
                }
            }
        }
    }
}

/// A duration in milliseconds.
pub fn milliseconds(duration: Duration) -> f64 {
    duration.as_secs_f64() * 1000.0
}
