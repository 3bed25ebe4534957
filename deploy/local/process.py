"""Child processes that never outlive the supervisor, however it ends."""

import asyncio
import contextlib
import os
import shutil
import signal
import subprocess
from pathlib import Path

from deploy.local.parts import Part
from deploy.local.site import ROOT

_STOP_SECONDS = 15


async def spawn(part: Part, log: Path) -> asyncio.subprocess.Process:
    """Starts the part, its output appended to its log.

    It gets a session of its own, so that Ctrl-C reaches only the supervisor.
    """
    with log.open("ab") as output:
        return await asyncio.create_subprocess_exec(
            *_dying_with_us(part.command),
            cwd=ROOT,
            env={**os.environ, **part.environment},
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            start_new_session=True,
            user=part.user,
        )


async def stop(process: asyncio.subprocess.Process, stop_signal: signal.Signals) -> None:
    """Asks the process to end, and after a while makes it and its children."""
    if process.returncode is not None:
        return
    signal_to(process, stop_signal)
    # One that a test has paused must hear it too.
    signal_to(process, signal.SIGCONT)
    try:
        await asyncio.wait_for(process.wait(), _STOP_SECONDS)
    except TimeoutError:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        await process.wait()


def signal_to(process: asyncio.subprocess.Process, number: signal.Signals) -> None:
    """Signals the process if it still lives."""
    # Not process.send_signal: that reaps a dead child behind asyncio's back.
    if process.returncode is None:
        with contextlib.suppress(ProcessLookupError):
            os.kill(process.pid, number)


def _dying_with_us(command: tuple[str, ...]) -> tuple[str, ...]:
    # The kernel kills the child when we end, even by SIGKILL. Set by a helper after the fork
    # rather than by us between fork and exec, which is unsafe beside gRPC's threads.
    helper = shutil.which("setpriv")
    if helper is None:
        return command
    armed = (helper, "--pdeathsig", "KILL")
    # A new user namespace would forget it, so it is set last.
    if command[:2] == ("unshare", "-U"):
        return (*command[:2], *armed, *command[2:])
    return (*armed, *command)
