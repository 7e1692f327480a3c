#!/bin/sh
# Unpacks the Debian packages that the tests run against under target/lab/<suite>/, and changes nothing else on the machine.
#
#   tests/lab/fetch.sh                             what `make test` needs
#   tests/lab/fetch.sh trixie/crun sid/criu        these as well, whichever suite they are from
#
# The archive's address is the one in the machine's own apt sources; lists, cache and package state are private to target/lab.
# What is there already is not fetched again: sid floats, so a run keeps what it began with. `rm -r target/lab` starts anew.
set -eu

readonly USUAL="bookworm/containerd bookworm/runc bookworm/runsc bookworm/busybox-static bookworm/containernetworking-plugins
trixie/containerd trixie/runc trixie/runsc trixie/criu trixie/crun trixie/docker.io trixie/docker-cli trixie/tini sid/containerd sid/runc"
readonly TRIES=4
readonly LIBRARIES="$(uname -m)-linux-gnu"

cd "$(dirname "$0")/../.."
readonly LAB="$PWD/target/lab"

die() {
    echo "fetch: $*" >&2
    exit 1
}

# The archive that serves this machine's own Debian release, whatever mirror that is.
archive() {
    release=$(. /etc/os-release && echo "${VERSION_CODENAME:-}")
    mkdir -p "$LAB/.apt/none/partial"
    apt-get indextargets --no-release-info -o Dir::State::Lists="$LAB/.apt/none" \
        --format '$(RELEASE) $(COMPONENT) $(REPO_URI)' 'Created-By: Packages' |
        awk -v release="$release" '$2 == "main" && ($1 == release || $1 == "stable" || $1 == "testing" || $1 == "unstable") { print $3; exit }'
}

# apt for one suite, with every place it reads or writes under target/lab/.apt/<suite>.
apt() {
    suite=$1
    state="$LAB/.apt/$suite"
    shift
    DEBIAN_FRONTEND=noninteractive apt-get -qq \
        -o Dir::Etc::SourceList="$state/sources.list" -o Dir::Etc::SourceParts=/dev/null \
        -o Dir::Etc::Preferences=/dev/null -o Dir::Etc::PreferencesParts=/dev/null \
        -o Dir::State="$state" -o Dir::State::Lists="$state/lists" -o Dir::State::status="$state/status" \
        -o Dir::Cache="$state/cache" -o APT::Sandbox::User=root \
        -o Acquire::Retries=3 -o Acquire::Languages=none -o Acquire::http::Timeout=30 "$@"
}

# The suite's package lists; apt-get exits 0 when it could not get them, unless told that any error counts.
update() {
    suite=$1
    state="$LAB/.apt/$suite"
    uri=$(archive)
    [ -n "$uri" ] || die "no Debian archive among this machine's apt sources (apt-get indextargets lists them)"
    mkdir -p "$state/lists/partial" "$state/cache/archives/partial"
    : >"$state/status"
    keyring=/usr/share/keyrings/debian-archive-keyring.gpg
    [ -r "$keyring" ] && signed="[signed-by=$keyring]" || signed=
    echo "deb $signed $uri $suite main" >"$state/sources.list"
    apt "$suite" -o APT::Update::Error-Mode=any update
}

# Runs a command up to TRIES times, each failure followed by a longer pause.
persist() {
    try=1
    until "$@"; do
        [ "$try" -lt "$TRIES" ] || return 1
        sleep "$((try * try))"
        try=$((try + 1))
    done
}

# The packages' files, downloaded into a folder of their own. Stale lists are the usual reason for a refusal, so the next try renews them.
download() {
    suite=$1 into=$2
    shift 2
    current="$LAB/.apt/$suite/current"
    if [ ! -e "$current" ]; then
        update "$suite" || return 1
        touch "$current"
    fi
    (cd "$into" && apt "$suite" download $(printf "%s/$suite " "$@")) && return 0
    rm -f "$current"
    return 1
}

