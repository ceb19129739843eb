# shellcheck shell=bash
# Takes away what audit.sh has laid out. Argument: the key of the workspace.
rm -rf "$HOME/workspace/.agent-vm-audit" "$HOME/.agent-vm/workspaces/$1"
