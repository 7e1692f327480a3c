#!/bin/sh
# The first process of a guest: makes what a program expects of a machine with cgroup v2, runs the one that it was given,
# says its exit code where the host looks for it, and turns the machine off. The root is the host's own, and read-only.
#
#   guest.sh CHECKOUT uml|qemu ANSWER MODULES COMMAND…
#
# ANSWER is a directory of the host's for user-mode Linux, and a serial line for QEMU.
set -u
export PATH=/usr/sbin:/usr/bin:/sbin:/bin HOME=/root TERM=dumb NO_COLOR=1
unset TMPDIR

checkout=$1 kind=$2 answer=$3 modules=$4
shift 4
busybox="$checkout/target/lab/bookworm/bin/busybox"

mount -t proc proc /proc
mount -t sysfs sysfs /sys
mount -t cgroup2 cgroup2 /sys/fs/cgroup
[ "$kind" = uml ] || mount -t devtmpfs devtmpfs /dev
mkdir -p /dev/pts /dev/shm
mount -t devpts devpts /dev/pts
mount --bind / /mnt
for writable in /dev/shm /run /tmp /root /var/lib; do
    mount -t tmpfs tmpfs "$writable"
done
# It may lie below one of these.
mkdir -p "$checkout"
mount --bind "/mnt$checkout" "$checkout"
if [ "$kind" = uml ]; then
    mkdir /run/answer
    mount -t hostfs hostfs /run/answer -o "$answer"
    answer=/run/answer/code
fi
overlay="$modules/kernel/fs/overlayfs/overlay.ko"
if [ -f "$overlay.xz" ]; then
    "$busybox" xz -dc "$overlay.xz" >/run/overlay.ko
    overlay=/run/overlay.ko
fi
"$busybox" insmod "$overlay"
"$busybox" ip link set lo up
# One by one: what cannot be enabled takes no other with it.
for controller in $(cat /sys/fs/cgroup/cgroup.controllers); do
    echo "+$controller" >/sys/fs/cgroup/cgroup.subtree_control
done

cd "$checkout" || exit
# Read once before anybody has a deadline for it: the shim gives a runsc ten seconds to say its version.
[ "$kind" = uml ] || for suite in bookworm trixie; do
    "target/lab/$suite/usr/bin/runsc" --version >/dev/null
done
"$@"
echo $? >"$answer"
"$busybox" poweroff -f
