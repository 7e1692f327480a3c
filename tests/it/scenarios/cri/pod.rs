//! Pods: what their containers share, how they come and go.

use std::fs;

use super::{Scenario, cri};
use crate::{
    case::RuntimeCase,
    lab::{
        Lab,
        cri::{
            Cri,
            api::{self, ContainerState, NamespaceMode},
            pod::{Exec, Pod},
        },
        eventually,
    },
};

pub const SCENARIOS: &[Scenario] = &[
    LIFE,
    ("the containers of a pod share its shim, network, IPC and host name, and not their processes", shared),
    ("the containers of a pod that says so share their processes", shared_processes),
    ("an init container ends before the others start, and hands them a volume", init_container),
    ("a container of a pod is restarted while another goes on", restart),
    ("containers and pods are removed in every order", removal),
    ("a pod has the host name, DNS configuration and sysctls that its configuration says", configuration),
];

/// What only our shim has: a choice of runtime.
pub const OURS: &[Scenario] = &[("an annotation may move a pod into gVisor, and never out of it", annotation)];

/// Enough to see that a registration works.
pub const BRIEFLY: &[Scenario] = &[LIFE];

const LIFE: Scenario = ("a pod and its container run, say so in status, lists and log, and leave nothing", life);

fn life(lab: &Lab, case: &RuntimeCase) {
    let cri = cri(lab, case);
    let pod = Pod::run(lab, &cri, case.handler, |_| {});
    let status = pod.status();
    assert_eq!((status.id.as_str(), status.runtime_handler.as_str()), (pod.id(), case.handler));
    assert!(pod.is_ready());

    let script = "echo begin; echo wrong >&2; i=0; while [ $i -lt 2000 ]; do i=$((i+1)); echo line $i; done; exit 3";
    let container = pod.create("main", &["sh", "-c", script], |_| {});
    assert_eq!(container.state(), ContainerState::Created);
    container.start().unwrap();
    let status = container.ended();
    assert_eq!((status.exit_code, status.reason.as_str()), (3, "Error"));
    // The start is when containerd heard of it, and the end when it was: of a short life the second may be the earlier.
    assert!(status.created_at <= status.started_at && status.created_at <= status.finished_at, "{status:?}");
    assert_eq!(pod.containers(), [(container.id().to_owned(), ContainerState::Exited)]);
    // Whoever reads the status of an ended container finds all of its log.
    let lines: String = (1..=2000).map(|line| format!("line {line}\n")).collect();
    assert_eq!(container.logged("stdout"), format!("begin\n{lines}"));
    assert_eq!(container.logged("stderr"), "wrong\n");

    let done = pod.start("done", &["true"]).ended();
    assert_eq!((done.exit_code, done.reason.as_str()), (0, "Completed"));

    gone(&cri, &pod);
}

/// Stops and removes a pod, and sees that nothing of it is left.
fn gone(cri: &Cri, pod: &Pod) {
    let containers: Vec<_> = pod.containers().into_iter().map(|(id, _)| id).collect();
    pod.stop().unwrap();
    assert!(!pod.is_ready());
    pod.remove().unwrap();
    assert!(cri.pods().iter().all(|other| other.id != pod.id()));
    eventually("the end of the shim", || cri.daemon().shim(pod.id()).is_none().then_some(()));
    for id in containers.iter().map(String::as_str).chain([pod.id()]) {
        assert!(!cri.daemon().bundle(id).exists(), "a bundle was left");
    }
}

