#!/bin/sh
# Runs a program under a Linux with cgroup v2 alone that is a process of this machine: Debian's user-mode Linux.
#
#   tests/lab/v2/uml.sh PROGRAM ARGUMENT…
#
# Cargo calls it as its runner (see the Makefile). The guest's root is this machine's own, read-only, so that checkout and
# target/ are where they are; what the guest writes is in its memory. The program's exit code is this script's.
set -eu
cd "$(dirname "$0")/../../.."
. tests/lab/v2/host.sh

readonly KERNEL="$PWD/target/lab/sid"
init uml "$WORK/answer" "$(echo "$KERNEL"/usr/lib/uml/modules/*)" "$@"

# A process namespace ends all of the guest's processes with the first; the guest's memory is a file in TMPDIR.
bounded unshare --mount --pid --fork --kill-child --mount-proc sh -c '
    mount -t tmpfs tmpfs "$TMPDIR"
    "$@" </dev/null || exit' sh \
    env HOME="$TMPDIR" "$KERNEL/usr/bin/linux.uml" mem=1536M seccomp=on \
    root=/dev/root rootfstype=hostfs rootflags=/ ro "init=$WORK/init" \
    con=null con0=fd:0,fd:1 ssl=null quiet loglevel=1 panic=-1
answer
