"""Flash sales in the hands of staff: changed while they are scheduled, called off, ended early."""

import asyncio
import uuid
from collections import Counter
from collections.abc import Awaitable, Callable
from datetime import datetime, timedelta
from typing import Any

import pytest
from sqlalchemy import text

from services.chassis import ids
from services.chassis.data.db import Database, etag
from services.chassis.errors import InvalidFields, RequestIdReused, StaleEtag, WrongState
from services.chassis.money import Money
from services.chassis.request_context import RequestKey
from services.inventory import domain, sales, stock
from services.inventory.domain import NewSale, Reservation, SaleChanges, SaleState
from services.inventory.reservations import reserve, settle
from tests.integration.inventory.conftest import (
    STAFF,
    a_hold,
    a_sale,
    books,
    expired_hold,
    hold_ended,
    holding,
    of_sale,
    of_stock,
    rows_of,
    sale_ended,
    state_of,
)
from tests.support.waiting import until

HOUR = timedelta(hours=1)
MOVEMENTS = "SELECT kind, delta FROM stock_movements WHERE reference_id = :sale ORDER BY id"


async def now_of(db: Database) -> datetime:
    ((now,),) = await rows_of(db, "SELECT clock_timestamp()")
    return now


async def scheduled(db: Database, *, start: timedelta = HOUR, **terms: Any) -> Any:
    """A sale of an hour, which opens in an hour unless `start` is given."""
    opens = await now_of(db) + start
    return await a_sale(db, **{"start_time": opens, "end_time": opens + HOUR, **terms})


async def sale_opened(db: Database, sale_id: uuid.UUID) -> None:
    """Lets the time come at which the sale opens."""
    async with db.begin() as tx:
        query = text("UPDATE flash_sales SET start_time = clock_timestamp() - interval '1 second' WHERE id = :id")
        await tx.execute(query, {"id": sale_id})


async def changed(db: Database, sale: Any, *, etag_given: str = "", key: RequestKey | None = None, **terms: Any) -> Any:
    return await sales.update_sale(db, sale.id, SaleChanges(**terms), etag_given=etag_given, key=key)


async def cancelled(db: Database, sale: Any, *, etag_given: str = "", key: RequestKey | None = None) -> Any:
    return await sales.close_sale(db, sale.id, SaleState.CANCELLED, etag_given=etag_given, key=key)


async def ended(db: Database, sale: Any, *, etag_given: str = "", key: RequestKey | None = None) -> Any:
    return await sales.close_sale(db, sale.id, SaleState.ENDED, etag_given=etag_given, key=key)


Close = Callable[..., Awaitable[Any]]
each_close = pytest.mark.parametrize("close", [cancelled, ended], ids=["cancel", "end"])


def a_key(digest: bytes = b"content") -> RequestKey:
    return RequestKey("staff", "/UpdateFlashSale", ids.new(), digest)


def counters(sale: Any) -> tuple[int, int, int, int]:
    return sale.remaining, sale.held, sale.sold, sale.returned


# --- changing ---


async def test_every_term_of_a_scheduled_sale_can_be_changed(db: Database) -> None:
    sale = await scheduled(db, units=10, stock=50)
    opens = sale.start_time + HOUR

    now = await changed(
        db, sale, title="Another rush", price=Money("USD", 5), allocation=20, per_customer_limit=3,
        start_time=opens, end_time=opens + 2 * HOUR, hold_seconds=30,
    )  # fmt: skip

    terms = (now.title, now.price, now.allocation, now.per_customer_limit, now.hold_seconds)
    assert terms == ("Another rush", Money("USD", 5), 20, 3, 30)
    assert (now.start_time, now.end_time, now.state) == (opens, opens + 2 * HOUR, "SCHEDULED")
    assert now.version == sale.version + 1
    assert now.update_time > sale.update_time
    assert await books(db) == []


async def test_what_is_not_named_stays(db: Database) -> None:
    sale = await scheduled(db, per_customer_limit=2)

    now = await changed(db, sale, title="Another rush")

    differs = {name for name in sale.__slots__ if getattr(now, name) != getattr(sale, name)}
    assert differs == {"title", "version", "update_time", "server_time"}


async def test_a_change_that_changes_nothing_makes_no_new_version(db: Database) -> None:
    sale = await scheduled(db)

    same = {name: getattr(sale, name) for name in ("title", "allocation", "start_time", "end_time", "hold_seconds")}
    for terms in ({}, same):
        assert (await changed(db, sale, **terms)).version == sale.version

    assert await rows_of(db, MOVEMENTS, sale=sale.id) == [("ALLOCATED", -10)]


