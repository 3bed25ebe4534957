"""Sold units come back after a refund: once under each id, never more than were sold, and to where they belong."""

import asyncio
import random
import uuid
from collections import Counter
from collections.abc import Mapping
from typing import Any

import pytest

from services.chassis import ids
from services.chassis.data.db import Database
from services.chassis.errors import RequestIdReused, WrongState
from services.inventory import sales, stock
from services.inventory.domain import (
    CustomerLimit,
    Line,
    Reservation,
    ReservationNotFound,
    Return,
    Returned,
    ReturnTooLarge,
    SaleState,
    SoldOut,
)
from services.inventory.gate.gate import Gate
from services.inventory.reservations import reserve, returns, settle
from services.inventory.reservations.returns import ReturnOutcome
from tests.integration.inventory.conftest import (
    a_hold,
    a_product,
    a_sale,
    books,
    expired_hold,
    holding,
    left,
    of_sale,
    of_stock,
    rebuild,
    rows_of,
    sale_ended,
    statements,
)

MOVEMENTS = "SELECT kind, delta, reference_id FROM stock_movements WHERE product_id = :product ORDER BY id"


async def sold(db: Database, *lines: Line, **fields: Any) -> uuid.UUID:
    """A confirmed reservation of these lines."""
    held = await holding(db, *lines, **fields)
    (outcome,) = await settle.confirm(db, [held.id])
    assert isinstance(outcome, Reservation), outcome
    return held.id


def a_return(reservation_id: uuid.UUID, quantities: Mapping[uuid.UUID, int] | None = None) -> Return:
    return Return(ids.new(), reservation_id, quantities or {})


async def take_back(db: Database, item: Return) -> ReturnOutcome:
    return (await returns.take_back(db, [item]))[0]


def units(outcome: ReturnOutcome) -> list[int]:
    """How many units of each line came back."""
    assert isinstance(outcome, Returned), outcome
    return [line.quantity for line in outcome.lines]


async def counters(db: Database, sale: Any) -> tuple[int, int, int, int]:
    """Units of a sale: held, sold, returned, remaining."""
    now = await sales.get_sale(db, sale.id)
    return now.held, now.sold, now.returned, now.remaining


async def test_ordinary_units_come_back_into_stock_and_the_ledger_says_for_whom(db: Database) -> None:
    product = await a_product(db, on_hand=5)
    order = await sold(db, of_stock(product, 3))

    assert units(await take_back(db, a_return(order, {product: 2}))) == [2]

    ordinary = await stock.get_stock(db, product)
    assert (ordinary.on_hand, ordinary.held) == (4, 0)
    assert (await rows_of(db, MOVEMENTS, product=product))[-1] == ("RESTOCKED", 2, order)
    assert await books(db) == []


async def test_units_of_a_sale_that_runs_are_on_sale_again(db: Database) -> None:
    sale = await a_sale(db, units=2)
    order = await sold(db, of_sale(sale, 2))
    assert (await sales.get_sale(db, sale.id)).state == "SOLD_OUT"

    assert units(await take_back(db, a_return(order))) == [2]

    assert (await sales.get_sale(db, sale.id)).state == "LIVE"
    assert await counters(db, sale) == (0, 0, 0, 2)
    await sold(db, of_sale(sale, 2))
    assert await books(db) == []


@pytest.mark.parametrize("end", ["ended", "cancelled", "over, but nobody has closed it"])
async def test_units_of_a_sale_that_is_over_go_on_to_stock(db: Database, end: str) -> None:
    sale = await a_sale(db, units=5)
    order = await sold(db, of_sale(sale, 3))
    if end == "cancelled":
        await sales.close_sale(db, sale.id, SaleState.CANCELLED, etag_given="", key=None)
    else:
        await sale_ended(db, sale.id)
    if end == "ended":
        await sales.close_ended_sales(db)

    await take_back(db, a_return(order, {sale.product_id: 2}))
    await sales.close_ended_sales(db)

    assert await counters(db, sale) == (0, 1, 4, 0)
    assert (await stock.get_stock(db, sale.product_id)).on_hand == 4
    assert {(kind, id_) for kind, _, id_ in await rows_of(db, MOVEMENTS, product=sale.product_id)} >= {
        ("RETURNED", sale.id)
    }
    assert await books(db) == []


async def test_all_that_is_out_of_a_mixed_order_comes_back_each_to_its_own_place(db: Database) -> None:
    running, over, plain = await a_sale(db, units=5), await a_sale(db, units=5), await a_product(db, on_hand=5)
    order = await sold(db, of_stock(plain, 3), of_sale(running, 2), of_sale(over, 4))
    await sales.close_sale(db, over.id, SaleState.ENDED, etag_given="", key=None)
    await take_back(db, a_return(order, {over.product_id: 1, plain: 1}))

    assert units(await take_back(db, a_return(order))) == [2, 2, 3]

    assert await counters(db, running) == (0, 0, 0, 5)
    assert await counters(db, over) == (0, 0, 5, 0)
    assert [(await stock.get_stock(db, p)).on_hand for p in (plain, running.product_id, over.product_id)] == [5, 0, 5]
    assert units(await take_back(db, a_return(order))) == []
    assert await books(db) == []


