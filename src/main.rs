//! `containerd-shim-beta9-v2`; everything is in the library.

use std::process::ExitCode;

fn main() -> ExitCode {
    beta9_shim::cli::main()
}
