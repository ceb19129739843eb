# shellcheck shell=bash
# Removes the variables and files from memory; sessions that run keep the variables they have.
folder=${AGENT_VM_SECRETS:-/run/agent-vm-secrets}
[ ! -d /run/agent-vm-walls ] || sudo -n find /run/agent-vm-walls -mindepth 2 -delete
[ ! -d "$folder" ] || find "$folder" -mindepth 1 -delete
