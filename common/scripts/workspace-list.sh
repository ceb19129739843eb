# shellcheck shell=bash
# The time, then a row for every workspace: folder, key, repository, branch, commits that the host
# does not have, changed files, untracked files, stashes, and of those commits what is not on the
# workspace's own branch, as lines of count and branch; each NUL-ended. "?" stands for what could not be found out.
# Arguments: KEY=COMMIT for what the host has. One `git status` and one `git rev-list` a workspace,
# all side by side: a program costs 40 ms to start in an emulated guest.
set -uo pipefail
export GIT_OPTIONAL_LOCKS=0 # a look writes nothing
shopt -s nullglob
printf '%s\0' "${EPOCHREALTIME/,/.}"
declare -A had
for pair in "$@"; do
    had[${pair%%=*}]+=" ${pair#*=}"
done
row() {
    local key='' repository='' branch='' changed=0 untracked=0 stashes=0 unknown=yes line unfetched
    local folder=${1%/} head='' known others=''
    cd -P "$1" || return
    { read -r key; read -r repository; read -r branch; } 2> /dev/null < .git/agent-vm
    read -r -a known <<< "${had[${key:-none}]-}"
    exec {counted}< <(git rev-list --count --ignore-missing --exclude=refs/stash --all \
        --not "${known[@]}" 2> /dev/null)
    while IFS= read -r line; do
        case $line in
            '# stash '*) stashes=${line#'# stash '} ;;
            '#'* | '') ;;
            '? '*) untracked=$((untracked + 1)) ;;
            [12u]' '*) changed=$((changed + 1)) ;;
            whole) unknown='' ;;
            *) break ;; # an error, or a warning of a folder that cannot be read
        esac
        # What the agent has set for its own git must not hide anything.
    done < <(git status --porcelain=v2 --show-stash --untracked-files=normal \
        --ignore-submodules=none 2>&1 && echo whole)
    read -r unfetched <&"$counted" || unfetched='?'
    [ -z "$unknown" ] || changed='?' untracked='?' stashes='?'
    case $unfetched in 0 | '?') ;; *) others=$(elsewhere) ;; esac
    printf '%s\0%s\0%s\0%s\0%s\0%s\0%s\0%s\0%s\0' "${folder##*/}" "$key" "$repository" "$branch" \
        "$unfetched" "$changed" "$untracked" "$stashes" "$others"
}
elsewhere() {
    local ref count
    read -r head 2> /dev/null < .git/HEAD
    while IFS= read -r ref; do
        count=$(git rev-list --count --ignore-missing "$ref" --not "refs/heads/$branch" \
            "${known[@]}" 2> /dev/null)
        [ "${count:-0}" = 0 ] || printf '%s %s\n' "$count" "${ref#refs/heads/}"
    done < <(
        git for-each-ref --format='%(refname)' refs/heads 2> /dev/null
        [[ $head == 'ref: '* ]] || echo HEAD
    )
}
declare -A walled # by folder, the key: git is run there by their own users only
for record in "$HOME"/.agent-vm/walled/ws-*; do
    { read -r key; read -r folder; } < "$record"
    walled[$folder]=$key
done
paths=("$HOME"/workspace/*/)
rows=()
for path in "${paths[@]}"; do
    folder=${path%/} folder=${folder##*/}
    if [ -n "${walled[$folder]-}" ]; then
        exec {row}< <(printf '%s\0' "$folder" "${walled[$folder]}" '' '' walled '?' '?' '?' '')
    else
        exec {row}< <(row "$path")
    fi
    rows+=("$row")
done
# Printed by one process: rows that are written at once could mix where a name has a line break.
for at in "${!rows[@]}"; do
    mapfile -d '' -t fields <&"${rows[at]}"
    if [ "${#fields[@]}" != 9 ]; then # what looked at it was ended, or could not get in
        folder=${paths[at]%/}
        fields=("${folder##*/}" '' '' '' '?' '?' '?' '?' '')
    fi
    printf '%s\0' "${fields[@]}"
done
