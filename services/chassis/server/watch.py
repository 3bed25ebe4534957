"""Live views: one query for all watchers, however many they are.

The watch gives each watcher its latest value and never waits for one. A watcher whose client does not read cannot end
by itself: its generator is suspended in the middle of sending. So the watch notices it, frees its slot at once, and
cancels the task that sends.
"""

import asyncio
import math
from collections import defaultdict
from collections.abc import AsyncIterator, Awaitable, Callable, Hashable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from typing import Any, Generic, TypeVar

from prometheus_client import Counter, Gauge

from services.chassis import request_context
from services.chassis.errors import RateLimited, TooSlow, Unavailable
from services.chassis.telemetry.heartbeats import beat

K = TypeVar("K", bound=Hashable)
V = TypeVar("V")

DROPPED = "does not read its stream"
"""The argument of the `CancelledError` by which the task of a dropped watcher ends."""

_LASTS_SECONDS = 3600.0
_UNREAD_SECONDS = 10.0
_LAST_WORD_SECONDS = 1.0
# Proxies cut a connection that is silent for a minute or more.
_QUIET_SECONDS = 25.0
# To update one watcher costs some 0.05 ms. At more than this, rounds become rarer instead of everything else slower.
_UPDATES_PER_SECOND_MAX = 4000
_WATCHERS = Gauge("stampede_watchers", "Watchers of live views in this process.")
_DROPPED = Counter("stampede_watchers_dropped_total", "Watchers dropped because they did not read.")
_ENDED = Counter("stampede_watchers_ended_total", "Watchers ended because their client had too many.")
_NOTHING = object()


class Watch(Generic[K, V]):
    """Gives the watchers of a key its changing value. One that reads slowly misses values between, never the latest;
    one that reads nothing for ten seconds, although there is a new value, is dropped.

    Keys that were nudged are fetched together within a few milliseconds. All watched keys are fetched every
    `interval_seconds`; while `live`, when each change is followed by a nudge, every `safety_seconds`.
    """

    def __init__(
        self,
        fetch: Callable[[Sequence[K]], Awaitable[Mapping[K, V]]],
        *,
        interval_seconds: float,
        watchers_max: int,
        watchers_each_max: int = 0,
        safety_seconds: float = 30.0,
        compare: Callable[[V], object] = lambda value: value,
    ) -> None:
        """`fetch` returns the values of those keys that exist. More than `watchers_max` watchers are refused.

        A client with more than `watchers_each_max` of them loses the oldest one: a signed-in user, or else a network
        address. With 0 there is no bound for one client.

        A watcher receives a value if `compare` of it differs from that of the value before.
        """
        self._fetch, self._watchers_max, self._compare = fetch, watchers_max, compare
        self._each_max = watchers_each_max
        self._by_client: dict[Hashable, dict[_Watcher[V], K]] = {}
        """The watchers of each client, the oldest first."""
        self._seconds, self._safety_seconds = interval_seconds, safety_seconds
        self.watched = asyncio.Event()
        """Set while there is a watcher."""
        self._live = False
        self._may_have_missed = False
        self._watchers: dict[K, set[_Watcher[V]]] = defaultdict(set)
        self._latest: dict[K, tuple[V, object]] = {}
        self._count = 0
        self._changed: set[K] = set()
        self._wakeup = asyncio.Event()
        # In rounds, not by a clock: while the process is paused, no watcher can read.
        self._unread_rounds = math.ceil(_UNREAD_SECONDS / interval_seconds)

    @property
    def live(self) -> bool:
        """Whether each change, also of another process, is followed by a `nudge`."""
        return self._live

    @live.setter
    def live(self, live: bool) -> None:
        """Set it to True again whenever nudges may have been missed: all keys are then fetched."""
        self._live = live
        if live:
            self._may_have_missed = True
            self._wakeup.set()

    def nudge(self, key: K, *, unless: Callable[[V], bool] | None = None) -> None:
        """Fetches `key` now instead of in the next round.

        `unless` returns whether the last fetched value already contains the change; then nothing is fetched.
        """
        if key not in self._watchers:
            return
        if unless and key in self._latest and unless(self._latest[key][0]):
            return
        self._changed.add(key)
        self._wakeup.set()

    @contextmanager
    def subscribe(
        self, key: K, *, at_once: bool = False, sent: Callable[[], V] | None = None
    ) -> Iterator[AsyncIterator[V]]:
        """Iterates over the value of `key`: the next one fetched, then each new one, for at most an hour.

        After 25 seconds without a new value, the last one comes again: what `sent` returns, for a caller that begins
        with a value of its own, as the next one may be fetched only when it has changed.

        The task that subscribes must be the one that sends. With `at_once` the first value is the last one fetched for
        other watchers, or one fetched now; if that fails, the iterator raises `Unavailable`.
        """
        client = request_context.client() if self._each_max else None
        self._make_room(client)
        watcher = _Watcher[V](asyncio.current_task(), client, sent, needs_first=at_once)
        self._watchers[key].add(watcher)
        if client is not None:
            self._by_client.setdefault(client, {})[watcher] = key
        self._count += 1
        self.watched.set()
        _WATCHERS.inc()
        if at_once and key in self._latest:
            watcher.update(*self._latest[key])
        elif at_once:
            self.nudge(key)
        try:
            yield watcher.values()
        finally:
            watcher.has_left = True
            self._leave(key, watcher)

    def _make_room(self, client: Hashable) -> None:
        """Ends the oldest watcher of a client that has its most; raises `RateLimited` if all slots are taken."""
        own = self._by_client.get(client, {})
        if len(own) >= self._each_max > 0:
            oldest, key = next(iter(own.items()))
            self._leave(key, oldest)
            oldest.end()
        if self._count >= self._watchers_max:
            raise RateLimited(what="watchers")

    def _leave(self, key: K, watcher: "_Watcher[V]") -> None:
        if watcher not in self._watchers.get(key, ()):
            return  # already dropped
        self._watchers[key].remove(watcher)
        if not self._watchers[key]:
            del self._watchers[key]
            self._latest.pop(key, None)
        if own := self._by_client.get(watcher.client):
            own.pop(watcher, None)
            if not own:
                del self._by_client[watcher.client]
        self._count -= 1
        if not self._count:
            self.watched.clear()
        _WATCHERS.dec()

    async def run(self) -> None:
        """Fetches values and updates watchers, until cancelled."""
        loop = asyncio.get_running_loop()
        next_round = next_full = loop.time()
        while beat():
            with suppress(TimeoutError):
                async with asyncio.timeout_at(next_round):
                    await self._wakeup.wait()
            # By the clock, not by the timeout: constant nudges must not delay the round of the other keys.
            began = loop.time()
            ends_round = began >= next_round
            full = self._may_have_missed or (ends_round and (not self._live or began >= next_full))
            keys = list(self._watchers) if full else [key for key in self._changed if key in self._watchers]
            self._wakeup.clear()
            self._changed.clear()
            self._may_have_missed = False
            updates = await self._refresh(keys) if keys else 0
            if full:
                next_full = began + self._safety_seconds
            if ends_round:
                self._drop_unread()
                next_round = began + max(self._seconds, updates / _UPDATES_PER_SECOND_MAX)

    async def _refresh(self, keys: Sequence[K]) -> int:
        """Fetches `keys` and updates their watchers; returns the number of updates."""
        try:
            found = await self._fetch(keys)
        except Exception as error:
            self._latest.clear()
            for watcher in [watcher for key in keys for watcher in self._watchers.get(key, ())]:
                watcher.fail(error)
            raise
        updates = 0
        for key, value in found.items():
            if key not in self._watchers:
                continue  # its watchers left meanwhile
            compared = self._compare(value)
            self._latest[key] = value, compared
            for watcher in self._watchers[key]:
                updates += watcher.update(value, compared)
        return updates

    def _drop_unread(self) -> None:
        for key, watchers in list(self._watchers.items()):
            for watcher in [w for w in watchers if w.rounds_missed(self._unread_rounds)]:
                self._leave(key, watcher)
                watcher.drop()


