# shellcheck shell=bash
# Runs as root in the guest: clears what no copy of the disk may have, holds the file system still
# while the host copies it, and puts things back. Prints "frozen" with STAGE:STAMP for each stage in
# force, and waits for a line on stdin. Prints "used" and does nothing when somebody has worked here.
set -euo pipefail
if [ "$(cat /etc/agent-environment 2> /dev/null)" != agent-vm ]; then
    echo "this is not a provisioned VM" >&2
    exit 1
fi
if [ -n "$(ls -A /home/agent/workspace 2> /dev/null)" ] || [ -e /home/agent/.bash_history ] \
    || [ -e /home/agent/.agent-vm/used ]; then
    echo used
    exit
fi
kept=/run/agent-vm/kept.tar
umask 077
keys=(/etc/ssh/ssh_host_*)
apt-get clean
rm -rf /var/lib/apt/lists/* /root/.cache /root/.npm /home/agent/.cache /home/agent/.npm
rm -f /var/lib/systemd/random-seed /var/lib/cloud/seed/* 2> /dev/null || true
journalctl --quiet --rotate --vacuum-size=1K 2> /dev/null || true
find /var/log -type f -not -path '/var/log/journal/*' -exec truncate -s 0 {} +
tar -C / -cf "$kept" etc/machine-id home/agent/.ssh/authorized_keys \
    "${keys[@]#/}"
trap 'tar -C / -xpf "$kept"' EXIT
: > /etc/machine-id
ln -sfT /etc/machine-id /var/lib/dbus/machine-id
rm -f /etc/ssh/ssh_host_* /home/agent/.ssh/authorized_keys
rm -rf /var/lib/cloud/instances/*/ # each boot is a new instance to cloud-init
fstrim / # the host's copy gets nothing of what was deleted
sync
(
    sleep 300
    fsfreeze --unfreeze /
) > /dev/null 2>&1 &
watchdog=$!
mapfile -t stamps < <(cd /var/lib/agent-vm/stamps && grep -H . -- *)
fsfreeze --freeze /
echo frozen "${stamps[@]}"
read -r _ || true
fsfreeze --unfreeze /
kill "$watchdog" 2> /dev/null || true
