# shellcheck shell=bash
# What a workspace holds besides the commits on its branch.
# Arguments: key, branch, and the commits that the host has seen, if any.
# Prints NUL-ended: found, uncommitted, untracked, stashes, then pairs of another branch's
# name and its count of commits that neither the host nor the branch has. "missing" for none.
set -euo pipefail
export GIT_OPTIONAL_LOCKS=0 # a look writes nothing
key=$1 branch=$2
shift 2
cd -P "$HOME/.agent-vm/workspaces/$key" 2> /dev/null || {
    printf 'missing\0'
    exit 0
}
{ [ -e .git/index ] || ! read -r _ ref < .git/HEAD || [ -e ".git/$ref" ] || [ -e .git/packed-refs ]; } 2> /dev/null || {
    printf 'missing\0' # what made it was cut off before there was a first commit
    exit 0
}
[ -e .git ] || {
    echo "workspace/${PWD##*/} has lost its .git in the VM: save its files, then clean it" >&2
    exit 1
}
own=refs/heads/$branch
elsewhere() {
    git rev-list --count --ignore-missing "$@" --not --glob=refs/agent-vm/ "$own" "${known[@]}"
}
known=("$@")

# What the agent has set for its own git must not hide anything.
exec {state}< <(git status --porcelain=v2 --branch --show-stash --untracked-files=normal \
    --ignore-submodules=none 2>&1 && echo whole)
all=$(elsewhere --exclude=refs/stash --all)
head='(unknown)' uncommitted=0 untracked=0 stashes=0 line=''
while IFS= read -r line; do
    case $line in
        '# branch.head '*) head=${line#'# branch.head '} ;;
        '# stash '*) stashes=${line#'# stash '} ;;
        '#'*) ;;
        '? '*) untracked=$((untracked + 1)) ;;
        [12u]' '*) uncommitted=$((uncommitted + 1)) ;;
        *) break ;; # the end, an error, or a warning of a folder that cannot be read
    esac
done <&"$state"
[ "$line" = whole ] || {
    echo "${line:-git status was ended}" >&2
    exit 1
}

others=()
if [ "$all" != 0 ]; then
    while IFS= read -r ref; do
        count=$(elsewhere "$ref")
        [ "$count" = 0 ] || others+=("${ref#refs/heads/}" "$count")
    done < <(
        git for-each-ref --format='%(refname)' refs/heads
        [ "$head" != '(detached)' ] || echo HEAD
    )
fi
printf '%s\0' found "$uncommitted" "$untracked" "$stashes" "${others[@]}"
