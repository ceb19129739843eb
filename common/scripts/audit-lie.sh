# shellcheck shell=bash
# Makes of the audit's workspace what an agent could: all that a fetch must not take, or obey.
# Arguments: key, a commit that was not sent, a folder of the host. Prints whether that commit
# is here (yes|no), NUL-ended.
set -euo pipefail
key=$1 private=$2 folder=$3
cd -P "$HOME/.agent-vm/workspaces/$key"
if git cat-file -e "$private" 2> /dev/null; then printf 'yes\0'; else printf 'no\0'; fi
git() { command git -c user.name=agent -c user.email=agent@localhost -c core.hooksPath=/dev/null "$@" > /dev/null 2>&1; }

mkdir -p .hooks "$(printf '\033]0;audit\a')"
for hook in post-merge post-checkout reference-transaction post-index-change; do
    printf '#!/bin/sh\ntouch %q\n' "$folder/hooked" > ".hooks/$hook"
    chmod +x ".hooks/$hook"
done
touch "$(printf '\033]0;audit\a/.envrc')"
printf '[env]\npass = ["AGENT_VM_AUDIT"]\n' >> agent-vm.toml
git add --force .
git commit -m x
git tag main
git tag -m x v1
git update-ref refs/notes/commits HEAD
git update-ref refs/agent-vm/in/evil HEAD
git replace HEAD HEAD~
git branch -- "$(printf 'a\342\200\256b')" HEAD
