//! Leaves the unwinding tables out of the release binary: an eighth of its size, in the memory of every shim of a node.
//! A panic aborts after its hook has logged message and place; nothing unwinds. Tests do, and are not touched.
//!
//! And tells the program what it was built from: the commit (`BETA9_REVISION`, else git's word) and the compiler.

use std::{env, process::Command};

fn main() {
    println!("cargo::rerun-if-changed=build.rs");
    println!("cargo::rerun-if-changed=src/no-unwind.ld");
    println!("cargo::rerun-if-env-changed=BETA9_REVISION");
    println!("cargo::rustc-env=BETA9_REVISION={}", revision());
    let compiler = env::var("RUSTC").ok().and_then(|rustc| said_by(&rustc, &["--version"])).unwrap_or_default();
    println!("cargo::rustc-env=BETA9_COMPILER={compiler}");
    let is = |name: &str, value: &str| env::var(name).is_ok_and(|found| found == value);
    if is("PROFILE", "release") && is("CARGO_CFG_TARGET_OS", "linux") && is("CARGO_CFG_TARGET_ARCH", "x86_64") {
        let root = env::var("CARGO_MANIFEST_DIR").unwrap_or_default();
        println!("cargo::rustc-link-arg-bins=-Wl,-T,{root}/src/no-unwind.ld");
        println!("cargo::rustc-link-arg-bins=-Wl,--no-eh-frame-hdr");
    }
}

/// Empty where nobody knows: a tarball has no commit.
fn revision() -> String {
    if let Ok(revision) = env::var("BETA9_REVISION") {
        return revision;
    }
    // A new commit is a new build; git tells where this checkout, a worktree perhaps, keeps its own.
    if let Some(log) = said_by("git", &["rev-parse", "--git-path", "logs/HEAD"]) {
        println!("cargo::rerun-if-changed={log}");
    }
    said_by("git", &["rev-parse", "HEAD"]).unwrap_or_default()
}

fn said_by(program: &str, args: &[&str]) -> Option<String> {
    let output = Command::new(program).args(args).output().ok().filter(|output| output.status.success())?;
    Some(String::from_utf8(output.stdout).ok()?.trim().to_owned())
}
