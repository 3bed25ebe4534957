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
from typing import Any, TextIO

from deploy.local import leftovers
from deploy.local.environment import Contradiction
from deploy.local.location import ROOT, Site, locked, open_private
from deploy.local.parts import EVERYTHING
from deploy.local.ports import PortTaken
from deploy.local.supervisor import Failed, Mesh
from deploy.local.wheels import Barred

_FOLDER_SECONDS = 1.0
_WATCH_SECONDS = 0.05
_END_SECONDS = 60
_LOCK_TRIES = 5
READY, FAILED = "READY", "FAILED"


def run(site: Site, report: Callable[[str], None]) -> int:
    """Runs the mesh until SIGINT or SIGTERM; returns the exit status."""
    with _lock(site) as lock:
        if lock is None:
            report(f"already up, process {running(site)}")
            return 1
        return asyncio.run(_run(site, report, lock))


async def _run(site: Site, report: Callable[[str], None], lock: TextIO) -> int:
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
    watching = asyncio.create_task(_watch_folder(lock, request_stop))
    try:
        await starting
        mesh.report(f"{READY} after {time.monotonic() - began:.1f} s at {site.url}")
        await stop_requested.wait()
        await mesh.stop()
    except (PortTaken, Failed, Barred) as failure:
        mesh.report(f"{failure}\n{FAILED}: the mesh did not start; everything is stopped")
        return 1
    except asyncio.CancelledError:
        mesh.report("stopped")
        return 130
    finally:
        watching.cancel()
    mesh.report("stopped")
    return 0


async def _watch_folder(lock: TextIO, request_stop: Callable[[], None]) -> None:
    """Stops the mesh when its folder was removed: its data is gone, and no command would find it any more."""
    while True:
        await asyncio.sleep(_FOLDER_SECONDS)
        if not os.fstat(lock.fileno()).st_nlink:
            request_stop()
            return


def up(site: Site, report: Callable[[str], None]) -> int:
    """Starts the supervisor in the background and reports its progress until it is ready; returns the exit status.

    A second call waits for the first one's end, and finds the mesh up.
    """
    waits = f"another command is starting the mesh in {site.home}; waiting for it"
    with locked(site.run / "up.lock", waits=lambda: report(waits)):
        if pid := running(site):
            report(f"already up at {site.url}, process {pid}")
            return 0
        if pid := leftovers.supervisor(site.home):
            report(f"stopping the mesh whose folder was removed, process {pid}")
            _stop(pid)
        return _up(site, report)


def _up(site: Site, report: Callable[[str], None]) -> int:
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
    pid = running(site) or leftovers.supervisor(site.home)
    if pid is None:
        # Its supervisor may have been killed, on a system where that leaves the parts running.
        return bool(leftovers.end_parts(site.home / "state.json", site.data / "postgres"))
    _stop(pid)
    return True


def _stop(pid: int) -> None:
    began = leftovers.start_time(pid)
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, signal.SIGTERM)
        deadline = time.monotonic() + _END_SECONDS
        while _runs(pid, began):
            if time.monotonic() > deadline:
                # The kernel kills its children with it.
                os.kill(pid, signal.SIGKILL)
            time.sleep(_WATCH_SECONDS)


def _runs(pid: int, began: str | None) -> bool:
    if began is None:  # no /proc here
        os.kill(pid, 0)  # raises if it has ended
        return True
    return leftovers.start_time(pid) == began


def running(site: Site) -> int | None:
    """The supervisor's process id, or None. The supervisor locks the file, so the id is never stale.

    Raises `Contradiction` if it runs on other ports than `site`.
    """
    with _pid_file(site).open("a+") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            file.seek(0)
            pid, _, port = file.read().partition(" ")
            if port and int(port) != site.ports.base:
                raise Contradiction(
                    f"the mesh in {site.home} runs on STAMPEDE_PORT={port}, and this command is for {site.ports.base}"
                ) from None
            return int(pid or 0) or None
    return None


def parts(site: Site) -> dict[str, dict[str, Any]]:
    """The state of each part, as the supervisor last wrote it; empty if the mesh is not up."""
    if running(site) is None:
        return {}
    try:
        state: dict[str, Any] = json.loads((site.home / "state.json").read_text())
    except FileNotFoundError:  # it has just begun
        return {}
    found: dict[str, dict[str, Any]] = state["parts"]
    return found


@contextlib.contextmanager
def _lock(site: Site) -> Iterator[TextIO | None]:
    """Takes the supervisor's lock; yields the locked file, or None if another supervisor has it."""
    with _pid_file(site).open("a+") as file:
        for _ in range(_LOCK_TRIES):
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                # `running` holds the lock for a moment, too.
                time.sleep(_WATCH_SECONDS)
        else:
            yield None
            return
        file.truncate(0)
        file.write(f"{os.getpid()} {site.ports.base}")
        file.flush()
        yield file


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
