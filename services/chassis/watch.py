"""Live views: one look at the database for all who watch, however many they are."""

import asyncio
from collections import defaultdict
from collections.abc import AsyncIterator, Awaitable, Callable, Hashable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from typing import Generic, TypeVar

from services.chassis.errors import RateLimited

K = TypeVar("K", bound=Hashable)
V = TypeVar("V")

_LASTS_SECONDS = 3600.0


class Watch(Generic[K, V]):
    """Tells watchers of a key about its value. One that reads slowly misses what lies between, never the latest.

    All watched keys are looked up together every `seconds`, and those of which `nudge` says that they changed within
    a few milliseconds.
    """

    def __init__(self, fetch: Callable[[Sequence[K]], Awaitable[Mapping[K, V]]], *, seconds: float, most: int) -> None:
        """`fetch` looks up the values of keys that exist. More than `most` watchers are refused."""
        self._fetch, self._seconds, self._most = fetch, seconds, most
        self._watchers: dict[K, set[asyncio.Queue[V]]] = defaultdict(set)
        self._count = 0
        self._changed: set[K] = set()
        self._news = asyncio.Event()

    def nudge(self, key: K) -> None:
        """Says that `key` has changed, to save its watchers the wait for the next look."""
        if key in self._watchers:
            self._changed.add(key)
            self._news.set()

    @contextmanager
    def subscribed(self, key: K) -> Iterator[AsyncIterator[V]]:
        """The values that are looked up from now on, whether changed or not; for an hour at most."""
        if self._count >= self._most:
            raise RateLimited(what="watchers")
        queue: asyncio.Queue[V] = asyncio.Queue(maxsize=1)
        self._watchers[key].add(queue)
        self._count += 1
        try:
            yield _values(queue)
        finally:
            self._count -= 1
            self._watchers[key].discard(queue)
            if not self._watchers[key]:
                del self._watchers[key]

    async def run(self) -> None:
        """Looks and tells, until cancelled."""
        loop = asyncio.get_running_loop()
        next_full = loop.time()
        while True:
            with suppress(TimeoutError):
                async with asyncio.timeout_at(next_full):
                    await self._news.wait()
            # Asked of the clock, not of the timeout: news without end must not keep the others from their looks.
            if loop.time() >= next_full:
                keys = list(self._watchers)
                next_full = loop.time() + self._seconds
            else:
                keys = [key for key in self._changed if key in self._watchers]
            self._news.clear()
            self._changed.clear()
            if keys:
                await self._look(keys)

    async def _look(self, keys: Sequence[K]) -> None:
        for key, value in (await self._fetch(keys)).items():
            for queue in self._watchers.get(key, ()):
                if queue.full():
                    queue.get_nowait()
                queue.put_nowait(value)


async def _values(queue: asyncio.Queue[V]) -> AsyncIterator[V]:
    until = asyncio.get_running_loop().time() + _LASTS_SECONDS
    while True:
        try:
            async with asyncio.timeout_at(until):
                value = await queue.get()
        except TimeoutError:
            return
        yield value  # outside of the timeout, which would cancel whatever the reader does meanwhile
