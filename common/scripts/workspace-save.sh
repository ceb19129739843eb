# shellcheck shell=bash
# Sends a workspace on stdout before it is deleted: a tar of its folder with all that git has in it,
# then a last line that shows it is whole. Root packs, as containers leave files of root.
# Arguments: folder, then what to leave out, each being too large: untracked, ignored.
set -euo pipefail
export GIT_OPTIONAL_LOCKS=0 # a look writes nothing
folder=$1
shift
[ ! -L "$HOME/workspace/$folder" ] || {
    echo "workspace/$folder is a link in the VM, to $(readlink "$HOME/workspace/$folder")" >&2
    exit 1
}
cd -P "$HOME/workspace/$folder"
left=$(mktemp)
trap 'rm -f "$left"' EXIT
for what in "$@"; do
    options=()
    [ "$what" != ignored ] || options=(--ignored)
    git ls-files -z --others --exclude-standard --directory "${options[@]}"
done | tr '\0' '\n' | sed 's|^|./|; s|/$||' > "$left"
as_root=(sudo -n)
# Behind a wall: what containers of that user leave.
"${as_root[@]}" true 2> /dev/null || as_root=(unshare --map-root-user --map-auto)
"${as_root[@]}" true 2> /dev/null || as_root=()
# 1: a file changed while it was read, which an agent at work may do.
"${as_root[@]}" tar --create --file=- --sparse --one-file-system --no-wildcards --anchored --exclude-from="$left" . ||
    [ $? = 1 ]
echo agent-vm: whole
