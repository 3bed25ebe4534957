"""The sold-out cache: which requests it refuses, and for how long at most. The clock is the test's."""

import contextlib
import heapq
import itertools
import uuid
from collections.abc import Callable, Iterator

import pytest

from services.chassis.errors import Refused
from services.orders.placing.sold_out_cache import SoldOutCache
from stampede.inventory.v1.events_pb2 import SaleAvailabilityChanged

SALE, OTHER = uuid.UUID(int=9), uuid.UUID(int=8)
PROMISED_MS = 200
"""After this long a returned unit is on sale again for everybody."""
OPENS_AFTER_MS = 51
LIVE_OPENS_AFTER_MS = 1001
EVENT_CLOSES_AFTER_MS = 500


def refused(sale_id: uuid.UUID, reason: str = "SOLD_OUT", **metadata: str) -> Refused:
    known = {"flashSaleId": str(sale_id), "remaining": "0"} | metadata
    return Refused(code="FAILED_PRECONDITION", reason=reason, domain="here", message="No.", metadata=known)


class Clock:
    def __init__(self) -> None:
        self.ms = 100_000

    def __call__(self) -> float:
        return self.ms / 1000


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def cache(clock: Clock) -> SoldOutCache:
    return SoldOutCache(clock)


@pytest.fixture
def live(cache: SoldOutCache) -> SoldOutCache:
    cache.live = True
    return cache


def publish(cache: SoldOutCache, *, sold_out: bool, sale_id: uuid.UUID = SALE) -> None:
    cache.receive(SaleAvailabilityChanged(sale_id=str(sale_id), sold_out=sold_out).SerializeToString())


def ask(cache: SoldOutCache, *sale_ids: uuid.UUID, outcome: Exception | None = None) -> bool:
    """One request; returns whether it reached inventory, which answers with `outcome`."""
    reached = False
    with contextlib.suppress(Refused, RuntimeError), cache.asking(sale_ids):
        reached = True
        if outcome:
            raise outcome
    return reached


def is_closed(cache: SoldOutCache, *sale_ids: uuid.UUID) -> bool:
    return cache.refusal(sale_ids) is not None


def test_refusal_closes_a_sale_for_a_moment(cache: SoldOutCache, clock: Clock) -> None:
    assert not is_closed(cache, SALE)
    assert ask(cache, SALE, outcome=refused(SALE))
    clock.ms += OPENS_AFTER_MS - 2
    assert is_closed(cache, OTHER, SALE)
    assert not is_closed(cache, OTHER)
    clock.ms += 2
    assert not is_closed(cache, SALE)


def test_while_events_arrive_a_sold_out_sale_is_closed_for_a_second(live: SoldOutCache, clock: Clock) -> None:
    ask(live, SALE, outcome=refused(SALE))
    clock.ms += LIVE_OPENS_AFTER_MS - 2
    assert is_closed(live, SALE)
    clock.ms += 2
    assert not is_closed(live, SALE)


def test_sale_that_is_not_live_is_closed_for_a_moment(live: SoldOutCache, clock: Clock) -> None:
    """No event announces that a sale begins, so nobody may wait for one."""
    ask(live, SALE, outcome=refused(SALE, "SALE_NOT_LIVE", state="SCHEDULED"))
    assert is_closed(live, SALE)
    clock.ms += OPENS_AFTER_MS
    assert not is_closed(live, SALE)


@pytest.mark.parametrize(
    "outcome",
    [refused(SALE, remaining="2"), refused(SALE, "CUSTOMER_LIMIT"), refused(SALE, "FLASH_SALE_NOT_FOUND"), None],
    ids=["too many units", "over the limit", "another product's sale", "held"],
)
def test_answers_that_concern_one_request_close_nothing(cache: SoldOutCache, outcome: Exception | None) -> None:
    assert ask(cache, SALE, outcome=outcome)
    assert not is_closed(cache, SALE)


