//! The log: one structured line for each record, to the `log` fifo that containerd made in the bundle and copies into
//! its own log. Writing never blocks; lines that find the fifo full are counted and the count is logged later.

use std::fmt::Write as _;
use std::fs::File;
use std::io::{self, Write as _};
use std::os::fd::AsFd;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::SystemTime;

use log::kv::{self, Key, Value, VisitSource};
use log::{LevelFilter, Log, Metadata, Record};
use nix::libc;

use crate::select::LogLine;

/// Longer lines are cut: a tenant's text cannot fill the node's log with one line.
const LONGEST: usize = 4096;

struct Logger {
    sink: Option<File>,
    dropped: AtomicU64,
    fields: String,
}

/// Logs to `fifo` from now on, and to nowhere if it cannot be opened: a shim that cannot log still works.
/// `fields` (`key=value …`) end every line.
pub fn to_fifo(fifo: &Path, debug: bool, fields: String) {
    // Open for reading as well: so that it opens and stays writable while containerd is away.
    let sink = File::options().read(true).write(true).custom_flags(libc::O_NONBLOCK).open(fifo).ok();
    install(Logger { sink, dropped: AtomicU64::new(0), fields }, debug);
}

/// Logs to standard error: for `delete`, whose standard error containerd logs, and for people.
pub fn to_stderr(debug: bool) {
    let sink = io::stderr().as_fd().try_clone_to_owned().ok().map(File::from);
    install(Logger { sink, dropped: AtomicU64::new(0), fields: String::new() }, debug);
}

fn install(logger: Logger, debug: bool) {
    log::set_max_level(if debug { LevelFilter::Debug } else { LevelFilter::Info });
    // It fails only where a logger is installed already, which then stays.
    let _ = log::set_boxed_logger(Box::new(logger));
}

/// Logs a panic before the process aborts: a panic is a bug, and its place must reach the operator.
pub fn panics() {
    std::panic::set_hook(Box::new(|info| {
        log::error!(panic = info.to_string().as_str(); "the shim panicked; please report this");
    }));
}

/// Logs a line that a decision has prepared.
pub fn emit(line: &LogLine) {
    let fields = line.fields.as_slice();
    log::logger()
        .log(&Record::builder().level(line.level).args(format_args!("{}", line.message)).key_values(&fields).build());
}

impl Log for Logger {
    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        metadata.level() <= log::max_level()
    }

    fn log(&self, record: &Record<'_>) {
        let Some(mut sink) = self.sink.as_ref().filter(|_| self.enabled(record.metadata())) else {
            return;
        };
        let dropped = self.dropped.swap(0, Ordering::Relaxed);
        let mut line = render(record, &self.fields, SystemTime::now());
        if dropped > 0 {
            line.insert_str(line.len() - 1, &format!(" dropped_lines={dropped}"));
        }
        // A line fits in the fifo whole or not at all (pipe(7): writes up to PIPE_BUF are atomic).
        if sink.write_all(line.as_bytes()).is_err() {
            self.dropped.fetch_add(dropped + 1, Ordering::Relaxed);
        }
    }

    fn flush(&self) {}
}

/// The line for `record`, in the form of containerd's own log, newline included.
fn render(record: &Record<'_>, fields: &str, now: SystemTime) -> String {
    struct Pairs<'a>(&'a mut String);
    impl<'kvs> VisitSource<'kvs> for Pairs<'_> {
        fn visit_pair(&mut self, key: Key<'kvs>, value: Value<'kvs>) -> Result<(), kv::Error> {
            let _ = write!(self.0, " {key}=");
            push_value(self.0, &value.to_string());
            Ok(())
        }
    }
    let level = match record.level() {
        log::Level::Warn => "warning".to_owned(),
        level => level.as_str().to_ascii_lowercase(),
    };
    let mut line = format!("time=\"{}\" level={level} msg=", rfc3339(now));
    push_value(&mut line, &record.args().to_string());
    let _ = record.key_values().visit(&mut Pairs(&mut line));
    if !fields.is_empty() {
        line.push(' ');
        line.push_str(fields);
    }
    let mut end = line.len().min(LONGEST - 32);
    while !line.is_char_boundary(end) {
        end -= 1;
    }
    line.truncate(end);
    line.push('\n');
    line
}

/// Appends `value`, quoted and escaped unless it is plain: foreign text can neither end the line nor forge a field.
fn push_value(line: &mut String, value: &str) {
    let plain = |c: char| c.is_ascii_alphanumeric() || "-._/@^+:".contains(c);
    if !value.is_empty() && value.chars().all(plain) {
        line.push_str(value);
    } else {
        let _ = write!(line, "{value:?}");
    }
}

/// UTC to the millisecond (containerd's own lines have nanoseconds; nobody reads them). libc's gmtime would bring its
/// time zone reader, and with that scanf, into every shim.
fn rfc3339(at: SystemTime) -> String {
    let since = at.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    let (days, second) = (since.as_secs() / 86_400, since.as_secs() % 86_400);
    // Years that begin in March end with the leap day: 400 of them are an era of 146 097 days.
    let days = days + 719_468;
    let (era, day) = (days / 146_097, days % 146_097);
    let year = (day - day / 1_460 + day / 36_524 - day / 146_096) / 365;
    let day = day - (365 * year + year / 4 - year / 100);
    let month = (5 * day + 2) / 153;
    let day = day - (153 * month + 2) / 5 + 1;
    let (year, month) = (era * 400 + year + u64::from(month >= 10), if month < 10 { month + 3 } else { month - 9 });
    let (hour, minute, second) = (second / 3_600, second / 60 % 60, second % 60);
    format!("{year:04}-{month:02}-{day:02}T{hour:02}:{minute:02}:{second:02}.{:03}Z", since.subsec_millis())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    fn line(message: std::fmt::Arguments<'_>, value: &str) -> String {
        let pairs = [("key", value)];
        let record = Record::builder().args(message).level(log::Level::Warn).key_values(&pairs).build();
        render(&record, "id=c1", SystemTime::UNIX_EPOCH + Duration::from_millis(86_400_042))
    }

    #[test]
    fn a_line_carries_time_level_message_and_pairs() {
        assert_eq!(
            line(format_args!("hello there"), "plain/value"),
            "time=\"1970-01-02T00:00:00.042Z\" level=warning msg=\"hello there\" key=plain/value id=c1\n"
        );
    }

    #[test]
    fn a_time_is_utc_to_the_millisecond() {
        // date -u -d @N
        for (seconds, text) in [
            (0, "1970-01-01T00:00:00"),
            (951_782_399, "2000-02-28T23:59:59"),
            (951_868_799, "2000-02-29T23:59:59"),
            (1_709_164_800, "2024-02-29T00:00:00"),
            (1_735_689_599, "2024-12-31T23:59:59"),
            (4_107_542_400, "2100-03-01T00:00:00"),
        ] {
            let at = SystemTime::UNIX_EPOCH + Duration::from_secs(seconds);
            assert_eq!(rfc3339(at), format!("{text}.000Z"));
        }
    }

    #[test]
    fn foreign_text_can_neither_break_a_line_nor_forge_a_field() {
        let line = line(format_args!("m"), "a\nlevel=info msg=\"forged\"");
        assert_eq!(line.matches('\n').count(), 1);
        assert!(line.contains(r#"key="a\nlevel=info msg=\"forged\"""#), "{line}");
    }

    #[test]
    fn a_line_is_never_longer_than_what_a_fifo_takes_at_once() {
        assert!(line(format_args!("m"), &"ä".repeat(10_000)).len() <= LONGEST);
    }
}
