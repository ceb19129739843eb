# shellcheck shell=bash
# Puts home files in place and remembers what it put there. Arguments: folder with the files, mode.
#   new      only what is not there
#   refresh  also what nobody has changed since it was put there
#   force    everything; what somebody changed is copied to ~/.agent-vm/home-before/TIME first
# Prints pairs, NUL-ended: outcome (new, same, updated, kept, replaced) and path.
set -euo pipefail
source=$1 mode=$2
record=$HOME/.agent-vm/home-files
before=$HOME/.agent-vm/home-before/$(date +%Y%m%d-%H%M%S)
mkdir -p "$HOME/.agent-vm"
touch "$record"
[ "$mode" = new ] || touch "$HOME/.agent-vm/used" # a disk with somebody's files is not kept

hashes() { # NAME PATH…: the array NAME gets the hash of each file that is there
    local -n into=$1
    local line
    shift
    while IFS= read -r -d '' line; do
        # shellcheck disable=SC2034  # the caller's array
        into[${line:66}]=${line:0:64}
    done < <(sha256sum --zero -- "$@" 2> /dev/null)
}
declare -A wanted have put
cd "$source"
mapfile -d '' files < <(find . -type f -printf '%P\0' | sort -z)
hashes wanted "${files[@]}"
cd "$HOME"
hashes have "${files[@]}"
while IFS= read -r -d '' line; do put[${line:66}]=${line:0:64}; done < "$record"

outcome_of() {
    if [ ! -e "$1" ] && [ ! -L "$1" ] && [[ -z ${put[$1]-} || $mode = force ]]; then
        echo new
    elif [ "${have[$1]-}" = "${wanted[$1]}" ]; then
        echo same
    elif [ "$mode" = new ] || [ -d "$1" ]; then
        echo kept
    elif [ "${have[$1]-}" = "${put[$1]-none}" ]; then
        echo updated
    elif [ "$mode" = force ]; then
        echo replaced
    else
        echo kept
    fi
}
for path in "${files[@]}"; do
    outcome=$(outcome_of "$path")
    case $outcome in
        replaced)
            mkdir -p "$before/$(dirname -- "$path")"
            cp --no-dereference --preserve=all -- "$path" "$before/$path"
            ;;&
        new | updated | replaced)
            mkdir -p -- "$(dirname -- "$path")"
            cp --remove-destination --preserve=mode -- "$source/$path" "$path"
            ;;&
        new | updated | replaced | same) put[$path]=${wanted[$path]} ;;
    esac
    printf '%s\0%s\0' "$outcome" "$path"
done
for path in "${!put[@]}"; do printf '%s  %s\0' "${put[$path]}" "$path"; done > "$record.new"
mv "$record.new" "$record"
