# shellcheck shell=bash
# Brings a workspace's files to what was just pushed to refs/agent-vm/in/BRANCH, losing nothing.
# Arguments: key, branch. Prints: outcome NUL detail NUL
set -euo pipefail
key=$1 branch=$2
cd -P "$HOME/.agent-vm/workspaces/$key"
pushed=refs/agent-vm/in/$branch

answer() {
    printf '%s\0%s\0' "$1" "${2-}"
    exit 0
}

head=$(git symbolic-ref --quiet HEAD || echo detached)
[ "$head" = "refs/heads/$branch" ] || answer elsewhere "${head#refs/heads/}"
for state in MERGE_HEAD CHERRY_PICK_HEAD REVERT_HEAD rebase-merge rebase-apply; do
    [ ! -e ".git/$state" ] || answer busy "$state"
done
if git rev-parse --quiet --verify HEAD > /dev/null; then
    if git merge-base --is-ancestor "$pushed" HEAD; then
        [ "$(git rev-parse "$pushed")" = "$(git rev-parse HEAD)" ] && answer current
        answer ahead "$(git rev-list --count "$pushed..HEAD")"
    fi
    git merge-base --is-ancestor HEAD "$pushed" || answer diverged
fi
if said=$(git -c core.hooksPath=/dev/null merge --quiet --ff-only --no-overwrite-ignore "$pushed" 2>&1); then
    answer updated
fi
answer blocked "$said"
