"""What makes no sense is refused: one line that names the culprit, and nothing is made of it.

Each row is what a person has (shell commands in a repository with one commit), what they type, the
exit status, and what the line has to say. Every row is run by the real program.
"""

from __future__ import annotations

import os
import stat
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import pytest

from agent_vm_tasks import host, ns

from .cli import Said

PROGRAM = Path(sys.executable).with_name("agent-vm")
CANARY = "c4n4ry-51d0"
Found = Mapping[str, object]
SKIPPED = 77
"""Exit status of a set-up that this account cannot do."""
RECORDED = ("apt-get", "limactl", "mmdebstrap", "qemu-img", "ssh", "ssh-keygen", "sshfs", "useradd")
STAND_IN = """\
#!/bin/sh
case "${0##*/} $1 $4" in
    "limactl --version "*) echo limactl version 2.2.0 ;;
    "limactl list theirs") echo '{"name": "theirs", "status": "Running", "dir": "/"}' ;;
    "limactl list "*) echo "No instance matching $4" >&2; exit 1 ;;
    *) echo "$0 $*" >> <home>/calls; exit 1 ;;
esac
"""
PRELUDE = r"""
set -eu
ours() { printf '%b\n' "$*" > agent-vm.toml; }
mine() { mkdir -p ~/.config/agent-vm; printf '%b\n' "$*" > ~/.config/agent-vm/config.toml; }
key() { export GOOGLE_APPLICATION_CREDENTIALS="$1"; }
many() { printf "$1%.0s" $(seq "$2"); }
"""

GIT_RULE = "is not a branch name: git does not allow it"
NOT_APPROVED = "not approved by you; `agent-vm trust` shows and approves"
NO_VALUE = "needed value and was not given one!"

