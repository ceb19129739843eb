# shellcheck shell=bash
# Runs a login shell or a command in a workspace. Arguments: token of the variables that shall be in
# force ("" for any), key ("" for the home folder), then shell, or line TEXT, or argv WORD….
# Exit status 213: there is no such workspace, or nothing in it yet; 214: the variables are not those.
if [ -n "$1" ]; then
    # Where bash has not loaded them yet: an image that is not ours.
    # shellcheck source=/dev/null
    [ -n "${AGENT_VM_ENV_TOKEN-}" ] ||
        . "${AGENT_VM_SECRETS:-/run/agent-vm-secrets}/current/env" 2> /dev/null
    [ "${AGENT_VM_ENV_TOKEN-}" = "$1" ] || exit 214
fi
if [ -n "$2" ]; then
    cd -P "$HOME/.agent-vm/workspaces/$2" 2> /dev/null || exit 213
    # What made it was cut off before there was a first commit.
    { [ -e .git/index ] || ! read -r _ ref < .git/HEAD || [ -e ".git/$ref" ] ||
        [ -e .git/packed-refs ]; } 2> /dev/null || exit 213
fi
# Where nothing has set it, programs would take UTF-8 for single bytes.
[ -n "${LC_ALL-}${LC_CTYPE-}${LANG-}" ] || export LANG=C.UTF-8
# The terminal of the host may be one that nothing here knows.
if [ -t 0 ]; then
    known=
    for folder in ~/.terminfo /etc/terminfo /lib/terminfo /usr/share/terminfo; do
        [ ! -e "$folder/${TERM:0:1}/$TERM" ] || known=yes
    done
    [ -n "$known" ] || export TERM=xterm-256color
fi
mode=$3
shift 3
case $mode in
    shell) exec bash -l ;;
    line) exec bash -c "$1" ;;
    argv) exec -- "$@" ;;
esac
