# shellcheck shell=bash
# Runs a login shell or a command in a workspace. Arguments: key ("" for the home folder), shell,
# or line TEXT, or argv WORD…. Exit status 213: there is no such workspace.
if [ -n "$1" ]; then
    cd -P "$HOME/.agent-vm/workspaces/$1" 2> /dev/null || exit 213
fi
mode=$2
shift 2
case $mode in
    shell) exec bash -l ;;
    line) exec bash -c "$1" ;;
    argv) exec -- "$@" ;;
esac
