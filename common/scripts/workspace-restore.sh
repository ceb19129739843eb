# shellcheck shell=bash
# Unpacks a workspace that workspace-save.sh packed, from stdin. Prints its folder, or "taken" where
# there is one of that key or folder, NUL-ended.
# Arguments: key (may be empty: it had lost its .git), folder.
set -euo pipefail
key=$1 folder=$2
index=$HOME/.agent-vm/workspaces
mkdir -p "$index" "$HOME/workspace"
exec 9> "$HOME/.agent-vm/lock"
flock 9
path=$HOME/workspace/$folder
if [ -e "$path" ] || { [ -n "$key" ] && [ -e "$index/$key" ]; }; then
    printf 'taken\0'
    exit 0
fi
new=$(mktemp -d "$HOME/.agent-vm/new.XXXXXX")
trap 'rm -rf "$new"' EXIT
said=$(tar --extract --file=- --directory="$new" 2>&1) || {
    printf '%s\n' "${said%%$'\n'*}" >&2
    exit 1
}
chmod 755 "$new"
case $folder in
    *[*?[\\]*) ;; # a pattern: no workspace of ours has such a name
    *) find "$index" -lname "../../workspace/$folder" -delete ;; # of one that was deleted inside
esac
mv -T "$new" "$path"
[ -z "$key" ] || ln -sfnT "../../workspace/$folder" "$index/$key"
printf '%s\0' "$folder"
