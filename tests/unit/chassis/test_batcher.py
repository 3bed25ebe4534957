"""The batcher: no item waits without need or is lost, and each gets its own outcome."""

import asyncio
import contextvars
from collections.abc import Sequence

import psycopg
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sqlalchemy.exc import OperationalError

from services.chassis import batcher
from services.chassis.batcher import Batcher
from services.chassis.errors import AppError, RateLimited


class SoldOut(AppError):
    code = "FAILED_PRECONDITION"
    template = "Sold out."


class Work:
    """Squares numbers; while it is held, its batches wait for `release`."""

    def __init__(self, *, held: bool = False) -> None:
        self.batches: list[list[int]] = []
        self.began = asyncio.Event()
        self._gate = asyncio.Event()
        if not held:
            self._gate.set()

    def release(self) -> None:
        self._gate.set()

    async def __call__(self, items: Sequence[int]) -> Sequence[int | Exception]:
        self.batches.append(list(items))
        self.began.set()
        await self._gate.wait()
        return [item * item for item in items]


async def turns(count: int = 5) -> None:
    """Lets every task that can run do so."""
    for _ in range(count):
        await asyncio.sleep(0)


async def test_single_item_is_a_batch_and_does_not_wait() -> None:
    work = Work()
    squares = Batcher("test", work)
    assert [await squares(3), await squares(4)] == [9, 16]
    assert work.batches == [[3], [4]]


async def test_items_gather_while_a_batch_is_in_flight() -> None:
    work = Work(held=True)
    squares = Batcher("test", work, lanes=1)
    first = asyncio.ensure_future(squares(0))
    await work.began.wait()
    others = [asyncio.ensure_future(squares(n)) for n in range(1, 6)]
    await turns()
    work.release()
    assert await asyncio.gather(first, *others) == [0, 1, 4, 9, 16, 25]
    assert work.batches == [[0], [1, 2, 3, 4, 5]]


async def test_batch_size_is_bounded() -> None:
    work = Work(held=True)
    squares = Batcher("test", work, lanes=1, size_max=2)
    calls = [asyncio.ensure_future(squares(n)) for n in range(5)]
    await turns()
    work.release()
    await asyncio.gather(*calls)
    assert max(len(batch) for batch in work.batches) == 2


async def test_concurrent_batches_are_bounded_by_lanes() -> None:
    work = Work(held=True)
    squares = Batcher("test", work, lanes=2, size_max=1)
    calls = [asyncio.ensure_future(squares(n)) for n in range(6)]
    await turns()
    assert len(work.batches) == 2
    work.release()
    await asyncio.gather(*calls)


async def test_item_that_follows_the_last_outcome_finds_a_lane() -> None:
    """A lane that has just returned the last outcome ends; an item that follows at once must not rely on it."""
    squares = Batcher("test", Work(), lanes=1)

    async def chain() -> list[int]:
        return [await squares(n) for n in range(50)]

    async with asyncio.timeout(60):
        assert await chain() == [n * n for n in range(50)]


async def test_exception_of_one_item_fails_no_other() -> None:
    async def act(items: Sequence[int]) -> Sequence[int | Exception]:
        return [SoldOut() if item % 2 else item for item in items]

    squares = Batcher("test", act)
    outcomes = await asyncio.gather(*(squares(n) for n in range(4)), return_exceptions=True)
    assert [type(outcome) for outcome in outcomes] == [int, SoldOut, int, SoldOut]


async def test_refusal_of_a_whole_batch_reaches_all_items_without_a_retry() -> None:
    attempts = []

    async def act(items: Sequence[int]) -> Sequence[int | Exception]:
        attempts.append(list(items))
        raise SoldOut()

    refuse = Batcher("test", act, lanes=1)
    outcomes = await asyncio.gather(*(refuse(n) for n in range(3)), return_exceptions=True)
    assert [type(outcome) for outcome in outcomes] == [SoldOut] * 3
    assert attempts == [[0, 1, 2]]


