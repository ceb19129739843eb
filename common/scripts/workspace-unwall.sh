# shellcheck shell=bash
# Takes the folder of a walled workspace that was deleted from those of the user agent. The user and
# its home stay, as agent's do. Arguments: user.
set -euo pipefail
record=$HOME/.agent-vm/walled/$1
[ -e "$record" ] || exit 0
{ read -r _; read -r folder; } < "$record"
view=$HOME/workspace/$folder
! mountpoint -q "$view" || sudo -n umount --lazy "$view"
rm --dir --force -- "$view"
rm "$record"
