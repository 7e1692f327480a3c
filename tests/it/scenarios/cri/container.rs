//! Containers of a pod: their ends, limits, statistics and rights.

use std::time::{Duration, Instant};

use super::{Scenario, cri};
use crate::{
    case::RuntimeCase,
    lab::{
        Lab,
        cri::{
            api::{self, ContainerState},
            config::PTRACE,
            pod::Pod,
        },
    },
};

pub const SCENARIOS: &[Scenario] = &[
    ("a container ends at SIGTERM, and is killed at its timeout when it ignores that", stop),
    ("a container without its program is an error that says so, and its pod goes on", no_program),
    ("a container that runs out of memory is reported as OOMKilled", out_of_memory),
    ("statistics tell a container's and a pod's processor time, memory and processes", statistics),
    ("limits of a container are changed while it runs", update),
    ("a container has the user, groups, capabilities and root file system that its security context says", security),
];

fn stop(lab: &Lab, case: &RuntimeCase) {
    let cri = cri(lab, case);
    let pod = Pod::run(lab, &cri, case.handler, |_| {});
    let polite =
        pod.start("polite", &["sh", "-c", "trap 'echo bye; exit 9' TERM; echo ready; while :; do sleep 0.05; done"]);
    polite.until_it_says("ready");
    polite.stop(30).unwrap();
    assert_eq!(polite.ended().exit_code, 9);
    assert_eq!(polite.logged("stdout"), "ready\nbye\n");

    let deaf = pod.start("deaf", &["sh", "-c", "trap '' TERM; echo ready; while :; do sleep 0.05; done"]);
    deaf.until_it_says("ready");
    let begin = Instant::now();
    deaf.stop(1).unwrap();
    assert!(begin.elapsed() >= Duration::from_secs(1), "killed before its time was over");
    assert_eq!(deaf.ended().exit_code, 137);
    // Who is stopped already stays so.
    deaf.stop(1).unwrap();
    assert!(pod.is_ready());
}

fn no_program(lab: &Lab, case: &RuntimeCase) {
    let cri = cri(lab, case);
    let pod = Pod::run(lab, &cri, case.handler, |_| {});
    let container = pod.create("absent", &["/bin/absent"], |_| {});
    let error = container.start().unwrap_err();
    assert!(error.message.contains("/bin/absent"), "{error}");
    let status = container.status();
    assert_eq!((status.state(), status.exit_code, status.reason.as_str()), (ContainerState::Exited, 128, "StartError"));
    container.remove().unwrap();
    assert_eq!(pod.start("next", &["sh", "-c", "exit 4"]).ended().exit_code, 4);
}

fn out_of_memory(lab: &Lab, case: &RuntimeCase) {
    let cri = cri(lab, case);
    let pod = Pod::run(lab, &cri, case.handler, |_| {});
    // gVisor's containers have the pod's limit together; their sandbox needs some of it for itself.
    let limit = if case.is_runc() { 24 << 20 } else { 200 << 20 };
    pod.cgroup().limit_memory(limit.try_into().unwrap());
    let bystander = pod.start("bystander", &["sleep", "1000"]);
    let container = pod.start_with("greedy", &["dd", "if=/dev/zero", "of=/dev/null", "bs=1G"], |config| {
        config.linux.as_mut().unwrap().resources.as_mut().unwrap().memory_limit_in_bytes = limit;
    });
    let status = container.ended();
    assert_eq!(status.exit_code, 137, "{status:?}");
    // Go's shim may tell of the kill after the exit, when it is too late for the reason.
    if case.ours {
        assert_eq!(status.reason, "OOMKilled", "{status:?}");
    }
    if case.is_runc() {
        assert_eq!(bystander.state(), ContainerState::Running);
    } else {
        // The kernel kills the sandbox, and so all that is in it.
        assert_eq!(bystander.ended().exit_code, 137);
    }
}

