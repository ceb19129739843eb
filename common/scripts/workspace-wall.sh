# shellcheck shell=bash
# Gives a workspace a guest user of its own, or finds that one. Prints its folder, NUL-ended; none
# where it is there without a wall, and stays so.
# Arguments: user, key, wanted folder, folder to take when that is taken.
# An interrupted run leaves a record, which the next one takes over.
set -euo pipefail
user=$1 key=$2 walls=/usr/local/lib/agent-vm/walls-boot.sh
shift 2
if [ -d "$HOME/.agent-vm/workspaces/$key" ]; then
    printf '\0'
    exit 0
fi
sudo -n test -e "$walls" || {
    echo "walls are not installed in this VM: set walls = true, then run agent-vm provision" >&2
    exit 1
}
record=$HOME/.agent-vm/walled/$user
mkdir -p "${record%/*}" "$HOME/workspace"
exec 9> "$HOME/.agent-vm/lock"
flock 9
if [ -s "$record" ]; then
    { read -r _; read -r folder; } < "$record"
else
    for folder in "$@"; do
        [ -e "$HOME/workspace/$folder" ] || break
        folder=
    done
    [ -n "$folder" ] || {
        echo "taken in ~/workspace of the VM: $*" >&2
        exit 1
    }
    printf '%s\n' "$key" "$folder" > "$record.new"
    mv "$record.new" "$record"
    mkdir "$HOME/workspace/$folder"
fi
sudo -n bash "$walls" "$user" < /dev/null
printf '%s\0' "$folder"
