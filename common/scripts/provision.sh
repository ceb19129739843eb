#!/bin/bash
# Runs as root in the guest, in the folder it was sent to: every stage of `plan` whose stamp is not
# in force yet, some side by side. Argument: "upgrade" to run those again that renew what they have.
# Progress goes to stdout as lines that start with @; what a stage says, to its log.
set -u
folder=$(dirname "$0")
stamps=/var/lib/agent-vm/stamps
logs=/var/log/agent-vm
marker=/etc/agent-environment
mkdir -p "$stamps" "$logs"
exec 9> /var/lib/agent-vm/lock # a run that was cut off on the host may still be at work
if ! flock --nonblock 9; then
    echo @waiting
    flock 9
fi
# Neither the output nor the lock is to stay open for a sleep that outlives this script.
while sleep 20 > /dev/null; do echo "@still $SECONDS"; done 2> /dev/null 9>&- &
ticking=$!
trap 'kill "$ticking"; cd / && rm -rf "$folder"' EXIT
export PROVISION_FOLDER=$folder DEBIAN_FRONTEND=noninteractive LC_ALL=C.UTF-8
# Those of the session may be older than /etc/environment, which the stages read.
unset NPM_CONFIG_REGISTRY UV_DEFAULT_INDEX PIP_INDEX_URL GOPROXY
[ "${1-}" != upgrade ] || export UPGRADE=yes

# All in one line: those of stages that run side by side mix.
failed_stage() {
    printf '@failed %s %.500s\n' "$1" "$(grep -v '^[[:space:]]*$' "$logs/$1.log" | tail -n 1)"
}

run_stage() {
    local name=$1 stamp=$2 flags=$3 began=$SECONDS status=0
    if [ "$(cat "$stamps/$name" 2> /dev/null)" = "$stamp" ] && [[ -z ${UPGRADE-} || $flags != *renews* ]]; then
        echo "@kept $name"
        return
    fi
    rm -f "$marker" "$stamps/$name"
    echo "@start $name"
    bash -euo pipefail "$folder/$name.sh" > "$logs/$name.log" 2>&1 < /dev/null 9>&- || status=$?
    if ((status == 0)) && echo "$stamp" > "$stamps/$name"; then
        echo "@done $name $((SECONDS - began))"
        return
    fi
    failed_stage "$name"
    return $((status ? status : 1))
}

running=()
incomplete=
finish() {
    local child status fatal=
    for child in "${running[@]}"; do
        status=0
        wait "$child" || status=$?
        case $status in
            0) ;;
            3) incomplete=yes ;; # something could not be had, but what builds on the stage works
            *) fatal=yes ;;
        esac
    done
    running=()
    [ -z "$fatal" ] || exit 1
}
while read -r name stamp flags; do
    run_stage "$name" "$stamp" "$flags" &
    running+=($!)
    [[ $flags == *beside* ]] || finish # else the next stage does not wait for this one
done < "$folder/plan"
finish
[ -z "$incomplete" ] || exit 1
echo agent-vm > "$marker"
