//! The command line: containerd's actions, and the commands for people. Parses, calls, and turns errors into a line on
//! standard error and an exit code.

pub mod explain;
pub mod flags;
mod info;

use std::error::Error;
use std::ffi::OsString;
use std::io;
use std::path::PathBuf;
use std::process::ExitCode;

use crate::bundle::Id;
use crate::runtime::{kvm, probe};
use crate::select::{HostFacts, Needs, Plan};
use crate::shim::reaper::Reaper;
use crate::shim::{cleanup, serve, start};
use flags::Flags;

const HELP: &str = "\
containerd-shim-beta9-v2: runs a pod with runc or gVisor, as the node's pool configuration says

containerd starts it (runtime type io.containerd.beta9.v2):
  containerd-shim-beta9-v2 -namespace NS -id ID -address SOCKET [-bundle DIR] [-debug] start | delete
  containerd-shim-beta9-v2 -info

For people:
  containerd-shim-beta9-v2 explain [--help]   what would be decided for a pod, and why
  containerd-shim-beta9-v2 -v                 the version
";

/// Runs the program with its own arguments.
pub fn main() -> ExitCode {
    // A mask is inherited: with SIGCHLD blocked the end of no process would be noticed, and runtimes and containers would
    // have it as well. It fails for no mask that exists.
    let _ = nix::sys::signal::SigSet::empty().thread_set_mask();
    let args: Vec<OsString> = std::env::args_os().skip(1).collect();
    match args.first().and_then(|arg| arg.to_str()) {
        Some("explain") => {
            let code = explain::explain(
                &args[1..],
                &mut probe_host,
                probe::systemd_runs(),
                &mut io::stdout(),
                &mut io::stderr(),
            );
            ExitCode::from(u8::try_from(code).unwrap_or(1))
        }
        Some(probe::KVM_ACTION) => report(kvm::probe().map_err(Into::into)),
        Some("--help" | "-h" | "-help" | "help") => {
            print!("{HELP}");
            ExitCode::SUCCESS
        }
        _ => report(containerd(args)),
    }
}

/// What containerd asks for.
fn containerd(args: Vec<OsString>) -> Result<(), Box<dyn Error>> {
    let flags = Flags::parse(args)?;
    if flags.version {
        print!("{}", info::version());
        return Ok(());
    }
    if flags.info {
        return Ok(info::print(&mut io::stdin(), &mut io::stdout())?);
    }
    match flags.action.as_deref() {
        Some("start") => Ok(start::start(&flags, &bundle(&flags)?)?),
        Some("delete") => Ok(cleanup::delete(&flags, &bundle(&flags)?)?),
        Some(other) => Err(format!("unknown action {other:?}; see containerd-shim-beta9-v2 --help").into()),
        None => Ok(serve::serve(&flags)?),
    }
}

/// The bundle that an action is about: as given, or the working directory; of another container in the same place, if
/// the working directory is not this container's (some versions of containerd run `delete` so).
fn bundle(flags: &Flags) -> io::Result<PathBuf> {
    let here = match &flags.bundle {
        Some(bundle) => bundle.clone(),
        None => std::env::current_dir()?,
    };
    if Id::parse(&flags.id).is_ok() && here.file_name().is_some_and(|name| name != flags.id.as_str()) {
        let sibling = here.with_file_name(&flags.id);
        if sibling.is_dir() {
            return Ok(sibling);
        }
    }
    Ok(here)
}

fn report(result: Result<(), Box<dyn Error>>) -> ExitCode {
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("{error}");
            ExitCode::FAILURE
        }
    }
}

/// Looks at this host for `explain`, in the way the shim itself does.
fn probe_host(needs: &Needs, plan: &Plan) -> HostFacts {
    let runsc = plan.runtime().binary().to_owned();
    let look = || -> io::Result<HostFacts> {
        let event_loop = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        event_loop.block_on(async { Ok(probe::facts(needs, &runsc, &Reaper::start()?).await) })
    };
    look().unwrap_or_else(|error| {
        eprintln!("cannot look at this host: {error}");
        HostFacts::default()
    })
}
