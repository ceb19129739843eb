# shellcheck shell=bash
# Removes workspaces by folder name; files that belong to root (containers leave them) as well.
# Arguments: folders. Prints each that is gone, NUL-ended.
set -euo pipefail
for folder in "$@"; do
    case $folder in '' | . | .. | */*) continue ;; esac
    path=$HOME/workspace/$folder
    key=$(head -n 1 "$path/.git/agent-vm" 2> /dev/null || true)
    chmod -R u+w -- "$path" 2> /dev/null || true
    # Nothing of what is mounted in it, of which no copy was kept.
    rm -rf --one-file-system -- "$path" 2> /dev/null || sudo rm -rf --one-file-system -- "$path"
    case $key in *[!0-9a-f]* | '') ;; *) rm -f -- "$HOME/.agent-vm/workspaces/$key" ;; esac
    printf '%s\0' "$folder"
done
