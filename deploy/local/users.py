"""The user that PostgreSQL runs as: it refuses to run as root."""

import functools
import os
import shutil
import subprocess

_OTHER = "nobody"


@functools.cache
def other_user() -> str | None:
    """The user to run PostgreSQL as, if it is not our own."""
    return _OTHER if os.geteuid() == 0 and not _can_unshare() else None


def unprivileged(*command: str) -> tuple[str, ...]:
    """The command, in a user namespace of its own if we are root: there it is not root, and still owns root's files."""
    return ("unshare", "-U", *command) if os.geteuid() == 0 and _can_unshare() else command


@functools.cache
def _can_unshare() -> bool:
    if shutil.which("unshare") is None:
        return False
    return subprocess.run(["unshare", "-U", "true"], capture_output=True, check=False).returncode == 0
