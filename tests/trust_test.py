"""What a repository's file loosens counts once exactly that was approved, and only there."""

from __future__ import annotations

import json
import os
from typing import TYPE_CHECKING

import pytest

from agent_vm_tasks import settings, state, trust
from agent_vm_tasks.errors import AgentVMError, UsageError
from tests.conftest import git

if TYPE_CHECKING:
    from pathlib import Path

PORTS = "[network]\nports = [8080]\n"
SCRIPT = '[provision]\nscript = "vm.sh"\n'


def write(folder: Path, text: str) -> Path:
    path = folder / settings.FILE_NAME
    path.write_text(text, encoding="utf-8")
    return path


def approve(folder: Path) -> None:
    wanted = settings.requested(folder)[1]
    assert wanted
    trust.approve(wanted, lambda _: None)


def changes(folder: Path) -> list[str]:
    wanted = settings.requested(folder)[1]
    assert wanted
    return trust.changes(wanted)


def revoke(folder: Path) -> str:
    return trust.revoke(settings.folders(folder), lambda _: None)


def refused(folder: Path) -> str:
    with pytest.raises(UsageError) as caught:
        settings.load(folder)
    return caught.value.message


def test_what_is_approved_counts(repository: Path) -> None:
    file = write(repository, PORTS)
    assert refused(repository) == f"{file}: network.ports: not approved by you"
    approve(repository)
    found = settings.load(repository)
    assert found.network.ports == (8080,)
    assert found.sources["network.ports"] == str(file)


ALL = {
    "vm": 'name = "x"\ncpus = 5\nmemory = 9\ndisk = 101\nvm_type = "qemu"\n'
    'image = "/srv/x"\naccel = "tcg"\nca_certs = ["/etc/ca.pem"]',
    "network": 'ports = [8080]\nallow = ["docs.example.org"]',
    "packages": "\n".join(
        f'{key} = "http://mirror"'
        for key in ("debian_mirror", "npm_registry", "python_index", "go_proxy", "lima_releases")
    ),
    "provision": 'script = "vm.sh"',
    "home": 'path = "~/x"',
    "env": 'pass = ["GH_TOKEN"]\nset = {A = "b"}',
    "secrets": 'files = {x = "~/x"}',
    "mount": 'enabled = true\npath = "~/m"',
    "workspace": 'include = [".env"]\nkeep_days = 3\nwalls = false',
}


def test_every_key_that_loosens_can_be_approved(home: Path, repository: Path) -> None:
    (repository / "vm.sh").touch()
    mine = home / ".config/agent-vm/config.toml"
    mine.parent.mkdir(parents=True)
    mine.write_text("[mount]\nenabled = false\n[workspace]\nwalls = true\n")
    write(repository, "\n".join(f"[{table}]\n{text}" for table, text in ALL.items()))
    assert all(key in refused(repository) for key in settings.LOOSENING)
    approve(repository)
    found = settings.load(repository)
    assert found.env.set == (("A", "b"),)
    assert found.mount == settings.Mount(enabled=True, path="~/m")


def test_what_changed_is_named_and_refused_until_it_is_as_approved(repository: Path) -> None:
    file = write(repository, PORTS)
    approve(repository)
    write(repository, f'{PORTS}[env]\npass = ["GH_TOKEN"]\n')
    assert refused(repository) == f"{file}: env.pass: not approved by you"
    write(repository, "[network]\nports = [8080, 22000]\n")
    assert refused(repository) == f"{file}: network.ports: not approved by you"
    write(repository, f"# as before\n[vm]\ncpus = 3\n{PORTS}")
    assert settings.load(repository).network.ports == (8080,)


def test_one_of_two_is_not_what_was_approved(repository: Path) -> None:
    file = write(repository, f'{PORTS}[env]\npass = ["GH_TOKEN"]\n')
    approve(repository)
    write(repository, PORTS)
    assert refused(repository) == f"{file}: network.ports: not approved by you"
    write(repository, "")
    assert settings.load(repository).network.ports == ()


def test_the_order_of_a_table_does_not_matter(repository: Path) -> None:
    write(repository, '[env.set]\nA = "1"\nB = "2"\n')
    approve(repository)
    write(repository, '[env]\nset = {B = "2", A = "1"}\n')
    assert settings.load(repository).env.set == (("B", "2"), ("A", "1"))


@pytest.mark.parametrize("content", [b"true\n", b"\xff\xfe\0", b"\xc3\xa9\r"])
def test_a_script_is_pinned_by_its_bytes(repository: Path, content: bytes) -> None:
    file = write(repository, SCRIPT)
    (repository / "vm.sh").write_bytes(content)
    refused(repository)
    approve(repository)
    assert settings.load(repository).provision.script == "vm.sh"
    for other in (content + b"\n", content[:-1], b"\\xff\\xfe\0"):
        (repository / "vm.sh").write_bytes(other)
        assert refused(repository) == f"{file}: provision.script: not approved by you"


