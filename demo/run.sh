#!/bin/bash
# make demo: the shim at work on a real containerd, from the decision to the events, in under two minutes.
#
# Everything happens in namespaces of its own (mounts, pids): a private /run, a private containerd with its own root
# and sockets, Debian's packages unpacked under target/lab. When it ends, by itself or by Ctrl-C, the kernel takes all
# of it away; what lies on disk and in the cgroup trees is removed here.
set -euo pipefail

cd "$(dirname "$0")/.."
readonly LAB="$PWD/target/lab"
readonly SHIM="${BETA9_SHIM:?make demo sets it}"

if [ "${1:-}" != inside ]; then
    [ "$(id -u)" = 0 ] || { echo "demo: it starts containers, so it must be run by root" >&2; exit 1; }
    tests/lab/fetch.sh >/dev/null
    WORK=$(mktemp -d /var/tmp/beta9-demo.XXXXXX)
    clean() {
        rm -rf "$WORK"
        # Parents of the containers' cgroups, which no runtime removes.
        find /sys/fs/cgroup -depth -type d -path "*/beta9-demo*" -exec rmdir {} \; 2>/dev/null || true
    }
    trap clean EXIT
    unshare --mount --pid --fork --kill-child --mount-proc bash "$0" inside "$WORK"
    exit 0
fi

readonly WORK=$2
readonly NODE="$WORK/node.yaml"
mount -t tmpfs tmpfs /run
mkdir -p "$WORK/bin" /run/containerd
ln -s "$SHIM" "$WORK/bin/containerd-shim-beta9-v2"
ln -s "$LAB/trixie/usr/bin/runsc" "$WORK/bin/runsc"
export PATH="$WORK/bin:$LAB/bookworm/usr/bin:$LAB/bookworm/usr/sbin:$PATH"
readonly SOCKET=/run/demo.sock IMAGE=docker.io/library/demo:latest

say() { printf '\n\033[1m== %s\033[0m\n' "$*"; }
ctr() { command ctr --address "$SOCKET" --namespace beta9-demo "$@"; }
# What containerd has published since the last look.
events() {
    sleep 0.3
    echo "-- events from containerd:"
    tail -n "+$((SEEN + 1))" /run/events | awk '/\/tasks\// { sub(/^.* beta9-demo /, "   "); print }'
    SEEN=$(wc -l </run/events)
}
# What the shim logged of its decisions.
decided() {
    echo "-- the shim's log:"
    grep "shim=$1 " /run/containerd.log | grep -E 'msg="(initializing|gVisor runtime|selected|OOM|starting container|create failed)|msg=decided' |
        sed -e 's/^time="[^"]*" /   /' -e "s/ shim=$1 namespace=beta9-demo//" || true
}
explain() { containerd-shim-beta9-v2 explain --config "$NODE" "$@" | sed 's/^/   /'; }

cat >"$NODE" <<'END'
worker:
  defaultPool: standard
  pools:
    standard:
      containerRuntime: runc
    secure:
      containerRuntime: gvisor
      containerRuntimeConfig:
        gvisorPlatform: systrap
shim:
  # A sandbox without CNI has no network device to take over.
  runscFlags: ["--network=none"]
END
sed 's/defaultPool: standard/defaultPool: secure/' "$NODE" >"$WORK/secure.yaml"

cat >"$WORK/config.toml" <<END
version = 2
root = "$WORK/root"
state = "/run/containerd/state"
disabled_plugins = ["io.containerd.internal.v1.opt", "io.containerd.grpc.v1.cri"]
[grpc]
address = "$SOCKET"
[ttrpc]
address = "$SOCKET.ttrpc"
[debug]
level = "debug"
END
say "A private containerd, with Debian's runc and runsc"
containerd --config "$WORK/config.toml" 2>/run/containerd.log &
until ctr version >/dev/null 2>&1; do sleep 0.1; done
containerd --version
runc --version | head -n 1
runsc --version | head -n 1
containerd-shim-beta9-v2 -v
ctr events >/run/events 2>&1 &
SEEN=0

