//! Checkpoints as a kubelet asks for them: an archive of a running container, and a container made of an archive. Of the
//! lab's daemons 2.1 has both, with CRIU.

use std::{fs, path::Path, process::Command};

use super::{Scenario, cri};
use crate::{
    case::RuntimeCase,
    lab::{
        Lab,
        cri::{
            Cri,
            api::{ContainerState, ImageSpec},
            config::RUNC,
            pod::{Container, Pod},
            registry::Registry,
        },
        eventually,
    },
};

pub const SCENARIOS: &[Scenario] = &[
    ("a container's checkpoint is written where it is wanted, and the container runs on", keep),
    ("a container made of a checkpoint goes on from there in another pod, with its files and its log", go_on),
    ("a checkpoint that is not whole is an error that says so, and its pod goes on", not_whole),
];

/// Where CRIU has no part in it: a sandbox is kept as a whole, and the CRI has no way to restore one.
pub const GVISOR: &[Scenario] =
    &[("a gVisor container's checkpoint holds its pod, which runs on, and is not for another pod", keep_pod)];

/// Counts on standard output, and remembers nothing but in its memory.
const COUNT: &[&str] = &["sh", "-c", "echo mine > /file; i=0; while :; do i=$((i+1)); echo $i; sleep 0.05; done"];

fn keep(lab: &Lab, case: &RuntimeCase) {
    let cri = cri(lab, case);
    let pod = Pod::run(lab, &cri, case.handler, |_| {});
    let container = pod.start("main", COUNT);
    until_counted(&container, 3);
    for name in ["first.tar", "second.tar"] {
        let archive = lab.dir("checkpoints").join(name);
        container.checkpoint(&archive).unwrap();
        let files = tar(&["--list"], &archive);
        let mut expected =
            vec!["checkpoint/inventory.img", "config.dump", "container.log", "rootfs-diff.tar", "spec.dump"];
        // containerd says where it wants them to its own runtime type alone.
        if case.handler != RUNC {
            expected.extend(["dump.log", "stats-dump"]);
        }
        for file in expected {
            assert!(files.lines().any(|line| line == file), "no {file} among\n{files}");
        }
        assert_eq!(container.state(), ContainerState::Running);
        until_counted(&container, last(&container) + 3);
    }
    end(&container);
    let counted = counted(&container);
    assert!(counted.windows(2).all(|pair| pair[1] == pair[0] + 1), "{counted:?}");
}

fn go_on(lab: &Lab, case: &RuntimeCase) {
    let cri = Cri::of(&lab.own_daemon(&case.cri_daemon()));
    let _registry = Registry::of(&cri);
    let archive = lab.dir("checkpoints").join("main.tar");
    let pod = Pod::run(lab, &cri, case.handler, |_| {});
    let first = pod.start("main", COUNT);
    let before = until_counted(&first, 3);
    first.checkpoint(&archive).unwrap();
    end(&first);
    let after = last(&first);
    drop(pod);

    let pod = Pod::run(lab, &cri, case.handler, |_| {});
    let next = restore(&pod, &archive);
    next.start().unwrap();
    until_counted(&next, after + 3);
    // First comes what its log had been when the archive was written, which was after the checkpoint.
    let counted = counted(&next);
    let breaks: Vec<_> = counted.windows(2).filter(|pair| pair[1] != pair[0] + 1).collect();
    assert!(counted[0] == 1 && breaks.len() <= 1, "{counted:?}");
    assert!(breaks.iter().all(|pair| (before + 1..=pair[0]).contains(&pair[1])), "{before}, then {counted:?}");
    assert_eq!(next.output(&["cat", "/file"]), "mine\n");
    assert_eq!(next.state(), ContainerState::Running);
    end(&next);
}

fn not_whole(lab: &Lab, case: &RuntimeCase) {
    let cri = Cri::of(&lab.own_daemon(&case.cri_daemon()));
    let _registry = Registry::of(&cri);
    let archive = lab.dir("checkpoints").join("main.tar");
    let pod = Pod::run(lab, &cri, case.handler, |_| {});
    let first = pod.start("main", COUNT);
    until_counted(&first, 3);
    first.checkpoint(&archive).unwrap();
    end(&first);
    first.remove().unwrap();

    let files = lab.dir("files");
    let there = ["--directory", files.to_str().unwrap()];
    tar(&[&there[..], &["--extract"]].concat(), &archive);
    fs::remove_file(files.join("checkpoint").join("pages-1.img")).unwrap();
    tar(&[&there[..], &["--create", "."]].concat(), &archive);
    let next = restore(&pod, &archive);
    let error = refused(&next);
    assert!(error.contains("criu failed"), "{error}");
    // Its log goes with the bundle, so it is for the error to say what the matter is.
    assert!(!case.ours || error.contains("Can't read"), "{error}");
    next.remove().unwrap();
    assert_eq!(pod.start("main", &["sh", "-c", "exit 4"]).ended().exit_code, 4);
}

fn keep_pod(lab: &Lab, case: &RuntimeCase) {
    let cri = Cri::of(&lab.own_daemon(&case.cri_daemon()));
    let _registry = Registry::of(&cri);
    let pod = Pod::run(lab, &cri, case.handler, |_| {});
    let (container, other) = (pod.start("main", COUNT), pod.start("other", COUNT));
    until_counted(&container, 3);
    let archive = lab.dir("checkpoints").join("main.tar");
    container.checkpoint(&archive).unwrap();
    let files = tar(&["--list"], &archive);
    assert!(files.lines().any(|line| line == "checkpoint/checkpoint.img"), "{files}");
    for container in [&container, &other] {
        until_counted(container, last(container) + 3);
        assert_eq!(container.state(), ContainerState::Running);
    }

    let pod = Pod::run(lab, &cri, case.handler, |_| {});
    let error = refused(&restore(&pod, &archive));
    assert!(error.contains("cannot restore subcontainer"), "{error}");
    assert_eq!(pod.start("next", &["sh", "-c", "exit 4"]).ended().exit_code, 4);
}

/// A container made of an archive, that is still to be started. What it is said to run ends at once, if it is ever run.
fn restore<'a>(pod: &'a Pod, archive: &Path) -> Container<'a> {
    pod.create("main", &["false"], |config| config.image = Some(ImageSpec { image: archive.to_str().unwrap().into() }))
}

/// Why it cannot be started.
fn refused(container: &Container) -> String {
    let error = container.start().unwrap_err();
    let status = container.status();
    assert_eq!((status.state(), status.exit_code, status.reason.as_str()), (ContainerState::Exited, 128, "StartError"));
    error.message
}

fn end(container: &Container) {
    container.stop(0).unwrap();
    assert_eq!(container.ended().exit_code, 137);
}

/// What it has counted so far.
fn counted(container: &Container) -> Vec<u64> {
    container.logged("stdout").lines().map(|line| line.parse().unwrap()).collect()
}

fn last(container: &Container) -> u64 {
    counted(container).last().copied().unwrap_or_default()
}

/// Waits until it has counted so far, and returns how far it is.
fn until_counted(container: &Container, number: u64) -> u64 {
    eventually(&format!("the count of {} at {number}", container.id()), || {
        Some(last(container)).filter(|last| *last >= number)
    })
}

/// What tar says when it is told this of an archive.
fn tar(arguments: &[&str], archive: &Path) -> String {
    let output = Command::new("tar").args(arguments).arg("--file").arg(archive).output().unwrap();
    assert!(output.status.success(), "{output:?}");
    String::from_utf8(output.stdout).unwrap()
}