async def test_a_return_is_done_once_however_often_it_is_sent(db: Database) -> None:
    """Also when more has come back since, and when all of them arrive at once."""
    product = await a_product(db, on_hand=9)
    order = await sold(db, of_stock(product, 9))
    partly, rest = a_return(order, {product: 2}), a_return(order)

    first = await asyncio.gather(*(take_back(db, partly) for _ in range(6)))
    everything = await take_back(db, rest)
    again = await returns.take_back(db, [partly, rest, partly])

    assert {tuple(units(outcome)) for outcome in first} == {(2,)}
    assert (units(everything), [units(outcome) for outcome in again]) == ([7], [[2], [7], [2]])
    assert (await stock.get_stock(db, product)).on_hand == 9
    assert await books(db) == []


async def test_an_id_cannot_be_reused_for_something_else(db: Database) -> None:
    product = await a_product(db, on_hand=9)
    order, other = await sold(db, of_stock(product, 3)), await sold(db, of_stock(product, 3))
    first = a_return(order, {product: 1})
    nothing = a_return(order, {product: 3})

    outcomes = await returns.take_back(
        db,
        [
            first, Return(first.id, other, {product: 1}), Return(first.id, order, {product: 2}),
            Return(first.id, order, {}), nothing, Return(nothing.id, order, {product: 2}),
        ],
    )  # fmt: skip

    # A refused return is not stored: its id is free.
    assert [type(o) for o in outcomes] == [Returned, *[RequestIdReused] * 3, ReturnTooLarge, Returned]
    assert isinstance(await take_back(db, Return(first.id, other, {product: 1})), RequestIdReused)
    assert await books(db) == []


async def test_one_id_for_two_reservations_at_once_moves_the_units_of_one(db: Database) -> None:
    """Each holds the lock on another reservation, so only the unique id decides."""
    product = await a_product(db, on_hand=40)
    for _ in range(10):
        orders = [await sold(db, of_stock(product, 2)) for _ in range(2)]
        id_ = ids.new()

        outcomes = await asyncio.gather(*(take_back(db, Return(id_, order, {product: 1})) for order in orders))

        assert Counter(map(type, outcomes)) == {Returned: 1, RequestIdReused: 1}
        assert await books(db) == []


async def test_more_than_is_out_is_refused_and_nothing_of_it_comes_back(db: Database) -> None:
    sale, plain, stranger = await a_sale(db, units=5), await a_product(db, on_hand=5), ids.new()
    order = await sold(db, of_sale(sale, 2), of_stock(plain, 3))
    await take_back(db, a_return(order, {plain: 1}))
    before = await rows_of(db, "SELECT * FROM flash_sales"), await rows_of(db, "SELECT * FROM stock")
    items = [a_return(order, q) for q in ({sale.product_id: 1, plain: 3}, {stranger: 1}, {plain: 2, stranger: 1})]

    outcomes = await returns.take_back(db, items)

    assert [type(outcome) for outcome in outcomes] == [ReturnTooLarge] * 3
    said = [(o.metadata["productId"], o.metadata["out"]) for o in outcomes if isinstance(o, ReturnTooLarge)]
    assert said == [(str(plain), "2"), (str(stranger), "0"), (str(stranger), "0")]
    assert (await rows_of(db, "SELECT * FROM flash_sales"), await rows_of(db, "SELECT * FROM stock")) == before
    assert await books(db) == []


async def test_only_what_is_confirmed_comes_back(db: Database) -> None:
    sale = await a_sale(db, units=5)
    held, released = await holding(db, of_sale(sale)), await holding(db, of_sale(sale))
    expired = await expired_hold(db, of_sale(sale))
    await settle.release(db, [released.id])
    waits = a_return(held.id)

    outcomes = await returns.take_back(db, [waits, a_return(released.id), a_return(expired.id), a_return(ids.new())])

    assert [type(o) for o in outcomes] == [WrongState, WrongState, WrongState, ReservationNotFound]
    await settle.confirm(db, [held.id])
    assert units(await take_back(db, waits)) == [1]
    assert await books(db) == []


@pytest.mark.parametrize("flash", [True, False])
async def test_the_last_unit_comes_back_once_whoever_asks_for_it(db: Database, flash: bool) -> None:
    """Two refunds at the same moment, under ids of their own, one by one and in batches."""
    sale, plain = await a_sale(db, units=30), await a_product(db, on_hand=30)
    for turn in range(15):
        order = await sold(db, of_sale(sale) if flash else of_stock(plain))
        product = sale.product_id if flash else plain
        items = [a_return(order, {product: 1}) for _ in range(4)]

        outcomes = await asyncio.gather(*(returns.take_back(db, items[n : n + 1 + turn % 2]) for n in (0, 2)))

        kinds = Counter(type(outcome) for answer in outcomes for outcome in answer)
        assert (kinds[Returned], kinds[ReturnTooLarge]) == (1, 1 + 2 * (turn % 2))
    assert await counters(db, sale) == (0, 0, 0, 30)
    assert (await stock.get_stock(db, plain)).on_hand == 30
    assert await books(db) == []


