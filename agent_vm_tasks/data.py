"""Files that ship with the package: templates/ and common/."""

from __future__ import annotations

from pathlib import Path

_PACKAGE = Path(__file__).parent


def root() -> Path:
    """The folder that holds templates/ and common/: inside the wheel, else the checkout's top."""
    packed = _PACKAGE / "_data"
    return packed if packed.is_dir() else _PACKAGE.parent


def package() -> Path:
    """The folder of the package itself."""
    return _PACKAGE


def entries(path: Path) -> tuple[str, ...]:
    """The entries of a list file: one a line, `#` starts a comment."""
    lines = (line.split("#", 1)[0].strip() for line in path.read_text("utf-8").splitlines())
    return tuple(line for line in lines if line)


def package_list(name: str) -> tuple[str, ...]:
    """Names from common/packages/`name`."""
    return entries(root() / "common" / "packages" / name)


def script(name: str) -> str:
    """The text of common/scripts/`name`."""
    return (root() / "common" / "scripts" / name).read_text("utf-8")
