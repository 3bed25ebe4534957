"""The bounds of one customer: open orders, units in them, and holds of a sale that end unpaid."""

import asyncio
import contextlib
import uuid
from collections import Counter
from typing import Any

import pytest

from services.chassis import ids
from services.chassis.data.db import Database
from services.chassis.errors import AppError, RateLimited
from services.inventory.domain import Hold, HoldBounds, Line, Reservation
from services.inventory.reservations import reserve, settle
from tests.integration.inventory.conftest import (
    a_hold,
    a_product,
    a_sale,
    books,
    expired_hold,
    hold_ended,
    holding,
    of_sale,
    of_stock,
    rows_of,
    run_sql,
)

BOUNDS = HoldBounds(orders=3, units=10)
_HELD = "SELECT count(*), coalesce(sum(units), 0) FROM reservations WHERE customer_id = :customer AND state = 'HELD'"


@pytest.fixture
def customer() -> uuid.UUID:
    return ids.new()


async def held(db: Database, customer: uuid.UUID) -> tuple[Any, ...]:
    """The customer's open orders, and the units in them."""
    return (await rows_of(db, _HELD, customer=customer))[0]


async def place(db: Database, *holds: Hold, bounds: HoldBounds = BOUNDS) -> list[str]:
    """Reserves one batch; returns `HELD` or the reason of the refusal for each hold."""
    outcomes = await reserve.reserve(db, holds, bounds)
    return [o.reason if isinstance(o, AppError) else str(o.state) for o in outcomes]


async def goods(db: Database, kind: str) -> Line:
    """One unit, ordinary or in a sale."""
    return of_stock(await a_product(db, on_hand=100)) if kind == "stock" else of_sale(await a_sale(db, units=100))


@pytest.mark.parametrize("kind", ["stock", "sale"])
async def test_customer_has_at_most_so_many_open_orders(db: Database, customer: uuid.UUID, kind: str) -> None:
    line = await goods(db, kind)
    for _ in range(3):
        assert await place(db, a_hold(line, customer_id=customer)) == ["HELD"]
    assert await place(db, a_hold(line, customer_id=customer)) == ["OPEN_ORDERS_LIMIT"]
    assert await place(db, a_hold(line)) == ["HELD"], "others are not affected"
    assert await held(db, customer) == (3, 3)
    assert await books(db) == []


@pytest.mark.parametrize("kind", ["stock", "sale"])
async def test_customer_has_at_most_so_many_open_units(db: Database, customer: uuid.UUID, kind: str) -> None:
    line = await goods(db, kind)
    some = Line(line.product_id, line.sale_id, 6)
    assert await place(db, a_hold(some, customer_id=customer)) == ["HELD"]
    assert await place(db, a_hold(some, customer_id=customer)) == ["OPEN_ORDERS_LIMIT"]
    assert await held(db, customer) == (1, 6)
    assert await books(db) == []


async def test_one_order_above_the_bound_of_units_is_refused(db: Database, customer: uuid.UUID) -> None:
    lines = [Line(await a_product(db), None, 6), Line(await a_product(db), None, 5)]
    assert await place(db, a_hold(*lines, customer_id=customer)) == ["OPEN_ORDERS_LIMIT"]


async def test_batch_is_divided_at_the_bound(db: Database, customer: uuid.UUID) -> None:
    line = await goods(db, "sale")
    outcomes = await place(db, *(a_hold(line, customer_id=customer) for _ in range(5)), a_hold(line))
    assert Counter(outcomes[:5]) == {"HELD": 3, "OPEN_ORDERS_LIMIT": 2}
    assert outcomes[5] == "HELD"
    assert await books(db) == []


async def test_repeat_at_the_bound_finds_its_hold(db: Database, customer: uuid.UUID) -> None:
    line = await goods(db, "stock")
    holds = [a_hold(line, customer_id=customer) for _ in range(3)]
    assert await place(db, *holds) == ["HELD"] * 3
    assert await place(db, *holds) == ["HELD"] * 3
    assert await held(db, customer) == (3, 3)


