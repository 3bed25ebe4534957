"""Flash sales: their allocation, their time, their close."""

import asyncio
import uuid
from collections import Counter
from datetime import datetime, timedelta
from typing import Any

import pytest

from services.chassis import ids
from services.chassis.data.db import Database
from services.chassis.errors import RequestIdReused
from services.chassis.money import Money
from services.chassis.request_context import RequestKey
from services.inventory import sales, stock
from services.inventory.domain import FlashSaleNotFound, NewSale, OutOfStock, SaleOverlaps, SaleState, StockNotFound
from services.inventory.reservations import settle
from tests.integration.inventory.conftest import (
    a_product,
    a_sale,
    books,
    hold_ended,
    holding,
    of_sale,
    of_stock,
    rows_of,
    sale_ended,
)


async def now_of(db: Database) -> datetime:
    ((now,),) = await rows_of(db, "SELECT clock_timestamp()")
    return now


async def terms(db: Database, product_id: uuid.UUID, **changes: Any) -> NewSale:
    fields: dict[str, Any] = {
        "product_id": product_id, "title": "A rush", "price": Money("USD", 999), "allocation": 5,
        "per_customer_limit": 0, "start_time": None, "end_time": await now_of(db) + timedelta(hours=1),
        "hold_seconds": 60,
    }  # fmt: skip
    return NewSale(**{**fields, **changes})


def a_key(digest: bytes = b"content") -> RequestKey:
    return RequestKey("staff", "/CreateFlashSale", ids.new(), digest)


async def test_a_sale_takes_its_allocation_out_of_available_stock(db: Database) -> None:
    product_id = await a_product(db, on_hand=10)

    sale = await sales.create_sale(db, await terms(db, product_id, allocation=7), key=None)

    assert (sale.state, sale.remaining, sale.held, sale.sold) == ("LIVE", 7, 0, 0)
    assert (await stock.get_stock(db, product_id)).on_hand == 3
    query = "SELECT kind, delta, reference_id FROM stock_movements WHERE kind <> 'ADJUSTED' ORDER BY id"
    assert await rows_of(db, query) == [("ALLOCATED", -7, sale.id)]
    assert await books(db) == []


async def test_held_units_cannot_be_allocated(db: Database) -> None:
    product_id = await a_product(db, on_hand=10)
    await holding(db, of_stock(product_id, 4))

    with pytest.raises(OutOfStock):
        await sales.create_sale(db, await terms(db, product_id, allocation=7), key=None)

    assert await rows_of(db, "SELECT id FROM flash_sales") == []
    assert (await sales.create_sale(db, await terms(db, product_id, allocation=6), key=None)).remaining == 6
    assert await books(db) == []


async def test_a_product_without_stock_has_no_sales(db: Database) -> None:
    with pytest.raises(StockNotFound):
        await sales.create_sale(db, await terms(db, ids.new()), key=None)


async def test_two_sales_of_a_product_do_not_run_at_the_same_time(db: Database) -> None:
    product_id = await a_product(db, on_hand=100)
    start = await now_of(db) + timedelta(hours=1)
    hour = timedelta(hours=1)
    first = await sales.create_sale(db, await terms(db, product_id, start_time=start, end_time=start + hour), key=None)
    spans = [(start, start + hour), (start - hour / 2, start + hour / 2), (start + hour / 2, start + 2 * hour),
             (start + hour / 4, start + hour / 2), (start - hour / 2, start + 2 * hour)]  # fmt: skip

    for begins, ends in spans:
        with pytest.raises(SaleOverlaps) as refused:
            await sales.create_sale(db, await terms(db, product_id, start_time=begins, end_time=ends), key=None)
        assert refused.value.metadata == {"flashSaleId": str(first.id)}

    # One may begin the moment the other ends; another product's may run at the same time.
    await sales.create_sale(
        db, await terms(db, product_id, start_time=start + hour, end_time=start + 2 * hour), key=None
    )
    await sales.create_sale(db, await terms(db, product_id, start_time=start - hour / 2, end_time=start), key=None)
    other = await a_product(db)
    await sales.create_sale(db, await terms(db, other, start_time=start, end_time=start + hour), key=None)
    assert (await stock.get_stock(db, product_id)).on_hand == 85