class _Watcher(Generic[V]):
    """One watcher: its latest value, and for how many rounds it has not read that."""

    def __init__(
        self,
        task: "asyncio.Task[Any] | None",
        client: Hashable,
        sent: Callable[[], V] | None,
        *,
        needs_first: bool,
    ) -> None:
        self._task, self.client, self._sent, self._needs_first = task, client, sent, needs_first
        self.has_left = False
        self._value: V | None = None
        self._compared: object = _NOTHING
        self._wakeup = asyncio.Event()
        self._rounds_missed = 0
        self._failure: Exception | None = None
        self._ended = False

    def update(self, value: V, compared: object) -> bool:
        """Replaces the value if `compared` differs; returns whether it does."""
        if self._compared is not _NOTHING and self._compared == compared:
            return False
        self._value, self._compared = value, compared
        self._wakeup.set()
        return True

    def fail(self, error: Exception) -> None:
        """A fetch has failed. A watcher that has had a value waits for the next; one that needs its first fails."""
        if self._needs_first and self._compared is _NOTHING:
            self._failure = Unavailable(part="live view")
            self._failure.__cause__ = error
            self._wakeup.set()

    def rounds_missed(self, most: int) -> bool:
        """Counts one more round; returns whether a value has been unread for more than `most` rounds."""
        self._rounds_missed = self._rounds_missed + 1 if self._wakeup.is_set() else 0
        return self._rounds_missed > most

    def drop(self) -> None:
        self._failure = TooSlow()
        self._wakeup.set()
        _DROPPED.inc()
        if self._task:
            self._task.cancel(DROPPED)

    def end(self) -> None:
        """Ends the iteration, because its client watches too much; a client that does not read is cut off soon."""
        self._ended = True
        self._wakeup.set()
        _ENDED.inc()
        asyncio.get_running_loop().call_later(_LAST_WORD_SECONDS, self._cut_off)

    def _cut_off(self) -> None:
        if self._task and not self.has_left:
            self._task.cancel(DROPPED)

    async def values(self) -> AsyncIterator[V]:
        loop = asyncio.get_running_loop()
        until = loop.time() + _LASTS_SECONDS
        while True:
            try:
                async with asyncio.timeout_at(min(until, loop.time() + _QUIET_SECONDS)):
                    await self._wakeup.wait()
            except TimeoutError:
                if loop.time() >= until:
                    return
                if self._sent:
                    yield self._sent()
                    continue
                if self._compared is _NOTHING:
                    continue
            if self._ended:
                return
            if self._failure:
                raise self._failure
            self._wakeup.clear()
            self._rounds_missed = 0
            # Outside of the timeout, which would cancel what the reader does meanwhile.
            yield self._value  # type: ignore[misc]  # V may include None; after a wakeup there is a value
