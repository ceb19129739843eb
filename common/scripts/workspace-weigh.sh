# shellcheck shell=bash
# What each workspace has that its own git does not keep. Arguments: folders.
# Prints for each, NUL-ended: untracked files, their bytes, ignored files, their bytes, commits that
# only repositories inside it have (submodules are such), and files that its git does not look at:
# told so by update-index, or ignored in a submodule. "?" stands for what could not be found out.
set -uo pipefail
export GIT_OPTIONAL_LOCKS=0 # a look writes nothing
list=$(mktemp) part=$(mktemp)
trap 'rm -f "$list" "$part"' EXIT
weigh() { # OPTIONS of git ls-files
    git ls-files -z --others --exclude-standard --directory --no-empty-directory "$@" > "$list" \
        2> /dev/null || return
    if [ -s "$list" ]; then
        found+=("$(total --inodes)" "$(total --apparent-size --block-size=1)")
    else
        found+=(0 0)
    fi
}
total() {
    du --summarize --total "$@" --files0-from="$list" 2> /dev/null | tail -n 1 | cut -f 1
}
commits() { # GIT-DIR, of a repository inside
    local own
    [ -e "$1/objects" ] || return 0 # a HEAD of something else
    own=$(git --git-dir="$1" --work-tree=. rev-list --count --all --not --remotes 2> /dev/null) ||
        return
    commits=$((commits + own))
}
inner() { # FOLDER of a repository inside
    local said
    [ -e "$1/.git" ] || return 0
    [ ! -d "$1/.git" ] || commits "$1/.git" || return
    said=$(git -C "$1" status --porcelain --ignored 2> /dev/null < /dev/null) || return
    while IFS= read -r line; do
        case $line in '!! '*) files=$((files + 1)) ;; esac
    done <<< "$said"
}
unseen() {
    local entry path line commits=0 files=0
    git ls-files -z --stage -v > "$list" 2> /dev/null || return
    grep -z -E '^([a-zS] |. 160000 )' "$list" > "$part" || [ $? = 1 ] || return
    while IFS= read -r -d '' entry; do
        path=${entry#*$'\t'}
        [ -e "$path" ] || continue
        case $entry in ?' 160000 '*) inner "$path" || return ;; *) files=$((files + 1)) ;; esac
    done < "$part"
    : > "$part"
    [ ! -d .git/modules ] || find .git/modules -name HEAD -printf '%h\0' > "$part" || return
    while IFS= read -r -d '' path; do
        commits "$path" || return
    done < "$part"
    found+=("$commits" "$files")
}
for folder in "$@"; do
    found=()
    # Only its own .git counts, not that of a folder above.
    if cd -P "$HOME/workspace/$folder" 2> /dev/null && [ -e .git ] && weigh && weigh --ignored &&
        unseen; then
        printf '%s\0' "${found[@]}"
    elif [ ! -e "$HOME/workspace/$folder" ] && [ ! -L "$HOME/workspace/$folder" ]; then
        printf '0\0000\0000\0000\0000\0000\0' # deleted inside
    else
        printf '?\0?\0?\0?\0?\0?\0'
    fi
done
