# shellcheck shell=bash
# A row for every workspace: folder, key, repository, branch, commits not fetched, changed files,
# untracked files, stashes; each NUL-ended. "?" stands for what could not be found out.
# Arguments: KEY=COMMIT for what the host has fetched. One `git status` and one `git rev-list` a
# workspace, all side by side: a program costs 40 ms to start in an emulated guest.
set -uo pipefail
shopt -s nullglob
declare -A fetched
for pair in "$@"; do
    fetched[${pair%%=*}]=${pair#*=}
done
row() {
    local key='' repository='' branch='' changed=0 untracked=0 stashes=0 line unfetched
    local folder=${1%/}
    cd -P "$1" || return
    { read -r key; read -r repository; read -r branch; } 2> /dev/null < .git/agent-vm
    local known=${fetched[${key:-none}]-}
    exec {counted}< <(git rev-list --count --ignore-missing --exclude=refs/stash --all \
        --not --glob=refs/agent-vm/ ${known:+"$known"} 2> /dev/null)
    while IFS= read -r line; do
        case $line in
            '# stash '*) stashes=${line#'# stash '} ;;
            '#'*) ;;
            '? '*) untracked=$((untracked + 1)) ;;
            '') ;;
            *) changed=$((changed + 1)) ;;
        esac
    done < <(git status --porcelain=v2 --show-stash 2> /dev/null || echo '# stash ?')
    read -r unfetched <&"$counted" || unfetched='?'
    [ "$stashes" != '?' ] || changed='?' untracked='?'
    printf '%s\0%s\0%s\0%s\0%s\0%s\0%s\0%s\0' "${folder##*/}" "$key" "$repository" "$branch" \
        "$unfetched" "$changed" "$untracked" "$stashes"
}
rows=()
for path in "$HOME"/workspace/*/; do
    exec {row}< <(row "$path")
    rows+=("$row")
done
# Printed by one process: rows that are written at once could mix where a name has a line break.
for row in "${rows[@]}"; do
    while IFS= read -r -d '' field; do
        printf '%s\0' "$field"
    done <&"$row"
done