SETTINGS = [
    (r"ours '[vm]\ncpus = true'", "status", 2,
     "<home>/src/app/agent-vm.toml: vm.cpus must be a whole number from 1 to 1024, not true"),
    (r"""mine '[vm]\nmemory = "8TiB"'""", "start", 2,
     "<home>/.config/agent-vm/config.toml: vm.memory must be GiB or a size"),
    (r"mine '[vm]\nmem0ry = 8'", "config-show", 2,
     "unknown key 'vm.mem0ry'; did you mean 'memory'?"),
    (r"ours '[nework]\nports = []'", "stop", 2, "unknown key 'nework'; did you mean 'network'?"),
    (r"""ours '[vm]\nname = "a$(touch x)"'""", "connect", 2, "vm.name must be at most 31"),
    (r"""ours '[vm]\nname = "{{.Home}}"'""", "restart", 2, "not '{{.Home}}'"),
    (r"""ours '[vm]\n"\\u001b]0;owned\\u0007" = 8'""", "unmount", 2, r"\x1b]0;owned\x07"),
    (r"""ours '[vm]\nname = "vm\\u202e"'""", "destroy", 2, r"not 'vm\u202e'"),
    (r"""mine '[vm]\nmemory = "8GiB\\nmounts:"'""", "tools", 2, r"not '8GiB\nmounts:'"),
    (r"""ours '[packages]\napt = ["-oDebug::X=1"]'""", "provision", 2, "not '-oDebug::X=1'"),
    (rf"""ours '[packages]\nnpm = ["git+https://me:{CANARY}@host/x"]'""", "bake", 2,
     "packages.npm[0] must be an npm package like name, @scope/name or name@1.2, not "
     "'git+https://***@host/x'"),
    (rf"""mine '[vm]\nimage = "https://me:{CANARY}@h"'""", "status", 2, "'https://***@h'"),
    (rf"""mine '[env]\nset = {{"KEY;id" = "{CANARY}"}}'""", "secrets", 2,
     "env.set must be a variable's name, not 'KEY;id'"),
    (rf"""mine '[env]\nset = {{KEY = "{CANARY}\\u0007"}}'""", "secrets", 2,
     "env.set.KEY must be text without control characters"),
    (rf"""mine '[env]\nset = {{KEY = ["{CANARY}"]}}'""", "connect", 2, "env.set.KEY must be text"),
    (rf"""mine '[env]\nset = {{KEY = {CANARY}}}'""", "connect", 2,
     "config.toml:2: not valid TOML: Invalid value"),
    (rf"""mine '[env]\nset = {{PATH = "{CANARY}"}}'""", "connect fix", 2,
     "env.set: PATH would change how shells in the VM work"),
    (r"""mine '[env]\npass = ["LD_PRELOAD"]'""", "start", 2,
     "env.pass: LD_PRELOAD would change how shells in the VM work"),
    (rf"""ours '[env]\npass = ["TOKEN"]'; export TOKEN={CANARY}""", "push fix", 2,
     f"<home>/src/app/agent-vm.toml: env.pass: {NOT_APPROVED}"),
    (r"""mine '[secrets]\nfiles = {env = "~/x"}'""", "connect", 2,
     "secrets.files.env: agent-vm has a file of that name itself"),
    (r"""mine '[secrets]\nfiles = {npmrc = "~/gone"}'""", "connect fix", 1,
     "secrets.files.npmrc: <home>/gone cannot be read: No such file or directory"),
    (r"""mine '[secrets]\nfiles = {npmrc = "~/src"}'""", "secrets", 1,
     "secrets.files.npmrc: <home>/src is not a regular file"),
    (r"""mkfifo ~/pipe; mine '[secrets]\nfiles = {npmrc = "~/pipe"}'""", "start", 1,
     "secrets.files.npmrc: <home>/pipe is not a regular file"),
    (rf"""many {CANARY} 100000 > ~/big; mine '[secrets]\nfiles = {{npmrc = "~/big"}}'""",
     "connect", 1, "secrets.files.npmrc: <home>/big is larger than 1 MiB"),
    (rf"""many {CANARY} 60000 > ~/b; mine '[secrets]\nfiles = {{one = "~/b", two = "~/b"}}'""",
     "restart", 1, "the variables and files for the VM are larger than 1 MiB together"),
    (rf"""mine "[env]\nset = {{KEY = \"$(many {CANARY} 12000)\"}}" """, "connect", 1,
     "the variable KEY is longer than 128 KiB"),
    (r"""mine '[workspace]\ninclude = [".env"]'""", "push fix", 1,
     "workspace.include: .env is not a file of <home>/src/app"),
    (r"""ln -s .env .env; mine '[workspace]\ninclude = [".env"]'""", "push fix", 1,
     "workspace.include: .env is not a file of <home>/src/app"),
    (r"""mine "[workspace]\ninclude = [\"$(many n 256)\"]" """, "push fix", 1,
     "nnn: File name too long"),
    (r"""mine "[home]\npath = \"~/$(many n 256)\"" """, "start", 1, "nnn: File name too long"),
    (r"""mine "[vm]\nimage = \"~/$(many n 256)\"" """, "start", 1, "nnn: File name too long"),
    (r"""export LIMA_HOME="/$(many n 256)" """, "status", 1, "nnn: File name too long"),
    (r"""ln -s /etc/passwd .env; mine '[workspace]\ninclude = [".env"]'""", "connect fix", 1,
     "workspace.include: .env is not a file of <home>/src/app"),
]  # fmt: skip

FILES = [
    ("mkdir -p ~/.config/agent-vm/config.toml", "status", 2, "config.toml is not a regular file"),
    ("mkfifo agent-vm.toml", "config-show", 2, "agent-vm.toml is not a regular file"),
    ("ln -s /dev/zero agent-vm.toml", "status", 2, "agent-vm.toml is not a regular file"),
    ("ln -s nowhere agent-vm.toml", "push fix", 2, "cannot be read: No such file or directory"),
    ("ln -s agent-vm.toml agent-vm.toml", "undo", 2, "Too many levels of symbolic links"),
    (f'mine "# $(many {CANARY} 100000)"', "status", 2, "config.toml is larger than 1 MiB"),
    (r"ours '# caf\0351'", "status", 2, "agent-vm.toml is not UTF-8 text (byte 5)"),
    (r"mine '\0377\0376[\0000v\0000'", "status", 2, "config.toml is not UTF-8 text (byte 0)"),
    (r"ours '\0357\0273\0277[vm]\ncpus = 0'", "status", 2, "agent-vm.toml: vm.cpus must be"),
    (r"ours '<<<<<<< HEAD\n[vm]'", "fetch fix", 2, "agent-vm.toml:1: not valid TOML"),
    ('ours "x = $(many [ 5000)"', "status", 2, "lists or tables are nested too deeply"),
    ("mine; cd ~/.config/agent-vm; chmod 0 *; [ ! -r config.toml ] || exit 77", "status", 2,
     "config.toml cannot be read: Permission denied"),
    (r"mkdir -p ~/xdg; ours 'x=1'; mv agent-vm.toml ~/xdg/config.toml; mkdir ~/xdg/agent-vm;"
     " mv ~/xdg/config.toml ~/xdg/agent-vm; export XDG_CONFIG_HOME=~/xdg", "status", 2,
     "<home>/xdg/agent-vm/config.toml: unknown key 'x'"),
    (r"mkdir $'two\nlines'; cd two*; ours '[vm]\ncpus = 0'; git init -q", "status", 2,
     r"two\nlines/agent-vm.toml: vm.cpus must be"),
]  # fmt: skip

