"""What staff and shoppers do with flash sales. Each function is one transaction. Buying in one is in `reserving`."""

import uuid
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

from sqlalchemy import func, select, text, update
from sqlalchemy.ext.asyncio import AsyncSession

from services.chassis import ids
from services.chassis.data import idempotency
from services.chassis.data.db import Database, etag
from services.chassis.errors import InvalidFields, WrongState, check_etag
from services.chassis.money import Money
from services.chassis.request_context import RequestKey
from services.inventory import domain
from services.inventory.actions import find_stock
from services.inventory.domain import FlashSaleNotFound, OutOfStock, SaleChanges, SaleOverlaps, SaleState
from services.inventory.tables import FlashSale, Movement

CLOSE_MOST = 100

# Time decides where a sale stands, by the database's clock; only what time cannot tell is stored. It is the clock of
# the statement, which stands still: so a row's state and countdown agree, and an index can be asked by it.
_SALES = """
    SELECT s.*, statement_timestamp() AS server_time, allocation - held - sold - returned AS remaining, CASE
        WHEN closed_as IS NOT NULL THEN closed_as
        WHEN end_time <= statement_timestamp() THEN 'ENDED'
        WHEN start_time > statement_timestamp() THEN 'SCHEDULED'
        WHEN held + sold + returned >= allocation THEN 'SOLD_OUT'
        ELSE 'LIVE' END AS state, (
            SELECT r.expire_time FROM reservations r WHERE r.sale_id = s.id AND r.state = 'HELD'
            ORDER BY r.expire_time LIMIT 1
        ) AS next_hold_expire_time
"""
_RUNS = "closed_as IS NULL AND start_time <= statement_timestamp() AND end_time > statement_timestamp()"
_NEWEST = "ORDER BY id DESC LIMIT :most"
# The same once more, so that each state finds its sales by an index, in the order of lists: at worst, a list looks at
# all sales that are open, never at those that are closed.
_IN_STATE = {
    None: f"WHERE true {{also}} {_NEWEST}",
    SaleState.SCHEDULED: f"WHERE closed_as IS NULL AND start_time > statement_timestamp() {{also}} {_NEWEST}",
    SaleState.LIVE: f"WHERE {_RUNS} AND held + sold + returned < allocation {{also}} {_NEWEST}",
    SaleState.SOLD_OUT: f"WHERE {_RUNS} AND held + sold + returned >= allocation {{also}} {_NEWEST}",
    SaleState.CANCELLED: f"WHERE closed_as = 'CANCELLED' {{also}} {_NEWEST}",
    SaleState.ENDED: f"WHERE closed_as = 'ENDED' {{also}} {_NEWEST}",
}
# Those that nobody has closed yet: none for long, so they are taken as a whole, by their time.
_JUST_ENDED = "WHERE closed_as IS NULL AND end_time <= statement_timestamp() {also} OFFSET 0"
# Gives the unsold units of sales back to stock. What is still held goes back when its hold ends; see `settling`.
_CLOSE = """
    WITH due AS ({which}), closed AS (
        UPDATE flash_sales s
        SET closed_as = :closed_as, returned = allocation - held - sold, version = version + 1,
            end_time = CASE WHEN :closed_as = 'ENDED'
                THEN least(end_time, greatest(clock_timestamp(), start_time + interval '1 microsecond'))
                ELSE end_time END,
            update_time = clock_timestamp()
        FROM due WHERE s.id = due.id
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
"""
_CLOSE_ONE = text(_CLOSE.format(which="SELECT CAST(:id AS uuid) AS id"))
_CLOSE_ENDED = text(
    _CLOSE.format(
        # The clock stands in a query of its own, which is asked once: an index cannot be searched for a moving value.
        # In the order of that index, too. It is no order to lock in, but who skips what is locked waits for nobody.
        which="""
            SELECT id FROM flash_sales WHERE closed_as IS NULL AND end_time <= (SELECT clock_timestamp())
            ORDER BY end_time LIMIT :most FOR UPDATE SKIP LOCKED
        """
    )
)


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


