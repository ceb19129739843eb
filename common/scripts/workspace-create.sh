# shellcheck shell=bash
# Makes the workspace of one branch of one repository, or finds it. Prints: made|found NUL folder NUL
# Arguments: key, wanted folder, folder to take when another repository has that one, repository name,
# branch, object format, origin URL (may be empty).
# An interrupted run leaves a folder that the next one, by its key, takes over.
set -euo pipefail
key=$1 wanted=$2 other=$3 name=$4 branch=$5 format=$6 origin=$7
index=$HOME/.agent-vm/workspaces
mkdir -p "$index" "$HOME/workspace"

exec 9> "$HOME/.agent-vm/lock"
flock 9

if [ -e "$HOME/.agent-vm/walled/ws-${key:0:12}" ]; then
    printf 'walled\0\0'
    exit 0
fi
if [ -d "$index/$key" ]; then
    folder=$(readlink "$index/$key")
    if ! git --git-dir="$index/$key/.git" rev-parse 2> /dev/null; then
        echo "workspace/${folder##*/} has lost its .git in the VM, or that is broken:" \
            "save its files, then clean it" >&2
        exit 1
    fi
    printf 'found\0%s\0' "${folder##*/}"
    exit 0
fi

for folder in "$wanted" "$other"; do
    path=$HOME/workspace/$folder
    [ -e "$path" ] || break
    [ "$(head -n 1 "$path/.git/agent-vm" 2> /dev/null)" != "$key" ] || break
    path=
done
if [ -z "$path" ]; then
    echo "both ~/workspace/$wanted and ~/workspace/$other are taken inside the VM" >&2
    exit 1
fi

# A workspace that was deleted inside leaves its link, which would lead into this one.
find "$index" -lname "../../workspace/$folder" -delete
if [ ! -e "$path" ]; then
    new=$(mktemp -d "$HOME/.agent-vm/new.XXXXXX")
    chmod 755 "$new"
    git -C "$new" init --quiet --object-format="$format"
    git -C "$new" symbolic-ref HEAD "refs/heads/$branch"
    printf '%s\n' "$key" "$name" "$branch" > "$new/.git/agent-vm"
    git -C "$new" config receive.shallowUpdate true
    git -C "$new" config receive.autoGc false # the agent's own commands tidy up
    [ -z "$origin" ] || git -C "$new" remote add origin "$origin"
    mv -T "$new" "$path"
fi
ln -sfnT "../../workspace/$folder" "$index/$key"
printf 'made\0%s\0' "$folder"