FLAGS = [
    ("", "strat", 2, "No idea what 'strat' is!"),
    ("", "''", 2, "No idea what '' is!"),
    ("", r"$'\e[31m'", 2, r"No idea what '\x1b[31m' is!"),
    ("", "start --memory", 2, NO_VALUE),
    ("", "start --memroy 8", 2, "No idea what '--memroy' is!"),
    ("", "start --memory=", 2, '--memory must be GiB or a size like "8GiB", from 512MiB'),
    ("", r"start --memory $'9\e[31m'", 2, r"not '9\x1b[31m'"),
    ("", "start --vcpu 4.5", 2, "--vcpu must be a whole number from 1 to 1024, not '4.5'"),
    ("", "start --vcpu ٤", 2, "not '٤'"),
    ("", "stop --force", 2, "No idea what '--force' is!"),
    ("", "restart now", 2, "No idea what 'now' is!"),
    ("", "status --jsn", 2, "No idea what '--jsn' is!"),
    ("", "status start --bogus", 2, "No idea what '--bogus' is!"),
    ("", "destroy --force=yes", 2, "No idea what 'yes' is!"),
    ("", "mount ~/src", 2, "No idea what '<home>/src' is!"),
    ("", "unmount --force=1", 2, "No idea what '1' is!"),
    ("", "connect one two", 2, "No idea what 'two' is!"),
    ("", "connect --branch", 2, NO_VALUE),
    ("", "connect fix --command", 2, NO_VALUE),
    ("", "connect fix --command ls -- rm x", 2, "--command and a command after -- cannot both"),
    ("", "push", 2, "no branch is named; add --branch NAME"),
    ("", "git fix", 2, "no git command is named; put one after --, for example -- status"),
    ("", "git fix --", 2, "no git command is named"),
    ("", "git -- status", 2, "no branch is named; add --branch NAME"),
    ("", "push fix -- rm x", 2, "Only connect and git take a command after '--'."),
    ("", "-- push fix", 2, "Only connect and git take a command after '--'."),
    ("", "fetch -x", 2, "No idea what '-x' is!"),
    ("", "clean --branch ''", 2, "'' is not a branch name: it is empty"),
    ("", "push --branch=-D", 2, "'-D' is not a branch name: it starts with a dash"),
    ("", "connect @", 2, "'@' is not a branch name: git gives that name another meaning"),
    ("", "push ../..", 2, f"'../..' {GIT_RULE}"),
    ("", r"push 'fix\0'", 2, rf"'fix\\0' {GIT_RULE}"),
    ("", r"push $'a\nb'", 2, r"'a\nb' is not a branch name: it holds control or formatting"),
    ("", r"push $'a\u202eb'", 2, r"'a\u202eb' is not a branch name: it holds control or"),
    ("", r"push $'\xff'", 2, r"'\udcff' is not a branch name: it holds control or formatting"),
    ("", "push $(printf %0201d 0)", 2, "it is longer than 200 bytes"),
    ("", "clean-all fix", 2, "No idea what 'fix' is!"),
    ("", "undo ''", 1, "nothing is kept under ''"),
    ("", r"undo $'\e]0;x\a'", 1, r"nothing is kept under '\x1b]0;x\x07'"),
    ("", "secrets --clear now", 2, "No idea what 'now' is!"),
    ("", "provision --upgrade=yes", 2, "No idea what 'yes' is!"),
    ("", "tools --json=1", 2, "No idea what '1' is!"),
    ("", "clean fix --force=stop", 2, "--force takes no value."),
    ("", "clean --branch push -f=stop", 2, "-f takes no value."),
    ("", "--dry=start status", 2, "--dry takes no value."),
    ("", "status --echo=start", 2, "--echo takes no value."),
    ("", "refresh-home --all", 2, "No idea what '--all' is!"),
    ("", "bake --lst", 2, "No idea what '--lst' is!"),
    ("", "prune all", 2, "No idea what 'all' is!"),
    ("", "render --output", 2, NO_VALUE),
    ("", "render --output ''", 2, "--output is empty; name a folder"),
    ("", "logs --lines 0", 2, "--lines must be a whole number from 1 to 1000000, not 0"),
    ("", "logs --lines $(printf %05000d 9)", 2, "to 1000000, not '0000"),
    ("", "ssh-config --name x", 2, "No idea what '--name' is!"),
    ("", "setup --yes", 2, "No idea what '--yes' is!"),
    ("", "audit", 1, "there is no VM agent-vm; `agent-vm start` creates it"),
    ("", "network closed", 2,
     "there is no network mode 'closed'; known: offline, allowlist, internet, open"),
    ("", "network-log", 1, "there is no VM agent-vm; `agent-vm start` creates it"),
    (r"""mine '[network]\nallow = ["10.0.0.1"]'""", "network-log", 2,
     "network.allow[0] must be a host of the internet in lower case"),
    (r"""ours '[network]\nallow = ["a.org"]'""", "network", 2, f"network.allow: {NOT_APPROVED}"),
    (r"""mine '[network]\nmode = "closed"'""", "network", 2, 'network.mode must be "offline"'),
    ("", "trust --revoke --list", 2, "--revoke lists nothing; leave out --list and --json"),
    ("", "trust --revoke", 1, "nothing is approved for <home>/src/app; `agent-vm trust --list`"),
    ("", "trust ../gone", 2, "there is no folder <home>/src/gone"),
    ("", "trust --repository", 2, NO_VALUE),
    ("mkdir -p ~/.agent-vm-mounts/workspace/x; cd ~/.a*/w*/x", "trust --force", 1,
     "<home>/.agent-vm-mounts/workspace/x belongs to the VM"),
    (r"""ours '[provision]\nscript = "gone.sh"'""", "trust --force", 1,
     "provision.script: <home>/src/app/gone.sh is not a file of <home>/src/app"),
    ("mkdir -p -m 700 ~/.agent-vm/.trust; echo '[1' > ~/.agent-vm/.trust/trusted.json", "status", 1,
     "<home>/.agent-vm/.trust/trusted.json is damaged; remove it, and approve again"),
    ("", "doctor --fixx", 2, "No idea what '--fixx' is!"),
    ("", "config-show vm.cpus", 2, "No idea what 'vm.cpus' is!"),
    ("", "init --force", 2, "No idea what '--force' is!"),
    ("", "--help strat", 2, "No idea what 'strat' is!"),
    ("", "--list nope", 2, "Sub-collection 'nope' not found!"),
    ("", "--list --list-format nope", 2, "There is no list format 'nope'."),
    ("", "-T soon status", 2, "invalid literal for int() with base 10: 'soon'"),
    ("", "--print-completion-script nope", 2, 'Completion for shell "nope" not supported'),
    ("", "-f gone.yaml status", 2, "No such file or directory: 'gone.yaml'"),
    ("touch invoke.ini", "-f invoke.ini status", 2, "Config files of type 'ini'"),
]  # fmt: skip