async def test_a_customer_may_buy_again_what_they_gave_back_and_no_more(db: Database) -> None:
    sale, customer = await a_sale(db, units=9, per_customer_limit=3), ids.new()
    order = await sold(db, of_sale(sale, 3), customer_id=customer)
    await take_back(db, a_return(order, {sale.product_id: 2}))

    outcomes = await asyncio.gather(
        *(reserve.reserve(db, [a_hold(of_sale(sale), customer_id=customer)]) for _ in range(6))
    )

    assert Counter(type(outcome) for (outcome,) in outcomes) == {Reservation: 2, CustomerLimit: 4}
    assert await books(db) == []


async def test_the_gate_of_a_sale_that_was_sold_out_lets_buyers_in_again(db: Database, gate: Gate) -> None:
    """The next rebuild counts the units; the customer who returned them can buy again, and the order finds its own."""
    sale, customer = await a_sale(db, units=2, per_customer_limit=2), ids.new()
    await rebuild(gate, db)
    hold = a_hold(of_sale(sale, 2), customer_id=customer)
    await reserve.admit(db, gate, [hold])
    await settle.confirm(db, [hold.id])
    await rebuild(gate, db)
    assert isinstance((await reserve.admit(db, gate, [a_hold(of_sale(sale))]))[0], SoldOut)

    await take_back(db, a_return(hold.id))
    await rebuild(gate, db)

    assert await left(gate, sale) == 2
    items = [a_hold(of_sale(sale), customer_id=customer), hold, a_hold(of_sale(sale))]
    outcomes = await reserve.admit(db, gate, items)
    assert all(isinstance(outcome, Reservation) for outcome in outcomes)
    await rebuild(gate, db)
    assert await left(gate, sale) == 0
    assert await books(db) == []


async def test_a_late_payment_finds_what_came_back_to_its_sale(db: Database) -> None:
    sale = await a_sale(db, units=2)
    late = await expired_hold(db, of_sale(sale, 2))
    order = await sold(db, of_sale(sale, 2))
    await take_back(db, a_return(order))

    (outcome,) = await settle.confirm(db, [late.id])

    assert isinstance(outcome, Reservation)
    assert await counters(db, sale) == (0, 2, 0, 0)
    assert await books(db) == []


async def test_returns_neither_deadlock_nor_lose_units_beside_all_else_that_moves_them(db: Database) -> None:
    running, over = await a_sale(db, units=60, per_customer_limit=60), await a_sale(db, units=60)
    plain = await a_product(db, on_hand=60)
    lines = [of_sale(running), of_stock(plain), of_sale(over)]
    orders = [await sold(db, *(lines if n % 2 else lines[::-1])) for n in range(20)]
    held = [await holding(db, *(lines[::-1] if n % 2 else lines)) for n in range(20)]
    await sales.close_sale(db, over.id, SaleState.ENDED, etag_given="", key=None)
    chance = random.Random(5)
    batches = [[a_return(order) for order in chance.sample(orders, 15)] for _ in range(5)]

    await asyncio.gather(
        *(returns.take_back(db, batch) for batch in batches),
        settle.release(db, [r.id for r in held[:10]]),
        settle.confirm(db, [r.id for r in held[:4:-1]]),
        reserve.reserve(db, [a_hold(*lines[:2]) for _ in range(20)]),
        sales.close_sale(db, running.id, SaleState.ENDED, etag_given="", key=None),
    )

    assert await books(db) == []
    assert (await rows_of(db, "SELECT count(*) FROM returns WHERE lines <> '[]'"))[0][0] == len(
        {item.reservation_id for batch in batches for item in batch}
    )


async def test_returns_that_meet_crosswise_do_not_deadlock(db: Database) -> None:
    """Each goes on to the stock that the other needs first: through a closed sale, or as ordinary units."""
    closed = [await a_sale(db, units=40, stock=80) for _ in range(2)]
    crossed = [(of_sale(closed[n]), of_stock(closed[1 - n].product_id)) for n in range(2)]
    orders = [await sold(db, *crossed[n % 2]) for n in range(40)]
    for sale in closed:
        await sales.close_sale(db, sale.id, SaleState.ENDED, etag_given="", key=None)

    for n in range(0, 40, 4):
        await asyncio.gather(*(take_back(db, a_return(order)) for order in orders[n : n + 4]))

    assert [(await stock.get_stock(db, sale.product_id)).on_hand for sale in closed] == [80, 80]
    assert await books(db) == []


async def test_a_batch_costs_as_many_statements_as_one(db: Database) -> None:
    running, over, plain = await a_sale(db, units=99), await a_sale(db, units=99), await a_product(db, on_hand=99)
    orders = [await sold(db, of_sale(running), of_sale(over), of_stock(plain)) for _ in range(31)]
    await sales.close_sale(db, over.id, SaleState.ENDED, etag_given="", key=None)

    asked = []
    for some in (orders[:1], orders[1:]):
        with statements(db) as seen:
            await returns.take_back(db, [a_return(order) for order in some])
        asked.append(len(seen))

    assert asked == [8, 8]
    assert await books(db) == []
