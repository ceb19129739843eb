# shellcheck shell=bash
# Tries from inside what the VM must not be able to do, and prepares what the host tries then.
# Arguments: a canary, a path of the host, a port of the host's loopback where the canary is had, a
# port to listen on, the key of the workspace to be made. Input: a line of each key, to look for.
# Prints NAME=VALUE, NUL-ended.
set -uo pipefail
canary=$1 file=$2 port=$3 listen=$4 key=$5
keys=$(cat)
say() { printf '%s=%s\0' "$1" "$2"; }
search() { printf '%s\n' "$keys" | timeout 15 sudo -n grep -rslaFf - -- "$@" 2> /dev/null; }

say mounts "$(awk '$0 ~ / - (9p|virtiofs|fuse\.sshfs) / { print $5 }' /proc/self/mountinfo)"
say agent "${SSH_AUTH_SOCK-}${DISPLAY-}"
say accounts "$(cut -d: -f1,3 /etc/passwd)"
say names "$(
    hostname
    getent passwd "$(id -u)" | awk -F: '{ print $1; print $5; print $6 }'
    cat /etc/timezone 2> /dev/null
    readlink -f /etc/localtime | sed 's/.*zoneinfo.//'
    sudo -n sed 's/^[^=]*=//' /mnt/lima-cidata/lima.env 2> /dev/null
)"
say sizes "$(nproc) $(awk '/^MemTotal:/ { print int($2 / 1024) }' /proc/meminfo) $(
    cat /sys/block/*/size 2> /dev/null | sort -n | awk 'END { print int($1 / 2048) }'
)"
if [ -n "$keys" ] && sudo -n true 2> /dev/null; then
    shopt -s nullglob
    say keys "$(search /proc/[0-9]*/cmdline
        search "$HOME"/.*history "$HOME"/.local/share/*/*history* /root/.*history \
            /etc /var/log /var/lib/cloud /mnt/lima-cidata)"
fi

folder=$HOME/workspace/.agent-vm-audit
rm -rf "$folder"
mkdir -p "$folder" "$HOME/.agent-vm/workspaces"

# What shall not be had on the host; it is there already when it is asked at the end.
setsid timeout 120 python3 -c '
import socket, sys, threading
def udp(family, address):
    with socket.socket(family, socket.SOCK_DGRAM) as server:
        server.bind((address, int(sys.argv[1])))
        while True:
            server.sendto(b"guest", server.recvfrom(10)[1])
threading.Thread(target=udp, args=(socket.AF_INET, "0.0.0.0"), daemon=True).start()
with socket.create_server(("", int(sys.argv[1]))) as server:
    while True:
        server.accept()[0].sendall(b"guest")
' "$listen" > /dev/null 2>&1 < /dev/null &
echo $! > "$folder/listener"
heard() { # tcp|udp: says so where it answers
    local said
    (
        exec 3<> "/dev/$1/127.0.0.1/$listen"
        [ "$1" = tcp ] || printf '?' >&3
        read -r -N 5 -t 2 said <&3
        [ "$said" != guest ] || printf '%s ' "$1"
    )
}

# Each way at once, as those that are closed may be silent; who answers for names is asked for ".".
tried=$(timeout 12 python3 - "$canary" "$port" << 'PYTHON'
import socket, subprocess, sys, threading
canary, port = sys.argv[1].encode(), int(sys.argv[2])
def gateways(family):
    words = subprocess.run(["ip", family, "route"], capture_output=True, text=True).stdout
    for line in words.splitlines():
        parts = line.split()
        if parts[:2] == ["default", "via"]:
            yield parts[2] + ("%" + parts[4] if parts[2].startswith("fe80") else "")
def tcp(address):
    try:
        with socket.create_connection((address, port), 3) as to:
            if to.recv(100).startswith(canary):
                print("reached", address, flush=True)
    except OSError:
        pass
def udp(address):
    try:
        where = socket.getaddrinfo(address, port, type=socket.SOCK_DGRAM)[0]
        socket.socket(where[0], socket.SOCK_DGRAM).sendto(canary, where[4])
    except OSError:
        pass
def names(address):
    try:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as to:
            to.settimeout(3)
            to.sendto(b"\1\2\1\0\0\1" + bytes(6) + b"\0\0\2\0\1", (address, 53))
            if to.recv(4096)[:2] == b"\1\2":
                print("names", address, flush=True)
    except OSError:
        pass
ways = {"192.168.5.2", "192.168.5.3", "fec0::2", "fec0::3", "::ffff:192.168.5.2",
        *gateways("-4"), *gateways("-6")}
tries = [(tcp, way) for way in ways] + [(udp, way) for way in ways]
tries += [(names, "192.168.5.2"), (names, "192.168.5.3")]
ended = []
def attempt(call, way):
    call(way)
    ended.append(way)
threads = [threading.Thread(target=attempt, args=each) for each in tries]
for each in threads:
    each.start()
for each in threads:
    each.join()
if len(ended) == len(tries):
    print("tried all")
PYTHON
)
say reached "$(awk '$1 == "reached" { print $2 }' <<< "$tried")"
say tried "$(awk '$1 == "tried" { print $2 }' <<< "$tried")"
say names_answered "$(awk '$1 == "names" { print $2 }' <<< "$tried")"

ln -s "$file" "$folder/link"
git init -q "$folder/repository"
git init -q "$folder/workspace"
git -C "$folder/workspace" symbolic-ref HEAD refs/heads/audit
ln -sfnT "../../workspace/.agent-vm-audit/workspace" "$HOME/.agent-vm/workspaces/$key"
for _ in {1..50}; do
    listens=$(heard tcp 2> /dev/null; heard udp 2> /dev/null)
    [ "$listens" != 'tcp udp ' ] || break
    sleep 0.1
done
say listens "${listens% }"
say 'done' yes
