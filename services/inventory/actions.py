"""What inventory does for staff and shoppers. Each function is one transaction. Orders' part is in `reserving`."""

import uuid
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

from sqlalchemy import select, text
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.ext.asyncio import AsyncSession

from services.chassis import ids, once
from services.chassis.calls import RequestKey
from services.chassis.db import Database
from services.chassis.errors import InvalidFields
from services.chassis.money import Money
from services.inventory.domain import ON_HAND_MOST, FlashSaleNotFound, OutOfStock, SaleOverlaps, StockNotFound
from services.inventory.tables import FlashSale, Movement, Stock

CLOSE_MOST = 100

# Time decides where a sale stands, by the database's clock; only what time cannot tell is stored.
_SALES = """
    SELECT *, clock_timestamp() AS server_time, allocation - held - sold - returned AS remaining, CASE
        WHEN closed_as IS NOT NULL THEN closed_as
        WHEN end_time <= clock_timestamp() THEN 'ENDED'
        WHEN start_time > clock_timestamp() THEN 'SCHEDULED'
        WHEN held + sold + returned >= allocation THEN 'SOLD_OUT'
        ELSE 'LIVE' END AS state
    FROM flash_sales
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class NewSale:
    """The terms of a flash sale to be. `start_time` None means at once."""

    product_id: uuid.UUID
    title: str
    price: Money
    allocation: int
    per_customer_limit: int
    start_time: datetime | None
    end_time: datetime
    hold_seconds: int


async def get_stock(db: Database, product_id: uuid.UUID) -> Stock:
    """The stock of a product, or `StockNotFound`."""
    async with db() as tx:
        return await _stock(tx, product_id)


async def set_stock(
    db: Database, product_id: uuid.UUID, *, on_hand: int, reason: str, actor: uuid.UUID, key: RequestKey | None
) -> Stock:
    """Makes `on_hand` the units in ordinary stock, and writes the difference to the ledger."""
    async with db.begin() as tx:
        if await once.repeated(tx, key, product_id):
            return await _stock(tx, product_id)
        await tx.execute(insert(Stock).values(product_id=product_id, on_hand=0, held=0).on_conflict_do_nothing())
        stock = await _stock(tx, product_id, lock=True)
        return await _move(tx, stock, on_hand - stock.on_hand, reason, actor)


async def adjust_stock(
    db: Database, product_id: uuid.UUID, *, delta: int, reason: str, actor: uuid.UUID, key: RequestKey | None
) -> Stock:
    """Adds `delta` units to ordinary stock, or takes them away."""
    async with db.begin() as tx:
        if await once.repeated(tx, key, product_id):
            return await _stock(tx, product_id)
        return await _move(tx, await _stock(tx, product_id, lock=True), delta, reason, actor)


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


async def _stock(tx: AsyncSession, product_id: uuid.UUID, *, lock: bool = False) -> Stock:
    query = select(Stock).where(Stock.product_id == product_id)
    stock = await tx.scalar(query.with_for_update() if lock else query)
    if stock is None:
        raise StockNotFound(productId=product_id)
    return stock


async def list_movements(db: Database, product_id: uuid.UUID, *, before: int | None, limit: int) -> Sequence[Movement]:
    """The changes of a product's stock, newest first, from the one before id `before` on."""
    async with db() as tx:
        await _stock(tx, product_id)
        query = select(Movement).where(Movement.product_id == product_id).order_by(Movement.id.desc()).limit(limit)
        return (await tx.scalars(query if before is None else query.where(Movement.id < before))).all()


async def create_sale(db: Database, new: NewSale, *, key: RequestKey | None) -> Any:
    """Schedules a flash sale and takes its allocation out of available stock. Returns it as `get_sale` does."""
    sale_id = ids.new()
    async with db.begin() as tx:
        if first := await once.repeated(tx, key, sale_id):
            return await _sale(tx, first)
        # The stock row is also the lock under which a product's sales are kept apart.
        stock = await _stock(tx, new.product_id, lock=True)
        now: datetime = (await tx.execute(text("SELECT clock_timestamp()"))).scalar_one()
        start_time = max(new.start_time or now, now)
        end_time = max(new.end_time, start_time + timedelta(seconds=1))
        overlapping = await tx.scalar(
            select(FlashSale.id).where(
                FlashSale.product_id == new.product_id,
                FlashSale.closed_as.is_(None),
                FlashSale.start_time < end_time,
                FlashSale.end_time > start_time,
            )
        )
        if overlapping:
            raise SaleOverlaps(flashSaleId=overlapping)
        await _allocate(tx, stock, sale_id, new.allocation)
        tx.add(_sale_row(sale_id, new, start_time, end_time))
        await tx.flush()
        return await _sale(tx, sale_id)


