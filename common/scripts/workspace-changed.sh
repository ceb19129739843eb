# shellcheck shell=bash
# The folders of workspaces in which something was written since a time, NUL-ended.
# Arguments: the time in seconds since 1970, folders.
set -euo pipefail
since=$1
shift
for folder in "$@"; do
    found=$(find "$HOME/workspace/$folder/" -xdev -newerct "@$since" -print -quit 2> /dev/null || true)
    [ -z "$found" ] || printf '%s\0' "$folder"
done