async def test_a_closed_sale_is_in_nobodys_way(db: Database) -> None:
    sale = await a_sale(db, units=5)
    await sale_ended(db, sale.id)
    await sales.close_ended_sales(db)

    again = await sales.create_sale(db, await terms(db, sale.product_id, allocation=5), key=None)

    assert again.remaining == 5


async def test_sales_created_at_once_never_allocate_what_is_not_there(db: Database) -> None:
    """Ten at the same moment, in ten different hours, five units each of twenty-two."""
    product_id = await a_product(db, on_hand=22)
    now, hour = await now_of(db), timedelta(hours=1)
    wanted = [
        await terms(db, product_id, start_time=now + n * hour, end_time=now + (n + 1) * hour) for n in range(1, 11)
    ]

    outcomes = await asyncio.gather(*(sales.create_sale(db, w, key=None) for w in wanted), return_exceptions=True)

    assert sum(isinstance(o, OutOfStock) for o in outcomes) == 6
    assert (await stock.get_stock(db, product_id)).on_hand == 2
    assert await books(db) == []


async def test_sales_created_at_once_for_the_same_hour_are_one(db: Database) -> None:
    product_id = await a_product(db, on_hand=100)
    wanted = await terms(db, product_id)

    outcomes = await asyncio.gather(
        *(sales.create_sale(db, wanted, key=None) for _ in range(10)), return_exceptions=True
    )

    assert sum(isinstance(o, SaleOverlaps) for o in outcomes) == 9
    assert (await stock.get_stock(db, product_id)).on_hand == 95


async def test_a_repeated_creation_finds_the_first_sale(db: Database) -> None:
    product_id, key = await a_product(db, on_hand=10), a_key()
    wanted = await terms(db, product_id)

    several = await asyncio.gather(*(sales.create_sale(db, wanted, key=key) for _ in range(6)))

    assert len({sale.id for sale in several}) == 1
    assert (await stock.get_stock(db, product_id)).on_hand == 5


async def test_a_request_id_does_not_stand_for_two_sales(db: Database) -> None:
    product_id, key = await a_product(db, on_hand=100), a_key()
    wanted = await terms(db, product_id)
    await sales.create_sale(db, wanted, key=key)

    with pytest.raises(RequestIdReused):
        await sales.create_sale(db, wanted, key=RequestKey(key.caller, key.method, key.request_id, b"other"))


async def test_a_refused_creation_may_be_tried_again_under_its_request_id(db: Database) -> None:
    product_id, key = await a_product(db, on_hand=1), a_key()
    wanted = await terms(db, product_id)
    with pytest.raises(OutOfStock):
        await sales.create_sale(db, wanted, key=key)
    await stock.set_stock(db, {product_id: 5}, reason="delivery", actor=ids.new(), key=None)

    assert (await sales.create_sale(db, wanted, key=key)).remaining == 5


async def test_time_and_units_decide_where_a_sale_stands(db: Database) -> None:
    sale = await a_sale(db, units=2)
    ((now,),) = await rows_of(db, "SELECT clock_timestamp()")
    scheduled = await a_sale(db, start_time=now + timedelta(minutes=5))
    assert scheduled.state == "SCHEDULED"
    assert sale.state == "LIVE"

    held = await holding(db, of_sale(sale, 2))
    assert (await sales.get_sale(db, sale.id)).state == "SOLD_OUT"
    await settle.release(db, [held.id])
    assert (await sales.get_sale(db, sale.id)).state == "LIVE"

    await sale_ended(db, sale.id)
    assert (await sales.get_sale(db, sale.id)).state == "ENDED"  # though nobody has closed it yet
    assert (await sales.get_sale(db, sale.id)).closed_as is None


async def test_a_start_in_the_past_means_at_once_by_the_databases_clock(db: Database) -> None:
    product_id = await a_product(db)
    before = await now_of(db)

    sale = await sales.create_sale(db, await terms(db, product_id, start_time=before - timedelta(days=9)), key=None)

    assert before <= sale.start_time <= sale.server_time
    assert sale.state == "LIVE"


