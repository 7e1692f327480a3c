#!/bin/sh
# Debian's runsc on a kernel that is newer than it. It takes a network namespace for the host's own, and refuses it, if it sees
# rmem_default in /proc/sys/net/core, which Linux since 6.11 shows in every one; gVisor since 20240807 looks elsewhere. Its
# `start`, which looks, sees none here. (Below /proc/sys/net every namespace has directories of its own to mount over.)
#
#   real    beside this file: the runsc that stands behind it
set -eu
real="$(dirname "$0")/real"
case " $* " in
*" start "*) exec unshare --mount sh -c 'mount -t tmpfs none /proc/sys/net && exec "$@"' sh "$real" "$@" ;;
*) exec "$real" "$@" ;;
esac
