"""Live views: one look at the database for all who watch, however many they are.

Whoever watches is told what is new and never waited for. One that does not take what it is told cannot be talked to:
its generator is suspended where it sends, for as long as the client does not read. So it is the side that tells which
notices, takes the slot away at once, and cancels the task that sends.
"""

import asyncio
import math
from collections import defaultdict
from collections.abc import AsyncIterator, Awaitable, Callable, Hashable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from typing import Any, Generic, TypeVar

from prometheus_client import Counter, Gauge

from services.chassis.errors import RateLimited, TooSlow, Unavailable

K = TypeVar("K", bound=Hashable)
V = TypeVar("V")

DROPPED = "does not read its stream"
"""What a task is told that is cancelled for this: the one argument of its `CancelledError`."""

_LASTS_SECONDS = 3600.0
_PATIENCE_SECONDS = 10.0
# To tell one watcher takes a process some 0.05 ms. Beyond this, looks become fewer, rather than everything else slower.
_TOLD_PER_SECOND_MOST = 4000
_WATCHERS = Gauge("stampede_watchers", "Those who watch a live view of this process.")
_DROPPED = Counter("stampede_watchers_dropped_total", "Watchers that did not read their stream.")
_NOTHING = object()


class Watch(Generic[K, V]):
    """Tells watchers of a key about its value. One that reads slowly misses what lies between, never the latest;
    one that does not read at all for ten seconds, while there is something new, is dropped.

    Keys of which `nudge` says that they changed are looked up together within a few milliseconds. All watched keys are
    looked up every `seconds`; or, while `live` says that no change goes without a nudge, every `safety_seconds`.
    """

    def __init__(
        self,
        fetch: Callable[[Sequence[K]], Awaitable[Mapping[K, V]]],
        *,
        interval_seconds: float,
        watchers_max: int,
        safety_seconds: float = 30.0,
        compare: Callable[[V], object] = lambda value: value,
    ) -> None:
        """`fetch` looks up the values of keys that exist. More than `most` watchers are refused. A value is told where
        it is `shown` in another way than the one told before.
        """
        self._fetch, self._watchers_max, self._compare = fetch, watchers_max, compare
        self._seconds, self._safety_seconds = interval_seconds, safety_seconds
        self.watched = asyncio.Event()
        """Set while there is somebody who watches."""
        self._live = False
        self._may_have_missed = False
        self._watchers: dict[K, set[_Watcher[V]]] = defaultdict(set)
        self._latest: dict[K, tuple[V, object]] = {}
        self._count = 0
        self._changed: set[K] = set()
        self._news = asyncio.Event()
        # In rounds, not by a clock: a process that was stopped for a while blames nobody for the time it missed.
        self._patience_rounds = math.ceil(_PATIENCE_SECONDS / interval_seconds)

    @property
    def live(self) -> bool:
        """Whether each change, whoever makes it, is followed by a `nudge`."""
        return self._live

    @live.setter
    def live(self, live: bool) -> None:
        """To be set again whenever nudges may have been missed: all keys are looked at once more, to catch up."""
        self._live = live
        if live:
            self._may_have_missed = True
            self._news.set()

    def nudge(self, key: K, *, unless: Callable[[V], bool] | None = None) -> None:
        """Says that `key` has changed, to save its watchers the wait for the next look.

        `unless` says of the value found last whether it has the change already: who hears of a change twice looks once.
        """
        if key not in self._watchers:
            return
        if unless and key in self._latest and unless(self._latest[key][0]):
            return
        self._changed.add(key)
        self._news.set()

    @contextmanager
    def subscribe(self, key: K, *, at_once: bool = False) -> Iterator[AsyncIterator[V]]:
        """The value at the next look, then each new one; for an hour at most. To be read by the task that sends it.

        With `at_once`, the first is the one that other watchers of the key were told last, or else comes from a look
        made for it; where that fails, it raises `Unavailable`.
        """
        if self._count >= self._watchers_max:
            raise RateLimited(what="watchers")
        watcher = _Watcher[V](asyncio.current_task(), needs_answer=at_once)
        self._watchers[key].add(watcher)
        self._count += 1
        self.watched.set()
        _WATCHERS.inc()
        if at_once and key in self._latest:
            watcher.tell(*self._latest[key])
        elif at_once:
            self.nudge(key)
        try:
            yield watcher.values()
        finally:
            self._leave(key, watcher)

    def _leave(self, key: K, watcher: "_Watcher[V]") -> None:
        if watcher not in self._watchers.get(key, ()):
            return  # dropped before
        self._watchers[key].remove(watcher)
        if not self._watchers[key]:
            del self._watchers[key]
            self._latest.pop(key, None)
        self._count -= 1
        if not self._count:
            self.watched.clear()
        _WATCHERS.dec()

    async def run(self) -> None:
        """Looks and tells, until cancelled."""
        loop = asyncio.get_running_loop()
        next_round = next_full = loop.time()
        while True:
            with suppress(TimeoutError):
                async with asyncio.timeout_at(next_round):
                    await self._news.wait()
            # Asked of the clock, not of the timeout: news without end must not keep the others from their looks.
            began = loop.time()
            ends_round = began >= next_round
            full = self._may_have_missed or (ends_round and (not self._live or began >= next_full))
            keys = list(self._watchers) if full else [key for key in self._changed if key in self._watchers]
            self._news.clear()
            self._changed.clear()
            self._may_have_missed = False
            told = await self._look(keys) if keys else 0
            if full:
                next_full = began + self._safety_seconds
            if ends_round:
                self._drop_those_who_do_not_read()
                next_round = began + max(self._seconds, told / _TOLD_PER_SECOND_MOST)

    async def _look(self, keys: Sequence[K]) -> int:
        """Tells what is new about `keys`; returns to how many."""
        try:
            found = await self._fetch(keys)
        except Exception as error:
            self._latest.clear()
            for watcher in [watcher for key in keys for watcher in self._watchers.get(key, ())]:
                watcher.fail(error)
            raise
        told = 0
        for key, value in found.items():
            if key not in self._watchers:
                continue  # they left during the look
            shown = self._compare(value)
            self._latest[key] = value, shown
            for watcher in self._watchers[key]:
                told += watcher.tell(value, shown)
        return told

    def _drop_those_who_do_not_read(self) -> None:
        for key, watchers in list(self._watchers.items()):
            for watcher in [w for w in watchers if w.rounds_missed(self._patience_rounds)]:
                self._leave(key, watcher)
                watcher.drop()


