#!/bin/sh
# A runtime for tests. It writes its arguments to a file of its own in calls/ (each ended by a NUL; the names sort by time),
# and beside that its working directory, named likewise with `.cwd`, and for create the config.json that it found, with `.json`; then does what the file `behaviour` beside it says, and what is not forbidden there is done by the program that `real` links to.
# Its place is its only configuration, because a shim may clear the environment. The lines of `behaviour`:
#
#   drop PATTERN            remove global flags that match, for a real one that does not know them
#   clear-devices           remove linux.devices from the config.json of a create, for a real one that cannot make them
#   SUBCOMMAND hang         never answer
#   SUBCOMMAND slow SECONDS answer late
#   SUBCOMMAND garbage      print what is no JSON and succeed
#   SUBCOMMAND fail TEXT    write TEXT as an error to the log (--log) and to standard error, and fail
#   SUBCOMMAND crash        die of SIGKILL
#   SUBCOMMAND kill-after   let the real one do its work, kill the process that it made, and wait until that is reaped
#
# `any` stands for every subcommand. `crash-after` and `hang-after` let the real one do its work first.
program=$(readlink -f "$0")
here=${program%/*}

call="$here/calls/$(date +%s%N).$$"
# Renamed into its place, so that nobody reads half a call. Names count up: `sort` is the order of the calls.
printf '%s\0' "$@" >"$call.part"
pwd >"${call%.*}-$$.cwd"
mv "$call.part" "${call%.*}-$$"

subcommand= log= bundle= pid_file= previous=
for argument in "$@"; do
    case "$previous" in
    --log | -log) log=$argument ;;
    esac
    previous=$argument
    case "$argument" in
    --log=* | -log=*) log=${argument#*=} ;;
    checkpoint | create | delete | events | exec | features | flags | kill | list | pause | ps | restore | resume | run | spec | start | state | update | wait | --version)
        subcommand=$argument
        break
        ;;
    esac
done

if [ "$subcommand" = create ]; then
    for argument in "$@"; do
        [ "$previous" != --bundle ] || bundle=$argument
        [ "$previous" != --pid-file ] || pid_file=$argument
        previous=$argument
    done
    [ -z "$bundle" ] || cp "$bundle/config.json" "${call%.*}-$$.json"
fi

# The words after the subcommand's own, or after `any`'s, of the line that applies.
behaviour=
if [ -f "$here/behaviour" ]; then
    while read -r whom what; do
        case "$whom" in
        drop)
            count=$#
            while [ "$count" -gt 0 ]; do
                argument=$1
                shift
                # shellcheck disable=SC2254 # a pattern is meant
                case "$argument" in
                $what) ;;
                *) set -- "$@" "$argument" ;;
                esac
                count=$((count - 1))
            done
            ;;
        clear-devices)
            # The only list of objects with a path that has this name; resources.devices have none.
            [ -z "$bundle" ] || sed -i 's/"devices":\[{[^]]*"path"[^]]*\]/"devices":[]/' "$bundle/config.json"
            ;;
        "$subcommand" | any) behaviour=$what ;;
        esac
    done <"$here/behaviour"
fi

case "$behaviour" in
hang) exec sleep 1000000 ;;
slow\ *) sleep "${behaviour#slow }" ;;
garbage)
    echo '}{ not JSON \'
    exit 0
    ;;
fail\ *)
    echo "${behaviour#fail }" >&2
    [ -z "$log" ] || echo "{\"level\":\"error\",\"msg\":\"${behaviour#fail }\"}" >>"$log"
    exit 1
    ;;
crash) kill -KILL $$ ;;
*-after)
    "$here/real" "$@" || exit
    case "$behaviour" in
    crash-after) kill -KILL $$ ;;
    hang-after) exec sleep 1000000 ;;
    kill-after)
        pid=$(cat "$pid_file")
        kill -KILL "$pid"
        while [ -d "/proc/$pid" ]; do sleep 0.05; done
        exit 0
        ;;
    esac
    ;;
esac
exec "$here/real" "$@"