NO_HOME = "there is no home folder "
LONG_PATH = "/tmp/$(printf %080d 0)"
ENVIRONMENT = [
    ("export HOME=", "status", 2, f"{NO_HOME}''; set HOME"),
    ("export HOME=relative", "push fix", 2, f"{NO_HOME}'relative'; set HOME"),
    ("export XDG_CONFIG_HOME=~/.config HOME=.", "connect", 2, f"{NO_HOME}'.'; set HOME"),
    ("export HOME=/nonexistent/home", "connect fix", 2, f"{NO_HOME}'/nonexistent/home'; set HOME"),
    ("export HOME=$PWD/README", "undo", 2, "Not a directory: '<home>/src/app/README/.invoke.yaml'"),
    (r"ours '[network]\nports = [8080]'; export XDG_CONFIG_HOME=~/.config; unset HOME", "status", 2,
     f"network.ports: {NOT_APPROVED}"),
    (r"mine 'x = 1'; export XDG_CONFIG_HOME=relative", "status", 2, "config.toml: unknown key 'x'"),
    ("export LC_ALL=C PYTHONUTF8=0 PYTHONCOERCECLOCALE=0", "connect ü", 2,
     r"'\udcc3\udcbc' is not a branch name: it holds control or formatting characters"),
    ("export LANG=xx_YY.ISO-8859-15", "clean 'ü ü'", 2, f"'ü ü' {GIT_RULE}"),
    ("unset TERM", "clean", 2, "no branch is named; add --branch NAME"),
    ("export SSH_AUTH_SOCK=/nonsense", "fetch", 2, "no branch is named; add --branch NAME"),
    ("key /no/such.json", "connect", 1,
     "GOOGLE_APPLICATION_CREDENTIALS: /no/such.json cannot be read"
     ": No such file or directory; name the JSON file of your credentials, or unset the variable"),
    ("key creds.json", "secrets", 1, "GOOGLE_APPLICATION_CREDENTIALS: creds.json cannot be read"),
    ("key ~/src", "start", 1, "GOOGLE_APPLICATION_CREDENTIALS: <home>/src is not a regular file"),
    ("mkfifo ~/pipe; key ~/pipe", "connect fix", 1, "<home>/pipe is not a regular file"),
    (r"key $'/a\nb'", "connect", 1, r"GOOGLE_APPLICATION_CREDENTIALS: /a\nb cannot be read"),
    (f"echo '{{{CANARY}' > ~/c.json; key ~/c.json", "restart", 1,
     '<home>/c.json is no JSON object with a "type"; `gcloud auth application-default login`'),
    (f"""echo '{{"type": 3, "key": "{CANARY}"}}' > ~/c.json; key ~/c.json""", "connect", 1,
     'is no JSON object with a "type"'),
    (f"many {CANARY} 100000 > ~/c.json; key ~/c.json", "connect fix", 1, "is larger than 1 MiB"),
    ("export LIMA_HOME=relative", "status", 2, "LIMA_HOME: 'relative' is no folder"),
    ("export LIMA_HOME=$PWD/README", "stop", 2, "LIMA_HOME: '<home>/src/app/README' is no folder"),
    (f"export LIMA_HOME={LONG_PATH}", "fetch fix", 2, "is too long a path for Lima's sockets"),
    ("export PATH=", "push fix", 1, "git is not installed; run `agent-vm setup`"),
    ("mkdir ~/odd; echo odd > ~/odd/git; chmod +x ~/odd/git; export PATH=~/odd", "clean fix", 1,
     "git cannot be executed: Exec format error"),
    ("export GIT_DIR=$PWD/.git GIT_WORK_TREE=$PWD; cd ~", "connect fix", 1,
     "<home> is not in a git repository; cd into one, or run `git init`"),
    ("export GIT_CONFIG_COUNT=x", "push fix", 1, "bogus count in GIT_CONFIG_COUNT"),
    ("echo '[user' > ~/c; export GIT_CONFIG_GLOBAL=~/c", "fetch fix", 1,
     "bad config line 1 in file <home>/c"),
    ("export INVOKE_RUN_WATCHERS=x", "status", 2, "Can't adapt an environment string"),
    ("export INVOKE_RUNTIME_CONFIG=gone.yaml", "status", 2, "directory: 'gone.yaml'"),
    (f"echo '{{{CANARY}' > ~/.invoke.yaml", "status", 2, 'in "<home>/.invoke.yaml", line 1'),
    ("echo 'raise RuntimeError' > ~/.invoke.py", "status", 2,
     "Invoke's configuration cannot be used: RuntimeError"),
    ("", "push <&- >&-", 2, "no branch is named; add --branch NAME"),
]  # fmt: skip