async def test_item_that_raises_fails_no_other_of_its_batch() -> None:
    async def act(items: Sequence[int]) -> Sequence[int | Exception]:
        if 2 in items:
            raise ZeroDivisionError
        return list(items)

    do = Batcher("test", act, lanes=1)
    outcomes = await asyncio.gather(*(do(n) for n in range(5)), return_exceptions=True)
    assert [n for n, outcome in enumerate(outcomes) if isinstance(outcome, ZeroDivisionError)] == [2]
    assert [outcome for outcome in outcomes if isinstance(outcome, int)] == [0, 1, 3, 4]


@pytest.mark.parametrize("store_fails_at", [0, 2])
async def test_unavailable_store_is_not_asked_again_for_each_item(store_fails_at: int) -> None:
    """Each item alone would wait for its time limit again. The store may also fail while items are tried alone."""
    attempts: list[list[int]] = []

    async def act(items: Sequence[int]) -> Sequence[int | Exception]:
        attempts.append(list(items))
        if len(attempts) > store_fails_at:
            raise OperationalError("SELECT", {}, Exception("the connection is lost"))
        if len(items) > 1:
            raise ZeroDivisionError
        return list(items)

    do = Batcher("test", act, lanes=1)
    outcomes = await asyncio.gather(*(do(n) for n in range(128)), return_exceptions=True)
    assert len(attempts) == store_fails_at + 1
    alone = max(store_fails_at - 1, 0)
    assert outcomes[:alone] == list(range(alone))
    assert all(isinstance(outcome, OperationalError) for outcome in outcomes[alone:])


async def test_items_of_a_deadlock_are_tried_alone() -> None:
    async def act(items: Sequence[int]) -> Sequence[int | Exception]:
        if len(items) > 1:
            raise OperationalError("UPDATE", {}, psycopg.errors.DeadlockDetected())
        return list(items)

    do = Batcher("test", act, lanes=1)
    assert await asyncio.gather(*(do(n) for n in range(3))) == [0, 1, 2]


async def test_missing_outcome_assigns_none_to_a_wrong_item() -> None:
    async def act(items: Sequence[int]) -> Sequence[int | Exception]:
        return list(items)[: 1 if len(items) == 1 else -1]

    do = Batcher("test", act, lanes=1)
    assert await asyncio.gather(*(do(n) for n in range(4))) == [0, 1, 2, 3]


async def test_item_of_a_cancelled_caller_is_dropped() -> None:
    work = Work(held=True)
    squares = Batcher("test", work, lanes=1)
    first = asyncio.ensure_future(squares(0))
    await work.began.wait()
    leaves, stays = asyncio.ensure_future(squares(1)), asyncio.ensure_future(squares(2))
    await turns()
    leaves.cancel()
    await turns()
    work.release()
    assert await asyncio.gather(first, stays) == [0, 4]
    assert work.batches == [[0], [2]]
    assert leaves.cancelled()


async def test_full_queue_refuses() -> None:
    work = Work(held=True)
    squares = Batcher("test", work, lanes=1, queue_max=2)
    first = asyncio.ensure_future(squares(0))
    await work.began.wait()
    waiting = [asyncio.ensure_future(squares(n)) for n in (1, 2)]
    await turns()
    with pytest.raises(RateLimited):
        await squares(3)
    work.release()
    assert await asyncio.gather(first, *waiting) == [0, 1, 4]


async def test_batch_runs_outside_the_context_of_its_callers() -> None:
    caller: contextvars.ContextVar[str] = contextvars.ContextVar("caller", default="nobody")

    async def act(items: Sequence[int]) -> Sequence[str | Exception]:
        return [caller.get()] * len(items)

    caller.set("ada")
    assert await Batcher("test", act)(1) == "nobody"


