"""Stock of many products, counted at once."""

import asyncio
import random
import uuid
from typing import Any

import pytest

from services.chassis import ids
from services.chassis.data.db import Database
from services.chassis.errors import RequestIdReused
from services.chassis.request_context import RequestKey
from services.inventory import stock
from services.inventory.domain import OutOfStock, Reservation
from services.inventory.reservations import reserve, settle
from tests.integration.inventory.conftest import (
    STAFF,
    a_hold,
    a_product,
    books,
    holding,
    of_stock,
    rows_of,
    statements,
)


async def counted(
    db: Database, units: dict[uuid.UUID, int], *, key: RequestKey | None = None, reason: str = "inventory night"
) -> list[Any]:
    return await stock.set_stock(db, units, reason=reason, actor=STAFF, key=key)


async def on_hand(db: Database) -> dict[uuid.UUID, int]:
    return dict(await rows_of(db, "SELECT product_id, on_hand FROM stock"))


async def test_stocks_are_set_and_begun_and_answered_in_the_order_asked(db: Database) -> None:
    known, same, new, empty = await a_product(db, on_hand=10), await a_product(db, on_hand=3), ids.new(), ids.new()
    await holding(db, of_stock(known, 2))
    wanted = {empty: 0, new: 7, same: 3, known: 4}

    stocks = await counted(db, wanted)

    assert [(s.product_id, s.on_hand, s.held) for s in stocks] == [
        (empty, 0, 0), (new, 7, 0), (same, 3, 0), (known, 4, 2),
    ]  # fmt: skip
    query = "SELECT product_id, delta, kind, reason, reference_id FROM stock_movements WHERE reason <> 'counted'"
    moved = {(known, -6, "ADJUSTED", "inventory night", STAFF), (new, 7, "ADJUSTED", "inventory night", STAFF)}
    assert set(await rows_of(db, query)) == moved, "what has not changed has not moved"
    assert await books(db) == []


async def test_where_one_product_has_more_held_than_counted_nothing_is_changed(db: Database) -> None:
    fine, short, shorter, new = *[await a_product(db, on_hand=10) for _ in range(3)], ids.new()
    for product_id in (short, shorter):
        await holding(db, of_stock(product_id, 6))

    with pytest.raises(OutOfStock) as refused:
        await counted(db, {fine: 1, new: 5, shorter: 5, short: 5})

    assert refused.value.metadata == {"productId": str(shorter)}, "the first in the order of the request"
    assert await on_hand(db) == {fine: 10, short: 10, shorter: 10}
    assert (await counted(db, {short: 6}))[0].on_hand == 6
    assert await books(db) == []


async def test_a_thousand_products_cost_a_handful_of_statements(db: Database) -> None:
    wanted = {ids.new(): n for n in range(1000)}

    with statements(db) as seen:
        stocks = await counted(db, wanted)

    assert {s.product_id: s.on_hand for s in stocks} == wanted
    assert len(seen) <= 5, seen
    assert await books(db) == []


async def test_a_repeat_changes_nothing_and_another_content_is_refused(db: Database) -> None:
    product_id, key = await a_product(db, on_hand=10), RequestKey("staff", "/BatchUpdateStock", ids.new(), b"content")

    await asyncio.gather(*(counted(db, {product_id: 15}, key=key) for _ in range(6)))
    await stock.adjust_stock(db, product_id, delta=1, reason="found", actor=STAFF, key=None)
    (again,) = await counted(db, {product_id: 15}, key=key)

    assert again.on_hand == 16
    with pytest.raises(RequestIdReused):
        await counted(db, {product_id: 9}, key=RequestKey(key.caller, key.method, key.request_id, b"other"))
    assert await books(db) == []


async def test_a_refused_batch_may_be_tried_again_under_its_request_id(db: Database) -> None:
    product_id, key = await a_product(db, on_hand=10), RequestKey("staff", "/BatchUpdateStock", ids.new(), b"content")
    held = await holding(db, of_stock(product_id, 6))
    with pytest.raises(OutOfStock):
        await counted(db, {product_id: 5}, key=key)
    await settle.release(db, [held.id])

    assert (await counted(db, {product_id: 5}, key=key))[0].on_hand == 5


@pytest.mark.parametrize("seed", range(6))
async def test_overlapping_batches_beside_orders_end_as_one_of_them_and_never_deadlock(db: Database, seed: int) -> None:
    """Each batch in its own order of products, some of them new; where two overlap, one has the last word on all."""
    chance = random.Random(seed)
    known = [await a_product(db, on_hand=50) for _ in range(12)]
    products = known + [ids.new() for _ in range(12)]
    shared = chance.sample(products, 8)
    batches = []
    for number in range(6):
        mine = list(dict.fromkeys(chance.sample(products, 10) + shared))
        chance.shuffle(mine)
        # Enough for all that orders hold; each number identifies its batch.
        batches.append(dict.fromkeys(mine, 1000 + number))
    done = asyncio.Event()

    async def order() -> None:
        while not done.is_set():
            lines = [of_stock(product_id, 1) for product_id in chance.sample(known, 3)]
            (outcome,) = await reserve.reserve(db, [a_hold(*lines)])
            if isinstance(outcome, Reservation):
                await settle.release(db, [outcome.id])

    async def count() -> None:
        await asyncio.gather(*(counted(db, batch) for batch in batches))  # most of them begin the new products
        await asyncio.gather(*(counted(db, batch) for batch in batches))
        done.set()

    async with asyncio.timeout(60):
        await asyncio.gather(count(), *(order() for _ in range(4)))

    found = await on_hand(db)
    assert len({found[product_id] for product_id in shared}) == 1, "the last batch set all of them"
    for product_id, units in found.items():
        assert units in {50, *(batch[product_id] for batch in batches if product_id in batch)}
    assert await books(db) == []