def test_events_close_and_open_a_sale(live: SoldOutCache, clock: Clock) -> None:
    publish(live, sold_out=True)
    clock.ms += EVENT_CLOSES_AFTER_MS
    refusal = live.refusal([SALE])
    assert refusal
    assert (refusal.reason, refusal.domain) == ("SOLD_OUT", "inventory.stampede")
    assert refusal.metadata == {"flashSaleId": str(SALE), "remaining": "0"}
    clock.ms += 500
    publish(live, sold_out=False, sale_id=OTHER)
    assert is_closed(live, SALE)
    publish(live, sold_out=False)
    assert not is_closed(live, SALE)


def test_refusal_from_before_the_event_does_not_close_the_sale(live: SoldOutCache) -> None:
    """Inventory refused; a unit came back and the event arrived; only then the refusal did."""
    with pytest.raises(Refused), live.asking([SALE]):
        publish(live, sold_out=False)
        raise refused(SALE)
    assert not is_closed(live, SALE)


def test_refusal_right_after_the_event_closes_the_sale_for_a_moment(live: SoldOutCache, clock: Clock) -> None:
    """Inventory's gate may be a second behind its database; the event that the unit is taken closes as usual."""
    publish(live, sold_out=False)
    ask(live, SALE, outcome=refused(SALE))
    clock.ms += OPENS_AFTER_MS
    assert not is_closed(live, SALE)
    publish(live, sold_out=True)
    clock.ms += EVENT_CLOSES_AFTER_MS
    assert is_closed(live, SALE)


def test_repeat_at_another_process_finds_its_hold_right_after_the_event(live: SoldOutCache, clock: Clock) -> None:
    """The first request took the last unit; its repeat, sent to this process at the same time, must reach inventory."""
    publish(live, sold_out=True)
    clock.ms += EVENT_CLOSES_AFTER_MS - 2
    assert ask(live, SALE, outcome=None)
    publish(live, sold_out=True)
    assert ask(live, SALE, outcome=refused(SALE))
    assert is_closed(live, SALE)


def test_hold_from_before_the_event_does_not_open_the_sale(live: SoldOutCache, clock: Clock) -> None:
    """It took the last unit, and the event arrived before its answer."""
    with live.asking([SALE]):
        publish(live, sold_out=True)
    clock.ms += EVENT_CLOSES_AFTER_MS
    assert is_closed(live, SALE)


@pytest.mark.parametrize("now_live", [True, False])
def test_gap_in_the_events_shortens_all_entries(live: SoldOutCache, clock: Clock, now_live: bool) -> None:
    """The event that would have opened a sale may have been missed."""
    publish(live, sold_out=True)
    clock.ms += EVENT_CLOSES_AFTER_MS
    live.live = now_live
    clock.ms += OPENS_AFTER_MS
    assert not is_closed(live, SALE)


def test_one_request_asks_for_all_once_an_entry_is_too_old(cache: SoldOutCache, clock: Clock) -> None:
    ask(cache, SALE, outcome=refused(SALE))
    clock.ms += OPENS_AFTER_MS
    with cache.asking([SALE]):
        assert is_closed(cache, SALE)
        assert not ask(cache, SALE)
        assert is_closed(cache, SALE), "a refused request has no answer"
    assert not is_closed(cache, SALE)


def test_repeated_refusal_closes_the_sale_again(cache: SoldOutCache, clock: Clock) -> None:
    for _ in range(3):
        assert ask(cache, SALE, outcome=refused(SALE))
        assert not ask(cache, SALE)
        clock.ms += OPENS_AFTER_MS


def test_request_without_an_answer_leaves_the_question_to_the_next(cache: SoldOutCache, clock: Clock) -> None:
    ask(cache, SALE, outcome=refused(SALE))
    clock.ms += OPENS_AFTER_MS
    for _ in range(3):
        assert ask(cache, SALE, outcome=RuntimeError())
    assert not is_closed(cache, SALE)


