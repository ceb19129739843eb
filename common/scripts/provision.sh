#!/bin/bash
# Runs as root in the guest, in the folder it was sent to: every stage of `plan` whose stamp is not
# in force yet, some side by side. Progress goes to stdout as lines that start with @; what a stage says, to its log.
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

run_stage() {
    local name=$1 stamp=$2 began=$SECONDS
    if [ "$(cat "$stamps/$name" 2> /dev/null)" = "$stamp" ]; then
        echo "@kept $name"
        return
    fi
    rm -f "$marker"
    echo "@start $name"
    if ! bash -euo pipefail "$folder/$name.sh" > "$logs/$name.log" 2>&1 < /dev/null 9>&-; then
        printf '@failed %s\n%s\n' "$name" "$(grep -v '^[[:space:]]*$' "$logs/$name.log" | tail -n 3)"
        return 1
    fi
    echo "$stamp" > "$stamps/$name"
    echo "@done $name $((SECONDS - began))"
}

running=()
finish() {
    local child failed=
    for child in "${running[@]}"; do
        wait "$child" || failed=yes
    done
    running=()
    [ -z "$failed" ] || exit 1
}
while read -r name stamp beside; do
    run_stage "$name" "$stamp" &
    running+=($!)
    [ -n "$beside" ] || finish # else the next stage does not wait for this one
done < "$folder/plan"
finish
echo agent-vm > "$marker"