async def test_a_changed_allocation_moves_units_between_stock_and_sale(db: Database) -> None:
    sale = await scheduled(db, units=10, stock=30)

    assert (await changed(db, sale, allocation=25)).remaining == 25
    assert (await stock.get_stock(db, sale.product_id)).on_hand == 5
    assert (await changed(db, sale, allocation=4)).remaining == 4
    assert (await stock.get_stock(db, sale.product_id)).on_hand == 26

    assert await rows_of(db, MOVEMENTS, sale=sale.id) == [("ALLOCATED", -10), ("ALLOCATED", -15), ("RETURNED", 21)]
    assert await books(db) == []


async def test_allocation_takes_no_held_units_and_a_refusal_changes_nothing(db: Database) -> None:
    sale = await scheduled(db, units=10, stock=30)
    await holding(db, of_stock(sale.product_id, 6))

    with pytest.raises(domain.OutOfStock):
        await changed(db, sale, allocation=25, title="Another rush")

    now = await sales.get_sale(db, sale.id)
    assert (now.allocation, now.title, now.version) == (10, "A rush", sale.version)
    assert (await changed(db, sale, allocation=24)).remaining == 24
    assert await books(db) == []


async def test_a_sale_is_not_moved_into_another_of_its_product_but_may_overlap_what_it_was(db: Database) -> None:
    sale = await scheduled(db, units=5, stock=50)
    new = NewSale(
        product_id=sale.product_id, title="Next", price=Money("USD", 1), allocation=5, per_customer_limit=0,
        start_time=sale.end_time, end_time=sale.end_time + HOUR, hold_seconds=60,
    )  # fmt: skip
    following = await sales.create_sale(db, new, key=None)

    for terms in (
        {"end_time": sale.end_time + HOUR / 2},
        {"start_time": sale.end_time + HOUR / 4, "end_time": sale.end_time + HOUR / 2},
        {"end_time": sale.end_time + 3 * HOUR},
    ):
        with pytest.raises(domain.SaleOverlaps) as refused:
            await changed(db, sale, **terms)
        assert refused.value.metadata == {"flashSaleId": str(following.id)}
    with pytest.raises(domain.SaleOverlaps):
        await changed(db, following, start_time=sale.end_time - HOUR / 2)

    moved = await changed(db, sale, start_time=sale.start_time + HOUR / 2)  # it overlaps itself only
    assert moved.start_time == sale.start_time + HOUR / 2
    assert (await changed(db, sale, start_time=following.end_time, end_time=following.end_time + HOUR)).version == 3


@pytest.mark.parametrize("state", ["LIVE", "SOLD_OUT", "ENDED", "CANCELLED"])
async def test_a_sale_that_is_no_longer_scheduled_is_not_changed(db: Database, state: str) -> None:
    sale = await scheduled(db, units=10, stock=20) if state == "CANCELLED" else await a_sale(db, units=10, stock=20)
    if state == "SOLD_OUT":
        await holding(db, of_sale(sale, 10))
    elif state == "ENDED":
        await sale_ended(db, sale.id)  # nobody has closed it yet
    elif state == "CANCELLED":
        await cancelled(db, sale)

    with pytest.raises(WrongState) as refused:
        await changed(db, sale, allocation=12, title="Another rush")

    assert refused.value.metadata["state"] == state
    assert (await sales.get_sale(db, sale.id)).title == "A rush"
    assert await books(db) == []


async def test_a_start_in_the_past_opens_a_scheduled_sale_at_once_and_for_good(db: Database) -> None:
    sale = await scheduled(db)
    before = await now_of(db)

    now = await changed(db, sale, start_time=before - 9 * HOUR)

    assert before <= now.start_time <= now.server_time
    assert now.state == "LIVE"
    with pytest.raises(WrongState):
        await changed(db, sale, start_time=sale.start_time)
    await holding(db, of_sale(sale))


@pytest.mark.parametrize(
    ("shifts", "field"),
    [
        ({"end_time": -HOUR}, "endTime"),  # in the past
        ({"end_time": HOUR / 2}, "endTime"),  # before the start
        ({"start_time": 2 * HOUR}, "startTime"),  # when it ends
        ({"start_time": 3 * HOUR, "end_time": 3 * HOUR}, "endTime"),
        ({"start_time": -2 * HOUR, "end_time": -HOUR}, "endTime"),
    ],
)
async def test_a_sale_closes_after_it_opens_and_in_the_future(
    db: Database, shifts: dict[str, timedelta], field: str
) -> None:
    sale = await scheduled(db)
    now = sale.start_time - HOUR

    with pytest.raises(InvalidFields) as refused:
        await changed(db, sale, **{name: now + shift for name, shift in shifts.items()})

    assert list(refused.value.violations) == [field]
    assert (await sales.get_sale(db, sale.id)).version == sale.version


