"""The limiter: a bounded number at once, and a queue that is never longer than the patience of those in it."""

import asyncio
import time
from collections.abc import Iterator

import pytest

from services.chassis import request_context
from services.chassis.data.limiter import Limiter
from services.chassis.errors import RateLimited, Unavailable
from services.chassis.request_context import Call


@pytest.fixture(autouse=True)
def _no_call() -> Iterator[None]:
    request_context.enter(None)  # type: ignore[arg-type]
    yield
    request_context.enter(None)  # type: ignore[arg-type]


async def turns(count: int = 5) -> None:
    """Lets every task that can run do so."""
    for _ in range(count):
        await asyncio.sleep(0)


def full(slots: int = 2, *, mean_seconds: float = 1.0, patience_seconds: float = 2.0, part: str = "") -> Limiter:
    """A limiter without a free slot, whose queue has room for patience × slots / mean."""
    limiter = Limiter("test", slots, patience_seconds=patience_seconds, mean_seconds=mean_seconds, part=part)
    for _ in range(slots):
        assert limiter.take_free()
    return limiter


async def test_slots_pass_to_waiters_in_the_order_of_arrival() -> None:
    limiter, order = full(1, patience_seconds=60), []

    async def wait(name: str, *, first: bool = False) -> None:
        await limiter.take(first=first)
        order.append(name)

    waiting = [
        asyncio.create_task(wait("a")),
        asyncio.create_task(wait("b")),
        asyncio.create_task(wait("c", first=True)),
    ]
    await turns()
    for _ in waiting:
        limiter.give_back()
    await asyncio.gather(*waiting)
    assert order == ["c", "a", "b"]


async def test_those_who_go_first_leave_turns_to_others() -> None:
    limiter, order = Limiter("test", 1, patience_seconds=60, first_in_a_row=3), list[str]()
    assert limiter.take_free()

    async def wait(name: str, *, first: bool) -> None:
        await limiter.take(first=first)
        order.append(name)

    waiting = [asyncio.create_task(wait("first", first=True)) for _ in range(8)]
    waiting += [asyncio.create_task(wait("other", first=False)) for _ in range(3)]
    await turns()
    for _ in waiting:
        limiter.give_back()
    await asyncio.gather(*waiting)
    assert order == [*["first"] * 3, "other", *["first"] * 3, "other", *["first"] * 2, "other"]


async def test_queue_is_as_long_as_the_work_of_its_patience() -> None:
    limiter = full(2, mean_seconds=0.5, patience_seconds=2)
    waiting = [asyncio.create_task(limiter.take()) for _ in range(20)]
    await turns()
    assert [isinstance(task.exception(), RateLimited) for task in waiting if task.done()] == [True] * 12
    assert limiter.waiting == 8
    for task in waiting:
        task.cancel()


async def test_caller_whose_deadline_comes_first_is_refused_at_once() -> None:
    limiter = full(1, mean_seconds=0.5, patience_seconds=10)
    waits = asyncio.create_task(limiter.take())
    await turns()
    request_context.enter(Call(method="/m", request_id="r", deadline=time.monotonic() + 0.4))
    refused = asyncio.create_task(limiter.take())
    await turns()
    assert isinstance(refused.exception(), RateLimited)
    waits.cancel()


async def test_caller_leaves_the_queue_when_its_patience_ends() -> None:
    limiter = full(1, mean_seconds=0.001, patience_seconds=0.01)
    with pytest.raises(RateLimited):
        await limiter.take()
    assert limiter.waiting == 0


async def test_cancelled_caller_leaves_the_queue_and_keeps_no_slot() -> None:
    limiter = full(1)
    leaves, stays = asyncio.create_task(limiter.take()), asyncio.create_task(limiter.take())
    await turns()
    leaves.cancel()
    await turns()
    limiter.give_back()
    await asyncio.wait_for(stays, 1)
    # Cancelled in the turn in which it was admitted: the slot goes on to the next.
    both = asyncio.create_task(limiter.take())
    await turns()
    limiter.give_back()
    both.cancel()
    await asyncio.gather(both, return_exceptions=True)
    assert limiter.take_free()


async def test_one_key_has_its_share_of_the_queue() -> None:
    limiter = full(2, mean_seconds=0.5, patience_seconds=2)
    many = [asyncio.create_task(limiter.take(key="one", key_share=0.5)) for _ in range(8)]
    other = asyncio.create_task(limiter.take(key="other", key_share=0.5))
    await turns()
    assert sum(task.done() for task in many) == 4
    assert not other.done()
    for task in (*many, other):
        task.cancel()


async def test_work_that_stands_still_is_unavailable_and_not_full() -> None:
    limiter = full(1, mean_seconds=100, part="database")
    with pytest.raises(RateLimited):
        await limiter.take()
    limiter._moved -= 2.1  # longer ago than anybody's patience
    with pytest.raises(Unavailable):
        await limiter.take()
    limiter.give_back(100)
    assert limiter.take_free()
    with pytest.raises(RateLimited):
        await limiter.take()


async def test_mean_of_holders_decides_how_many_may_wait() -> None:
    limiter = Limiter("test", 1, patience_seconds=1)
    async with limiter.slot():
        assert limiter._queue_most() == float("inf"), "nothing was measured yet"
    for _ in range(100):
        assert limiter.take_free()
        limiter.give_back(0.25)
    assert 3.9 < limiter._queue_most() < 4.1
