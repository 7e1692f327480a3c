//! containerd's command line: single-dash flags, then at most one action (Go's `flag` syntax).

use std::ffi::OsString;
use std::path::PathBuf;

use thiserror::Error;

/// What containerd says on the command line. Flags that it passes and that we have no use for are accepted.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Flags {
    /// `-namespace`: containerd's namespace of the container.
    pub namespace: String,
    /// `-id`: the container that the action is about.
    pub id: String,
    /// `-address`: containerd's gRPC socket.
    pub address: PathBuf,
    /// `-bundle`: the container's bundle; the working directory if absent.
    pub bundle: Option<PathBuf>,
    /// `-debug`: log at debug level.
    pub debug: bool,
    /// `-v`, `-version`: print the version.
    pub version: bool,
    /// `-info`: print the runtime's information (containerd 2.0 and later).
    pub info: bool,
    /// `start`, `delete`, or nothing.
    pub action: Option<String>,
}

/// What is wrong with a command line.
#[derive(Debug, Error, PartialEq, Eq)]
pub enum FlagError {
    /// Not one of containerd's flags.
    #[error("unknown flag {0}; see containerd-shim-beta9-v2 --help")]
    Unknown(String),
    /// A flag without its value.
    #[error("flag {0} needs a value")]
    NoValue(String),
    /// Not UTF-8.
    #[error("an argument is not valid UTF-8: {0:?}")]
    NotUtf8(OsString),
}

impl Flags {
    /// Parses the arguments after the program's name.
    pub fn parse(args: impl IntoIterator<Item = OsString>) -> Result<Self, FlagError> {
        let mut flags = Self::default();
        let mut args = args.into_iter().map(|arg| arg.into_string().map_err(FlagError::NotUtf8));
        while let Some(arg) = args.next().transpose()? {
            let Some(name) = arg.strip_prefix("--").or_else(|| arg.strip_prefix('-')) else {
                flags.action = Some(arg);
                break;
            };
            let (name, inline) = match name.split_once('=') {
                Some((name, value)) => (name, Some(value.to_owned())),
                None => (name, None),
            };
            let on = inline.as_deref() != Some("false");
            let mut value = || match inline.clone() {
                Some(value) => Ok(value),
                None => args.next().transpose()?.ok_or_else(|| FlagError::NoValue(arg.clone())),
            };
            match name {
                "namespace" => flags.namespace = value()?,
                "id" => flags.id = value()?,
                "address" => flags.address = value()?.into(),
                "bundle" => flags.bundle = Some(value()?.into()),
                "publish-binary" | "socket" | "debug-socket" => drop(value()?),
                "debug" => flags.debug = on,
                "v" | "version" => flags.version = on,
                "info" => flags.info = on,
                _ => return Err(FlagError::Unknown(arg)),
            }
        }
        Ok(flags)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::os::unix::ffi::OsStringExt;

    fn parse(line: &str) -> Result<Flags, FlagError> {
        Flags::parse(line.split_whitespace().map(OsString::from))
    }

    #[test]
    fn the_lines_of_containerd_are_understood() {
        let start = parse(
            "-namespace k8s.io -address /run/containerd/containerd.sock -publish-binary /usr/bin/containerd -id c1 -debug start",
        );
        let expected = Flags {
            namespace: "k8s.io".into(),
            id: "c1".into(),
            address: "/run/containerd/containerd.sock".into(),
            debug: true,
            action: Some("start".into()),
            ..Flags::default()
        };
        assert_eq!(start, Ok(expected));
        let delete = parse("-namespace=default -id=c1 --bundle /b delete").unwrap();
        assert_eq!((delete.bundle, delete.action.as_deref()), (Some("/b".into()), Some("delete")));
        assert!(parse("-v").unwrap().version && parse("-version").unwrap().version);
        assert!(parse("-info").unwrap().info);
        assert!(!parse("-debug=false start").unwrap().debug);
    }

    #[test]
    fn a_flag_that_containerd_never_passes_is_named_in_the_error() {
        assert_eq!(parse("-wat start"), Err(FlagError::Unknown("-wat".into())));
        assert_eq!(parse("-id"), Err(FlagError::NoValue("-id".into())));
    }

    proptest! {
        #[test]
        fn no_arguments_make_the_parser_panic(args: Vec<Vec<u8>>) {
            let _ = Flags::parse(args.into_iter().map(OsString::from_vec));
        }

        #[test]
        fn a_value_is_a_value_whatever_it_looks_like(id in "-{0,2}[a-z=-]{0,10}", inline: bool) {
            let args = if inline { vec![format!("-id={id}")] } else { vec!["-id".into(), id.clone()] };
            let args = args.into_iter().chain(["start".into()]).map(OsString::from);
            let flags = Flags::parse(args).unwrap();
            prop_assert_eq!((flags.id, flags.action), (id, Some("start".into())));
        }
    }
}
