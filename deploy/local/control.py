"""The supervisor as a process of its own: found, started, watched and ended by other commands."""

import asyncio
import contextlib
import fcntl
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from deploy.local.parts import EVERYTHING
from deploy.local.ports import PortTaken
from deploy.local.site import ROOT, Site
from deploy.local.supervisor import Failed, Mesh

_WATCH_SECONDS = 0.05
_END_SECONDS = 60
_LOCK_TRIES = 5
READY, FAILED = "READY", "FAILED"


def run(site: Site, tell: Callable[[str], None]) -> int:
    """Runs the mesh until SIGINT or SIGTERM. Returns the exit code."""
    with _lock(site) as mine:
        if not mine:
            tell(f"already up, process {running(site)}")
            return 1
        return asyncio.run(_run(site, tell))


async def _run(site: Site, tell: Callable[[str], None]) -> int:
    asked_to_end = asyncio.Event()
    loop = asyncio.get_running_loop()
    mesh = Mesh(site, EVERYTHING, tell=tell)
    began = time.monotonic()
    starting = asyncio.create_task(mesh.start())

    def end() -> None:
        asked_to_end.set()
        starting.cancel()

    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, end)
    try:
        await starting
    except (PortTaken, Failed) as failure:
        tell(f"{failure}\n{FAILED}: the mesh did not start; everything is stopped")
        return 1
    except asyncio.CancelledError:
        tell("stopped")
        return 130
    tell(f"{READY} after {time.monotonic() - began:.1f} s at {site.url}")
    await asked_to_end.wait()
    await mesh.stop()
    tell("stopped")
    return 0


def up(site: Site, tell: Callable[[str], None]) -> int:
    """Starts the supervisor apart from this terminal and shows its progress until it is ready."""
    if pid := running(site):
        tell(f"already up at {site.url}, process {pid}")
        return 0
    log = site.log("supervisor")
    with log.open("wb") as output:
        child = subprocess.Popen(
            [sys.executable, "-u", "-m", "deploy.local", "run"],
            cwd=ROOT,
            env={**os.environ, "STAMPEDE_HOME": str(site.home), "STAMPEDE_PORT": str(site.ports.base)},
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            start_new_session=True,
        )
    try:
        for line in _follow(log, child):
            tell(line)
            if line.startswith(READY):
                return 0
    except KeyboardInterrupt:
        tell("stopping what was started")
        child.send_signal(signal.SIGTERM)
        child.wait()
        return 130
    return child.wait() or 1


def down(site: Site) -> bool:
    """Ends the supervisor and with it everything. Returns whether there was one."""
    pid = running(site)
    if pid is None:
        return False
    os.kill(pid, signal.SIGTERM)
    give_up = time.monotonic() + _END_SECONDS
    while running(site) == pid:
        if time.monotonic() > give_up:
            # Its children die with it.
            os.kill(pid, signal.SIGKILL)
        time.sleep(_WATCH_SECONDS)
    return True


def running(site: Site) -> int | None:
    """The supervisor's process id. It holds a lock on its file, so the number cannot be stale."""
    with _pid_file(site).open("a+") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            file.seek(0)
            return int(file.read() or 0) or None
    return None


def parts(site: Site) -> dict[str, dict[str, Any]]:
    """What the supervisor last wrote about each part; empty when it is not up."""
    if running(site) is None:
        return {}
    state: dict[str, Any] = json.loads((site.home / "state.json").read_text())
    found: dict[str, dict[str, Any]] = state["parts"]
    return found


@contextlib.contextmanager
def _lock(site: Site) -> Iterator[bool]:
    """Holds the supervisor's lock if no other supervisor does; says whether."""
    with _pid_file(site).open("a+") as file:
        for _ in range(_LOCK_TRIES):
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                # It may be held for a moment by one who only asks; see `running`.
                time.sleep(_WATCH_SECONDS)
        else:
            yield False
            return
        file.truncate(0)
        file.write(str(os.getpid()))
        file.flush()
        yield True


def _pid_file(site: Site) -> Path:
    return site.run / "supervisor.pid"


def _follow(log: Path, child: subprocess.Popen[bytes]) -> Iterator[str]:
    """The lines of the log as they come, until the child has ended."""
    with log.open() as file:
        while True:
            ended = child.poll() is not None
            while line := file.readline():
                yield line.rstrip("\n")
            if ended:
                return
            time.sleep(_WATCH_SECONDS)
