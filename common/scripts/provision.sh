#!/bin/bash
# Runs as root in the guest, in the folder it was sent to: every stage of `plan` whose stamp is not
# in force yet. Progress goes to stdout as lines that start with @; what a stage says, to its log.
set -u
folder=$(dirname "$0")
stamps=/var/lib/agent-vm/stamps
logs=/var/log/agent-vm
marker=/etc/agent-environment
mkdir -p "$stamps" "$logs"
exec 9> /var/lib/agent-vm/lock # a run that was cut off on the host may still be at work
flock 9
trap 'cd / && rm -rf "$folder"' EXIT
export PROVISION_FOLDER=$folder DEBIAN_FRONTEND=noninteractive LC_ALL=C.UTF-8

run_stage() {
    local name=$1 stamp=$2 began=$SECONDS
    if [ "$(cat "$stamps/$name" 2> /dev/null)" = "$stamp" ]; then
        echo "@kept $name"
        return
    fi
    rm -f "$marker"
    echo "@start $name"
    if ! bash -euo pipefail "$folder/$name.sh" > "$logs/$name.log" 2>&1 < /dev/null; then
        echo "@failed $name"
        grep -v '^[[:space:]]*$' "$logs/$name.log" | tail -n 3
        exit 1
    fi
    echo "$stamp" > "$stamps/$name"
    echo "@done $name $((SECONDS - began))"
}

while read -r name stamp; do
    run_stage "$name" "$stamp"
done < "$folder/plan"
echo agent-vm > "$marker"
