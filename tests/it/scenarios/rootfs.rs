//! Root file systems that take more than one call of mount. How each option is understood is tested beside the code
//! (`bundle::rootfs`).

use std::{
    fs,
    os::unix::fs::{PermissionsExt, chown},
    path::Path,
    sync::Arc,
};

use containerd_shim_protos::{
    api::{
        CreateTaskRequest, CreateTaskResponse, DeleteRequest, DeleteResponse, StartRequest, StartResponse, WaitRequest,
        WaitResponse,
    },
    types::mount::Mount,
};
use serde_json::{Value, json};

use super::Scenario;
use crate::{
    case::RuntimeCase,
    lab::{
        Lab, bundle,
        daemon::Daemon,
        leaks,
        shim::{Refused, Shim},
    },
};

pub const SCENARIOS: &[Scenario] = &[
    ("a FUSE file system is mounted by its helper, whose failure is an error with its words", fuse),
    ("in a user namespace a mapped root file system belongs to its root", mapped),
];

/// A shim for a container whose root file system is mounted.
fn shim(lab: &Lab, daemon: &Arc<Daemon>, script: &str, change: impl FnOnce(&mut Value)) -> Shim {
    let id = lab.id("rootfs");
    let cgroup = format!("/{}/{id}", daemon.namespace());
    let mut spec = bundle::spec(Path::new("rootfs"), &cgroup, &["sh", "-c", script]);
    change(&mut spec);
    Shim::start(daemon, &id, &lab.dir("bundles"), spec.to_string().as_bytes()).unwrap()
}

fn create(shim: &Shim, kind: &str, source: &str, options: &[&str]) -> Result<CreateTaskResponse, Refused> {
    let mount = Mount {
        type_: kind.into(),
        source: source.into(),
        options: options.iter().map(ToString::to_string).collect(),
        ..Mount::default()
    };
    shim.call("Create", &CreateTaskRequest { rootfs: vec![mount], ..shim.create_request() })
}

/// Runs the created container to its end, and returns its exit code.
fn run(shim: &Shim) -> u32 {
    let id = shim.id().to_owned();
    shim.call::<StartResponse>("Start", &StartRequest { id: id.clone(), ..StartRequest::default() }).unwrap();
    let exit: WaitResponse = shim.call("Wait", &WaitRequest { id: id.clone(), ..WaitRequest::default() }).unwrap();
    shim.call::<DeleteResponse>("Delete", &DeleteRequest { id, ..DeleteRequest::default() }).unwrap();
    exit.exit_status
}

fn fuse(lab: &Lab, case: &RuntimeCase) {
    let dir = lab.dir("helper");
    let helper = dir.join("mount.fuse3");
    let script = format!(
        "#!/bin/sh\nprintf '%s\\n' \"$@\" >{}/args\n\
         case $1 in broken) echo 'the fuse has blown' >&2; exit 4;; esac\nexec mount --bind \"$1\" \"$2\"\n",
        dir.display()
    );
    fs::write(&helper, script).unwrap();
    fs::set_permissions(&helper, fs::Permissions::from_mode(0o755)).unwrap();
    let mut options = case.daemon().clone();
    options.programs.insert("mount.fuse3", helper);
    options.config = Some(case.config());
    let daemon = lab.own_daemon(&options);

    let shim = shim(lab, &daemon, "test -x /bin/busybox && exit 7", |_| {});
    let refused = create(&shim, "fuse3.lab-fs", "broken", &[]).unwrap_err();
    assert!(refused.message.contains("the fuse has blown") && refused.message.contains("exit code 4"), "{refused:?}");
    let refused = create(&shim, "fuse.lab-fs", "none", &[]).unwrap_err();
    assert!(refused.message.contains("mount.fuse"), "{refused:?}");
    assert!(leaks::mounts_below(shim.bundle()).is_empty());
    let rootfs = lab.rootfs();
    create(&shim, "fuse3.lab-fs", rootfs.to_str().unwrap(), &["lowerdir=/a:/b", "allow_other"]).unwrap();
    let target = shim.bundle().join("rootfs");
    let expected =
        format!("{}\n{}\n-o\nlowerdir=/a:/b\n-o\nallow_other\n-t\nlab-fs\n", rootfs.display(), target.display());
    assert_eq!(fs::read_to_string(dir.join("args")).unwrap(), expected);
    assert_eq!(run(&shim), 7);
    shim.shut_down();
}

fn mapped(lab: &Lab, case: &RuntimeCase) {
    // gVisor's user namespaces are its own.
    if !case.is_runc() {
        return;
    }
    let mut options = case.daemon().clone();
    options.config = Some(case.config());
    let daemon = lab.daemon(&options);
    let script = "test $(stat -c %u:%g /bin/busybox) = 0:0 && test $(stat -c %u:%g /etc/passwd) = 7:8 && \
                  echo mine >/etc/group && grep -q 300000 /proc/self/uid_map && exit 9";
    let shim = shim(lab, &daemon, script, |spec| {
        let map = json!([{"containerID": 0, "hostID": 300_000, "size": 65536}]);
        (spec["linux"]["uidMappings"], spec["linux"]["gidMappings"]) = (map.clone(), map);
        spec["linux"]["namespaces"].as_array_mut().unwrap().push(json!({"type": "user"}));
    });
    // The container's root passes through here.
    fs::set_permissions(shim.bundle(), fs::Permissions::from_mode(0o711)).unwrap();
    let rootfs = lab.rootfs();
    chown(rootfs.join("etc/passwd"), Some(7), Some(8)).unwrap();
    let map = ["rbind", "uidmap=0:300000:65536", "gidmap=0:300000:65536"];
    match create(&shim, "bind", rootfs.to_str().unwrap(), &map) {
        // Linux before 6.3 maps no tmpfs, where the lab is.
        Err(refused) if refused.message.contains("cannot map the users") => {}
        created => {
            created.unwrap();
            assert_eq!(run(&shim), 9);
            assert_eq!(fs::read_to_string(rootfs.join("etc/group")).unwrap(), "mine\n");
        }
    }
    shim.shut_down();
}