def test_a_script_without_end_is_not_read_to_it(repository: Path) -> None:
    write(repository, SCRIPT)
    with (repository / "vm.sh").open("wb") as script:
        script.truncate(2**20 + 1)
    with pytest.raises(AgentVMError, match=r"vm\.sh is larger than 1 MiB"):
        settings.load(repository)


def test_an_approval_is_of_one_folder(home: Path, repository: Path) -> None:
    write(repository, PORTS)
    approve(repository)
    for other in (home / "copy", repository / "sub"):
        other.mkdir()
        write(other, PORTS)
        assert "network.ports" in refused(other)
    (repository / "sub" / settings.FILE_NAME).unlink()
    (home / "link").symlink_to(repository)
    for same in (repository / "sub", home / "link"):
        assert settings.load(same).network.ports == (8080,)


def test_a_worktree_is_asked_about_by_itself(home: Path, repository: Path) -> None:
    write(repository, PORTS)
    approve(repository)
    git(repository, "worktree", "add", "--quiet", str(home / "tree"))
    write(home / "tree", PORTS)
    assert "network.ports" in refused(home / "tree")


def test_revoking(repository: Path) -> None:
    write(repository, PORTS)
    assert revoke(repository) == ""
    approve(repository)
    (repository / "sub").mkdir()
    assert revoke(repository / "sub") == str(repository)
    assert "network.ports" in refused(repository)
    assert trust.known() == {}


def test_what_was_approved_elsewhere_stays(home: Path, repository: Path) -> None:
    (home / "other").mkdir()
    for folder in (repository, home / "other"):
        write(folder, PORTS)
        approve(folder)
    assert settings.load(repository).network.ports == (8080,)
    revoke(repository)
    assert settings.load(home / "other").network.ports == (8080,)


def test_the_first_diff_has_everything(repository: Path) -> None:
    write(repository, f"{SCRIPT}{PORTS}")
    (repository / "vm.sh").write_text("set -e\ntrue\n")
    assert changes(repository)[1:] == [
        "+network.ports = [8080]",
        '+provision.script = "vm.sh"',
        "+  | set -e",
        "+  | true",
        "+  | ",
    ]


def test_later_ones_have_what_changed(repository: Path) -> None:
    lines = [f"echo {number}" for number in range(40)]
    write(repository, f"{SCRIPT}{PORTS}")
    (repository / "vm.sh").write_text("\n".join(lines))
    approve(repository)
    assert changes(repository) == []
    write(repository, f"{SCRIPT}[network]\nports = [8081]\n")
    (repository / "vm.sh").write_text("\n".join([*lines[:30], "curl", *lines[31:]]))
    found = changes(repository)
    assert [line for line in found if line[0] in "+-"] == [
        "-network.ports = [8080]",
        "+network.ports = [8081]",
        "-  | echo 30",
        "+  | curl",
    ]
    assert "   | echo 10" not in found


def test_only_the_user_can_read_what_is_kept(repository: Path) -> None:
    write(repository, PORTS)
    old = os.umask(0)
    try:
        approve(repository)
    finally:
        os.umask(old)
    path = state.home() / ".agent-vm/.trust/trusted.json"
    assert path.stat().st_mode & 0o777 == 0o600
    assert path.parent.stat().st_mode & 0o777 == 0o700
    assert [each.name for each in path.parent.iterdir() if each != path] == ["lock"]


@pytest.mark.parametrize("text", ["", "[]", "{", '{"/x": 7}', '{"/x": {"values": {}}}', "\udcff"])
def test_a_damaged_file_approves_nothing(repository: Path, text: str) -> None:
    write(repository, PORTS)
    approve(repository)
    path = state.home() / ".agent-vm/.trust/trusted.json"
    path.write_text(text, "utf-8", "surrogateescape")
    with pytest.raises(AgentVMError, match="is damaged; remove it"):
        settings.load(repository)


def test_the_file_in_the_mount_never_counts(home: Path, repository: Path) -> None:
    """Also where an approved file has put the mount: what lies there is the guest's."""
    write(repository, '[mount]\npath = "~/here"\n')
    approve(repository)
    assert settings.load(repository).mount.path == "~/here"
    for mount in (".agent-vm-mounts/workspace", "here"):
        inside = home / mount / "app-fix"
        inside.mkdir(parents=True)
        write(inside, "[vm]\ncpus = 3\n")
        assert settings.requested(inside) == (settings.Settings(), None)


def test_what_an_approval_of_a_place_says_cannot_be_moved(home: Path, repository: Path) -> None:
    """Another folder put in the place of the repository, by a link, is another one."""
    write(repository, PORTS)
    approve(repository)
    repository.rename(home / "moved")
    repository.symlink_to(home / "moved")
    assert "network.ports" in refused(repository)
    assert json.dumps(str(repository)) in (home / ".agent-vm/.trust/trusted.json").read_text()