fn shared(lab: &Lab, case: &RuntimeCase) {
    let cri = cri(lab, case);
    let pod = Pod::run(lab, &cri, case.handler, |_| {});
    let (first, second) = (pod.start("first", &["sleep", "1000"]), pod.start("second", &["sleep", "1000"]));
    // One shim for all: the containers have none of their own.
    assert!(cri.daemon().shim(first.id()).is_none() && cri.daemon().shim(second.id()).is_none());
    let _ = pod.shim();

    assert_eq!(first.output(&["hostname"]), second.output(&["hostname"]));
    let serve = first.exec_stream(false, &["sh", "-c", "echo ready; nc -l -p 7000"]);
    serve.until_it_says("ready");
    eventually("a connection over the pod's loopback", || {
        let exec = second.exec(&["sh", "-c", "echo over loopback | nc 127.0.0.1 7000"]);
        (exec.code == 0).then_some(())
    });
    serve.until_it_says("over loopback");
    drop(serve);

    // The one /dev/shm of the pod.
    first.shell("echo shared > /dev/shm/file");
    assert_eq!(second.output(&["cat", "/dev/shm/file"]), "shared\n");

    let processes = second.shell("ps -o pid,args");
    assert!(processes.contains("1 sleep 1000"), "{processes}");
    assert_eq!(processes.matches("sleep 1000").count(), 1, "{processes}");
}

fn shared_processes(lab: &Lab, case: &RuntimeCase) {
    let cri = cri(lab, case);
    let pod = Pod::run(lab, &cri, case.handler, |config| {
        let context = config.linux.as_mut().unwrap().security_context.as_mut().unwrap();
        context.namespace_options.as_mut().unwrap().pid = NamespaceMode::Pod.into();
    });
    let (first, second) = (pod.start("first", &["sleep", "1001"]), pod.start("second", &["sleep", "1002"]));
    for container in [&first, &second] {
        let processes = container.shell("ps -o pid,args");
        for other in ["sleep 1001", "sleep 1002"] {
            assert!(processes.contains(other), "{processes}");
        }
    }
    // One ends without the others, unless it is the namespace's first process; with Debian 12's runsc, `first` is that.
    first.shell("kill -KILL $(ps -o pid,args | awk '/[s]leep 1002/ { print $1 }')");
    assert_eq!(second.ended().exit_code, 137);
    assert_eq!(first.state(), ContainerState::Running);
}

fn init_container(lab: &Lab, case: &RuntimeCase) {
    let cri = cri(lab, case);
    // Where a kubelet keeps a pod's emptyDir.
    let pod = Pod::run(lab, &cri, case.handler, |_| {});
    let volume = format!("/var/lib/kubelet/pods/{}/volumes/kubernetes.io~empty-dir/work", pod.uid());
    fs::create_dir_all(&volume).unwrap();
    let with_volume = |config: &mut api::ContainerConfig| {
        let mount = api::Mount { container_path: "/volume".into(), host_path: volume.clone(), ..api::Mount::default() };
        config.mounts.push(mount);
    };
    let init = pod.start_with("init", &["sh", "-c", "echo made by init > /volume/file; exit 0"], with_volume);
    assert_eq!(init.ended().exit_code, 0);
    let (writer, reader) = (
        pod.start_with("writer", &["sh", "-c", "cat /volume/file; sleep 1000"], with_volume),
        pod.start_with("reader", &["sleep", "1000"], with_volume),
    );
    writer.until_it_says("made by init");
    writer.shell("echo more >> /volume/file");
    assert_eq!(reader.output(&["cat", "/volume/file"]), "made by init\nmore\n");
    drop((init, writer, reader));
    gone(&cri, &pod);
    fs::remove_dir_all(format!("/var/lib/kubelet/pods/{}", pod.uid())).unwrap();
}

fn restart(lab: &Lab, case: &RuntimeCase) {
    let cri = cri(lab, case);
    let pod = Pod::run(lab, &cri, case.handler, |_| {});
    let steady = pod.start("steady", &["sh", "-c", "echo begin; exec sleep 1000"]);
    for attempt in 0..3 {
        let unsteady = pod.start_with("unsteady", &["sh", "-c", "echo attempt; exit 5"], |config| {
            config.metadata.as_mut().unwrap().attempt = attempt;
            config.log_path = format!("unsteady.{attempt}.log");
        });
        assert_eq!(unsteady.ended().exit_code, 5);
        assert_eq!(unsteady.logged("stdout"), "attempt\n");
        // A kubelet keeps the last one until the next has ended.
        if attempt != 1 {
            unsteady.remove().unwrap();
        }
    }
    assert_eq!(steady.state(), ContainerState::Running);
    assert_eq!(steady.output(&["echo", "here"]), "here\n");
    assert_eq!(steady.logged("stdout"), "begin\n");
    assert_eq!(pod.containers().len(), 2);
}

