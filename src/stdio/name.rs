//! What a stream's name in a request means: containerd's stream URIs, taken apart. Opens nothing.

use std::ffi::OsString;
use std::os::unix::ffi::OsStringExt;
use std::path::PathBuf;

use super::StdioError;

/// The longest part of a name that an error repeats.
const QUOTED: usize = 200;

/// Where an output stream goes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Name {
    /// Nowhere: /dev/null.
    Null,
    /// A bare path: a fifo, or something else that exists and can be written.
    Path(PathBuf),
    /// `file://`: a file, made if need be and appended to.
    File(PathBuf),
    /// `binary://` or `binary-v2://`: a logger.
    Logger(LoggerName),
}

/// A program that takes both output streams.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct LoggerName {
    pub(super) program: PathBuf,
    pub(super) args: Vec<OsString>,
    pub(super) readiness: Readiness,
}

/// How a logger says that it is ready.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Readiness {
    /// It closes the descriptor.
    Closes,
    /// It writes a byte to it (containerd 2.2, docs/runtime-v2.md): closing alone may have been its death.
    Writes,
}

impl Name {
    /// Understands a name; `stream` is for the error.
    ///
    /// The path and the arguments are percent-encoded, and what follows a `#` is nobody's, as in Go's net/url, with
    /// which containerd's clients write them.
    pub(super) fn parse(stream: &'static str, name: &str) -> Result<Self, StdioError> {
        if name.is_empty() {
            return Ok(Self::Null);
        }
        if name.starts_with('/') {
            return Ok(Self::Path(name.into()));
        }
        let wrong = |why| StdioError::Name { stream, name: name.chars().take(QUOTED).collect(), why };
        let Some((scheme, rest)) = name.split_once(':') else {
            return Err(wrong("is neither an absolute path nor a URI"));
        };
        let rest = rest.split_once('#').map_or(rest, |(rest, _)| rest);
        let (path, query) = rest.split_once('?').unwrap_or((rest, ""));
        let path = path.strip_prefix("//").unwrap_or(path);
        let path = || match decode(path, false) {
            Some(path) if path.first() == Some(&b'/') && !path.ends_with(b"/") => Ok(OsString::from_vec(path).into()),
            Some(_) => Err(wrong("has no absolute path to a file, as in scheme:///path")),
            None => Err(wrong("has a % that begins no byte of two hexadecimal digits, or a zero byte")),
        };
        let logger = |readiness| {
            let args = arguments(query).ok_or_else(|| wrong("has arguments that cannot be decoded"))?;
            Ok(Self::Logger(LoggerName { program: path()?, args, readiness }))
        };
        match scheme.to_ascii_lowercase().as_str() {
            "fifo" => path().map(Self::Path),
            "file" => path().map(Self::File),
            "binary" => logger(Readiness::Closes),
            "binary-v2" => logger(Readiness::Writes),
            _ => Err(wrong("is of no known kind; known are a path, file://, binary:// and binary-v2://")),
        }
    }
}

/// The command line that a query stands for: each key once, in the order of appearance, with its first value after it.
/// A key without a value has an empty one.
fn arguments(query: &str) -> Option<Vec<OsString>> {
    let mut args = Vec::new();
    for pair in query.split('&').filter(|pair| !pair.is_empty()) {
        let (key, value) = pair.split_once('=').unwrap_or((pair, ""));
        let key = OsString::from_vec(decode(key, true)?);
        let value = OsString::from_vec(decode(value, true)?);
        if !args.iter().step_by(2).any(|known| *known == key) {
            args.extend([key, value]);
        }
    }
    Some(args)
}

