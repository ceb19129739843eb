# shellcheck shell=bash
# Tries, as the user of a walled workspace, to get at what is not its own. Prints what it got at,
# NUL-ended.
for folder in /root /home/*; do
    [ "$folder" = "$HOME" ] || ! ls "$folder" > /dev/null 2>&1 || printf '%s\0' "$folder"
done
for process in /proc/[0-9]*; do
    [ -O "$process" ] || [ ! -e "$process" ] || { printf 'other processes\0' && break; }
done
! systemctl status user.slice > /dev/null 2>&1 || printf 'other command lines\0'
! sudo -n true 2> /dev/null || printf 'sudo\0'
[ ! -w /run/docker.sock ] || printf 'docker\0'
[ -O /run/agent-vm-secrets ] || printf 'the keys of others\0'
[ ! -e /tmp/.agent-vm ] || printf 'the temporary files of others\0'
