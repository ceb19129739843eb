# shellcheck shell=bash
# Removes workspaces by folder name; files that belong to root (containers leave them) as well.
# Arguments: folders. Prints each that is gone, NUL-ended. Where something is mounted in one, of which
# no copy was kept, none is removed: rm takes a bind mount for the same file system.
set -euo pipefail
folders=()
for folder in "$@"; do
    case $folder in '' | . | .. | */*) continue ;; esac
    folders+=("$folder")
    path=$(realpath -m -- "$HOME/workspace/$folder")
    if P=$path awk 'index($5, ENVIRON["P"] "/") == 1 { found = 1 } END { exit !found }' /proc/self/mountinfo; then
        echo "something is mounted in workspace/$folder: unmount it inside (findmnt shows it)" >&2
        exit 1
    fi
done
for folder in "${folders[@]}"; do
    path=$HOME/workspace/$folder
    key=$(head -n 1 "$path/.git/agent-vm" 2> /dev/null || true)
    chmod -R u+w -- "$path" 2> /dev/null || true
    rm -rf --one-file-system -- "$path" 2> /dev/null ||
        sudo -n rm -rf --one-file-system -- "$path" 2> /dev/null ||
        unshare --map-root-user --map-auto rm -rf --one-file-system -- "$path"
    case $key in *[!0-9a-f]* | '') ;; *) rm -f -- "$HOME/.agent-vm/workspaces/$key" ;; esac
    printf '%s\0' "$folder"
done
