"""Ends what a killed supervisor left behind, before new parts start.

A process is recognised by its id and start time, so that one which got a used id is left alone. This reads /proc;
where there is none, nothing is found.
"""

import json
import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path

from deploy.local import wheels

_PROC = Path("/proc")
_TERMINATE_SECONDS, _KILL_SECONDS = 3.0, 10.0
_PAUSE_SECONDS = 0.02


def start_time(pid: int) -> str | None:
    """When the process began, in the kernel's ticks; None if it has ended."""
    try:
        # The name of the program comes first, in parentheses, and may contain anything.
        fields = (_PROC / str(pid) / "stat").read_text().rpartition(")")[2].split()
    except OSError:
        return None
    state, ticks = fields[0], fields[19]
    return None if state in "ZX" else ticks


def end_parts(state: Path, postgres_data: Path) -> list[str]:
    """Ends the parts that `state` names, and PostgreSQL's processes; returns the names of those that still ran.

    Raises `TimeoutError` if one cannot be ended.
    """
    found = dict(_recorded(state))
    _end(list(found.values()), signal.SIGINT, _TERMINATE_SECONDS)
    # The server's children end by themselves soon after it. Until then they keep its shared memory.
    _end(list(_postgres(postgres_data)), None, _TERMINATE_SECONDS)
    if _PROC.exists():
        # No process uses the data now. The id in the file may be in use again, by any program.
        (postgres_data / "postmaster.pid").unlink(missing_ok=True)
    return list(found)


def supervisor(home: Path) -> int | None:
    """The process id of the supervisor of this folder, found without the folder: it may have been removed."""
    mark = b"\0STAMPEDE_HOME=" + os.fsencode(home) + b"\0"
    for pid in _processes():
        try:
            folder = _PROC / str(pid)
            is_supervisor = b"\0deploy.local\0run\0" in (folder / "cmdline").read_bytes()
            if is_supervisor and mark in b"\0" + (folder / "environ").read_bytes() + b"\0":
                return pid
        except OSError:
            continue
    return None


def _recorded(state: Path) -> Iterator[tuple[str, int]]:
    try:
        parts = json.loads(state.read_text())["parts"].items()
        recorded = [(name, part.get("pid"), part.get("began")) for name, part in parts]
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return  # written by another release, or not at all
    yield from ((name, pid) for name, pid, began in recorded if pid and began and start_time(pid) == began)


def _postgres(data: Path) -> Iterator[int]:
    """Yields the processes of the server on this data. Their working folder is the data; a shell's may be, too."""
    program = wheels.postgres("postgres").resolve()
    for pid in _processes():
        try:
            folder = _PROC / str(pid)
            if (folder / "exe").readlink() == program and (folder / "cwd").readlink() == data and start_time(pid):
                yield pid
        except OSError:
            continue


def _processes() -> Iterator[int]:
    if _PROC.exists():
        yield from (int(path.name) for path in _PROC.iterdir() if path.name.isdigit())


def _end(pids: list[int], first: signal.Signals | None, patience: float) -> None:
    """Sends `first`, and after `patience` seconds SIGKILL; returns when all have ended."""
    running = {pid: ticks for pid in pids if (ticks := start_time(pid))}
    began = time.monotonic()
    if first is not None:
        _signal(running, first)
    is_killed = False
    while running := {pid: ticks for pid, ticks in running.items() if start_time(pid) == ticks}:
        waited = time.monotonic() - began
        if waited > _KILL_SECONDS:
            raise TimeoutError(f"processes of an earlier mesh do not end: {', '.join(map(str, running))}")
        if waited > patience and not is_killed:
            _signal(running, signal.SIGKILL)
            is_killed = True
        time.sleep(_PAUSE_SECONDS)


def _signal(running: dict[int, str], number: signal.Signals) -> None:
    for pid, ticks in running.items():
        try:
            if start_time(pid) == ticks:
                os.kill(pid, number)
                os.kill(pid, signal.SIGCONT)
        except ProcessLookupError:
            continue