def _sale_row(sale_id: uuid.UUID, new: NewSale, start_time: datetime, end_time: datetime) -> FlashSale:
    return FlashSale(
        id=sale_id,
        product_id=new.product_id,
        title=new.title,
        price_minor=new.price.minor,
        currency=new.price.currency,
        allocation=new.allocation,
        per_customer_limit=new.per_customer_limit,
        start_time=start_time,
        end_time=end_time,
        hold_seconds=new.hold_seconds,
    )


async def _allocate(tx: AsyncSession, stock: Stock, sale_id: uuid.UUID, units: int) -> None:
    query = text("""
        UPDATE stock SET on_hand = on_hand - :units, update_time = clock_timestamp()
        WHERE product_id = :product AND on_hand - held >= :units RETURNING product_id
    """)
    if await tx.scalar(query, {"product": stock.product_id, "units": units}) is None:
        raise OutOfStock(productId=stock.product_id)
    tx.add(Movement(product_id=stock.product_id, delta=-units, kind="ALLOCATED", reference_id=sale_id))


async def get_sale(db: Database, sale_id: uuid.UUID) -> Any:
    """A row of the sale with `state`, `remaining` and `server_time`, or `FlashSaleNotFound`."""
    async with db() as tx:
        return await _sale(tx, sale_id)


async def _sale(tx: AsyncSession, sale_id: uuid.UUID) -> Any:
    row = (await tx.execute(text(f"{_SALES} WHERE id = :id"), {"id": sale_id})).one_or_none()
    if row is None:
        raise FlashSaleNotFound(flashSaleId=sale_id)
    return row


async def get_sales(db: Database, sale_ids: Sequence[uuid.UUID]) -> Sequence[Any]:
    """Those of `sale_ids` that exist, in one statement."""
    async with db() as tx:
        return (await tx.execute(text(f"{_SALES} WHERE id = ANY(CAST(:ids AS uuid[]))"), {"ids": list(sale_ids)})).all()


async def list_sales(
    db: Database, *, state: str | None, product_id: uuid.UUID | None, before: uuid.UUID | None, limit: int
) -> Sequence[Any]:
    """Sales newest first, from the one before id `before` on. None asks for no filter."""
    query = text(f"""
        SELECT * FROM ({_SALES}) sales
        WHERE (CAST(:state AS text) IS NULL OR state = :state)
            AND (CAST(:product AS uuid) IS NULL OR product_id = :product)
            AND (CAST(:before AS uuid) IS NULL OR id < :before)
        ORDER BY id DESC LIMIT :most
    """)  # noqa: S608  # no part of it comes from outside
    async with db() as tx:
        arguments = {"state": state, "product": product_id, "before": before, "most": limit}
        return (await tx.execute(query, arguments)).all()


async def close_ended_sales(db: Database) -> int:
    """Gives the unsold units of sales whose time is over back to stock. Returns how many sales were closed.

    Units that are still held then go back when their holds end; see `settling`.
    """
    query = text("""
        WITH ended AS (
            SELECT id FROM flash_sales WHERE closed_as IS NULL AND end_time <= clock_timestamp()
            ORDER BY product_id, id LIMIT :most FOR UPDATE SKIP LOCKED
        ), closed AS (
            UPDATE flash_sales s
            SET closed_as = 'ENDED', returned = allocation - held - sold, version = version + 1,
                update_time = clock_timestamp()
            FROM ended WHERE s.id = ended.id
            RETURNING s.id, s.product_id, new.returned - old.returned AS units
        ), back AS (
            SELECT product_id, sum(units)::integer AS units FROM closed WHERE units > 0 GROUP BY product_id
        ), stocked AS (
            SELECT s.product_id FROM stock s JOIN back USING (product_id) ORDER BY s.product_id FOR UPDATE OF s
        ), restocked AS (
            UPDATE stock SET on_hand = on_hand + back.units, update_time = clock_timestamp()
            FROM back JOIN stocked USING (product_id) WHERE stock.product_id = back.product_id
        ), moved AS (
            INSERT INTO stock_movements (product_id, delta, kind, reference_id)
            SELECT product_id, units, 'RETURNED', id FROM closed WHERE units > 0
        )
        SELECT count(*) FROM closed
    """)
    async with db.begin() as tx:
        return (await tx.execute(query, {"most": CLOSE_MOST})).scalar_one()  # type: ignore[no-any-return]
