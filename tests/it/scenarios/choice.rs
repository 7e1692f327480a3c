//! Which runtime a container gets: the node's configuration, and what annotations may do about it. Only our shim chooses.

use std::{
    fs,
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
};

use super::Scenario;
use crate::{
    case::RuntimeCase,
    lab::{Lab, container::Container, daemon::Daemon, eventually},
};

pub const SCENARIOS: &[Scenario] = &[
    ("the node's configuration is found through its environment variable", environment),
    ("an annotation may move a container into gVisor, and never out of it", annotation),
    ("a configuration that cannot be read as one is an error with file and line, and leaves nothing", malformed),
    ("a configuration that others may write is an error, and leaves nothing", writable),
    ("a pool that the configuration lacks is an error that names it, and leaves nothing", unknown_pool),
    ("an annotation with an unknown value is an error that names what is allowed, and leaves nothing", unknown_value),
    ("a runsc that is missing is an error that says what was tried, and leaves nothing", missing_runsc),
];

/// Prints the kernel as the container sees it.
const KERNEL: &[&str] = &["cat", "/proc/version"];

const RUNTIME: &str = "run.beam.cloud/container-runtime";

fn host_kernel() -> String {
    fs::read_to_string("/proc/version").unwrap()
}

fn environment(lab: &Lab, case: &RuntimeCase) {
    let mut options = case.daemon().clone();
    options.config = Some(case.config());
    let daemon = lab.own_daemon(&options);
    let kernel = lab.container(&daemon, "environment").run(&case.configured_by(None), &[], KERNEL).success();
    assert_eq!(kernel.text() == host_kernel(), case.is_runc());
}

fn annotation(lab: &Lab, case: &RuntimeCase) {
    let daemon = lab.daemon(case.daemon());
    let container = lab.container(&daemon, "annotation");
    let into = format!("--annotation={RUNTIME}=gvisor");
    let kernel = container.run(case, &[&into], KERNEL).success();
    assert_ne!(kernel.text(), host_kernel());

    let out = format!("--annotation={RUNTIME}=runc");
    if case.is_runc() {
        container.run(case, &[&out], KERNEL).success();
    } else {
        container.run(case, &[&out], KERNEL).failure(&[RUNTIME]);
        assert_nothing(&daemon, &container);
    }
}

fn malformed(lab: &Lab, case: &RuntimeCase) {
    let config = lab.dir("config").join("malformed.yaml");
    fs::write(&config, "worker:\n  pools:\n    lab: [\n").unwrap();
    refused(lab, case, &config, &["malformed.yaml:"]);
}

fn writable(lab: &Lab, case: &RuntimeCase) {
    let config = lab.dir("config").join("writable.yaml");
    fs::write(&config, case.config()).unwrap();
    fs::set_permissions(&config, fs::Permissions::from_mode(0o666)).unwrap();
    refused(lab, case, &config, &["writable.yaml", "writable"]);
}

fn unknown_pool(lab: &Lab, case: &RuntimeCase) {
    let config: PathBuf = lab.dir("config").join("unknown.yaml");
    fs::write(&config, "worker: {defaultPool: nowhere, pools: {somewhere: {}}}\n").unwrap();
    refused(lab, case, &config, &["nowhere", "somewhere"]);
}

fn unknown_value(lab: &Lab, case: &RuntimeCase) {
    let daemon = lab.daemon(case.daemon());
    let container = lab.container(&daemon, "value");
    let annotation = format!("--annotation={RUNTIME}=kata");
    container.run(case, &[&annotation], &["true"]).failure(&[RUNTIME, "kata", "runc, gvisor"]);
    assert_nothing(&daemon, &container);
}

fn missing_runsc(lab: &Lab, case: &RuntimeCase) {
    let config = lab.dir("config").join("missing.yaml");
    fs::write(&config, "worker: {containerRuntime: gvisor}\nshim: {runsc: /nowhere/runsc}\n").unwrap();
    refused(lab, case, &config, &["runtime gvisor is not available", "/nowhere/runsc"]);
}

/// Runs a container with a configuration that must not be accepted.
fn refused(lab: &Lab, case: &RuntimeCase, config: &Path, words: &[&str]) {
    let daemon = lab.daemon(case.daemon());
    let container = lab.container(&daemon, "refused");
    container.run(&case.configured_by(Some(config)), &[], &["true"]).failure(words);
    assert_nothing(&daemon, &container);
}

fn assert_nothing(daemon: &Daemon, container: &Container) {
    eventually("the end of the shim", || daemon.shim(container.id()).is_none().then_some(()));
    assert!(!daemon.bundle(container.id()).exists(), "a bundle was left");
}