async def test_a_change_of_another_version_is_stale(db: Database) -> None:
    sale = await scheduled(db)
    now = await changed(db, sale, etag_given=etag(sale.version), title="Another rush")

    for call in (
        changed(db, sale, etag_given=etag(sale.version), title="A third"),
        cancelled(db, sale, etag_given='"x"'),
    ):
        with pytest.raises(StaleEtag):
            await call

    assert (await sales.get_sale(db, sale.id)).title == "Another rush"
    assert (await cancelled(db, sale, etag_given=etag(now.version))).state == "CANCELLED"


async def test_a_repeated_change_moves_its_units_once_though_the_sale_has_opened(db: Database) -> None:
    sale, key = await scheduled(db, units=10, stock=50), a_key()

    outcomes = await asyncio.gather(*(changed(db, sale, key=key, allocation=30) for _ in range(6)))
    await sale_opened(db, sale.id)
    late = await changed(db, sale, key=key, etag_given=etag(sale.version), allocation=30)

    assert {(o.allocation, o.version) for o in (*outcomes, late)} == {(30, sale.version + 1)}
    assert (await stock.get_stock(db, sale.product_id)).on_hand == 20
    with pytest.raises(RequestIdReused):
        await changed(db, sale, key=RequestKey(key.caller, key.method, key.request_id, b"other"), allocation=31)


async def test_what_is_not_there_is_neither_changed_nor_closed(db: Database) -> None:
    for call in (
        sales.update_sale(db, ids.new(), SaleChanges(title="x"), etag_given="", key=None),
        sales.close_sale(db, ids.new(), SaleState.ENDED, etag_given="", key=None),
    ):
        with pytest.raises(domain.FlashSaleNotFound):
            await call


async def test_changes_at_once_leave_the_allocation_that_the_ledger_says(db: Database) -> None:
    sale = await scheduled(db, units=10, stock=200)

    wanted = [20, 35, 5, 60, 10, 44, 3, 28]
    await asyncio.gather(*(changed(db, sale, allocation=units) for units in wanted))

    now, ordinary = await sales.get_sale(db, sale.id), await stock.get_stock(db, sale.product_id)
    assert now.allocation in wanted
    assert ordinary.on_hand == 200 - now.allocation
    assert await books(db) == []


async def test_sales_moved_at_once_into_the_same_hour_do_not_all_get_there(db: Database) -> None:
    first = await scheduled(db, units=5, stock=50)
    others = []
    for n in range(1, 4):
        new = NewSale(
            product_id=first.product_id, title="Next", price=Money("USD", 1), allocation=5, per_customer_limit=0,
            start_time=first.start_time + 10 * n * HOUR, end_time=first.end_time + 10 * n * HOUR, hold_seconds=60,
        )  # fmt: skip
        others.append(await sales.create_sale(db, new, key=None))
    there = first.start_time + 100 * HOUR

    moves = [changed(db, sale, start_time=there, end_time=there + HOUR) for sale in (first, *others)]
    outcomes = await asyncio.gather(*moves, return_exceptions=True)

    assert Counter(type(o).__name__ for o in outcomes) == {"FlashSale": 1, "SaleOverlaps": 3}