# A small image, made here: no registry is needed.
ROOTFS="$WORK/rootfs" LAYOUT="$WORK/layout"
mkdir -p "$ROOTFS"/{bin,dev,etc,proc,root,sys,tmp} "$LAYOUT/blobs/sha256"
cp "$LAB/bookworm/bin/busybox" "$ROOTFS/bin/"
"$ROOTFS/bin/busybox" --install -s "$ROOTFS/bin" 2>/dev/null || for applet in $("$ROOTFS/bin/busybox" --list); do ln -sf busybox "$ROOTFS/bin/$applet"; done
find "$ROOTFS/bin" -type l -exec ln -sfn busybox {} \;
blob() { # file -> "digest":"…","size":…
    local digest
    digest=$(sha256sum "$1" | cut -d' ' -f1)
    cp "$1" "$LAYOUT/blobs/sha256/$digest"
    printf '"digest":"sha256:%s","size":%s' "$digest" "$(stat -c %s "$1")"
}
tar -C "$ROOTFS" -cf "$WORK/layer.tar" .
LAYER=$(blob "$WORK/layer.tar")
printf '{"architecture":"amd64","os":"linux","config":{"Env":["PATH=/bin"],"Cmd":["sh"]},"rootfs":{"type":"layers","diff_ids":["sha256:%s"]}}' \
    "$(sha256sum "$WORK/layer.tar" | cut -d' ' -f1)" >"$WORK/config.json"
readonly OCI=application/vnd.oci.image
printf '{"schemaVersion":2,"mediaType":"%s.manifest.v1+json","config":{"mediaType":"%s.config.v1+json",%s},"layers":[{"mediaType":"%s.layer.v1.tar",%s}]}' \
    "$OCI" "$OCI" "$(blob "$WORK/config.json")" "$OCI" "$LAYER" >"$WORK/manifest.json"
printf '{"schemaVersion":2,"manifests":[{"mediaType":"%s.manifest.v1+json",%s,"annotations":{"io.containerd.image.name":"%s"}}]}' \
    "$OCI" "$(blob "$WORK/manifest.json")" "$IMAGE" >"$LAYOUT/index.json"
echo '{"imageLayoutVersion":"1.0.0"}' >"$LAYOUT/oci-layout"
tar -C "$LAYOUT" -cf "$WORK/image.tar" .
ctr images import "$WORK/image.tar" >/dev/null

run() { ctr run --runtime io.containerd.beta9.v2 "$@"; }
code() { "$@" && echo "exit code 0" || echo "exit code $?"; }

say "A container in the runc pool: what would be decided, and why"
explain --pool standard
echo "-- its output: the host's kernel"
code run --rm --runtime-config-path "$NODE" "$IMAGE" in-runc sh -c 'cut -d"(" -f1 /proc/version; exit 3'
decided in-runc
events

say "A container in the gVisor pool"
explain --pool secure
echo "-- its output: gVisor's kernel"
code run --rm --runtime-config-path "$WORK/secure.yaml" "$IMAGE" in-gvisor sh -c 'cat /proc/version; dmesg | head -n 3; exit 4'
decided in-gvisor
events

say "An exec in a running container"
run --detach --runtime-config-path "$NODE" "$IMAGE" with-exec sleep 100
code ctr tasks exec --exec-id hello with-exec sh -c 'echo "hello from pid $$"; exit 5'
ctr tasks kill --signal KILL with-exec
until ctr tasks ls | grep -q STOPPED; do sleep 0.1; done
ctr tasks delete with-exec >/dev/null 2>&1 || true
ctr containers delete with-exec
events

say "Out of memory: in runc and in gVisor"
for pool in "runc $NODE" "gvisor $WORK/secure.yaml"; do
    name="oom-${pool% *}"
    code run --rm --memory-limit 67108864 --runtime-config-path "${pool#* }" "$IMAGE" "$name" sh -c 'tail /dev/zero' 2>&1 | grep -v level=
    decided "$name"
done
events

say "A pod that asks to leave gVisor is refused, and nothing is left of it"
explain --pool secure --annotation run.beam.cloud/container-runtime=runc 2>&1 || true
mkdir "$WORK/spec"
(cd "$WORK/spec" && runc spec &&
    sed -i -e 's|"terminal": true|"terminal": false|' -e "s|\"path\": \"rootfs\"|\"path\": \"$ROOTFS\"|" \
        -e 's|"ociVersion"|"annotations": {"run.beam.cloud/container-runtime": "runc"}, "ociVersion"|' config.json)
echo "-- and on containerd:"
code run --rm --runtime-config-path "$WORK/secure.yaml" --config "$WORK/spec/config.json" refused 2>&1 | sed 's/^/   /'
events

say "What is left"
echo "shims: $(pgrep -cf containerd-shim-beta9-v2 || true), sockets: $(find /run/containerd/s -type s | wc -l), mounts of containers: $(grep -c '/rootfs ' /proc/self/mountinfo || true)"