# Packages that are fit for use as they are, all with one download: apt thinks long about each.
unpack_together() {
    suite=$1
    into="$LAB/.apt/$suite/together"
    shift
    rm -rf "$into"
    mkdir -p "$into" "$LAB/$suite/.fetched"
    persist download "$suite" "$into" "$@" || die "could not download $* of $suite after $TRIES tries; apt's messages are above"
    for deb in "$into"/*.deb; do
        dpkg-deb -x "$deb" "$LAB/$suite" || die "damaged: $deb of $suite"
        dpkg-deb -f "$deb" Version >"$LAB/$suite/.fetched/$(dpkg-deb -f "$deb" Package)"
    done
    rm -rf "$into"
}

# The stamp is the last thing written: what was cut off in the middle is done again.
unpack() {
    suite=$1 package=$2
    stamp="$LAB/$suite/.fetched/$package"
    if [ ! -s "$stamp" ]; then
        into="$LAB/.apt/$suite/$package"
        rm -rf "$into"
        mkdir -p "$into" "$LAB/$suite/.fetched"
        persist download "$suite" "$into" "$package" || die "could not download $package of $suite after $TRIES tries; apt's messages are above"
        deb=$(echo "$into"/*.deb)
        dpkg-deb -x "$deb" "$LAB/$suite" || die "$package of $suite is damaged: $deb"
        version=$(dpkg-deb -f "$deb" Version)
        rm -rf "$into"
        (adapt "$suite" "$package")
        echo "$version" >"$stamp"
    fi
    echo "$suite/$package $(cat "$stamp")"
}

# What a package needs from its own suite in order to run on this release: nothing if it is static or its libc's symbols are old enough.
adapt() {
    case "$1/$2" in
    trixie/criu)
        # bookworm's 3.17 does not know the vDSO of kernels since 6.13.
        for library in libbsd0 libmd0 libgnutls30t64 libp11-kit0 libffi8 libidn2-0 libunistring5 libtasn1-6 libnettle8t64 \
            libhogweed6t64 libgmp10 libnftables1 libnftnl11 libmnl0 libxtables12 libjansson4 libnl-3-200 libprotobuf-c1 \
            libnet1 libuuid1 libc6; do
            (unpack trixie "$library") >&2
        done
        own_libraries trixie usr/sbin/criu
        # Its usual way to lock a network is iptables, a program of the host's; nftables is one of its libraries.
        real="$LAB/trixie/usr/sbin/criu.real"
        mv "$LAB/trixie/usr/sbin/criu" "$real"
        echo "network-lock nftables" >"$real.conf"
        printf '#!/bin/sh\nCRIU_CONFIG_FILE=%s.conf exec %s "$@"\n' "$real" "$real" >"$LAB/trixie/usr/sbin/criu"
        chmod +x "$LAB/trixie/usr/sbin/criu"
        ;;
    bookworm/crun)
        for library in libyajl2 patchelf; do
            (unpack bookworm "$library") >&2
        done
        patchelf --force-rpath --set-rpath "$LAB/bookworm/usr/lib/$LIBRARIES" "$LAB/bookworm/usr/bin/crun"
        ;;
    trixie/runc | sid/runc | trixie/crun | sid/crun)
        case "$1/$2" in
        trixie/crun) libraries="libc6 libseccomp2 libyajl2" ;;
        sid/crun) libraries="libc6 libseccomp2 libblake3-0 libjson-c5" ;;
        *) libraries="libc6 libseccomp2" ;;
        esac
        for library in $libraries; do
            (unpack "$1" "$library") >&2
        done
        own_libraries "$1" "usr/sbin/$2" "usr/bin/$2"
        ;;
    sid/user-mode-linux)
        (unpack sid libc6) >&2
        own_libraries sid usr/bin/linux.uml
        ;;
    trixie/qemu-system-x86 | trixie/virtiofsd)
        (unpack_together "$1" $(dependencies "$1" "$2" '^(lib|zlib1g$|seabios$|qemu-system-data$)'))
        own_libraries "$1" usr/bin/qemu-system-x86_64 usr/libexec/virtiofsd
        ;;
    trixie/linux-image-cloud-amd64)
        (unpack "$1" "$(dependencies "$1" "$2" '^linux-image-[0-9]')") >&2
        ;;
    esac
}

# The packages that apt would install with this one on an empty machine, as far as their names match.
dependencies() {
    apt "$1" --simulate --no-install-recommends install "$2" | awk -v wanted="$3" '$1 == "Inst" && $2 ~ wanted { print $2 }'
}

# Makes these programs of a suite, as far as they are there, use the suite's libraries and loader.
own_libraries() {
    root="$LAB/$1"
    shift
    (unpack bookworm patchelf) >&2
    loader=$(find "$root" -path "*$LIBRARIES/ld-linux*" | head -n 1)
    [ -n "$loader" ] || die "libc6 of $root holds no loader"
    for program in "$@"; do
        [ ! -f "$root/$program" ] || patchelf --set-interpreter "$loader" --force-rpath --set-rpath "${loader%/*}" "$root/$program"
    done
}

patchelf() {
    "$LAB/bookworm/usr/bin/patchelf" "$@" || die "patchelf $* failed"
}

mkdir -p "$LAB/.apt"
exec 9>"$LAB/.apt/lock"
flock 9
for item in $USUAL "$@"; do
    case "$item" in
    */*) unpack "${item%%/*}" "${item#*/}" ;;
    *) die "expected SUITE/PACKAGE, got '$item'" ;;
    esac
done