async def test_changes_in_the_moment_that_a_sale_opens_lose_no_unit(db: Database) -> None:
    """Buyers come all the time; as soon as one gets something, nothing can be changed any more."""
    sale = await scheduled(db, units=20, stock=100)
    agreed: list[int] = []

    async def open_() -> None:
        await until(lambda: asyncio.sleep(0, agreed))
        async with db.begin() as tx:
            await tx.execute(text("UPDATE flash_sales SET start_time = now() + interval '150 milliseconds'"))

    async def buy() -> int:
        got = 0
        while True:
            (outcome,) = await reserve.reserve(db, [a_hold(of_sale(sale, 3))])
            if isinstance(outcome, Reservation):
                got += 1
            elif not isinstance(outcome, domain.SaleNotLive):
                return got

    async def change() -> None:
        while True:
            for units in (40, 15, 30, 8):
                try:
                    agreed.append((await changed(db, sale, allocation=units)).allocation)
                except WrongState:
                    return

    async with asyncio.timeout(60):
        *bought, _, _ = await asyncio.gather(buy(), buy(), buy(), change(), open_())

    now = await sales.get_sale(db, sale.id)
    assert now.allocation == agreed[-1]
    assert now.held == 3 * sum(bought) == 3 * (now.allocation // 3)
    assert (await stock.get_stock(db, sale.product_id)).on_hand == 100 - now.allocation
    assert await books(db) == []


async def test_a_sale_that_opens_while_it_refuses_is_not_called_sold_out(
    db: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    sale = await scheduled(db, units=20)
    hold = reserve.sales.hold

    async def hold_then_open(tx: Any, units: Any) -> Any:
        grants = await hold(tx, units)
        await tx.execute(text("UPDATE flash_sales SET start_time = now() - interval '1 second'"))
        return grants

    monkeypatch.setattr(reserve.sales, "hold", hold_then_open)
    (outcome,) = await reserve.reserve(db, [a_hold(of_sale(sale, 3))])

    assert isinstance(outcome, domain.SaleNotLive)
    assert outcome.metadata["state"] == "SCHEDULED"


# --- calling off, ending early ---


async def test_a_scheduled_sale_is_called_off_and_its_units_are_back(db: Database) -> None:
    sale = await scheduled(db, units=10, stock=15)

    now = await cancelled(db, sale)

    assert (now.state, now.closed_as, now.version) == ("CANCELLED", "CANCELLED", sale.version + 1)
    assert counters(now) == (0, 0, 0, 10)
    assert (now.start_time, now.end_time) == (sale.start_time, sale.end_time)
    assert (await stock.get_stock(db, sale.product_id)).on_hand == 15
    assert await rows_of(db, MOVEMENTS, sale=sale.id) == [("ALLOCATED", -10), ("RETURNED", 10)]
    assert await books(db) == []


@each_close
async def test_a_live_sale_closes_with_what_is_sold_sold_and_what_is_held_held(db: Database, close: Close) -> None:
    sale = await a_sale(db, units=10)
    bought, held = await holding(db, of_sale(sale, 3)), await holding(db, of_sale(sale, 2))
    await settle.confirm(db, [bought.id])

    now = await close(db, sale)

    assert now.state == ("ENDED" if close is ended else "CANCELLED")
    assert counters(now) == (0, 2, 3, 5)
    assert (now.end_time <= now.server_time) == (close is ended)
    assert await state_of(db, held.id) == "HELD"
    assert (await stock.get_stock(db, sale.product_id)).on_hand == 5
    assert await books(db) == []


@each_close
async def test_a_sold_out_sale_closes_with_nothing_to_give_back(db: Database, close: Close) -> None:
    sale = await a_sale(db, units=2)
    await holding(db, of_sale(sale, 2))

    assert counters(await close(db, sale)) == (0, 2, 0, 0)
    assert await rows_of(db, MOVEMENTS, sale=sale.id) == [("ALLOCATED", -2)]
    assert await books(db) == []


@each_close
async def test_after_a_close_nobody_can_buy_and_is_told_why(db: Database, close: Close) -> None:
    for taken in (1, 5):  # some are left, none is left
        sale = await a_sale(db, units=5)
        await holding(db, of_sale(sale, taken))
        state = (await close(db, sale)).state

        (refused,) = await reserve.reserve(db, [a_hold(of_sale(sale))])

        assert isinstance(refused, domain.SaleNotLive)
        assert refused.metadata == {"flashSaleId": str(sale.id), "state": state}
    assert await books(db) == []


@each_close
async def test_holds_of_a_closed_sale_can_be_paid_or_go_on_to_stock(db: Database, close: Close) -> None:
    sale = await a_sale(db, units=10)
    pays, leaves, forgets = [await holding(db, of_sale(sale, units)) for units in (1, 2, 4)]
    await close(db, sale)

    (paid,) = await settle.confirm(db, [pays.id])
    await settle.release(db, [leaves.id])
    await hold_ended(db, forgets.id)
    await settle.expire(db)

    assert isinstance(paid, Reservation)
    assert counters(await sales.get_sale(db, sale.id)) == (0, 0, 1, 9)
    assert (await stock.get_stock(db, sale.product_id)).on_hand == 9
    returned = [("RETURNED", 3), ("RETURNED", 2), ("RETURNED", 4)]
    assert await rows_of(db, MOVEMENTS, sale=sale.id) == [("ALLOCATED", -10), *returned]
    assert await books(db) == []


@each_close
async def test_payment_after_the_close_of_a_sale_retakes_nothing(db: Database, close: Close) -> None:
    sale = await a_sale(db, units=4)
    late = await expired_hold(db, of_sale(sale, 3))
    await close(db, sale)

    (lost,) = await settle.confirm(db, [late.id])

    assert isinstance(lost, domain.ReservationLost)
    assert counters(await sales.get_sale(db, sale.id)) == (0, 0, 0, 4)
    assert (await stock.get_stock(db, sale.product_id)).on_hand == 4
    assert await books(db) == []


async def test_what_is_over_is_over(db: Database) -> None:
    past, called_off, early = [await a_sale(db) for _ in range(3)]
    await sale_ended(db, past.id)  # nobody has closed it yet
    await cancelled(db, called_off)
    await ended(db, early)
    to_come = await scheduled(db)

    for sale, state, closes in (
        (past, "ENDED", (cancelled, ended)), (called_off, "CANCELLED", (cancelled, ended)),
        (early, "ENDED", (cancelled, ended)), (to_come, "SCHEDULED", (ended,)),
    ):  # fmt: skip
        for close in closes:
            with pytest.raises(WrongState) as refused:
                await close(db, sale)
            assert refused.value.metadata["state"] == state
    assert await sales.close_ended_sales(db) == 1
    assert await books(db) == []


@each_close
async def test_a_repeated_close_is_answered_with_what_came_of_the_first(db: Database, close: Close) -> None:
    sale, key = await a_sale(db, units=5), a_key()

    outcomes = await asyncio.gather(*(close(db, sale, key=key) for _ in range(6)))
    again = await close(db, sale, key=key, etag_given=etag(sale.version))

    assert {(o.state, o.version) for o in (*outcomes, again)} == {(again.state, sale.version + 1)}
    assert await rows_of(db, MOVEMENTS, sale=sale.id) == [("ALLOCATED", -5), ("RETURNED", 5)]


async def test_a_sale_is_closed_once_however_many_want_to(db: Database) -> None:
    several = [await a_sale(db, units=5) for _ in range(8)]
    await sale_ended(db, *(sale.id for sale in several[:4]))

    outcomes = await asyncio.gather(
        *(close(db, sale) for sale in several for close in (cancelled, ended, cancelled)),
        *(sales.close_ended_sales(db) for _ in range(3)),
        return_exceptions=True,
    )

    await sales.close_ended_sales(db)  # those before may have passed by a sale that was busy

    assert Counter(type(o).__name__ for o in outcomes) == {"FlashSale": 4, "WrongState": 20, "int": 3}
    assert {(await sales.get_sale(db, sale.id)).version for sale in several} == {2}
    assert Counter(await rows_of(db, "SELECT on_hand FROM stock")) == {(5,): 8}
    assert await books(db) == []


async def test_a_sale_that_was_called_off_is_in_nobodys_way(db: Database) -> None:
    sale = await scheduled(db, units=5)
    await cancelled(db, sale)
    new = NewSale(
        product_id=sale.product_id, title="Next", price=Money("USD", 1), allocation=5, per_customer_limit=0,
        start_time=sale.start_time, end_time=sale.end_time, hold_seconds=60,
    )  # fmt: skip

    assert (await sales.create_sale(db, new, key=None)).remaining == 5


@each_close
async def test_a_close_in_the_middle_of_a_rush_loses_no_unit_and_nobody_buys_after_it(
    db: Database, close: Close
) -> None:
    sale = await a_sale(db, units=60, stock=80, per_customer_limit=4)
    customers, closed = [ids.new() for _ in range(10)], asyncio.Event()
    after: list[object] = []

    async def buy(n: int) -> None:
        """Buys, and pays or leaves, until the sale is refused as over."""
        while True:
            was_closed = closed.is_set()
            hold = a_hold(of_sale(sale, 1 + n % 2), of_stock(sale.product_id), customer_id=customers[n % 10])
            (outcome,) = await reserve.reserve(db, [hold])
            if was_closed:
                after.append(outcome)
                return
            if isinstance(outcome, Reservation):
                act = (settle.confirm, settle.release, None)[n % 3]
                if act:
                    await act(db, [hold.id])

    async def rule() -> None:
        while (await sales.get_sale(db, sale.id)).sold < 5:
            await stock.adjust_stock(db, sale.product_id, delta=1, reason="found", actor=STAFF, key=None)
        await close(db, sale)
        closed.set()

    async with asyncio.timeout(60):
        await asyncio.gather(rule(), *(buy(n) for n in range(12)))

    assert {type(o) for o in after} == {domain.SaleNotLive}
    now = await sales.get_sale(db, sale.id)
    assert now.remaining == 0
    assert now.held + now.sold + now.returned == 60
    assert await books(db) == []
