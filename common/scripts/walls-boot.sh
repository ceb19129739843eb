# shellcheck shell=bash
# Runs as root at every boot, before anybody is let in: hides processes from other users and shows
# each walled workspace among those of the user agent. Argument, later: a user to make first.
set -euo pipefail
mount -o remount,hidepid=invisible,gid="$(id -g agent)" /proc
install -d -m 700 -o agent -g agent /run/agent-vm-secrets
install -d -m 000 /tmp/.agent-vm /var/tmp/.agent-vm /dev/shm/.agent-vm /run/agent-vm-walls

if [ -n "${1-}" ] && [ ! -e "/home/$1" ]; then
    tools=/usr/local/lib/agent-vm new=/home/$1.new
    id -u "$1" > /dev/null 2>&1 ||
        useradd --no-create-home --user-group --groups walled --shell /bin/bash \
            -K SUB_UID_COUNT=0 -K SUB_GID_COUNT=0 "$1"
    # For containers: ids that are nobody else's, as agent has those from 200000 (users.sh).
    first=$((200000 + 65536 * ($(id -u "$1") - 1000)))
    usermod --add-subuids "$first-$((first + 65535))" --add-subgids "$first-$((first + 65535))" "$1"
    install -d -m 700 -o "$1" -g "$1" "$new"
    runuser -u "$1" -- env HOME="$new" bash "$tools/home-files.sh" "$tools/home" new > /dev/null
    mv -T "$new" "/home/$1"
fi

owner=$(id -u agent) group=$(id -g agent)
shopt -s nullglob
for record in /home/agent/.agent-vm/walled/ws-*; do
    user=${record##*/}
    { read -r _; read -r folder; } < "$record"
    uid=$(id -u "$user") || continue
    install -d -m 700 -o "$user" -g "$user" "/run/agent-vm-walls/$user"
    tree=/home/$user/workspace/$folder view=/home/agent/workspace/$folder
    # At a boot nothing of that user runs yet, so what is no link now stays none.
    { [ -d "$tree" ] && [ "$(realpath -- "$tree")" = "$tree" ]; } || continue
    if mountpoint -q "$view"; then
        [ ! "$view" -ef "$tree" ] || continue
        umount --lazy "$view" # of one that was deleted inside
    fi
    install -d -o agent -g agent "$view"
    # Agent's to read and write, but no link in there leads anywhere, and no hook of it is run.
    mount --bind -o "nosymfollow,nosuid,nodev,noexec,X-mount.idmap=u:$uid:$owner:1 g:$uid:$group:1" \
        "$tree" "$view" || echo "$view is not shown" >&2 # the others are
done
