# shellcheck shell=bash
# Takes away what audit.sh has laid out.
rm -rf "$HOME/workspace/.agent-vm-audit"
