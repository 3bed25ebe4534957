"""Ordinary stock and its ledger."""

import asyncio

import pytest
from sqlalchemy import text
from sqlalchemy.exc import IntegrityError

from services.chassis import ids
from services.chassis.data.db import Database, violated_constraint
from services.chassis.errors import RequestIdReused
from services.chassis.request_context import RequestKey
from services.inventory import stock
from services.inventory.domain import OutOfStock, StockNotFound
from services.inventory.reservations import settle
from tests.integration.inventory.conftest import STAFF, a_product, books, holding, of_stock, rows_of


async def test_setting_stock_writes_the_difference_to_the_ledger(db: Database) -> None:
    product_id = ids.new()
    for on_hand in (10, 4, 4, 0, 7):
        (ordinary,) = await stock.set_stock(db, {product_id: on_hand}, reason="counted", actor=STAFF, key=None)
        assert ordinary.on_hand == on_hand

    query = "SELECT delta, kind, reason, reference_id FROM stock_movements ORDER BY id"
    expected = [(delta, "ADJUSTED", "counted", STAFF) for delta in (10, -6, -4, 7)]
    assert await rows_of(db, query) == expected
    assert await books(db) == []


async def test_stock_is_never_set_or_adjusted_below_what_is_held(db: Database) -> None:
    product_id = await a_product(db, on_hand=10)
    await holding(db, of_stock(product_id, 6))

    with pytest.raises(OutOfStock):
        await stock.set_stock(db, {product_id: 5}, reason="counted", actor=STAFF, key=None)
    with pytest.raises(OutOfStock):
        await stock.adjust_stock(db, product_id, delta=-5, reason="broken", actor=STAFF, key=None)

    (ordinary,) = await stock.set_stock(db, {product_id: 6}, reason="counted", actor=STAFF, key=None)
    assert ordinary.on_hand == 6
    assert await books(db) == []


async def test_an_adjustment_needs_stock(db: Database) -> None:
    for call in (
        stock.adjust_stock(db, ids.new(), delta=1, reason="found", actor=STAFF, key=None),
        stock.get_stock(db, ids.new()),
        stock.list_movements(db, ids.new(), before=None, limit=5),
    ):
        with pytest.raises(StockNotFound):
            await call


async def test_adjustments_at_once_all_count_and_never_go_below_zero(db: Database) -> None:
    product_id = await a_product(db, on_hand=10)

    outcomes = await asyncio.gather(
        *(stock.adjust_stock(db, product_id, delta=-1, reason="lost", actor=STAFF, key=None) for _ in range(25)),
        return_exceptions=True,
    )

    assert sum(isinstance(o, OutOfStock) for o in outcomes) == 15
    assert (await stock.get_stock(db, product_id)).on_hand == 0
    assert await books(db) == []


async def test_a_product_counted_for_the_first_time_by_many_at_once_has_one_stock(db: Database) -> None:
    product_id = ids.new()

    await asyncio.gather(
        *(stock.set_stock(db, {product_id: 9}, reason="counted", actor=STAFF, key=None) for _ in range(8))
    )

    assert (await stock.get_stock(db, product_id)).on_hand == 9
    assert await books(db) == []


async def test_a_repeat_changes_stock_once_and_another_content_is_refused(db: Database) -> None:
    product_id, key = await a_product(db, on_hand=10), RequestKey("staff", "/AdjustStock", ids.new(), b"content")

    await asyncio.gather(
        *(stock.adjust_stock(db, product_id, delta=5, reason="found", actor=STAFF, key=key) for _ in range(6))
    )

    assert (await stock.get_stock(db, product_id)).on_hand == 15
    with pytest.raises(RequestIdReused):
        await stock.adjust_stock(
            db, product_id, delta=6, reason="found", actor=STAFF,
            key=RequestKey(key.caller, key.method, key.request_id, b"other"),
        )  # fmt: skip


async def test_movements_are_listed_newest_first_in_pages(db: Database) -> None:
    product_id = await a_product(db, on_hand=10)
    await settle.confirm(db, [(await holding(db, of_stock(product_id, 3))).id])
    await stock.adjust_stock(db, product_id, delta=1, reason="found", actor=STAFF, key=None)

    first = await stock.list_movements(db, product_id, before=None, limit=2)
    second = await stock.list_movements(db, product_id, before=first[-1].id, limit=2)

    assert [(m.kind, m.delta) for m in (*first, *second)] == [("ADJUSTED", 1), ("SOLD", -3), ("ADJUSTED", 10)]


@pytest.mark.parametrize(
    ("statement", "constraint"),
    [
        ("UPDATE stock SET on_hand = -1", "stock_on_hand_not_negative"),
        ("UPDATE stock SET held = on_hand + 1", "stock_held_within_on_hand"),
        ("UPDATE flash_sales SET sold = allocation + 1", "flash_sales_never_oversold"),
        ("UPDATE flash_sales SET held = allocation, returned = 1", "flash_sales_never_oversold"),
    ],
)
async def test_the_database_itself_refuses_to_oversell(db: Database, statement: str, constraint: str) -> None:
    """Whatever bug there may be above it."""
    from tests.integration.inventory.conftest import a_sale

    await a_sale(db, units=3)
    with pytest.raises(IntegrityError) as refused:
        async with db.begin() as tx:
            await tx.execute(text(statement))
    assert violated_constraint(refused.value) in (constraint, "stock_held_within_on_hand")
