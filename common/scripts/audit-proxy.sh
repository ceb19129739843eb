# shellcheck shell=bash
# Asks the proxy for what it must refuse. Arguments: its address and port, requests. Prints the first
# line of each answer, empty where there was none, NUL-ended.
ask() { # ADDRESS PORT REQUEST
    local answer
    exec 3<> "/dev/tcp/$1/$2" || return
    printf '%s HTTP/1.0\r\n\r\n' "$3" >&3
    read -r -t 10 answer <&3
    printf %s "${answer%$'\r'}"
}
address=$1 port=$2
shift 2
for request; do
    printf '%s\0' "$(ask "$address" "$port" "$request" 2> /dev/null | tr -d '\0')"
done