class _Watcher(Generic[V]):
    """One who watches: what it was told last, and for how many rounds it has not taken it."""

    def __init__(self, task: "asyncio.Task[Any] | None", *, needs_answer: bool) -> None:
        self._task, self._needs_answer = task, needs_answer
        self._value: V | None = None
        self._shown: object = _NOTHING
        self._news = asyncio.Event()
        self._rounds_missed = 0
        self._failure: Exception | None = None

    def tell(self, value: V, shown: object) -> bool:
        """Puts `value` in the place of what was not taken yet, if it is new. Returns whether it is."""
        if self._shown is not _NOTHING and self._shown == shown:
            return False
        self._value, self._shown = value, shown
        self._news.set()
        return True

    def fail(self, error: Exception) -> None:
        """A look has failed: whoever was told something waits for the next one, who was not is not kept waiting."""
        if self._needs_answer and self._shown is _NOTHING:
            self._failure = Unavailable(part="live view")
            self._failure.__cause__ = error
            self._news.set()

    def rounds_missed(self, most: int) -> bool:
        """Counts one more round. Whether it has left what it was told untaken for more than `most` of them."""
        self._rounds_missed = self._rounds_missed + 1 if self._news.is_set() else 0
        return self._rounds_missed > most

    def drop(self) -> None:
        self._failure = TooSlow()
        self._news.set()
        _DROPPED.inc()
        if self._task:
            self._task.cancel(DROPPED)

    async def values(self) -> AsyncIterator[V]:
        until = asyncio.get_running_loop().time() + _LASTS_SECONDS
        while True:
            try:
                async with asyncio.timeout_at(until):
                    await self._news.wait()
            except TimeoutError:
                return
            if self._failure:
                raise self._failure
            self._news.clear()
            self._rounds_missed = 0
            # Outside of the timeout, which would cancel whatever the reader does meanwhile.
            yield self._value  # type: ignore[misc]  # V may be optional itself; there is news, so it was told
