"""Starts and stops child processes, which never outlive the supervisor, however it ends."""

import asyncio
import contextlib
import os
import shutil
import signal
import subprocess
from pathlib import Path

from deploy.local import environment
from deploy.local.location import ROOT, open_private
from deploy.local.parts import Part

_STOP_SECONDS = 15


async def spawn(part: Part, log: Path) -> asyncio.subprocess.Process:
    """Starts the part and appends its output to its log.

    The part gets a session of its own, so that Ctrl-C reaches only the supervisor.
    """
    with open_private(log, "ab") as output:
        return await asyncio.create_subprocess_exec(
            *_dying_with_us(part.command),
            cwd=ROOT,
            env={**environment.kept(os.environ), **part.environment},
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            start_new_session=True,
            user=part.user,
            umask=0o077,  # what a part stores is as private as its log
        )


async def stop(process: asyncio.subprocess.Process, stop_signal: signal.Signals) -> None:
    """Sends the process its stop signal, and after 15 s kills it and its children."""
    if process.returncode is not None:
        return
    signal_to(process, stop_signal)
    # A process that a test has paused must receive it, too.
    signal_to(process, signal.SIGCONT)
    try:
        await asyncio.wait_for(process.wait(), _STOP_SECONDS)
    except TimeoutError:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        await process.wait()


def signal_to(process: asyncio.subprocess.Process, number: signal.Signals) -> None:
    """Signals the process if it still runs."""
    # Not process.send_signal: it would reap a dead child before asyncio does.
    if process.returncode is None:
        with contextlib.suppress(ProcessLookupError):
            os.kill(process.pid, number)


def _dying_with_us(command: tuple[str, ...]) -> tuple[str, ...]:
    # The kernel kills the child when this process ends, even by SIGKILL. A helper sets this after the fork:
    # code between fork and exec is unsafe beside gRPC's threads.
    helper = shutil.which("setpriv")
    if helper is None:
        return command
    armed = (helper, "--pdeathsig", "KILL")
    # A new user namespace resets it, so it is set last.
    if command[:2] == ("unshare", "-U"):
        return (*command[:2], *armed, *command[2:])
    return (*armed, *command)
