# shellcheck shell=bash
# How much of each workspace git does not keep. Arguments: folders.
# Prints for each, NUL-ended: untracked files, their bytes, ignored files, their bytes. "?" four times
# where git cannot tell.
set -uo pipefail
list=$(mktemp)
trap 'rm -f "$list"' EXIT
weigh() { # OPTIONS of git ls-files
    git ls-files -z --others --exclude-standard --directory --no-empty-directory "$@" > "$list" \
        2> /dev/null || return
    if [ -s "$list" ]; then
        printf '%s\0' "$(total --inodes)" "$(total --apparent-size --block-size=1)"
    else
        printf '0\0000\0'
    fi
}
total() {
    du --summarize --total "$@" --files0-from="$list" 2> /dev/null | tail -n 1 | cut -f 1
}
for folder in "$@"; do
    # Only its own .git counts, not that of a folder above.
    if cd -P "$HOME/workspace/$folder" 2> /dev/null && [ -e .git ] && weigh && weigh --ignored; then
        continue
    fi
    printf '?\0?\0?\0?\0'
done