REPOSITORIES = [
    ("cd ~", "connect fix", 1, "<home> is not in a git repository; cd into one, or run `git init`"),
    ("git init -q --bare ../b.git; cd ../b.git", "push fix", 1,
     "<home>/src/b.git has no working tree; use a normal clone of it"),
    ("cd .git", "fetch fix", 1, "<home>/src/app/.git has no working tree"),
    ("mkdir -p ../x/.git; cd ../x", "clean fix", 1, "<home>/src/x/.git is no git repository"),
    ("git init -q ../x; cd ../x", "push fix", 1,
     "<home>/src/x has no commits yet; commit something first"),
    ("echo garbage > .git/HEAD; mkdir sub; cd sub", "push fix", 1,
     "<home>/src/app/.git is no git repository"),
    ("echo '[user' > .git/config", "connect fix", 1, "bad config line 1 in file"),
    ("rm -r .git; echo garbage > .git", "fetch fix", 1,
     "invalid gitfile format: <home>/src/app/.git"),
    ("rm -r .git; ln -s .git .git", "push fix", 1, "<home>/src/app/.git is no git repository"),
    ("git worktree add -q ../tree; rm -r .git; cd ../tree", "clean fix", 1,
     "not a git repository: <home>/src/app/.git/worktrees/tree"),
    ("git config core.repositoryformatversion 1; git config extensions.odd 1", "push fix", 1,
     "unknown repository extension found"),
    ("git config core.worktree /nonexistent", "push fix", 1, "cannot change to '/nonexistent'"),
    ("rm -r .git/objects/??", "push main", 1,
     "the branch main cannot be read: fatal: missing object"),
    ("rm -r .git/objects/??", "connect fix", 1, "<home>/src/app has lost the commit of its HEAD"),
    ("echo garbage > .git/refs/heads/fix", "connect fix", 1,
     "the branch fix cannot be read: warning: ignoring broken ref refs/heads/fix"),
    ("git symbolic-ref refs/heads/fix refs/heads/main", "push fix", 1,
     "the branch fix is a symbolic ref; name refs/heads/main itself"),
    ("git branch a", "push a/b", 1, "there is a branch a, beside which git can make no a/b"),
    ("git branch a/b", "connect a", 1, "there is a branch a/b, beside which git can make no a"),
    ("touch .git/config.lock", "push fix", 1, "could not lock config file .git/config"),
    ("chown -R 65534:65534 . 2> /dev/null || exit 77", "push fix", 1,
     "<home>/src/app belongs to another user, so git does not work in it"),
    ("cd ~; mkdir -p .agent-vm-mounts/workspace/x; cd .a*/w*/x; git init -q", "connect fix", 1,
     "<home>/.agent-vm-mounts/workspace/x belongs to the VM; run agent-vm in your own repository"),
    ("mkdir gone; cd gone; rmdir ../gone", "status", 1, "the working directory is gone; change to"),
    ("mkdir gone; cd gone; rmdir ../gone", "init", 1, "the working directory is gone"),
    (r"mkdir $'../a\nb'; cd ../a?b; git init -q", "push fix", 1,
     r"<home>/src/a\nb has a line break in its path; rename that folder"),
    ("cd ~", "init", 1, "<home> is not in a git repository's working tree"),
]  # fmt: skip

