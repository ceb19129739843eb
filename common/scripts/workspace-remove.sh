# shellcheck shell=bash
# Removes workspaces by folder name; files that belong to root (containers leave them) as well.
# Arguments: folders. Prints each that is gone, NUL-ended.
set -euo pipefail
for folder in "$@"; do
    case $folder in '' | . | .. | */*) continue ;; esac
    path=$HOME/workspace/$folder
    key=$(head -n 1 "$path/.git/agent-vm" 2> /dev/null || true)
    chmod -R u+w -- "$path" 2> /dev/null || true
    rm -rf -- "$path" 2> /dev/null || sudo rm -rf -- "$path"
    case $key in *[!0-9a-f]* | '') ;; *) rm -f -- "$HOME/.agent-vm/workspaces/$key" ;; esac
    printf '%s\0' "$folder"
done
