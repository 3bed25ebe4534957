"""The adaptive batcher, which makes the cost of an order fall as load rises."""

import asyncio
import contextvars
from collections import deque
from collections.abc import Awaitable, Callable, Hashable, Iterable, Sequence
from typing import Any, Generic, NamedTuple, TypeVar

from prometheus_client import Histogram

from services.chassis import request_context
from services.chassis.errors import RateLimited, as_app_error

T = TypeVar("T")
R = TypeVar("R")

_SIZES = Histogram(
    "stampede_batch_size", "Items in one batch.", ["batcher"], buckets=(1, 2, 4, 8, 16, 32, 64, 128, 256)
)

# More would exceed the size of a header that gRPC accepts.
_IDS_MAX = 100
# A batch that takes longer than this is stuck: it waits for something, such as a locked row. Other items pass it.
_STUCK_SECONDS = 0.05
_STUCK_MAX = 4
# A pause between batches under load, in which the callers just answered send their next items.
_GATHER_SECONDS = 0.002


# The class of PostgreSQL's errors for deadlocks and serialisation failures.
_ROLLED_BACK = "40"


class _Entry(NamedTuple, Generic[T, R]):
    item: T
    future: asyncio.Future[R]
    request_id: str


class Batcher(Generic[T, R]):
    """Gathers the items that arrive while a batch is in flight, and acts on them together.

    At low load a batch is one item and nothing waits; at high load batches grow until the work keeps up. `act` takes at
    most `size_max` items and returns one outcome for each, in order: a value, or an exception for that item alone. At
    most `lanes` batches run at once. If `queue_max` items wait, further ones are refused with `RateLimited`.

    `keys` names what an item may have to wait for, such as the rows it locks. Items that share no key with a stuck
    batch pass it, so that one locked row delays only the items that need it.
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
        """Acts on `item` as part of a batch; returns or raises its own outcome."""
        if len(self._waiting) >= self._queue_max:
            raise RateLimited(what=self._name)
        future: asyncio.Future[R] = asyncio.get_running_loop().create_future()
        self._waiting.append(_Entry(item, future, request_context.request_id()))
        if not self._must_wait(item):
            self._open_lane()
        return await future

    def _must_wait(self, item: T) -> bool:
        """Whether `item` shares a key with a stuck batch."""
        if not self._stuck or not self._keys:
            return False
        keys = set(self._keys(item))
        return any(not keys.isdisjoint(stuck) for stuck in self._stuck.values())

    def _open_lane(self) -> None:
        if len(self._running) - len(self._stuck) < self._lanes and len(self._stuck) <= _STUCK_MAX:
            # In a new context: a batch must not run under the deadline or identity of one caller.
            self._running.add(asyncio.create_task(self._work(), context=contextvars.Context()))

    async def _work(self) -> None:
        lane = asyncio.current_task()
        assert lane
        try:
            # A lane whose batch was stuck ends here if another lane has replaced it.
            while len(self._running) - len(self._stuck) <= self._lanes and (batch := self._next()):
                self._sizes.observe(len(batch))
                timer = asyncio.get_running_loop().call_later(_STUCK_SECONDS, self._pass, lane, batch)
                try:
                    await self._settle(batch)
                finally:
                    timer.cancel()
                    self._stuck.pop(lane, None)
                if len(batch) > 1:
                    await asyncio.sleep(_GATHER_SECONDS)
        finally:
            # Not in a done callback: an item that arrives before it would rely on this lane, and wait for ever.
            self._running.discard(lane)

    def _next(self) -> list[_Entry[T, R]]:
        """Takes the oldest items that need not wait for a stuck batch."""
        batch: list[_Entry[T, R]] = []
        passed_over: list[_Entry[T, R]] = []
        while self._waiting and len(batch) < self._size_max:
            entry = self._waiting.popleft()
            if entry.future.done():
                continue  # its caller was cancelled
            (passed_over if self._must_wait(entry.item) else batch).append(entry)
        self._waiting.extendleft(reversed(passed_over))
        return batch

    def _pass(self, lane: asyncio.Task[None], batch: list[_Entry[T, R]]) -> None:
        if self._keys:
            self._stuck[lane] = {key for entry in batch for key in self._keys(entry.item)}
            self._open_lane()

    async def _settle(self, batch: list[_Entry[T, R]]) -> Exception | None:
        """Acts on a batch and gives each item its outcome. Returns the error that they share, if there is one."""
        # Calls of the batch carry the request ids of all its items, so that logs show every request.
        ids = dict.fromkeys(entry.request_id for entry in batch if entry.request_id)
        request_context.enter(request_context.Call(method=self._name, request_id=",".join(list(ids)[:_IDS_MAX])))
        try:
            outcomes: Sequence[R | Exception] = await self._act([entry.item for entry in batch])
            assert len(outcomes) == len(batch), f"{self._name}: {len(outcomes)} outcomes for {len(batch)} items"
        except Exception as error:
            shared = error if _is_of_all(error) else None
            if not shared and len(batch) > 1:
                await self._settle_each(batch)
                return None
            for entry in batch:
                _answer(entry, error)
            return shared
        for entry, outcome in zip(batch, outcomes, strict=True):
            _answer(entry, outcome)
        return None

    async def _settle_each(self, batch: list[_Entry[T, R]]) -> None:
        """Acts on each item alone, because one bad item must not fail the others."""
        for number, entry in enumerate(batch):
            if error := await self._settle([entry]):
                # The store is unavailable: each further item would wait for its time limit too.
                for other in batch[number + 1 :]:
                    _answer(other, error)
                return


def _is_of_all(error: BaseException) -> bool:
    """Whether the error is no single item's: a refusal of the whole batch, or an unavailable store.

    A deadlock does: the items of the batch locked rows in an order that each alone does not.
    """
    if (getattr(getattr(error, "orig", None), "sqlstate", None) or "").startswith(_ROLLED_BACK):
        return False
    return isinstance(error, OSError | TimeoutError) or as_app_error(error) is not None


def _answer(entry: _Entry[Any, Any], outcome: Any) -> None:
    if entry.future.done():
        return
    if isinstance(outcome, BaseException):
        entry.future.set_exception(outcome)
    else:
        entry.future.set_result(outcome)