async def test_an_unknown_sale_is_not_found(db: Database) -> None:
    with pytest.raises(FlashSaleNotFound):
        await sales.get_sale(db, ids.new())


async def test_closing_returns_what_was_not_sold_and_says_so_in_the_ledger(db: Database) -> None:
    sale = await a_sale(db, units=10)
    bought, held = await holding(db, of_sale(sale, 3)), await holding(db, of_sale(sale, 2))
    await settle.confirm(db, [bought.id])
    await sale_ended(db, sale.id)

    assert await sales.close_ended_sales(db) == 1
    assert await sales.close_ended_sales(db) == 0

    now = await sales.get_sale(db, sale.id)
    assert (now.state, now.sold, now.held, now.returned, now.remaining) == ("ENDED", 3, 2, 5, 0)
    assert now.version == sale.version + 1
    query = "SELECT delta FROM stock_movements WHERE kind = 'RETURNED' AND reference_id = :sale ORDER BY id"
    assert await rows_of(db, query, sale=sale.id) == [(5,)]
    assert (await stock.get_stock(db, sale.product_id)).on_hand == 5
    assert await books(db) == []
    await hold_ended(db, held.id)
    await settle.expire(db)
    assert await rows_of(db, query, sale=sale.id) == [(5,), (2,)]


async def test_a_sale_that_sold_everything_closes_without_a_movement(db: Database) -> None:
    sale = await a_sale(db, units=1)
    await settle.confirm(db, [(await holding(db, of_sale(sale))).id])
    await sale_ended(db, sale.id)

    assert await sales.close_ended_sales(db) == 1
    assert await rows_of(db, "SELECT id FROM stock_movements WHERE kind = 'RETURNED'") == []
    assert await books(db) == []


async def test_four_closers_close_each_sale_once(db: Database) -> None:
    several = [await a_sale(db, units=4) for _ in range(20)]
    await sale_ended(db, *(sale.id for sale in several))

    closed = await asyncio.gather(*(sales.close_ended_sales(db) for _ in range(4)))

    assert sum(closed) == 20
    assert Counter(await rows_of(db, "SELECT on_hand FROM stock")) == {(4,): 20}
    assert await books(db) == []


async def test_a_close_in_the_middle_of_a_rush_loses_no_unit(db: Database) -> None:
    sale = await a_sale(db, units=30)
    held = [await holding(db, of_sale(sale)) for _ in range(20)]
    await sale_ended(db, sale.id)

    await asyncio.gather(
        sales.close_ended_sales(db),
        *(settle.confirm(db, [r.id]) if n % 2 else settle.release(db, [r.id]) for n, r in enumerate(held)),
    )
    await sales.close_ended_sales(db)  # the first may have passed by a sale that was busy

    now = await sales.get_sale(db, sale.id)
    assert (now.held, now.sold, now.returned) == (0, 10, 20)
    assert (await stock.get_stock(db, sale.product_id)).on_hand == 20
    assert await books(db) == []


async def test_lists_are_newest_first_in_pages_and_filtered(db: Database) -> None:
    several = [await a_sale(db) for _ in range(5)]
    await holding(db, of_sale(several[1], 10))
    newest_first = [sale.id for sale in reversed(several)]

    async def listed(**asked: Any) -> list[uuid.UUID]:
        fields: dict[str, Any] = {"state": None, "product_id": None, "before": None, "limit": 50}
        return [sale.id for sale in await sales.list_sales(db, **{**fields, **asked})]

    assert await listed() == newest_first
    assert await listed(limit=2) == newest_first[:2]
    assert await listed(limit=2, before=newest_first[1]) == newest_first[2:4]
    assert await listed(state=SaleState.SOLD_OUT) == [several[1].id]
    assert len(await listed(state=SaleState.LIVE)) == 4
    assert await listed(state=SaleState.CANCELLED) == []
    assert await listed(product_id=several[3].product_id) == [several[3].id]
    assert await listed(product_id=ids.new()) == []