@pytest.mark.parametrize("end", ["confirm", "release", "expire"])
async def test_hold_that_ends_makes_room(db: Database, customer: uuid.UUID, end: str) -> None:
    line = await goods(db, "sale")
    holds = [a_hold(line, customer_id=customer) for _ in range(3)]
    await place(db, *holds)
    if end == "expire":
        await hold_ended(db, holds[0].id)
        await settle.expire(db)
    else:
        await (settle.confirm if end == "confirm" else settle.release)(db, [holds[0].id])
    assert await place(db, a_hold(line, customer_id=customer)) == ["HELD"]
    assert await place(db, a_hold(line, customer_id=customer)) == ["OPEN_ORDERS_LIMIT"]


async def test_parallel_orders_of_one_customer_stay_within_the_bound(db: Database, customer: uuid.UUID) -> None:
    """Each is a batch of its own, of a pool of its own: no lock on a sale or a stock keeps them apart."""
    pools = [await goods(db, kind) for kind in 6 * ("stock", "sale")]

    async def keep_ordering(line: Line) -> None:
        outcomes: list[str] = []
        for round_ in range(4):
            hold = a_hold(line, customer_id=customer)
            with contextlib.suppress(RateLimited):  # each attempt met another order
                outcomes = await place(db, hold)
            assert (await held(db, customer))[0] <= BOUNDS.orders
            if outcomes == ["HELD"] and round_ < 3:
                await settle.release(db, [hold.id])

    await asyncio.gather(*(keep_ordering(line) for line in pools))
    assert (await held(db, customer))[0] <= BOUNDS.orders
    assert await books(db) == []


async def test_hold_without_a_slot_counts_too(db: Database, customer: uuid.UUID) -> None:
    """A process of the release before makes such holds during a rollout."""
    line = await goods(db, "stock")
    for _ in range(2):
        await place(db, a_hold(line, customer_id=customer), bounds=HoldBounds())
    await run_sql(db, "UPDATE reservations SET units = NULL")
    outcomes = await place(db, *(a_hold(line, customer_id=customer) for _ in range(2)))
    assert Counter(outcomes) == {"HELD": 1, "OPEN_ORDERS_LIMIT": 1}


async def test_sale_refuses_a_customer_whose_holds_ended_unpaid(db: Database, customer: uuid.UUID) -> None:
    """Three of them, however they ended; then neither path of reserving grants one, and other sales still do."""
    sale, other = await a_sale(db, abandoned_hold_limit=3), await a_sale(db, abandoned_hold_limit=0)
    await expired_hold(db, of_sale(sale), customer_id=customer)
    await expired_hold(db, of_sale(sale), customer_id=customer)
    cancelled = await holding(db, of_sale(sale), customer_id=customer)
    await settle.release(db, [cancelled.id], abandoned=[cancelled.id])
    product = await a_product(db)

    assert await place(db, a_hold(of_sale(sale), customer_id=customer)) == ["CUSTOMER_LIMIT"]
    both = a_hold(of_sale(sale), of_stock(product), customer_id=customer)
    assert await place(db, both) == ["CUSTOMER_LIMIT"]
    assert await place(db, a_hold(of_sale(sale))) == ["HELD"]
    for _ in range(4):
        await expired_hold(db, of_sale(other), customer_id=customer)
    assert await place(db, a_hold(of_sale(other), customer_id=customer)) == ["HELD"]
    assert await books(db) == []


async def test_declined_payments_and_repeats_are_no_abandoned_holds(db: Database, customer: uuid.UUID) -> None:
    sale = await a_sale(db, abandoned_hold_limit=1)
    for _ in range(3):
        declined = await holding(db, of_sale(sale), customer_id=customer)
        await settle.release(db, [declined.id])
        await settle.release(db, [declined.id], abandoned=[declined.id])
    assert await place(db, a_hold(of_sale(sale), customer_id=customer)) == ["HELD"]


async def test_hold_that_is_paid_late_was_not_abandoned(db: Database, customer: uuid.UUID) -> None:
    sale = await a_sale(db, abandoned_hold_limit=1)
    late = await expired_hold(db, of_sale(sale), customer_id=customer)
    assert await place(db, a_hold(of_sale(sale), customer_id=customer)) == ["CUSTOMER_LIMIT"]
    (confirmed,) = await settle.confirm(db, [late.id])
    assert isinstance(confirmed, Reservation)
    assert await place(db, a_hold(of_sale(sale), customer_id=customer)) == ["HELD"]
