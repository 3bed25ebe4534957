"""Starts the parts of a mesh in order, restarts those that end, and stops them all."""

import asyncio
import contextlib
import json
import os
import signal
import time
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass, replace
from typing import Any, Self

from deploy.local import leftovers, process
from deploy.local.location import Site, write_private
from deploy.local.parts import EVERYTHING, Part, select, topology
from deploy.local.ports import PortTaken, is_free

_PROBE_SECONDS = 0.1
_PROGRESS_SECONDS = 10.0
_START_TRIES = 3
_BACKOFF_SECONDS = (0.2, 5.0)
_RETRY_SECONDS = 1.0
_STEADY_SECONDS = 30
_LOG_LINES = 20

Report = Callable[[str], None]
"""Receives a line for people when a part changes its state."""


class Failed(Exception):
    """A part did not become ready. The message has its name, its log file and the end of the log."""

    def __init__(self, message: str, *, again: bool) -> None:
        super().__init__(message)
        self.again = again
        """Whether another start may succeed: the part has ended, and is not just slow."""


@dataclass
class Status:
    """The state of one part; `python -m deploy.local status` shows it."""

    state: str = "waiting"
    pid: int | None = None
    began: str | None = None
    """The start time of the process, by which `leftovers` recognises it."""
    port: int | None = None
    restarts: int = 0
    since: float = 0.0


class _Running:
    """One part while the mesh is up."""

    def __init__(self, part: Part) -> None:
        self.part = part
        self.status = Status(port=part.ports[0] if part.ports else None)
        self.ready = asyncio.Event()
        self.process: asyncio.subprocess.Process | None = None
        self.kept_up = asyncio.Event()
        self.kept_up.set()


