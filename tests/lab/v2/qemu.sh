#!/bin/sh
# Runs a program under a Linux with cgroup v2 alone on a machine that QEMU emulates, instruction by instruction: slow, and with
# the whole address space that runsc needs and user-mode Linux has not.
#
#   tests/lab/v2/qemu.sh PROGRAM ARGUMENT…
#
# As with uml.sh, the root is this machine's own, read-only; here virtiofsd hands it over.
set -eu
cd "$(dirname "$0")/../../.."
. tests/lab/v2/host.sh
export BETA9_LAB_SLOWNESS=10

readonly SUITE="$PWD/target/lab/trixie"
version=$(cd "$SUITE/usr/lib/modules" && echo *-cloud-amd64)
init qemu /dev/ttyS1 "$SUITE/usr/lib/modules/$version" "$@"

# The guest's memory must be virtiofsd's as well. A process namespace ends both programs with their shell.
bounded unshare --pid --fork --kill-child --mount-proc sh -c '
    "$1/usr/libexec/virtiofsd" --log-level error --socket-path "$2/root" --shared-dir / --readonly --sandbox none \
        --cache always --inode-file-handles=never &
    until [ -S "$2/root" ]; do kill -0 $! || exit; done
    shift 2
    "$@" || exit' sh "$SUITE" "$WORK" \
    "$SUITE/usr/bin/qemu-system-x86_64" -L "$SUITE/usr/share/qemu" -L "$SUITE/usr/share/seabios" \
    -nodefaults -no-user-config -machine q35 -accel tcg -cpu max,la57=off -smp 1 -m 2048 \
    -object memory-backend-memfd,id=memory,size=2048M,share=on -numa node,memdev=memory \
    -chardev "socket,id=root,path=$WORK/root" -device vhost-user-fs-pci,chardev=root,tag=root \
    -display none -nic none -serial stdio -serial "file:$WORK/answer/code" -no-reboot \
    -kernel "$SUITE/boot/vmlinuz-$version" \
    -append "console=ttyS0 panic=-1 quiet loglevel=1 root=root rootfstype=virtiofs ro init=$WORK/init"
answer
