"""Syncs the journal to the disk: one sync serves all requests that wait for one."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

from sandbox.state.journal import Journal


class GroupCommit:
    """Syncs what was appended to the journal, in a thread of its own. While one sync runs, the next lines gather."""

    def __init__(self, journal: Journal, synced: Callable[[int], None]) -> None:
        """`synced` is called after each sync, with the number of bytes that are on the disk now."""
        self._journal, self._call = journal, synced
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="journal")
        self._done = journal.size
        self._running: asyncio.Task[None] | None = None
        self._failure: OSError | None = None
        self._waiting: list[asyncio.Future[None]] = []

    def begin(self) -> None:
        """Starts a sync, unless one runs or everything is on the disk."""
        if self._running is None and self._done < self._journal.size and self._failure is None:
            self._running = asyncio.create_task(self._sync())

    async def wait(self) -> None:
        """Returns once everything that was appended before the call is on the disk.

        Raises `OSError` from the first failed sync on: what the disk has after one is not known.
        """
        wanted = self._journal.size
        while self._done < wanted:
            if self._failure is not None:
                raise self._failure
            self.begin()
            # A future of its own, because a cancelled request must not cancel the sync.
            synced = asyncio.get_running_loop().create_future()
            self._waiting.append(synced)
            await synced

    async def stop(self) -> None:
        """Lets the running syncs end."""
        while self._running is not None:
            await self._running
        self._thread.shutdown()

    async def _sync(self) -> None:
        size = self._journal.size
        try:
            await asyncio.get_running_loop().run_in_executor(self._thread, self._journal.sync)
        except OSError as error:
            self._failure = error
            return
        finally:
            self._running = None
            self._done = size if self._failure is None else self._done
            waiting, self._waiting = self._waiting, []
            for synced in waiting:
                if not synced.done():
                    synced.set_result(None)
        self._call(size)
        self.begin()
