# shellcheck shell=bash
# Brings a workspace's files to what was just pushed to refs/agent-vm/in/BRANCH, losing nothing.
# Arguments: key, branch. Prints: outcome NUL detail NUL, and "new" NUL where there was nothing yet.
# The usual case is one git: starting a program costs 40 ms in an emulated guest.
set -euo pipefail
key=$1 branch=$2
cd -P "$HOME/.agent-vm/workspaces/$key"
pushed=refs/agent-vm/in/$branch new=
exec 9> "$HOME/.agent-vm/lock"
flock 9

answer() {
    printf '%s\0%s\0%s\0' "$1" "${2-}" "$new"
    exit 0
}

# Removes what git has written before it failed, as on a full disk: it would be in the way. A file
# goes only where it is no more than the beginning of what was pushed.
take_back() {
    local before=HEAD
    [ -z "$new" ] || before=$(git hash-object -t tree /dev/null)
    git diff --name-only -z --no-renames "$before" "$pushed" | while IFS= read -r -d '' file; do
        [ ! -f "$file" ] || [ -L "$file" ] ||
            ! cmp -s -n "$(stat -c %s -- "$file")" -- "$file" \
                <(git cat-file blob "$pushed:$file" 2> /dev/null) || rm -f -- "$file"
        [ -e "$file" ] || git checkout --quiet HEAD -- "$file" 2> /dev/null || true
    done
}

for state in MERGE_HEAD CHERRY_PICK_HEAD REVERT_HEAD BISECT_LOG sequencer rebase-merge rebase-apply; do
    [ ! -e ".git/$state" ] || answer busy "$state"
done
for lock in index HEAD "refs/heads/$branch"; do
    [ ! -e ".git/$lock.lock" ] || answer locked ".git/$lock.lock"
done
read -r head < .git/HEAD || head=
if [ "$head" != "ref: refs/heads/$branch" ]; then # not so, or in another form
    head=$(git symbolic-ref --quiet HEAD || git rev-parse --quiet --verify HEAD || head -c 300 .git/HEAD)
    [ "$head" = "refs/heads/$branch" ] || answer elsewhere "${head#refs/heads/}"
fi
# Without a branch, but with an index it is no new workspace.
[ -e .git/index ] || [ -e ".git/refs/heads/$branch" ] || new=new
[ -e ".git/refs/heads/$branch" ] || [ -n "$new" ] ||
    git rev-parse --quiet --verify HEAD > /dev/null || answer gone
# 9>&-: what git leaves running must not keep the lock.
if said=$(git -c core.hooksPath=/dev/null -c gc.auto=0 -c maintenance.auto=false merge --ff-only \
    --no-autostash --no-verify-signatures --no-overwrite-ignore --no-stat "$pushed" 2>&1 9>&-); then
    [[ $said == 'Already up to date.'* ]] || answer updated
    ahead=$(git rev-list --count "$pushed..HEAD")
    [ "$ahead" != 0 ] || answer current
    answer ahead "$ahead"
fi
git merge-base --is-ancestor HEAD "$pushed" 2> /dev/null || [ $? != 1 ] || answer diverged
files=$(sed -n 's/^\t//p' <<< "$said")
[ -z "$files" ] || answer blocked "$files"
case $said in *'unable to write file '* | *'unable to create file '*) take_back ;; esac
answer refused "$said"
