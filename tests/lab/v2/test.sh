#!/bin/sh
# Tests on real cgroup v2, whatever this machine's own mode is: unit tests of the cgroup room and a choice of the scenarios,
# with runc in user-mode Linux, with runsc on a machine that QEMU emulates.
set -eu
cd "$(dirname "$0")/../../.."

machine=$(uname -m)
[ "$machine" = x86_64 ] || {
    echo "skipped: tests on cgroup v2, as there are no guests for $machine"
    exit 0
}

# Scenarios, one a line, as one filter of the integration tests. Go's shim is the measure where it has no chance to fail: on one
# processor it often loses an OOM kill that ends the container.
choice() {
    paste -sd '|' -
}

# Runs `cargo test` with the guest that $1 boots around the test program.
within() {
    guest="$PWD/tests/lab/v2/$1"
    shift
    env "CARGO_TARGET_X86_64_UNKNOWN_LINUX_GNU_RUNNER=$guest" "${CARGO:-cargo}" test --quiet "$@"
}

tests/lab/fetch.sh sid/user-mode-linux trixie/linux-image-cloud-amd64 trixie/virtiofsd trixie/qemu-system-x86
echo "cgroup v2, user-mode Linux:"
within uml.sh --lib -- cgroup::
within uml.sh --test it -- --format pretty "$(
    choice <<END
runc::*a container's exit code is
runc::containerd-1.6::an exec has its own exit code
runc::containerd-1.6::a paused container stands still
runc::containerd-1.6::a container that is killed while it is paused
runc::containerd-1.6::metrics tell
beta9::runc::*statistics are those of Go's shim
runc::containerd-1.6::processes are listed
beta9::runc::containerd-1.6::processes in cgroups that the container made
beta9::runc::containerd-1.6::a container that runs out of memory
beta9::runc::containerd-1.6::a container that is killed as a group
runc::containerd-1.6::an OOM kill in a cgroup that the container made
beta9::runc::containerd-1.6::a shim goes with its last container
beta9::runc::containerd-1.6::a container whose shim is killed
END
)"
echo "cgroup v2, QEMU:"
within qemu.sh --test it -- --format pretty "$(
    choice <<END
beta9::gvisor-systrap::containerd-1.6::metrics tell
beta9::gvisor-systrap::containerd-1.6::a container that runs out of memory
beta9::gvisor-systrap::containerd-1.6::in a pod that runs out of memory
END
)"
