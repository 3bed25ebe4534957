"""Events of a sale's availability: published with its last unit, and with the first unit that comes back."""

import asyncio
import uuid
from typing import Any

import pytest

from services.chassis import ids
from services.chassis.data.db import Database
from services.inventory import sales
from services.inventory.domain import Return, SaleState
from services.inventory.reservations import reserve, returns, settle
from stampede.inventory.v1.events_pb2 import SaleAvailabilityChanged
from tests.integration.inventory.conftest import (
    a_hold,
    a_product,
    a_sale,
    expired_hold,
    hold_ended,
    holding,
    of_sale,
    of_stock,
    rows_of,
    run_sql,
    statements,
)

SOLD_OUT, AVAILABLE = ("stampede.inventory.sale.sold_out", True), ("stampede.inventory.sale.available", False)


class Nudges:
    """Counts the calls that wake the relay."""

    def __init__(self) -> None:
        self.count = 0

    def __call__(self) -> None:
        self.count += 1


async def published(db: Database, sale: Any) -> list[tuple[str, bool]]:
    """Subject and content of the events of a sale, in order."""
    query = "SELECT subject, payload FROM outbox WHERE key = :sale ORDER BY id"
    found = []
    for subject, payload in await rows_of(db, query, sale=str(sale.id)):
        event = SaleAvailabilityChanged.FromString(bytes(payload))
        assert event.sale_id == str(sale.id)
        found.append((subject, event.sold_out))
    return found


@pytest.mark.parametrize("slow", [False, True])
async def test_the_last_unit_publishes_sold_out_once(db: Database, slow: bool) -> None:
    """On the fast path in its one statement. Holds before and after the last unit publish nothing."""
    sale, other, plain = await a_sale(db, units=3), await a_sale(db, units=9), await a_product(db)
    also, nudge = [of_stock(plain)] if slow else [], Nudges()
    await reserve.reserve(db, [a_hold(of_sale(sale), *also)], nudge=nudge)
    assert (await published(db, sale), nudge.count) == ([], 0)

    with statements(db) as seen:
        await reserve.reserve(db, [a_hold(of_sale(sale, 2), *also), a_hold(of_sale(other), *also)], nudge=nudge)
    await reserve.reserve(db, [a_hold(of_sale(sale), *also)], nudge=nudge)

    assert (await published(db, sale), await published(db, other), nudge.count) == ([SOLD_OUT], [], 1)
    assert slow or len(seen) == 1


async def test_units_that_a_batch_gives_back_keep_the_sale_available(db: Database) -> None:
    """The slow path takes all units first, and gives back those of holds above the limit."""
    sale, customer = await a_sale(db, units=2, per_customer_limit=1), ids.new()

    await reserve.reserve(db, [a_hold(of_sale(sale), customer_id=customer) for _ in range(2)])

    assert await published(db, sale) == []


@pytest.mark.parametrize("end", ["release", "expire", "return"])
async def test_the_first_unit_that_comes_back_publishes_available_once(db: Database, end: str) -> None:
    sale, nudge = await a_sale(db, units=2), Nudges()
    held = [await holding(db, of_sale(sale)) for _ in range(2)]
    if end == "return":
        await settle.confirm(db, [r.id for r in held])

    for r in held:
        if end == "release":
            await settle.release(db, [r.id, r.id], nudge=nudge)
        elif end == "expire":
            await hold_ended(db, r.id)
            await settle.expire(db)
        else:
            await returns.take_back(db, [Return(ids.new(), r.id, {})], nudge=nudge)

    assert await published(db, sale) == [SOLD_OUT, AVAILABLE]
    assert nudge.count == (0 if end == "expire" else 1)


async def test_a_late_payment_that_takes_the_last_unit_publishes_sold_out(db: Database) -> None:
    sale, nudge = await a_sale(db, units=2), Nudges()
    late = await expired_hold(db, of_sale(sale))
    await holding(db, of_sale(sale))

    await settle.confirm(db, [late.id], nudge=nudge)

    assert await published(db, sale) == [SOLD_OUT]
    assert nudge.count == 1


@pytest.mark.parametrize("end", ["closed", "over"])
async def test_units_that_come_back_to_a_sale_that_is_over_publish_nothing(db: Database, end: str) -> None:
    sale = await a_sale(db, units=1)
    held = await holding(db, of_sale(sale))
    if end == "closed":
        await sales.close_sale(db, sale.id, SaleState.CANCELLED, etag_given="", key=None)
    else:
        query = "UPDATE flash_sales SET start_time = now() - interval '2 s', end_time = now() - interval '1 s'"
        await run_sql(db, query)

    await settle.release(db, [held.id])

    assert await published(db, sale) == [SOLD_OUT]


async def test_concurrent_batches_publish_each_change_in_order(db: Database) -> None:
    """The events alternate, and the last one has the sale's present state."""
    sale = await a_sale(db, units=4)

    async def buy_and_release(number: int) -> None:
        for _ in range(6):
            hold = a_hold(of_sale(sale, 1 + number % 3))
            await reserve.reserve(db, [hold])
            await settle.release(db, [hold.id])

    await asyncio.gather(*(buy_and_release(number) for number in range(6)))
    last: uuid.UUID = (await holding(db, of_sale(sale, 4))).id

    events = await published(db, sale)
    assert events == [SOLD_OUT, AVAILABLE] * (len(events) // 2) + [SOLD_OUT]
    await settle.release(db, [last])
    assert (await published(db, sale))[-1] == AVAILABLE
