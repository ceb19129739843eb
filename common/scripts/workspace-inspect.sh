# shellcheck shell=bash
# What a workspace holds that the host may not have.
# Arguments: key, branch, commit that the host has just fetched (or empty: nothing new).
# Prints NUL-ended: found, head, uncommitted, untracked, stashes, unfetched commits, then pairs of
# another branch's name and its count of unfetched commits. Prints "missing" when there is none.
set -euo pipefail
key=$1 branch=$2 fetched=$3
cd -P "$HOME/.agent-vm/workspaces/$key" 2> /dev/null || {
    printf 'missing\0'
    exit 0
}
if [ -n "$fetched" ]; then
    git update-ref "refs/agent-vm/out/$branch" "$fetched"
fi
head=$(git symbolic-ref --quiet --short HEAD || echo '(detached)')
uncommitted=0 untracked=0
while IFS= read -r -d '' entry; do
    case $entry in
        '?? '*) untracked=$((untracked + 1)) ;;
        ?? | ' '*) ;;
        *) uncommitted=$((uncommitted + 1)) ;;
    esac
done < <(git status --porcelain=v1 -z --no-renames)
stashes=$(git rev-list --walk-reflogs --count refs/stash 2> /dev/null || echo 0)
unfetched() { git rev-list --count "$1" --not --glob=refs/agent-vm/; }
own=0
if git rev-parse --quiet --verify "refs/heads/$branch" > /dev/null; then
    own=$(unfetched "refs/heads/$branch")
fi
printf 'found\0%s\0%s\0%s\0%s\0%s\0' "$head" "$uncommitted" "$untracked" "$stashes" "$own"
while IFS= read -r ref; do
    [ "$ref" != "refs/heads/$branch" ] || continue
    count=$(unfetched "$ref")
    [ "$count" = 0 ] || printf '%s\0%s\0' "${ref#refs/heads/}" "$count"
done < <(git for-each-ref --format='%(refname)' refs/heads)
