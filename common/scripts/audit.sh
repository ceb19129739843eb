# shellcheck shell=bash
# Tries from inside what the VM must not be able to do, and prepares what the host tries then.
# Arguments: a path of the host, a program's file there, a TCP port of the host's loopback where a
# canary is, a port to listen on. Prints NAME=VALUE, NUL-ended.
set -uo pipefail
canary=$1 trap=$2 port=$3 listen=$4
say() { printf '%s=%s\0' "$1" "$2"; }

say mounts "$(awk '$0 ~ / - (9p|virtiofs|fuse\.sshfs) / { print $5 }' /proc/self/mountinfo)"
say agent "${SSH_AUTH_SOCK-}${DISPLAY-}"
say names "$(hostname) $(id -un) $(getent passwd "$(id -u)" | cut -d: -f5,6) $(cat /etc/timezone 2> /dev/null)"
for address in 192.168.5.2 192.168.5.3 fec0::2 "$(ip -6 route show default 2> /dev/null | awk '{ print $3 "%" $5; exit }')"; do
    said=$(timeout 2 bash -c "head -c 100 < /dev/tcp/$address/$port" 2> /dev/null)
    [ -z "$said" ] || say reached "$address $said"
done

folder=$HOME/workspace/.agent-vm-audit
rm -rf "$folder"
mkdir -p "$folder"
ln -s "$canary" "$folder/link"
git init -q "$folder/repository"
git -C "$folder/repository" config core.fsmonitor "$trap"
setsid timeout 15 python3 -c '
import socket, sys
with socket.create_server(("", int(sys.argv[1]))) as server:
    while True:
        server.accept()[0].sendall(b"guest")
' "$listen" > /dev/null 2>&1 < /dev/null &
say done yes
