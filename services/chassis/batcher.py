"""The adaptive batcher: what makes the cost of an order fall as load rises."""

import asyncio
import contextvars
from collections import deque
from collections.abc import Awaitable, Callable, Hashable, Iterable, Sequence
from typing import Generic, NamedTuple, TypeVar

from prometheus_client import Histogram

from services.chassis import request_context
from services.chassis.errors import AppError, RateLimited

T = TypeVar("T")
R = TypeVar("R")

_SIZES = Histogram(
    "stampede_batch_size", "Items in one batch.", ["batcher"], buckets=(1, 2, 4, 8, 16, 32, 64, 128, 256)
)


# As many as fit into a header that gRPC takes without complaint.
_IDS_MOST = 100
# A batch that takes longer than this waits for something, such as a locked row. Others need not wait with it.
_PATIENCE_SECONDS = 0.05
_STUCK_MOST = 4
# Under load, a moment between batches in which the callers just answered come back with their next item.
_GATHER_SECONDS = 0.002


class _Entry(NamedTuple, Generic[T, R]):
    item: T
    future: asyncio.Future[R]
    request_id: str


class Batcher(Generic[T, R]):
    """Gathers items that arrive while a batch is in flight, and acts on them together.

    At low load a batch is one item and nothing waits; at high load batches grow until the work keeps up. `act`
    takes up to `size_max` items and returns one outcome for each, in order: a value, or an exception for that item
    alone. `lanes` batches run at once. More than `queue_max` waiting items are refused with `RateLimited`.

    `keys` names what an item may have to wait for, such as the rows it locks: items that share none with a batch that
    is stuck go past it, so that one locked row does not hold up all.
    """

    def __init__(
        self,
        name: str,
        act: Callable[[Sequence[T]], Awaitable[Sequence[R | Exception]]],
        *,
        size_max: int = 128,
        lanes: int = 1,
        queue_max: int = 4096,
        keys: Callable[[T], Iterable[Hashable]] | None = None,
    ) -> None:
        self._name, self._act = name, act
        self._size_max, self._lanes, self._queue_max = size_max, lanes, queue_max
        self._waiting: deque[_Entry[T, R]] = deque()
        self._running: set[asyncio.Task[None]] = set()
        self._keys = keys
        self._stuck: dict[asyncio.Task[None], set[Hashable]] = {}
        self._sizes = _SIZES.labels(name)

    async def __call__(self, item: T) -> R:
        """Does `item` as part of some batch; returns or raises its own outcome."""
        if len(self._waiting) >= self._queue_max:
            raise RateLimited(what=self._name)
        future: asyncio.Future[R] = asyncio.get_running_loop().create_future()
        self._waiting.append(_Entry(item, future, request_context.request_id()))
        if not self._must_wait(item):
            self._open_lane()
        return await future

    def _must_wait(self, item: T) -> bool:
        """Whether a batch is stuck on something that `item` needs too."""
        if not self._stuck or not self._keys:
            return False
        keys = set(self._keys(item))
        return any(not keys.isdisjoint(stuck) for stuck in self._stuck.values())

    def _open_lane(self) -> None:
        if len(self._running) - len(self._stuck) < self._lanes and len(self._stuck) <= _STUCK_MOST:
            # A context of its own: the batch must not run under one caller's deadline or identity.
            self._running.add(asyncio.create_task(self._work(), context=contextvars.Context()))

    async def _work(self) -> None:
        lane = asyncio.current_task()
        assert lane
        try:
            # One that was stuck finds its place taken.
            while len(self._running) - len(self._stuck) <= self._lanes and (batch := self._next()):
                self._sizes.observe(len(batch))
                patience = asyncio.get_running_loop().call_later(_PATIENCE_SECONDS, self._go_past, lane, batch)
                try:
                    await self._settle(batch)
                finally:
                    patience.cancel()
                    self._stuck.pop(lane, None)
                if len(batch) > 1:
                    await asyncio.sleep(_GATHER_SECONDS)
        finally:
            # Not in a done callback: an item that came just before it ran would count on this lane, and wait for ever.
            self._running.discard(lane)

    def _next(self) -> list[_Entry[T, R]]:
        """Takes the oldest items that need not wait for a batch that is stuck."""
        batch: list[_Entry[T, R]] = []
        passed_over: list[_Entry[T, R]] = []
        while self._waiting and len(batch) < self._size_max:
            entry = self._waiting.popleft()
            if entry.future.done():
                continue  # its caller has given up meanwhile
            (passed_over if self._must_wait(entry.item) else batch).append(entry)
        self._waiting.extendleft(reversed(passed_over))
        return batch

    def _go_past(self, lane: asyncio.Task[None], batch: list[_Entry[T, R]]) -> None:
        if self._keys:
            self._stuck[lane] = {key for entry in batch for key in self._keys(entry.item)}
            self._open_lane()

    async def _settle(self, batch: list[_Entry[T, R]]) -> None:
        # What a batch calls is done for all of its items: whoever looks for one request's id finds the batch.
        ids = dict.fromkeys(entry.request_id for entry in batch if entry.request_id)
        request_context.enter(request_context.Call(method=self._name, request_id=",".join(list(ids)[:_IDS_MOST])))
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
