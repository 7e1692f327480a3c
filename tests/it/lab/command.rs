//! Programs under a deadline: started in a process group of their own, their output kept as bytes, the whole group killed when
//! the time is over. Nothing in the lab waits for a program without a limit.

use std::{
    fmt,
    io::{Read, Write},
    os::unix::process::{CommandExt, ExitStatusExt},
    process::{Child, ChildStdin, Command, Stdio},
    sync::{Arc, Mutex},
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

use nix::{
    sys::signal::{Signal, killpg},
    unistd::Pid,
};

use super::{eventually, lock, unhurried};

/// What a program left when it ended.
#[derive(Clone)]
pub struct Output {
    /// Its exit code; 128 and the signal's number if a signal ended it.
    pub code: i32,
    pub stdout: Vec<u8>,
    pub stderr: Vec<u8>,
    pub elapsed: Duration,
    line: String,
}

impl Output {
    /// Standard output as text.
    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.stdout).into_owned()
    }

    /// Standard error as text.
    pub fn errors(&self) -> String {
        String::from_utf8_lossy(&self.stderr).into_owned()
    }

    /// Fails unless the exit code is 0.
    pub fn success(self) -> Self {
        self.exit(0)
    }

    /// Fails unless the exit code is this.
    pub fn exit(self, code: i32) -> Self {
        assert_eq!(self.code, code, "exit code of {self:?}");
        self
    }

    /// Fails unless it failed, with all of these words in what it wrote to standard error.
    pub fn failure(self, words: &[&str]) -> Self {
        assert_ne!(self.code, 0, "should have failed: {self:?}");
        for word in words {
            assert!(self.errors().contains(word), "no {word:?} in the error of {self:?}");
        }
        self
    }
}

impl fmt::Debug for Output {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // Outputs of megabytes occur: an error message shows their ends.
        let end = |bytes: &[u8]| String::from_utf8_lossy(&bytes[bytes.len().saturating_sub(2000)..]).into_owned();
        write!(
            f,
            "`{}`: {} after {:.1?}\nstdout: {}\nstderr: {}",
            self.line,
            self.code,
            self.elapsed,
            end(&self.stdout),
            end(&self.stderr)
        )
    }
}

/// A started program. Dropped before its end, it is killed with its group.
pub struct Running {
    child: Child,
    line: String,
    begin: Instant,
    stdout: Arc<Mutex<Vec<u8>>>,
    readers: Vec<JoinHandle<()>>,
    stderr: Arc<Mutex<Vec<u8>>>,
    /// Held so that its reader sees no end.
    _open: Option<ChildStdin>,
}

/// Starts a program; `input` is written to its standard input, which is then closed. Without input it stays open and silent.
pub fn start(command: &mut Command, input: Option<&[u8]>) -> Running {
    let line = format!("{command:?}");
    let mut child = command
        .process_group(0)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap_or_else(|error| panic!("could not start {line}: {error}"));
    let begin = Instant::now();
    let (stdout, stderr): (Arc<Mutex<_>>, Arc<Mutex<_>>) = Default::default();
    let readers = vec![collect(child.stdout.take().unwrap(), &stdout), collect(child.stderr.take().unwrap(), &stderr)];
    let mut stdin = child.stdin.take().unwrap();
    let open = match input.map(<[u8]>::to_vec) {
        None => Some(stdin),
        Some(input) => {
            // A program that does not read its input breaks the pipe, which is its own business.
            thread::spawn(move || drop(stdin.write_all(&input)));
            None
        }
    };
    Running { child, line, begin, stdout, readers, stderr, _open: open }
}

impl Running {
    /// Waits for the end, which must come within the deadline counted from the start.
    pub fn finish(self, deadline: Duration) -> Output {
        self.end(deadline).unwrap_or_else(|output| panic!("not done within {deadline:?}: {output:?}"))
    }

    /// Waits for the end. What had to be killed at the deadline is an error with what it left.
    pub fn end(mut self, deadline: Duration) -> Result<Output, Output> {
        let mut late = false;
        let status = loop {
            if let Some(status) = self.child.try_wait().unwrap() {
                break status;
            }
            if self.begin.elapsed() > unhurried(deadline) && !late {
                late = true;
                self.kill_group();
            }
            thread::sleep(Duration::from_millis(3));
        };
        if late {
            self.kill_group();
        }
        for reader in self.readers.drain(..) {
            reader.join().unwrap();
        }
        let output = Output {
            code: status.code().unwrap_or_else(|| 128 + status.signal().unwrap_or_default()),
            stdout: std::mem::take(&mut *lock(&self.stdout)),
            stderr: std::mem::take(&mut *lock(&self.stderr)),
            elapsed: self.begin.elapsed(),
            line: std::mem::take(&mut self.line),
        };
        if late { Err(output) } else { Ok(output) }
    }

    /// Waits until the text is on standard output.
    pub fn until_it_says(&self, text: &str) {
        eventually(&format!("{text:?} from {}", self.line), || self.said().contains(text).then_some(()));
    }

    /// Standard output so far.
    pub fn said(&self) -> String {
        String::from_utf8_lossy(&lock(&self.stdout)).into_owned()
    }

    fn kill_group(&self) {
        let _ = killpg(Pid::from_raw(i32::try_from(self.child.id()).unwrap()), Signal::SIGKILL);
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        if let Ok(None) = self.child.try_wait() {
            self.kill_group();
            let _ = self.child.wait();
        }
    }
}

fn collect<R: Read + Send + 'static>(mut from: R, into: &Arc<Mutex<Vec<u8>>>) -> JoinHandle<()> {
    let into = Arc::clone(into);
    thread::spawn(move || {
        let mut buffer = vec![0; 1 << 16];
        while let Ok(count @ 1..) = from.read(&mut buffer) {
            lock(&into).extend_from_slice(&buffer[..count]);
        }
    })
}
