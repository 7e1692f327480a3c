//! What a handler's options and its registration do: runc's options, our own, and what containerd says to `start`.

use std::{
    fs,
    path::{Path, PathBuf},
};

use containerd_shim_protos::{
    api::{ConnectRequest, ConnectResponse},
    protobuf::{CodedOutputStream, Message, well_known_types::any::Any},
    shim::oci,
};

use super::Scenario;
use crate::{
    case::RuntimeCase,
    lab::{Lab, bundle, command::Output, daemon::Daemon, shim::Shim},
};

pub const SCENARIOS: &[Scenario] = &[
    ("a shim is started in the cgroup that the handler names, and one that does not exist is an error", shim_cgroup),
    ("the message of containerd 2.3 to a start is answered in kind", message),
];

/// The handler's options as containerd up to 2.2 writes them for `start`.
fn any(options: &oci::Options) -> Any {
    let value = options.write_to_bytes().unwrap();
    Any { type_url: "containerd.runc.v1.Options".into(), value, ..Any::default() }
}

fn start(lab: &Lab, case: &RuntimeCase, input: &[u8], id: &str) -> Result<Shim, Output> {
    let daemon = lab.daemon(case.daemon());
    let spec = bundle::spec(&lab.rootfs(), &format!("/{}/{id}", daemon.namespace()), &["true"]);
    Shim::start_with(&daemon, id, &lab.dir("bundles"), spec.to_string().as_bytes(), input)
}

/// A cgroup of this name in every hierarchy that lets it have processes at once, gone with the value.
struct Cgroups(Vec<PathBuf>);

impl Cgroups {
    fn make(name: &str) -> Self {
        let top = Path::new("/sys/fs/cgroup");
        let tops = if top.join("cgroup.procs").exists() {
            vec![top.to_owned()]
        } else {
            ["memory", "pids"].iter().map(|controller| top.join(controller)).collect()
        };
        let all: Vec<_> = tops.iter().map(|top| top.join(name)).collect();
        all.iter().for_each(|directory| fs::create_dir(directory).unwrap());
        Self(all)
    }

    fn members(&self) -> impl Iterator<Item = Vec<i32>> {
        self.0.iter().map(|directory| {
            let members = fs::read_to_string(directory.join("cgroup.procs")).unwrap();
            members.lines().map(|pid| pid.parse().unwrap()).collect()
        })
    }
}

impl Drop for Cgroups {
    fn drop(&mut self) {
        for directory in &self.0 {
            let _ = fs::remove_dir(directory);
        }
    }
}

fn server(daemon: &Daemon, id: &str) -> i32 {
    daemon.shim(id).unwrap().pid
}

fn shim_cgroup(lab: &Lab, case: &RuntimeCase) {
    let (id, daemon) = (lab.id("grouped"), lab.daemon(case.daemon()));
    // The keeper removes what is left of cgroups by the namespace's prefix.
    let name = format!("{}-{id}", daemon.namespace());
    let cgroups = Cgroups::make(&name);
    let options = any(&oci::Options { shim_cgroup: format!("/{name}"), ..oci::Options::default() });
    let shim = start(lab, case, &options.write_to_bytes().unwrap(), &id).unwrap();
    let pid = server(&daemon, &id);
    for members in cgroups.members() {
        assert_eq!(members, [pid]);
    }
    shim.shut_down();

    let id = lab.id("nowhere");
    let options = any(&oci::Options { shim_cgroup: "/nowhere/at/all".into(), ..oci::Options::default() });
    let Err(output) = start(lab, case, &options.write_to_bytes().unwrap(), &id) else {
        panic!("a cgroup that does not exist was joined");
    };
    output.failure(&["ShimCgroup", "/nowhere/at/all"]);
    assert!(daemon.shim(&id).is_none());
}

fn message(lab: &Lab, case: &RuntimeCase) {
    let (id, daemon) = (lab.id("message"), lab.daemon(case.daemon()));
    let sockets = lab.dir("sockets");
    let mut input = Vec::new();
    let mut output = CodedOutputStream::vec(&mut input);
    output.write_string(1, &id).unwrap();
    output.write_string(2, daemon.namespace()).unwrap();
    output.write_string(4, "v2.3.4").unwrap();
    output.write_string(9, sockets.to_str().unwrap()).unwrap();
    output.flush().unwrap();
    drop(output);
    let shim = start(lab, case, &input, &id).unwrap();
    assert_eq!(shim.socket().parent(), Some(sockets.as_path()));
    // Version 2, the address, and the protocol.
    let address = format!("unix://{}", shim.socket().display());
    let mut answer = vec![0x08, 2, 0x12, u8::try_from(address.len()).unwrap()];
    answer.extend(address.bytes());
    answer.extend(b"\x1a\x05ttrpc");
    assert_eq!(shim.answer(), answer);
    let connect = ConnectRequest { id: id.clone(), ..ConnectRequest::default() };
    let connected: ConnectResponse = shim.call("Connect", &connect).unwrap();
    assert_eq!(connected.shim_pid.cast_signed(), server(&daemon, &id));
    shim.shut_down();
}
