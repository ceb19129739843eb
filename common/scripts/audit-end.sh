# shellcheck shell=bash
# Takes away what audit.sh has laid out. Argument: the key of the workspace.
kill "$(cat "$HOME/workspace/.agent-vm-audit/listener" 2> /dev/null)" 2> /dev/null
rm -rf "$HOME/workspace/.agent-vm-audit" "$HOME/.agent-vm/workspaces/$1"