LIMA = [
    ("", "start --vcpu 1024", 2, "--vcpu: vm.cpus asks for 1024 CPUs, this host has "),
    (r"mine '[vm]\ncpus = 1024'", "connect fix", 2, "config.toml: vm.cpus asks for 1024 CPUs"),
    (r"""mine '[vm]\nimage = "~/gone.qcow2"'""", "start", 1,
     "vm.image: there is no file <home>/gone.qcow2"),
    (r"""mine '[vm]\nca_certs = ["~/gone.pem"]'""", "start", 1,
     "vm.ca_certs: <home>/gone.pem cannot be read"),
    (rf"""echo BEGIN PRIVATE KEY {CANARY} > ~/k; mine '[vm]\nca_certs = ["~/k"]'""", "connect", 1,
     "vm.ca_certs: <home>/k is not a PEM certificate"),
    (r"""mine '[home]\npath = "~/gone"'""", "start", 1,
     "home.path: there is no folder <home>/gone"),
    (r"""ours '[provision]\nscript = "gone.sh"'""", "push fix", 1,
     "provision.script: <home>/src/app/gone.sh is not a file of <home>/src/app"),
    (r"""ln -s loop.sh loop.sh; ours '[provision]\nscript = "loop.sh"'""", "push fix", 1,
     "provision.script: <home>/src/app/loop.sh is not a file of <home>/src/app"),
    (r"""mine '[vm]\nname = "theirs"'""", "destroy --force", 1,
     "there is a Lima instance theirs that agent-vm did not make for this user"),
    ("", "logs", 1, "there is no VM agent-vm; `agent-vm start` creates it"),
]  # fmt: skip
"""What is found out after a look at limactl, which root has run by an account of its own."""

