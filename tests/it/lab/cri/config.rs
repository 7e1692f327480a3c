//! What a containerd needs for its CRI: the plugin's configuration in either of its forms, the handlers that every trial may
//! choose from, and a CNI network.

use std::{
    fmt::Write as _,
    fs,
    os::unix::fs::symlink,
    path::{Path, PathBuf},
};

use serde_json::json;

use crate::lab::{checkout, daemon::Version, image::PAUSE, packages::Suite};

/// The handler that Go's shim runs: the measure.
pub const GO: &str = "runc";

/// Our shim with runc.
pub const RUNC: &str = "beta9";

/// Our shim under the name of Go's, found by its path.
pub const AS_RUNC: &str = "beta9-as-runc";

/// Our shim with a gVisor of this platform.
pub const SYSTRAP: &str = "beta9-systrap";
pub const PTRACE: &str = "beta9-ptrace";

/// Writes what the plugin reads besides its configuration below `dir`, and returns the configuration's part.
pub fn furnish(version: Version, dir: &Path) -> String {
    let cni = dir.join("cni");
    fs::create_dir_all(&cni).unwrap();
    fs::write(cni.join("lab.conflist"), network(&dir.join("addresses"))).unwrap();
    let plugins = Suite::Bookworm.cni_plugins();

    // Since 2.0 the plugin is several.
    let (mut config, runtime) = match version {
        Version::V1_6 | Version::V1_7 => {
            let cri = "plugins.'io.containerd.grpc.v1.cri'";
            let cni = format!("[{cri}.cni]\nbin_dir = {plugins:?}\nconf_dir = {cni:?}\n");
            (format!("[{cri}]\nsandbox_image = '{PAUSE}'\n{COMMON}{cni}"), cri)
        }
        Version::V2_1 => {
            let cri = "plugins.'io.containerd.cri.v1.runtime'";
            let cni = format!("[{cri}.cni]\nbin_dirs = [{plugins:?}]\nconf_dir = {cni:?}\n");
            let images = format!("[plugins.'io.containerd.cri.v1.images'.pinned_images]\nsandbox = '{PAUSE}'\n");
            (format!("{images}[{cri}]\n{COMMON}{cni}"), cri)
        }
    };
    let _ = writeln!(config, "[{runtime}.containerd.runtimes.{GO}]\nruntime_type = 'io.containerd.runc.v2'");
    let shim = dir.join("bin/containerd-shim-beta9-v2");
    let _ = writeln!(
        config,
        "[{runtime}.containerd.runtimes.{AS_RUNC}]\nruntime_type = 'io.containerd.runc.v2'\nruntime_path = {shim:?}"
    );
    let gvisor =
        |platform| format!("{{containerRuntime: gvisor, containerRuntimeConfig: {{gvisorPlatform: {platform}}}}}");
    for (handler, pool, suite) in [
        (RUNC, "{}".into(), Suite::Trixie),
        (SYSTRAP, gvisor("systrap"), Suite::Trixie),
        (PTRACE, gvisor("ptrace"), Suite::Bookworm),
    ] {
        let node = dir.join(format!("{handler}.yaml"));
        fs::write(&node, node_configuration(&pool, &runsc(&dir.join(format!("{handler}-runsc")), suite))).unwrap();
        // As docs/operating.md tells an operator.
        let _ = writeln!(
            config,
            "[{runtime}.containerd.runtimes.{handler}]\nruntime_type = 'io.containerd.beta9.v2'\n\
             pod_annotations = ['run.beam.cloud/*', 'dev.gvisor.*', 'cdi.k8s.io/*']\n\
             container_annotations = ['run.beam.cloud/*', 'dev.gvisor.*', 'cdi.k8s.io/*']\n\
             [{runtime}.containerd.runtimes.{handler}.options]\nTypeUrl = 'runtimeoptions.v1.Options'\nConfigPath = {node:?}"
        );
    }
    config
}

/// What every version is told alike: the lab's machines have no AppArmor, and may not lower an OOM score.
const COMMON: &str = "disable_apparmor = true\nrestrict_oom_score_adj = true\n";

/// A node configuration whose default pool is this one.
fn node_configuration(pool: &str, runsc: &Path) -> String {
    format!(
        "worker:\n  defaultPool: lab\n  pools:\n    lab: {pool}\nshim:\n  runsc: {runsc:?}\n  checkpointWorkloads: native\n"
    )
}

/// Installs a runsc that pods with a network can have on any kernel. The program itself is `tests/fake/runsc.sh`.
fn runsc(dir: &Path, suite: Suite) -> PathBuf {
    fs::create_dir(dir).unwrap();
    symlink(suite.program("runsc"), dir.join("real")).unwrap();
    let program = dir.join("runsc");
    fs::copy(checkout().join("tests/fake/runsc.sh"), &program).unwrap();
    program
}

/// A bridge in the daemon's network namespace, whose first address the daemon's own side has.
fn network(addresses: &Path) -> String {
    json!({
        "cniVersion": "0.4.0",
        "name": "lab",
        "plugins": [{
            "type": "bridge",
            "bridge": "lab0",
            "isDefaultGateway": true,
            "ipam": {"type": "host-local", "dataDir": addresses, "ranges": [[{"subnet": "10.88.0.0/24"}]]},
        }],
    })
    .to_string()
}