async def create_sale(db: Database, new: NewSale, *, key: RequestKey | None) -> Any:
    """Schedules a flash sale and takes its allocation out of available stock. Returns it as `get_sale` does."""
    sale_id = ids.new()
    async with db.begin() as tx:
        if first := await idempotency.find_repeat(tx, key, sale_id):
            return await _sale(tx, first)
        # The stock row is also the lock under which a product's sales are kept apart.
        await find_stock(tx, new.product_id, lock=True)
        now: datetime = (await tx.execute(text("SELECT clock_timestamp()"))).scalar_one()
        start_time = max(new.start_time or now, now)
        end_time = max(new.end_time, start_time + timedelta(seconds=1))
        await _keep_apart(tx, new.product_id, sale_id, start_time, end_time)
        await _allocate(tx, new.product_id, sale_id, new.allocation)
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


async def _keep_apart(
    tx: AsyncSession, product_id: uuid.UUID, sale_id: uuid.UUID, start_time: datetime, end_time: datetime
) -> None:
    """Raises `SaleOverlaps` where another sale of the product runs in that time. Its stock must be locked."""
    overlapping = await tx.scalar(
        select(FlashSale.id).where(
            FlashSale.product_id == product_id,
            FlashSale.id != sale_id,
            FlashSale.closed_as.is_(None),
            FlashSale.start_time < end_time,
            FlashSale.end_time > start_time,
        )
    )
    if overlapping:
        raise SaleOverlaps(flashSaleId=overlapping)


async def _allocate(tx: AsyncSession, product_id: uuid.UUID, sale_id: uuid.UUID, units: int) -> None:
    """Takes units out of available stock for a sale; where `units` is negative, gives them back."""
    query = text("""
        UPDATE stock SET on_hand = on_hand - :units, update_time = clock_timestamp()
        WHERE product_id = :product AND on_hand - held >= :units RETURNING product_id
    """)
    if await tx.scalar(query, {"product": product_id, "units": units}) is None:
        raise OutOfStock(productId=product_id)
    kind = "ALLOCATED" if units > 0 else "RETURNED"
    tx.add(Movement(product_id=product_id, delta=-units, kind=kind, reference_id=sale_id))


async def update_sale(
    db: Database, sale_id: uuid.UUID, changes: SaleChanges, *, etag_given: str, key: RequestKey | None
) -> Any:
    """Changes the terms of a sale that is still `SCHEDULED`; see `FlashSaleService.UpdateFlashSale` for the refusals.

    Returns it as `get_sale` does. What changes nothing makes no new version.
    """
    async with db.begin() as tx:
        repeat = await idempotency.find_repeat(tx, key, sale_id)
        sale = await _sale(tx, sale_id, lock=True)
        if repeat:
            return sale
        check_etag(etag_given, etag(sale.version))
        if sale.state != SaleState.SCHEDULED:
            raise WrongState(resource="flash sale", state=sale.state, wanted="CHANGED")
        new = _new_values(sale, changes)
        if not new:
            return sale
        if not new.keys().isdisjoint(("allocation", "start_time", "end_time")):
            await find_stock(tx, sale.product_id, lock=True)
            start_time, end_time = new.get("start_time", sale.start_time), new.get("end_time", sale.end_time)
            await _keep_apart(tx, sale.product_id, sale_id, start_time, end_time)
            if more := new.get("allocation", sale.allocation) - sale.allocation:
                await _allocate(tx, sale.product_id, sale_id, more)
        values = {**new, "version": FlashSale.version + 1, "update_time": func.clock_timestamp()}
        await tx.execute(update(FlashSale).where(FlashSale.id == sale_id).values(values))
        return await _sale(tx, sale_id)