ROWS = [*SETTINGS, *FILES, *FLAGS, *ENVIRONMENT, *REPOSITORIES, *LIMA]
NO_ACCOUNT = pytest.mark.skipif(
    os.geteuid() == 0 and not host.account_exists(), reason="root has no account to run limactl"
)


@pytest.fixture
def person(home: Path, repository: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The home of somebody with a repository and a key, and programs that tell if they were run."""
    programs = home / "bin"
    programs.mkdir()
    for name in RECORDED:
        (programs / name).write_text(STAND_IN.replace("<home>", str(home)))
        (programs / name).chmod(0o755)
    (home / "calls").touch()
    (home / "calls").chmod(0o666)
    home.chmod(0o711)  # as root the stand-in for limactl runs as another account
    monkeypatch.setenv("PATH", f"{programs}:{os.environ['PATH']}")
    monkeypatch.setenv("GEMINI_API_KEY", CANARY)
    return home


@pytest.mark.parametrize(
    ("has", "typed", "status", "named"),
    [*ROWS[: -len(LIMA)], *(pytest.param(*row, marks=NO_ACCOUNT) for row in LIMA)],
    ids=range(len(ROWS)),
)
def test_one_line_names_the_culprit_and_nothing_is_made(
    person: Path, has: str, typed: str, status: int, named: str
) -> None:
    before, said, after = run(person, has, typed)
    assert named.replace("<home>", str(person)) in said.error
    assert said.err == f"{said.error}\n"
    assert said.err.startswith("agent-vm: ")
    assert (said.status, said.out) == (status, "")
    assert said.error.isprintable()
    assert CANARY not in said.err
    assert after == before


def run(home: Path, has: str, typed: str) -> tuple[Found, Said, Found]:
    """What is there before a command, what it says, and what is there after it."""
    script = f"{PRELUDE}{has}\necho ready\nread -r\nexec {PROGRAM} {typed}"
    pipe = subprocess.PIPE
    with subprocess.Popen(["bash", "-c", script], stdin=pipe, stdout=pipe, stderr=pipe) as child:
        assert child.stdout is not None
        ready = child.stdout.readline()
        if not ready and child.wait() == SKIPPED:
            pytest.skip("not with the rights of this account")
        before = everything(home) if ready else {}
        try:
            out, err = child.communicate(b"\n", timeout=30)
        finally:
            child.kill()
        said = Said(child.returncode, out.decode(), err.decode())
    assert ready, said
    return before, said, everything(home)


def everything(home: Path) -> Found:
    """All files with their contents, and the names at the file system's top."""
    return {str(path): look(path) for path in [*home.rglob("*"), *Path("/").iterdir()]}


def look(path: Path) -> object:
    mode = path.lstat().st_mode
    if stat.S_ISLNK(mode):
        return path.readlink()
    if stat.S_ISREG(mode) and os.access(path, os.R_OK):
        return mode, path.read_bytes()
    return mode


def test_every_verb_is_in_the_table_and_no_row_is_there_twice() -> None:
    words = {word for _, typed, _, _ in ROWS for word in typed.split()}
    assert words >= set(ns.task_names)
    assert len({row[:2] for row in ROWS}) == len(ROWS) >= 90