class Mesh:
    """A set of parts that runs between `start` and `stop`; also an async context manager.

    Without `parts`, those of the site's topology that `names` lists.
    """

    def __init__(
        self,
        site: Site,
        names: tuple[str, ...] = EVERYTHING,
        *,
        parts: Iterable[Part] = (),
        report: Report = lambda line: None,
    ) -> None:
        self.site = site
        self._tell = report
        self._parts = {part.name: _Running(part) for part in parts or select(topology(site), names)}
        self._keepers: list[asyncio.Task[None]] = []

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.stop()

    async def start(self) -> None:
        """Starts every part and returns when all are ready.

        Raises `PortTaken`, `Barred`, or `Failed` for the first part that ends three times or is not ready in time; then
        all parts are stopped.
        """
        await self._end_leftovers()
        self._check_ports()
        telling = asyncio.create_task(self._tell_progress())
        try:
            async with asyncio.TaskGroup() as group:
                for running in self._parts.values():
                    group.create_task(self._bring_up(running))
        except BaseExceptionGroup as failures:
            await self.stop()
            raise failures.exceptions[0] from None
        except asyncio.CancelledError:
            await self.stop()
            raise
        finally:
            telling.cancel()
        self._keepers = [
            asyncio.create_task(self._keep_for_good(running))
            for running in self._parts.values()
            if running.part.ready is not None
        ]

    async def stop(self) -> None:
        """Stops every part, those of the highest tier first."""
        for keeper in self._keepers:
            keeper.cancel()
        await asyncio.gather(*self._keepers, return_exceptions=True)
        self._keepers = []
        for tier in sorted({running.part.tier for running in self._parts.values()}, reverse=True):
            await asyncio.gather(
                *(self._put_down(running) for running in self._parts.values() if running.part.tier == tier)
            )

    async def kill(self, name: str, number: signal.Signals = signal.SIGKILL) -> None:
        """Sends the signal to a part. A part that dies is started again, unless it is kept down."""
        running = self._parts[name]
        assert running.process is not None, f"{name} has not been started"
        process.signal_to(running.process, number)
        if number == signal.SIGKILL:
            running.ready.clear()
            await running.process.wait()

    def keep_down(self, name: str) -> None:
        """From now on, leaves the part down when it ends, until `restart` or `keep_up`."""
        self._parts[name].kept_up.clear()

    def keep_up(self, name: str) -> None:
        """From now on, starts the part again when it ends, which is the default."""
        self._parts[name].kept_up.set()

    async def restart(self, name: str, *, timeout: float = 30) -> None:
        """Stops the part if it runs, starts it, and returns when it is ready. Raises `TimeoutError`."""
        running = self._parts[name]
        running.kept_up.clear()
        running.ready.clear()
        if running.process is not None:
            await process.stop(running.process, running.part.stop_signal)
        running.kept_up.set()
        await self.ready(name, timeout=timeout)

    def alter(self, name: str, **changes: Any) -> Part:
        """Changes fields of a part, such as its command, from its next start on. Returns the part before the change."""
        running = self._parts[name]
        before, running.part = running.part, replace(running.part, **changes)
        return before

    async def ready(self, name: str, *, timeout: float = 30) -> None:
        """Returns when the part is ready. Raises `TimeoutError`."""
        await asyncio.wait_for(self._parts[name].ready.wait(), timeout)

    def pid(self, name: str) -> int:
        running = self._parts[name]
        assert running.process is not None, f"{name} has not been started"
        return running.process.pid

    def restarts(self, name: str) -> int:
        return self._parts[name].status.restarts

    def report(self, line: str) -> None:
        """Passes on a line for people, if that is possible: a full disk must not stop the supervisor."""
        with contextlib.suppress(OSError):
            self._tell(line)

    async def _end_leftovers(self) -> None:
        """Ends the parts of a supervisor that was killed; they may still hold ports, or PostgreSQL's memory."""
        state, data = self.site.home / "state.json", self.site.data / "postgres"
        try:
            found = await asyncio.to_thread(leftovers.end_parts, state, data)
        except (TimeoutError, PermissionError) as error:
            raise Failed(str(error), again=False) from None
        if found:
            self.report(f"ended parts of a mesh whose supervisor was killed: {', '.join(found)}")

    async def _tell_progress(self) -> None:
        """Reports every ten seconds which parts the start waits for."""
        began = time.monotonic()
        while True:
            await asyncio.sleep(_PROGRESS_SECONDS)
            waiting = {name for name, running in self._parts.items() if not running.ready.is_set()}
            texts = []
            for name in sorted(waiting):
                first = [other for other in self._parts[name].part.after if other in waiting]
                texts.append(f"{name} (needs {', '.join(first)})" if first else name)
            self.report(f"after {time.monotonic() - began:.0f} s, waiting for: {', '.join(texts)}")

    def _check_ports(self) -> None:
        for running in self._parts.values():
            for port in running.part.ports:
                if not is_free(port):
                    raise PortTaken(port=port, part=running.part.name, base=self.site.ports.base)

    async def _bring_up(self, running: _Running) -> None:
        part = running.part
        for name in part.after:
            if name in self._parts:
                await self._parts[name].ready.wait()
        if part.needed is None or part.needed():
            self.site.log(part.name).unlink(missing_ok=True)
            began = time.monotonic()
            await self._start_part(running)
            self.report(f"{part.name:<18} ready   {time.monotonic() - began:5.1f} s")
        self._set(running, "ready" if part.ready else "done")
        running.ready.set()

    async def _start_part(self, running: _Running) -> None:
        """Starts the part until it is ready, or until it has ended three times."""
        for left in reversed(range(_START_TRIES)):
            try:
                await self._launch(running)
                await self._wait_until_ready(running)
                return
            except (Failed, OSError) as error:
                failure = error if isinstance(error, Failed) else self._failure(running, str(error), again=True)
                if not left or not failure.again:
                    raise failure from None
                self.report(f"{str(failure).partition(';')[0]}; starts again")
                await asyncio.sleep(_BACKOFF_SECONDS[0])

    async def _launch(self, running: _Running) -> None:
        if running.part.prepare is not None:
            await asyncio.to_thread(running.part.prepare)
        running.process = await process.spawn(running.part, self.site.log(running.part.name))
        running.status.pid = running.process.pid
        running.status.began = leftovers.start_time(running.process.pid)
        self._set(running, "starting")

    async def _wait_until_ready(self, running: _Running) -> None:
        """Raises `Failed` if the part ends, or takes too long."""
        part, child = running.part, running.process
        assert child is not None
        try:
            async with asyncio.timeout(part.timeout_seconds):
                if part.ready is None:
                    if await child.wait() != 0:
                        raise self._failure(running, f"ended with code {child.returncode}", again=True)
                    return
                while not await _answers(part):
                    if child.returncode is not None:
                        raise self._failure(running, f"ended with code {child.returncode}", again=True)
                    await asyncio.sleep(_PROBE_SECONDS)
        except TimeoutError:
            what = f"was not ready after {part.timeout_seconds:.0f} s"
            raise self._failure(running, what, again=False) from None

    def _failure(self, running: _Running, what: str, *, again: bool) -> Failed:
        self._set(running, "failed")
        log = self.site.log(running.part.name)
        with contextlib.suppress(FileNotFoundError):
            lines = log.read_text(errors="replace").splitlines()[-_LOG_LINES:]
            return Failed("\n".join([f"{running.part.name} {what}; {log} ends:", *lines]), again=again)
        return Failed(f"{running.part.name} {what}", again=again)

    async def _keep_for_good(self, running: _Running) -> None:
        """As `_keep`, also where a start fails in this process: the disk is full, or there are no more processes."""
        while True:
            try:
                await self._keep(running)
            except Exception as error:
                self.report(f"{running.part.name:<18} cannot be started: {error}; tries again")
                await asyncio.sleep(_RETRY_SECONDS)

    async def _keep(self, running: _Running) -> None:
        """Starts the part again whenever it ends; the pause doubles as long as the part ends soon after its start."""
        shortest, longest = _BACKOFF_SECONDS
        pause = shortest
        while True:
            began = time.monotonic()
            assert running.process is not None
            code = await running.process.wait()
            # A failed start leaves the process before, which has ended.
            running.ready.clear()
            self._set(running, "down")
            if running.kept_up.is_set():
                if time.monotonic() - began > _STEADY_SECONDS:
                    pause = shortest
                self.report(f"{running.part.name:<18} ended with code {code}, starts again in {pause:.1f} s")
                await asyncio.sleep(pause)
                pause = min(pause * 2, longest)
            else:
                self.report(f"{running.part.name:<18} ended with code {code}, stays down")
            await running.kept_up.wait()
            running.status.restarts += 1
            await self._launch(running)
            while running.process.returncode is None and not running.ready.is_set():
                with contextlib.suppress(Failed):
                    await self._wait_until_ready(running)
                    self._set(running, "ready")
                    running.ready.set()
                    self.report(f"{running.part.name:<18} ready again")

    async def _put_down(self, running: _Running) -> None:
        if running.process is not None:
            await process.stop(running.process, running.part.stop_signal)
        running.ready.clear()
        if running.status.state != "failed":
            self._set(running, "stopped")

    def _set(self, running: _Running, state: str) -> None:
        running.status.state = state
        running.status.since = time.time()
        self._write_state()

    def _write_state(self) -> None:
        """Writes the file that `status` reads; it is replaced as a whole, so a reader never sees half of it."""
        path = self.site.home / "state.json"
        parts = {name: asdict(running.status) for name, running in self._parts.items()}
        text = json.dumps({"supervisor": os.getpid(), "parts": parts}, indent=2)
        # If it cannot be written, `status` is late; the parts must run all the same.
        with contextlib.suppress(OSError):
            if path.parent.exists():  # else the folder was removed, and must not be made again
                write_private(path.with_suffix(".new"), text).replace(path)


async def _answers(part: Part) -> bool:
    assert part.ready is not None
    # A starting part refuses or resets connections, or answers with errors. All of these mean: not ready yet.
    with contextlib.suppress(Exception):
        return await asyncio.wait_for(part.ready(), 2)
    return False
