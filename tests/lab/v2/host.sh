# What uml.sh and qemu.sh have in common: a directory for the run, the guest's first program in it, the deadline, the answer.
# To be sourced in the root of the checkout.

# Seconds after which a guest is taken for hung.
readonly DEADLINE=${LAB_DEADLINE:-600}

readonly WORK="$PWD/target/lab/v2/$$"
export TMPDIR="$WORK/memory"
mkdir -p "$WORK/answer" "$TMPDIR"
trap 'rm -rf "$WORK"' EXIT

# Writes the guest's first program: guest.sh with the kind of guest, where the answer goes, the kernel's modules, and a command.
init() {
    {
        echo '#!/bin/sh'
        for variable in BETA9_SHIM BETA9_LAB_SLOWNESS; do
            eval "value=\${$variable-}"
            [ -z "$value" ] || echo "export $variable=$(quoted "$value")"
        done
        echo "exec $(quoted "$PWD/tests/lab/v2/guest.sh" "$PWD" "$@")"
    } >"$WORK/init"
    chmod +x "$WORK/init"
}

quoted() {
    for word in "$@"; do
        printf "'%s' " "$(printf %s "$word" | sed "s/'/'\\\\''/g")"
    done
}

# Runs the guest, and kills it when its time is over; what it says on its console is all that there is to see of it.
bounded() {
    timeout --signal=KILL "$DEADLINE" "$@" &
    guest=$!
    # An alarm tells timeout that the time is over.
    trap 'kill -ALRM "$guest"; exit 130' INT TERM
    code=0
    wait "$guest" || code=$?
    [ "$code" != 137 ] || echo "$0: the guest was killed after $DEADLINE s; its console is above" >&2
}

# Ends with the code that the program in the guest ended with.
answer() {
    [ -s "$WORK/answer/code" ] || {
        echo "$0: the guest ended without an answer; its console is above" >&2
        exit 1
    }
    exit "$(cat "$WORK/answer/code")"
}
