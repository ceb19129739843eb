# shellcheck shell=bash
# Shows walled workspaces that are new among those of the user agent.
exec sudo -n bash /usr/local/lib/agent-vm/walls-boot.sh < /dev/null