fn removal(lab: &Lab, case: &RuntimeCase) {
    let cri = cri(lab, case);
    // Container before pod, each stopped first.
    let pod = Pod::run(lab, &cri, case.handler, |_| {});
    let created = pod.create("created", &["sleep", "1000"], |_| {});
    let running = pod.start("running", &["sleep", "1000"]);
    created.remove().unwrap();
    running.stop(0).unwrap();
    running.remove().unwrap();
    assert_eq!(pod.containers(), []);
    // The containers are gone for those who ask again.
    running.remove().unwrap();
    gone(&cri, &pod);

    // A running container is killed by its removal; the pod's stop ends those that run, and those that never ran.
    let pod = Pod::run(lab, &cri, case.handler, |_| {});
    let killed = pod.start("killed", &["sleep", "1000"]);
    killed.remove().unwrap();
    let (created, running) = (pod.create("created", &["true"], |_| {}), pod.start("running", &["sleep", "1000"]));
    pod.stop().unwrap();
    assert_eq!((running.state(), running.status().exit_code), (ContainerState::Exited, 137));
    running.remove().unwrap();
    created.remove().unwrap();
    gone(&cri, &pod);

    // The pod's removal takes its containers along, and needs no stop before.
    let pod = Pod::run(lab, &cri, case.handler, |_| {});
    let _running = pod.start("running", &["sleep", "1000"]);
    let _created = pod.create("created", &["true"], |_| {});
    pod.remove().unwrap();
    pod.remove().unwrap();
    eventually("the end of the shim", || cri.daemon().shim(pod.id()).is_none().then_some(()));
}

fn configuration(lab: &Lab, case: &RuntimeCase) {
    let cri = cri(lab, case);
    let pod = Pod::run(lab, &cri, case.handler, |config| {
        config.hostname = "named".into();
        config.dns_config = Some(api::DnsConfig {
            servers: vec!["192.0.2.53".into()],
            searches: vec!["lab.example".into()],
            options: vec!["ndots:3".into()],
        });
        config.linux.as_mut().unwrap().sysctls.insert("net.ipv4.ip_local_port_range".into(), "2000 3000".into());
    });
    let container = pod.start_with("main", &["sleep", "1000"], |config| {
        config.envs.push(api::KeyValue { key: "GREETING".into(), value: "hello there".into() });
        config.working_dir = "/tmp".into();
    });
    assert_eq!(container.output(&["hostname"]), "named\n");
    assert_eq!(container.shell("echo $GREETING; pwd"), "hello there\n/tmp\n");
    let dns = container.output(&["cat", "/etc/resolv.conf"]);
    assert_eq!(dns, "search lab.example\nnameserver 192.0.2.53\noptions ndots:3\n");
    // gVisor has the sysctl file, and its own value in it.
    if case.is_runc() {
        assert_eq!(container.output(&["cat", "/proc/sys/net/ipv4/ip_local_port_range"]), "2000\t3000\n");
    }
}

fn annotation(lab: &Lab, case: &RuntimeCase) {
    const RUNTIME: &str = "run.beam.cloud/container-runtime";
    let cri = cri(lab, case);
    let run = |runtime: &str| {
        Pod::try_run(lab, &cri, case.handler, |config| {
            config.annotations.insert(RUNTIME.into(), runtime.into());
        })
    };
    let kernel = |pod: &Pod| {
        let Exec { stdout, .. } = pod.start("kernel", &["sleep", "1000"]).exec(&["cat", "/proc/version"]);
        stdout
    };
    let host = fs::read_to_string("/proc/version").unwrap();
    assert_ne!(kernel(&run("gvisor").unwrap()), host);
    match run("runc") {
        Ok(pod) => {
            assert!(case.is_runc(), "a pod of a gVisor pool ran with runc");
            assert_eq!(kernel(&pod), host);
        }
        Err(error) => {
            assert!(!case.is_runc(), "{error}");
            assert!(error.message.contains(&format!("annotation {RUNTIME}")), "{error}");
        }
    }
}
