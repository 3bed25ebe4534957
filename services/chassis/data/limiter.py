"""A limiter of concurrency: so many at once, and a queue that is never longer than the patience of those in it."""

import asyncio
from collections import Counter as Tally
from collections import deque
from collections.abc import AsyncIterator, Hashable
from contextlib import asynccontextmanager

import prometheus_client

from services.chassis import request_context
from services.chassis.errors import AppError, RateLimited, Unavailable

_REFUSED = prometheus_client.Counter("stampede_limiter_refused_total", "Calls that a limiter refused.", ["limiter"])
# The weight of the newest measurement in the mean: some twenty count, so the mean follows a change within a second.
_WEIGHT = 0.05


class Limiter:
    """Admits at most `slots` holders at once. Others wait, while the queue moves fast enough to reach them in time.

    A caller is refused with `RateLimited` at once if it would wait for longer than `patience_seconds`, or past its own
    deadline, as far as the measured time of holders shows. If no holder has returned its slot for that long, what they
    work on stands still: then callers are refused with `Unavailable`.
    """

    def __init__(
        self,
        what: str,
        slots: int,
        *,
        patience_seconds: float,
        mean_seconds: float = 0.0,
        part: str = "",
        first_in_a_row: int = 0,
    ) -> None:
        """`part` names what holders work on; without it, nothing is called unavailable.

        After `first_in_a_row` of those with `first`, one of the others gets its turn; with 0, after all of them.
        """
        self._what, self._slots, self._patience, self._part = what, slots, patience_seconds, part
        self._first_most, self._first_in_a_row = first_in_a_row, 0
        self._mean = mean_seconds
        self._held = 0
        self._queues: tuple[deque[_Waiter], deque[_Waiter]] = deque(), deque()
        self._waiting_by_key: Tally[Hashable] = Tally()
        self._moved = 0.0
        """When a slot was taken or returned last, by the loop's clock."""

    @property
    def waiting(self) -> int:
        """How many wait for a slot."""
        return len(self._queues[0]) + len(self._queues[1])

    def take_free(self) -> bool:
        """Takes a slot if one is free and nobody waits for it. Every slot must be given back."""
        if self._held >= self._slots or self._queues[0] or self._queues[1]:
            return False
        self._held += 1
        self._moved = asyncio.get_running_loop().time()
        return True

    async def take(self, *, first: bool = False, key: Hashable = None, key_share: float = 1.0) -> None:
        """Takes a slot, as soon as one is free. Raises `RateLimited` or `Unavailable`, then without a slot.

        Those with `first` pass the others. All waiters with one `key` have at most `key_share` of the queue.
        """
        if self.take_free():
            return
        patience = self._patience
        left = request_context.current().seconds_left() if request_context.is_answering() else None
        if left is not None:
            patience = min(patience, left)
        ahead = len(self._queues[0]) + (0 if first else len(self._queues[1]))
        most = self._queue_most(patience)
        if ahead + 1 > most or (
            key is not None and self._waiting_by_key[key] >= max(self._queue_most() * key_share, 1)
        ):
            raise self._refusal()
        await self._wait(_Waiter(key), self._queues[0 if first else 1], patience)

    def give_back(self, seconds: float | None = None) -> None:
        """Returns a slot that was held for `seconds`; None if its holder failed before its work began."""
        if seconds is not None:
            self._mean += _WEIGHT * (seconds - self._mean) if self._mean else seconds
            self._moved = asyncio.get_running_loop().time()
        others_turn = 0 < self._first_most <= self._first_in_a_row
        for queue in reversed(self._queues) if others_turn else self._queues:
            while queue:
                waiter = queue.popleft()
                if not waiter.admitted.done():
                    self._first_in_a_row = self._first_in_a_row + 1 if queue is self._queues[0] else 0
                    waiter.admitted.set_result(None)  # the slot changes hands
                    return
        self._held -= 1

    @asynccontextmanager
    async def slot(self, *, first: bool = False, key: Hashable = None, key_share: float = 1.0) -> AsyncIterator[None]:
        """Holds a slot during the block. See `take`."""
        await self.take(first=first, key=key, key_share=key_share)
        clock = asyncio.get_running_loop().time
        began = clock()
        try:
            yield
        finally:
            self.give_back(clock() - began)

    def _queue_most(self, patience: float | None = None) -> float:
        """How many can wait without waiting for longer than `patience`."""
        patience = self._patience if patience is None else patience
        return patience * self._slots / self._mean if self._mean > 0 else float("inf") if patience > 0 else 0

    async def _wait(self, waiter: "_Waiter", queue: "deque[_Waiter]", patience: float) -> None:
        queue.append(waiter)
        if waiter.key is not None:
            self._waiting_by_key[waiter.key] += 1
        try:
            async with asyncio.timeout(patience):
                await waiter.admitted
        except BaseException as error:
            if waiter.admitted.done() and not waiter.admitted.cancelled():
                self.give_back()  # admitted and cancelled in the same turn of the loop
            elif waiter in queue:
                queue.remove(waiter)
            if isinstance(error, TimeoutError):
                raise self._refusal() from None
            raise
        finally:
            if waiter.key is not None:
                self._waiting_by_key[waiter.key] -= 1
                if not self._waiting_by_key[waiter.key]:
                    del self._waiting_by_key[waiter.key]

    def _refusal(self) -> AppError:
        _REFUSED.labels(self._what).inc()
        stands_still = asyncio.get_running_loop().time() - self._moved > self._patience
        return Unavailable(part=self._part) if self._part and stands_still else RateLimited(what=self._what)


class _Waiter:
    """One that waits for a slot."""

    def __init__(self, key: Hashable) -> None:
        self.key = key
        self.admitted: asyncio.Future[None] = asyncio.get_running_loop().create_future()