/// Undoes percent-encoding, and in a query the `+` for a space. No argument or path can hold a zero byte.
fn decode(text: &str, query: bool) -> Option<Vec<u8>> {
    let mut bytes = text.bytes();
    let mut decoded = Vec::with_capacity(text.len());
    while let Some(byte) = bytes.next() {
        let byte = match byte {
            b'%' => {
                let mut digit = || char::from(bytes.next()?).to_digit(16);
                u8::try_from(digit()? << 4 | digit()?).ok()?
            }
            b'+' if query => b' ',
            byte => byte,
        };
        if byte == 0 {
            return None;
        }
        decoded.push(byte);
    }
    Some(decoded)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn parse(name: &str) -> Name {
        Name::parse("stdout", name).unwrap()
    }

    fn logger(program: &str, args: &[&str], readiness: Readiness) -> Name {
        Name::Logger(LoggerName { program: program.into(), args: args.iter().map(Into::into).collect(), readiness })
    }

    #[test]
    fn names_mean_what_containerds_clients_mean() {
        for (name, meant) in [
            ("", Name::Null),
            ("/run/containerd/fifo/1/a%20b", Name::Path("/run/containerd/fifo/1/a%20b".into())),
            ("fifo:///run/x", Name::Path("/run/x".into())),
            ("file:///var/log/a%20b.log", Name::File("/var/log/a b.log".into())),
            ("file:/var/log/x", Name::File("/var/log/x".into())),
            ("FILE:///x?mode=1#part", Name::File("/x".into())),
            ("binary:///bin/log", logger("/bin/log", &[], Readiness::Closes)),
            ("binary:/bin/log?a=1", logger("/bin/log", &["a", "1"], Readiness::Closes)),
            ("binary-v2:///bin/log", logger("/bin/log", &[], Readiness::Writes)),
            (
                "binary:///bin/nerdctl?_NERDCTL_INTERNAL_LOGGING=%2Fvar%2Flib%2Fnerdctl%2F1935db59",
                logger("/bin/nerdctl", &["_NERDCTL_INTERNAL_LOGGING", "/var/lib/nerdctl/1935db59"], Readiness::Closes),
            ),
            (
                "binary:///bin/log?z=1&-flag&a=b+c%2B%3D&z=2&=&#fragment?x",
                logger("/bin/log", &["z", "1", "-flag", "", "a", "b c+=", "", ""], Readiness::Closes),
            ),
        ] {
            assert_eq!(parse(name), meant, "{name}");
        }
    }

    #[test]
    fn what_means_nothing_is_an_error_that_repeats_it() {
        for (name, why) in [
            ("relative/path", "neither an absolute path nor a URI"),
            ("npipe:////./pipe/x", "no known kind"),
            ("https://example.com/log", "no known kind"),
            ("file://relative/path", "no absolute path"),
            ("file://", "no absolute path"),
            ("file:///", "no absolute path"),
            ("binary://", "no absolute path"),
            ("binary://host/bin/log", "no absolute path"),
            ("binary:///bin/log?a=100%", "cannot be decoded"),
            ("file:///a%00b", "zero byte"),
            ("file:///a%4", "hexadecimal"),
        ] {
            let error = Name::parse("stderr", name).unwrap_err().to_string();
            assert!(error.contains(why) && error.contains(name) && error.contains("stderr"), "{error}");
        }
    }

    proptest! {
        #[test]
        fn no_name_makes_the_parser_panic(name in "(file|binary|binary-v2|fifo|x)?:?(//)?(/[a-z%0-9+]{0,6}){0,3}[?]?[a-z=&%+#0-9]{0,20}|(?s).{0,40}") {
            if let Ok(Name::File(path) | Name::Path(path)) = Name::parse("stdout", &name) {
                prop_assert!(path.is_absolute());
            }
        }

        #[test]
        fn arguments_survive_their_encoding(args in proptest::collection::btree_map("[a-z]{1,5}", "[ -~]{0,9}", 0..5)) {
            let encode = |text: &str| text.bytes().map(|byte| format!("%{byte:02X}")).collect::<String>();
            let query: Vec<_> = args.iter().map(|(key, value)| format!("{key}={}", encode(value))).collect();
            let expected: Vec<OsString> = args.iter().flat_map(|(key, value)| [key.into(), value.into()]).collect();
            prop_assert_eq!(arguments(&query.join("&")), Some(expected));
        }
    }
}
