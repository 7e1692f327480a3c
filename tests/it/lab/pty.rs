//! A terminal for a client: `script`, which is on every Debian, gives it one.

use std::{ffi::OsStr, process::Command, time::Duration};

use super::command::{self, Output};

/// How long a session may last.
const SESSION: Duration = Duration::from_secs(30);

/// Runs `client` on a terminal of its own after the shell command `prepare`, which has that terminal as standard input.
/// What the terminal shows becomes standard output, its line ends included.
pub fn run(client: &Command, prepare: &str) -> Output {
    let words: Vec<_> = [client.get_program()].into_iter().chain(client.get_args()).map(quote).collect();
    let session = format!("{prepare}\nexec {}", words.join(" "));
    let mut script = Command::new("script");
    script.args(["--quiet", "--return", "--command", &session, "/dev/null"]).env_clear();
    for (name, value) in client.get_envs() {
        script.env(name, value.unwrap_or_default());
    }
    // An end of its input would be typed into the terminal.
    command::start(&mut script, None).finish(SESSION)
}

fn quote(word: &OsStr) -> String {
    format!("'{}'", word.to_str().unwrap().replace('\'', r"'\''"))
}
