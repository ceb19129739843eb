# Loads the variables that agent-vm keeps in this VM's memory, once in a session: what the session
# itself sets stays. Tried twice, as new ones may be put in place of the file in between.
if [ -z "${AGENT_VM_ENV_TOKEN-}" ]; then
    command . "${AGENT_VM_SECRETS:-/run/agent-vm-secrets}/current/env" 2> /dev/null ||
        command . "${AGENT_VM_SECRETS:-/run/agent-vm-secrets}/current/env" 2> /dev/null || :
fi