fn statistics(lab: &Lab, case: &RuntimeCase) {
    let cri = cri(lab, case);
    let pod = Pod::run(lab, &cri, case.handler, |_| {});
    let container =
        pod.start("busy", &["sh", "-c", "i=0; while [ $i -lt 20000 ]; do i=$((i+1)); done; echo done; sleep 1000"]);
    container.until_it_says("done");
    let used = |stats: &api::ContainerStats| {
        let cpu = stats.cpu.as_ref().and_then(|cpu| cpu.usage_core_nano_seconds).map_or(0, |value| value.value);
        let memory = stats.memory.as_ref().and_then(|memory| memory.working_set_bytes).map_or(0, |value| value.value);
        (cpu, memory)
    };
    let (cpu, memory) = used(&container.stats());
    assert!(cpu > 1_000_000, "{cpu} ns of processor time");
    assert!(memory > 4096, "{memory} bytes of memory");

    let stats = pod.stats();
    let ids: Vec<_> = stats.containers.iter().map(|stats| stats.attributes.as_ref().unwrap().id.as_str()).collect();
    assert_eq!(ids, [container.id()]);
    assert!(used(&stats.containers[0]).0 >= cpu);
    let whole = stats.cpu.as_ref().and_then(|cpu| cpu.usage_core_nano_seconds).map_or(0, |value| value.value);
    assert!(whole > 0, "{stats:?}");
    let interface = stats.network.as_ref().and_then(|network| network.default_interface.as_ref()).unwrap();
    assert_eq!(interface.name, "eth0");

    let list: api::ListContainerStatsResponse = cri
        .call(
            "ListContainerStats",
            &api::ListContainerStatsRequest {
                filter: Some(api::ContainerStatsFilter { pod_sandbox_id: pod.id().into() }),
            },
        )
        .unwrap();
    assert_eq!(list.stats.len(), 1);
    let list: api::ListPodSandboxStatsResponse = cri
        .call(
            "ListPodSandboxStats",
            &api::ListPodSandboxStatsRequest { filter: Some(api::PodSandboxStatsFilter { id: pod.id().into() }) },
        )
        .unwrap();
    assert_eq!(list.stats.len(), 1);
}

fn update(lab: &Lab, case: &RuntimeCase) {
    let cri = cri(lab, case);
    let pod = Pod::run(lab, &cri, case.handler, |_| {});
    let container = pod.start("main", &["sleep", "1000"]);
    let updated = container.update(api::LinuxContainerResources {
        memory_limit_in_bytes: 64 << 20,
        cpu_quota: 50_000,
        cpu_period: 100_000,
        ..api::LinuxContainerResources::default()
    });
    if case.is_runc() {
        updated.unwrap();
        let limit = pod.cgroup().read(container.id(), &["memory.limit_in_bytes", "memory.max"]);
        assert_eq!(limit, (64 << 20).to_string());
    } else {
        // Debian's versions of runsc have no `update`.
        let error = updated.unwrap_err();
        assert!(error.message.contains("update"), "{error}");
    }
    assert_eq!(container.output(&["echo", "here"]), "here\n");
}

fn security(lab: &Lab, case: &RuntimeCase) {
    let cri = cri(lab, case);
    let pod = Pod::run(lab, &cri, case.handler, |_| {});
    let with = |name: &str, change: &dyn Fn(&mut api::LinuxContainerSecurityContext)| {
        pod.start_with(name, &["sleep", "1000"], |config| {
            change(config.linux.as_mut().unwrap().security_context.as_mut().unwrap());
        })
    };
    let user = with("user", &|context| {
        context.run_as_user = Some(api::Int64Value { value: 1234 });
        context.run_as_group = Some(api::Int64Value { value: 2345 });
        context.supplemental_groups = vec![3456];
        context.no_new_privs = true;
    });
    assert_eq!(user.shell("id -u; id -g; id -G"), "1234\n2345\n2345 3456\n");
    // Debian 12's runsc leaves a user's program root's capabilities.
    if case.handler != PTRACE {
        assert_ne!(user.exec(&["touch", "/file"]).code, 0);
    }
    user.shell("touch /tmp/file");

    let readonly = with("readonly", &|context| context.readonly_rootfs = true);
    assert_ne!(readonly.exec(&["touch", "/file"]).code, 0);
    readonly.shell("touch /dev/shm/file");

    // CAP_CHOWN is bit 0, and among the usual ones; CAP_NET_ADMIN is bit 12, and not.
    let effective = |mask: &str| u64::from_str_radix(mask.trim(), 16).unwrap();
    let of = |container: &crate::lab::cri::pod::Container| {
        effective(&container.shell("grep CapEff /proc/1/status | cut -f 2"))
    };
    assert_eq!(of(&readonly) & 0x1001, 1);
    let changed = with("capable", &|context| {
        context.capabilities = Some(api::Capability {
            add_capabilities: vec!["NET_ADMIN".into()],
            drop_capabilities: vec!["CHOWN".into()],
        });
    });
    assert_eq!(of(&changed) & 0x1001, 0x1000);
    drop((user, readonly, changed));

    // Debian 12's runsc does not know every capability that containerd does.
    if case.handler == PTRACE {
        return;
    }
    let pod = Pod::run(lab, &cri, case.handler, |config| {
        config.linux.as_mut().unwrap().security_context.as_mut().unwrap().privileged = true;
    });
    let privileged = pod.start_with("privileged", &["sleep", "1000"], |config| {
        config.linux.as_mut().unwrap().security_context.as_mut().unwrap().privileged = true;
    });
    let all = of(&privileged);
    assert_eq!(all & 0x20_1001, 0x20_1001, "CAP_SYS_ADMIN and others: {all:x}");
}
