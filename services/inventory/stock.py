"""Reads and counts ordinary stock, for shoppers and staff. Each function is one transaction."""

import uuid
from collections.abc import Mapping, Sequence

from services.chassis import ids
from services.chassis.data import idempotency
from services.chassis.data.db import Database
from services.chassis.errors import InvalidFields
from services.chassis.request_context import RequestKey
from services.inventory.domain import ON_HAND_MOST, OutOfStock
from services.inventory.sql import stock as sql
from services.inventory.sql.schema import Movement, Stock


async def get_stock(db: Database, product_id: uuid.UUID) -> Stock:
    """Return the stock of a product. Raises `StockNotFound`."""
    async with db() as tx:
        return await sql.find_stock(tx, product_id)


async def find_new(db: Database, product_ids: Sequence[uuid.UUID]) -> list[uuid.UUID]:
    """Return those products that have no stock yet."""
    async with db() as tx:
        known = await sql.stocked(tx, product_ids)
    return [product_id for product_id in product_ids if product_id not in known]


async def set_stock(
    db: Database, counted: Mapping[uuid.UUID, int], *, reason: str, actor: uuid.UUID, key: RequestKey | None
) -> list[Stock]:
    """Set the units on hand of products, all or none, and write the differences to the ledger.

    Returns their stocks, in the order given.
    """
    async with db.begin() as tx:
        if not await idempotency.find_repeat(tx, key, ids.new()):
            held = await sql.begin_stocks(tx, list(counted))
            for product_id, on_hand in counted.items():
                if held[product_id] > on_hand:
                    raise OutOfStock(productId=product_id)
            await sql.set_stocks(tx, counted, reason=reason, actor=actor)
        return await sql.find_stocks(tx, list(counted))


async def adjust_stock(
    db: Database, product_id: uuid.UUID, *, delta: int, reason: str, actor: uuid.UUID, key: RequestKey | None
) -> Stock:
    """Add `delta` units to ordinary stock; a negative `delta` takes units out."""
    async with db.begin() as tx:
        repeat = await idempotency.find_repeat(tx, key, product_id)
        stock = await sql.find_stock(tx, product_id, lock=True)
        if delta and not repeat:
            if stock.on_hand + delta > ON_HAND_MOST:
                raise InvalidFields({"delta": f"would bring the stock above {ON_HAND_MOST} units"})
            await sql.adjust(tx, stock, delta, reason=reason, actor=actor)
        return stock


async def list_movements(db: Database, product_id: uuid.UUID, *, before: int | None, limit: int) -> Sequence[Movement]:
    """Return the changes of a product's stock, newest first, from the one before id `before` on."""
    async with db() as tx:
        await sql.find_stock(tx, product_id)
        return await sql.list_movements(tx, product_id, before=before, limit=limit)