@settings(max_examples=60, deadline=None)
@given(
    plan=st.lists(st.tuples(st.sampled_from(["value", "refusal", "surprise"]), st.booleans()), max_size=25),
    lanes=st.integers(1, 3),
    most=st.integers(1, 5),
    pause=st.lists(st.integers(0, 3), min_size=1, max_size=5),
)
def test_every_item_gets_its_own_outcome(plan: list[tuple[str, bool]], lanes: int, most: int, pause: list[int]) -> None:
    """Whatever the items return or raise, and whichever callers are cancelled."""

    async def act(items: Sequence[int]) -> Sequence[int | Exception]:
        await turns(pause[items[0] % len(pause)])
        if any(plan[item][0] == "surprise" for item in items):
            raise ZeroDivisionError
        return [SoldOut() if plan[item][0] == "refusal" else item for item in items]

    async def run() -> None:
        do = Batcher("property", act, lanes=lanes, size_max=most)
        calls = []
        for number, (_, leaves) in enumerate(plan):
            calls.append(asyncio.ensure_future(do(number)))
            await turns(pause[number % len(pause)])
            if leaves:
                calls[-1].cancel()
        async with asyncio.timeout(60):
            outcomes = await asyncio.gather(*calls, return_exceptions=True)
        for number, (outcome, (kind, leaves)) in enumerate(zip(outcomes, plan, strict=True)):
            expected = {"value": number, "refusal": SoldOut, "surprise": ZeroDivisionError}[kind]
            gone = leaves and isinstance(outcome, asyncio.CancelledError)
            assert gone or outcome == expected or type(outcome) is expected

    asyncio.run(run())


class Rows:
    """Squares numbers; a batch with a locked one waits until it is unlocked."""

    def __init__(self, *locked: int) -> None:
        self.batches: list[list[int]] = []
        self.locked = set(locked)
        self.waiting: asyncio.Queue[None] = asyncio.Queue()
        self.unlocked = asyncio.Event()

    async def __call__(self, items: Sequence[int]) -> Sequence[int | Exception]:
        self.batches.append(list(items))
        if self.locked.intersection(items):
            self.waiting.put_nowait(None)
            await self.unlocked.wait()
        return [item * item for item in items]


async def test_items_without_a_common_key_pass_a_stuck_batch() -> None:
    rows = Rows(7)
    squares = Batcher("test", rows, lanes=1, keys=lambda item: (item,))
    stuck = asyncio.ensure_future(squares(7))
    await turns()
    same, *others = [asyncio.ensure_future(squares(n)) for n in (7, 1, 2, 3)]
    async with asyncio.timeout(60):
        assert await asyncio.gather(*others) == [1, 4, 9]
        assert await squares(4) == 16
    assert not stuck.done()
    assert not same.done()
    rows.unlocked.set()
    assert await asyncio.gather(stuck, same) == [49, 49]
    assert [batch for batch in rows.batches if 7 in batch] == [[7], [7]]


async def test_number_of_stuck_batches_is_bounded() -> None:
    rows = Rows(*range(10))
    squares = Batcher("test", rows, lanes=1, size_max=1, keys=lambda item: (item,))
    stuck = [asyncio.ensure_future(squares(n)) for n in range(10)]
    async with asyncio.timeout(60):
        for _ in range(5):
            await rows.waiting.get()
    assert rows.batches == [[n] for n in range(5)]
    rows.unlocked.set()
    assert await asyncio.gather(*stuck) == [n * n for n in range(10)]
    assert await squares(11) == 121


async def test_items_without_keys_wait_for_a_stuck_batch(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(batcher, "_STUCK_SECONDS", 0)
    rows = Rows(7)
    squares = Batcher("test", rows, lanes=1)
    stuck, other = asyncio.ensure_future(squares(7)), asyncio.ensure_future(squares(1))
    await turns()
    later = asyncio.ensure_future(squares(2))
    await turns()
    assert not later.done()
    rows.unlocked.set()
    assert await asyncio.gather(stuck, other, later) == [49, 1, 4]
