#!/bin/sh
# A containerd on a node with NVIDIA's driver, as far as a shim looks: in a mount namespace of its own, whose /dev is a copy of
# the host's with an empty /dev/nvidiactl. Its place is its only configuration: `real` links to the program, `dev` is an empty
# directory. Everything is gone with the last process in the namespace.
program=$(readlink -f "$0")
here=${program%/*}
if [ -z "$BETA9_LAB_DEV" ]; then
    BETA9_LAB_DEV=made exec unshare --mount --propagation private "$program" "$@"
fi
unset BETA9_LAB_DEV
set -e
# Without -n there would be notes in /run/mount.
mount -n -t tmpfs -o mode=755 dev "$here/dev"
for entry in /dev/*; do
    if [ -h "$entry" ] || [ -c "$entry" ]; then
        cp -a "$entry" "$here/dev/"
    fi
done
for directory in pts shm; do
    mkdir "$here/dev/$directory"
    mount -n --rbind "/dev/$directory" "$here/dev/$directory"
done
: >"$here/dev/nvidiactl"
mount -n --move "$here/dev" /dev
exec "$here/real" "$@"