def _new_values(sale: Any, changes: SaleChanges) -> dict[str, Any]:
    """What `changes` asks for and `sale` does not have yet, by column."""
    asked = {
        "title": changes.title,
        "price_minor": changes.price and changes.price.minor,
        "currency": changes.price and changes.price.currency,
        "allocation": changes.allocation,
        "per_customer_limit": changes.per_customer_limit,
        "start_time": changes.start_time and max(changes.start_time, sale.server_time),
        "end_time": changes.end_time,
        "hold_seconds": changes.hold_seconds,
    }
    new = {column: value for column, value in asked.items() if value not in (None, getattr(sale, column))}
    if new.get("end_time", sale.end_time) <= new.get("start_time", sale.start_time):
        field, rule = ("endTime", "after the sale opens") if "end_time" in new else ("startTime", "before it closes")
        raise InvalidFields({field: f"must be in the future, and {rule}"})
    return new


async def close_sale(
    db: Database, sale_id: uuid.UUID, end: SaleState, *, etag_given: str, key: RequestKey | None
) -> Any:
    """Makes a sale `CANCELLED`, or `ENDED` before its time, and gives its unsold units back to stock.

    Returns it as `get_sale` does. Raises `FlashSaleNotFound`, `StaleEtag` or `WrongState`.
    """
    async with db.begin() as tx:
        repeat = await idempotency.find_repeat(tx, key, sale_id)
        sale = await _sale(tx, sale_id, lock=True)
        if repeat:
            return sale
        check_etag(etag_given, etag(sale.version))
        if sale.state not in domain.CLOSABLE[end]:
            raise WrongState(resource="flash sale", state=sale.state, wanted=end)
        await tx.execute(_CLOSE_ONE, {"id": sale_id, "closed_as": end})
        return await _sale(tx, sale_id)


async def close_ended_sales(db: Database) -> int:
    """Gives the unsold units of sales whose time is over back to stock. Returns how many sales were closed."""
    async with db.begin() as tx:
        arguments = {"closed_as": SaleState.ENDED, "most": CLOSE_MOST}
        return (await tx.execute(_CLOSE_ENDED, arguments)).scalar_one()  # type: ignore[no-any-return]


async def get_sale(db: Database, sale_id: uuid.UUID) -> Any:
    """A row of the sale, with what `_SALES` works out of it, or `FlashSaleNotFound`."""
    async with db() as tx:
        return await _sale(tx, sale_id)


async def _sale(tx: AsyncSession, sale_id: uuid.UUID, *, lock: bool = False) -> Any:
    if lock:  # by a statement of its own: the clock of the other must not be read before the wait is over
        await tx.execute(text("SELECT FROM flash_sales WHERE id = :id FOR UPDATE"), {"id": sale_id})
    row = (await tx.execute(text(f"{_SALES} FROM flash_sales s WHERE id = :id"), {"id": sale_id})).one_or_none()
    if row is None:
        raise FlashSaleNotFound(flashSaleId=sale_id)
    return row


async def get_sales(db: Database, sale_ids: Sequence[uuid.UUID]) -> Sequence[Any]:
    """Those of `sale_ids` that exist, in one statement."""
    query = text(f"{_SALES} FROM flash_sales s WHERE id = ANY(CAST(:ids AS uuid[]))")
    async with db() as tx:
        return (await tx.execute(query, {"ids": list(sale_ids)})).all()


async def list_sales(
    db: Database, *, state: str | None, product_id: uuid.UUID | None, before: uuid.UUID | None, limit: int
) -> Sequence[Any]:
    """Sales newest first, from the one before id `before` on. None asks for no filter."""
    # Only what is asked for stands in the query, or the planner could not see which index serves it.
    also = " AND product_id = :product" * (product_id is not None) + " AND id < :before" * (before is not None)
    wanted = SaleState(state) if state else None
    arms = [_IN_STATE[wanted], _JUST_ENDED] if wanted is SaleState.ENDED else [_IN_STATE[wanted]]
    page = " UNION ALL ".join(f"(SELECT * FROM flash_sales {arm.format(also=also)})" for arm in arms)  # noqa: S608
    query = text(f"{_SALES} FROM (SELECT * FROM ({page}) p {_NEWEST}) s ORDER BY id DESC")  # noqa: S608
    arguments = {"product": product_id, "before": before, "most": limit}
    async with db() as tx:
        return (await tx.execute(query, {k: v for k, v in arguments.items() if v is not None})).all()
