"""The supervisor as a process of its own, which other commands find, start, watch and stop."""

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

from deploy.local.location import ROOT, Site, open_private
from deploy.local.parts import EVERYTHING
from deploy.local.ports import PortTaken
from deploy.local.supervisor import Failed, Mesh

_WATCH_SECONDS = 0.05
_END_SECONDS = 60
_LOCK_TRIES = 5
READY, FAILED = "READY", "FAILED"


def run(site: Site, report: Callable[[str], None]) -> int:
    """Runs the mesh until SIGINT or SIGTERM; returns the exit status."""
    with _lock(site) as is_held:
        if not is_held:
            report(f"already up, process {running(site)}")
            return 1
        return asyncio.run(_run(site, report))


async def _run(site: Site, report: Callable[[str], None]) -> int:
    stop_requested = asyncio.Event()
    loop = asyncio.get_running_loop()
    mesh = Mesh(site, EVERYTHING, report=report)
    began = time.monotonic()
    starting = asyncio.create_task(mesh.start())

    def request_stop() -> None:
        stop_requested.set()
        starting.cancel()

    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, request_stop)
    try:
        await starting
    except (PortTaken, Failed) as failure:
        report(f"{failure}\n{FAILED}: the mesh did not start; everything is stopped")
        return 1
    except asyncio.CancelledError:
        report("stopped")
        return 130
    report(f"{READY} after {time.monotonic() - began:.1f} s at {site.url}")
    await stop_requested.wait()
    await mesh.stop()
    report("stopped")
    return 0


def up(site: Site, report: Callable[[str], None]) -> int:
    """Starts the supervisor in the background and reports its progress until it is ready; returns the exit status."""
    if pid := running(site):
        report(f"already up at {site.url}, process {pid}")
        return 0
    log = site.log("supervisor")
    with open_private(log, "wb") as output:
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
            report(line)
            if line.startswith(READY):
                return 0
    except KeyboardInterrupt:
        report("stopping the parts that were started")
        child.send_signal(signal.SIGTERM)
        child.wait()
        return 130
    return child.wait() or 1


def down(site: Site) -> bool:
    """Stops the supervisor and all parts; returns whether it was running."""
    pid = running(site)
    if pid is None:
        return False
    os.kill(pid, signal.SIGTERM)
    deadline = time.monotonic() + _END_SECONDS
    while running(site) == pid:
        if time.monotonic() > deadline:
            # The kernel kills its children with it.
            os.kill(pid, signal.SIGKILL)
        time.sleep(_WATCH_SECONDS)
    return True


def running(site: Site) -> int | None:
    """The supervisor's process id, or None. The supervisor locks the file, so the id is never stale."""
    with _pid_file(site).open("a+") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            file.seek(0)
            return int(file.read() or 0) or None
    return None


def parts(site: Site) -> dict[str, dict[str, Any]]:
    """The state of each part, as the supervisor last wrote it; empty if the mesh is not up."""
    if running(site) is None:
        return {}
    state: dict[str, Any] = json.loads((site.home / "state.json").read_text())
    found: dict[str, dict[str, Any]] = state["parts"]
    return found


@contextlib.contextmanager
def _lock(site: Site) -> Iterator[bool]:
    """Takes the supervisor's lock; yields whether it is held now, or another supervisor has it."""
    with _pid_file(site).open("a+") as file:
        for _ in range(_LOCK_TRIES):
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                # `running` holds the lock for a moment, too.
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
    """Yields the lines of the log as they are written, until the child has ended."""
    with log.open() as file:
        while True:
            ended = child.poll() is not None
            while line := file.readline():
                yield line.rstrip("\n")
            if ended:
                return
            time.sleep(_WATCH_SECONDS)
