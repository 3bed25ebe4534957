"""The adaptive batcher: what makes the cost of an order fall as load rises."""

import asyncio
import contextvars
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from typing import Generic, NamedTuple, TypeVar

from prometheus_client import Histogram

from services.chassis import calls
from services.chassis.errors import AppError, RateLimited

T = TypeVar("T")
R = TypeVar("R")

_SIZES = Histogram(
    "stampede_batch_size", "Items in one batch.", ["batcher"], buckets=(1, 2, 4, 8, 16, 32, 64, 128, 256)
)


# As many as fit into a header that gRPC takes without complaint.
_IDS_MOST = 100
# Under load, a moment between batches in which the callers just answered come back with their next item.
_GATHER_SECONDS = 0.002


class _Entry(NamedTuple, Generic[T, R]):
    item: T
    future: asyncio.Future[R]
    request_id: str


class Batcher(Generic[T, R]):
    """Gathers items that arrive while a batch is in flight, and acts on them together.

    At low load a batch is one item and nothing waits; at high load batches grow until the work keeps up. `act`
    takes up to `most` items and returns one outcome for each, in order: a value, or an exception for that item
    alone. `lanes` batches run at once. More than `queue_most` waiting items are refused with `RateLimited`.
    """

    def __init__(
        self,
        name: str,
        act: Callable[[Sequence[T]], Awaitable[Sequence[R | Exception]]],
        *,
        most: int = 128,
        lanes: int = 1,
        queue_most: int = 4096,
    ) -> None:
        self._name, self._act = name, act
        self._most, self._lanes, self._queue_most = most, lanes, queue_most
        self._waiting: deque[_Entry[T, R]] = deque()
        self._running: set[asyncio.Task[None]] = set()
        self._sizes = _SIZES.labels(name)

    async def __call__(self, item: T) -> R:
        """Does `item` as part of some batch; returns or raises its own outcome."""
        if len(self._waiting) >= self._queue_most:
            raise RateLimited(what=self._name)
        future: asyncio.Future[R] = asyncio.get_running_loop().create_future()
        self._waiting.append(_Entry(item, future, calls.request_id()))
        if len(self._running) < self._lanes:
            # A context of its own: the batch must not run under one caller's deadline or identity.
            self._running.add(asyncio.create_task(self._work(), context=contextvars.Context()))
        return await future

    async def _work(self) -> None:
        lane = asyncio.current_task()
        try:
            while self._waiting:
                batch: list[_Entry[T, R]] = []
                while self._waiting and len(batch) < self._most:
                    entry = self._waiting.popleft()
                    if not entry.future.done():  # its caller may have given up meanwhile
                        batch.append(entry)
                if batch:
                    self._sizes.observe(len(batch))
                    await self._settle(batch)
                if len(batch) > 1:
                    await asyncio.sleep(_GATHER_SECONDS)
        finally:
            # Not in a done callback: an item that came just before it ran would count on this lane, and wait for ever.
            assert lane
            self._running.discard(lane)

    async def _settle(self, batch: list[_Entry[T, R]]) -> None:
        # What a batch calls is done for all of its items: whoever looks for one request's id finds the batch.
        ids = dict.fromkeys(entry.request_id for entry in batch if entry.request_id)
        calls.enter(calls.Call(method=self._name, request_id=",".join(list(ids)[:_IDS_MOST])))
        try:
            outcomes: Sequence[R | Exception] = await self._act([entry.item for entry in batch])
            assert len(outcomes) == len(batch), f"{self._name}: {len(outcomes)} outcomes for {len(batch)} items"
        except AppError as error:
            outcomes = [error] * len(batch)
        except Exception as error:
            if len(batch) > 1:
                # One item that cannot be done must not take its neighbours down: each gets a try of its own.
                for entry in batch:
                    await self._settle([entry])
                return
            outcomes = [error]
        for entry, outcome in zip(batch, outcomes, strict=True):
            future = entry.future
            if future.done():
                continue
            if isinstance(outcome, Exception):
                future.set_exception(outcome)
            else:
                future.set_result(outcome)
