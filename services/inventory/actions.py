"""What staff and shoppers do with ordinary stock. Each function is one transaction. Orders' part is in `reserving`."""

import uuid
from collections.abc import Mapping, Sequence

from sqlalchemy import func, select, text
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.ext.asyncio import AsyncSession

from services.chassis import ids
from services.chassis.data import idempotency
from services.chassis.data.db import Database
from services.chassis.errors import InvalidFields
from services.chassis.request_context import RequestKey
from services.inventory.domain import ON_HAND_MOST, OutOfStock, StockNotFound
from services.inventory.tables import Movement, Stock

# Rows that are new come first, in the order of products: whoever waits for one of them has no stock locked yet.
_BEGIN = text("""
    INSERT INTO stock (product_id, on_hand)
    SELECT product_id, 0 FROM unnest(CAST(:products AS uuid[])) AS w (product_id) ORDER BY product_id
    ON CONFLICT DO NOTHING
""")
_LOCK = text("""
    SELECT product_id, held FROM stock WHERE product_id = ANY(CAST(:products AS uuid[]))
    ORDER BY product_id FOR UPDATE
""")
_SET = text("""
    WITH changed AS (
        UPDATE stock s SET on_hand = w.on_hand, update_time = clock_timestamp()
        FROM unnest(CAST(:products AS uuid[]), CAST(:on_hand AS integer[])) AS w (product_id, on_hand)
        WHERE s.product_id = w.product_id AND s.on_hand <> w.on_hand
        RETURNING s.product_id, new.on_hand - old.on_hand AS delta
    )
    INSERT INTO stock_movements (product_id, delta, kind, reason, reference_id)
    SELECT product_id, delta, 'ADJUSTED', :reason, :actor FROM changed ORDER BY product_id
""")


async def get_stock(db: Database, product_id: uuid.UUID) -> Stock:
    """The stock of a product, or `StockNotFound`."""
    async with db() as tx:
        return await find_stock(tx, product_id)


async def set_stock(
    db: Database, product_id: uuid.UUID, *, on_hand: int, reason: str, actor: uuid.UUID, key: RequestKey | None
) -> Stock:
    """Makes `on_hand` the units in ordinary stock, and writes the difference to the ledger."""
    async with db.begin() as tx:
        if await idempotency.find_repeat(tx, key, product_id):
            return await find_stock(tx, product_id)
        await tx.execute(insert(Stock).values(product_id=product_id, on_hand=0, held=0).on_conflict_do_nothing())
        stock = await find_stock(tx, product_id, lock=True)
        return await _move(tx, stock, on_hand - stock.on_hand, reason, actor)


async def batch_set_stock(
    db: Database, counted: Mapping[uuid.UUID, int], *, reason: str, actor: uuid.UUID, key: RequestKey | None
) -> list[Stock]:
    """`set_stock` for many products, given with their units: for all, or for none. Their stocks, in the order given."""
    products = list(counted)
    async with db.begin() as tx:
        if not await idempotency.find_repeat(tx, key, ids.new()):
            await tx.execute(_BEGIN, {"products": products})
            held = {row.product_id: row.held for row in await tx.execute(_LOCK, {"products": products})}
            for product_id, on_hand in counted.items():
                if held[product_id] > on_hand:
                    raise OutOfStock(productId=product_id)
            on_hands = list(counted.values())
            await tx.execute(_SET, {"products": products, "on_hand": on_hands, "reason": reason, "actor": actor})
        found = await tx.scalars(select(Stock).where(Stock.product_id == func.any(products)))
        stocks = {stock.product_id: stock for stock in found}
    return [stocks[product_id] for product_id in products]


async def adjust_stock(
    db: Database, product_id: uuid.UUID, *, delta: int, reason: str, actor: uuid.UUID, key: RequestKey | None
) -> Stock:
    """Adds `delta` units to ordinary stock, or takes them away."""
    async with db.begin() as tx:
        if await idempotency.find_repeat(tx, key, product_id):
            return await find_stock(tx, product_id)
        return await _move(tx, await find_stock(tx, product_id, lock=True), delta, reason, actor)


async def _move(tx: AsyncSession, stock: Stock, delta: int, reason: str, actor: uuid.UUID) -> Stock:
    if delta == 0:
        return stock
    if stock.on_hand + delta > ON_HAND_MOST:
        raise InvalidFields({"delta": f"would bring the stock above {ON_HAND_MOST} units"})
    query = text("""
        UPDATE stock SET on_hand = on_hand + :delta, update_time = clock_timestamp()
        WHERE product_id = :product AND on_hand + :delta >= held RETURNING product_id
    """)
    if await tx.scalar(query, {"product": stock.product_id, "delta": delta}) is None:
        raise OutOfStock(productId=stock.product_id)
    tx.add(Movement(product_id=stock.product_id, delta=delta, kind="ADJUSTED", reason=reason, reference_id=actor))
    await tx.flush()
    await tx.refresh(stock)
    return stock


async def list_movements(db: Database, product_id: uuid.UUID, *, before: int | None, limit: int) -> Sequence[Movement]:
    """The changes of a product's stock, newest first, from the one before id `before` on."""
    async with db() as tx:
        await find_stock(tx, product_id)
        query = select(Movement).where(Movement.product_id == product_id).order_by(Movement.id.desc()).limit(limit)
        return (await tx.scalars(query if before is None else query.where(Movement.id < before))).all()


async def find_stock(tx: AsyncSession, product_id: uuid.UUID, *, lock: bool = False) -> Stock:
    """The stock of a product within a transaction, or `StockNotFound`."""
    query = select(Stock).where(Stock.product_id == product_id)
    stock = await tx.scalar(query.with_for_update() if lock else query)
    if stock is None:
        raise StockNotFound(productId=product_id)
    return stock
