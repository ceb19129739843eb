# shellcheck shell=bash
# Every installed package: where from (apt, npm, python), name, version; each NUL-ended. Read from
# what the package managers keep: to ask each program for its version would take minutes.
set -uo pipefail
shopt -s nullglob
dpkg-query -W -f 'apt\n${Package}\n${Version}\n' | tr '\n' '\0'
manifests=(/usr/local/lib/node_modules/{,@*/}*/package.json)
((${#manifests[@]} == 0)) || jq --raw-output '"npm", .name, .version' "${manifests[@]}" | tr '\n' '\0'
dist_info() { # NAME FOLDER
    local path version
    for path in "$2"/"${1//-/_}"-*.dist-info; do
        version=${path##*/"${1//-/_}"-}
        printf 'python\0%s\0%s\0' "$1" "${version%.dist-info}"
    done
}
for tool in /opt/uv-tools/*/; do
    name=${tool%/} name=${name##*/}
    for folder in "$tool"lib/python3*/site-packages; do
        dist_info "$name" "$folder"
    done
done
for folder in /usr/local/lib/python3*/dist-packages; do
    dist_info uv "$folder"
done