def test_answer_that_takes_longer_than_a_moment_is_not_waited_for(cache: SoldOutCache, clock: Clock) -> None:
    ask(cache, SALE, outcome=refused(SALE))
    clock.ms += OPENS_AFTER_MS
    with pytest.raises(RuntimeError), cache.asking([SALE]):
        clock.ms += OPENS_AFTER_MS
        assert ask(cache, SALE, outcome=refused(SALE))
        raise RuntimeError
    assert is_closed(cache, SALE), "the answer of the second request stays"


def test_request_for_two_sales_does_not_ask_while_one_is_closed(cache: SoldOutCache, clock: Clock) -> None:
    ask(cache, SALE, outcome=refused(SALE))
    clock.ms += 25
    ask(cache, OTHER, outcome=refused(OTHER))
    clock.ms += 26
    assert not ask(cache, SALE, OTHER)
    assert ask(cache, SALE)


@pytest.mark.parametrize("answer_ms", [2, 20, 75])
@pytest.mark.parametrize("invalid", [0, 1, 5])
def test_returned_unit_is_on_sale_in_time_without_events(answer_ms: int, invalid: int) -> None:
    """Whenever it comes back, with a request every five milliseconds, `invalid` of them in front that ask in vain.

    Inventory decides in the middle of `answer_ms`, which a call takes.
    """
    worst = max(_opens_after(answer_ms, invalid, returned_ms) for returned_ms in range(300, 460, 3))
    assert worst <= 50 + 1.5 * answer_ms + 5 * (1 + invalid)
    assert worst <= PROMISED_MS


@pytest.mark.parametrize("event_ms", [5, 100])
@pytest.mark.parametrize("answer_ms", [2, 75])
def test_returned_unit_is_on_sale_once_the_event_arrives(answer_ms: int, event_ms: int) -> None:
    """Also if a request asks again meanwhile, whose refusal inventory decided before the unit came back."""
    for returned_ms in range(940, 1100, 3):
        assert _opens_after(answer_ms, 0, returned_ms, event_ms=event_ms) <= event_ms + 5


def _opens_after(answer_ms: int, invalid: int, returned_ms: int, *, event_ms: int | None = None) -> int:
    """How long after its return a unit is on sale again for everybody, and stays so, in ms."""
    clock = Clock()
    clock.ms = 0
    cache = SoldOutCache(clock)
    cache.live = event_ms is not None
    ask(cache, SALE, outcome=refused(SALE))
    count = itertools.count()
    todo: list[tuple[int, int, Callable[[], object]]] = []

    def later(ms: int, act: Callable[[], object]) -> None:
        heapq.heappush(todo, (clock.ms + ms, next(count), act))

    def request() -> None:
        """Decided at inventory after half of the way, answered after all of it."""
        is_there = clock.ms + answer_ms / 2 >= returned_ms
        steps = _request(cache, None if is_there else refused(SALE))
        if next(steps):
            later(answer_ms, lambda: next(steps))

    for number, ms in enumerate(range(0, 1500, 5)):
        valid = number % (1 + invalid) == invalid
        later(ms, request if valid else lambda: ask(cache, SALE, outcome=RuntimeError()))
    if event_ms is not None:
        later(returned_ms + event_ms, lambda: publish(cache, sold_out=False))
    opened = None
    while todo:
        clock.ms, _, act = heapq.heappop(todo)
        act()
        if clock.ms >= returned_ms:
            opened = None if SALE in cache._closed else (opened or clock.ms)
    assert opened, "it is not on sale again"
    return opened - returned_ms


def _request(cache: SoldOutCache, outcome: Exception | None) -> Iterator[bool]:
    """Yields whether the request reached inventory; continued, it gets the answer."""
    try:
        with cache.asking([SALE]):
            yield True
            if outcome:
                raise outcome
    except Refused:
        pass
    yield False


def test_each_request_gets_an_error_of_its_own(cache: SoldOutCache) -> None:
    """An error that is raised repeatedly keeps the traceback of every time."""
    ask(cache, SALE, outcome=refused(SALE))
    first, second = cache.refusal([SALE]), cache.refusal([SALE])
    assert first
    assert second
    assert first is not second
    assert (str(second), second.reason, second.metadata) == (str(first), first.reason, first.metadata)
