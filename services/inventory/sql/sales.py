"""The table `flash_sales`: terms and counters of sales."""

import uuid
from collections.abc import Collection, Mapping, Sequence
from dataclasses import fields
from datetime import datetime
from typing import Any, Literal, NamedTuple

from sqlalchemy import func, select, text, update
from sqlalchemy.ext.asyncio import AsyncSession

from services.chassis.data.db import Database, run_autocommit
from services.chassis.money import Money
from services.inventory.domain import FlashSale, FlashSaleNotFound, Grant, NewSale, Pool, SaleOverlaps, SaleState
from services.inventory.sql import stock
from services.inventory.sql.schema import FlashSaleRow

# Time decides the state of a sale, by the database's clock; a column holds only what time cannot decide. The clock of
# the statement stands still, so a row's state and countdown agree, and an index can be searched by it.
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
_FIND = text(f"{_SALES} FROM flash_sales s WHERE id = ANY(CAST(:ids AS uuid[]))")
_RUNS = "closed_as IS NULL AND start_time <= statement_timestamp() AND end_time > statement_timestamp()"
_NEWEST = "ORDER BY id DESC LIMIT :most"
# Each state has conditions of its own, so that an index finds its sales in the order of lists. At worst, a list reads
# all open sales; it never reads the closed ones.
_IN_STATE = {
    None: f"WHERE true {{also}} {_NEWEST}",
    SaleState.SCHEDULED: f"WHERE closed_as IS NULL AND start_time > statement_timestamp() {{also}} {_NEWEST}",
    SaleState.LIVE: f"WHERE {_RUNS} AND held + sold + returned < allocation {{also}} {_NEWEST}",
    SaleState.SOLD_OUT: f"WHERE {_RUNS} AND held + sold + returned >= allocation {{also}} {_NEWEST}",
    SaleState.CANCELLED: f"WHERE closed_as = 'CANCELLED' {{also}} {_NEWEST}",
    SaleState.ENDED: f"WHERE closed_as = 'ENDED' {{also}} {_NEWEST}",
}
# Sales that are over and not closed yet. There are few, so they are read as a whole, by their time.
_JUST_ENDED = "WHERE closed_as IS NULL AND end_time <= statement_timestamp() {also} OFFSET 0"
_OPEN = text("""
    SELECT id, allocation - held - sold - returned AS remaining, held,
        extract(epoch FROM start_time - clock_timestamp())::double precision AS starts_in
    FROM flash_sales
    WHERE closed_as IS NULL AND end_time > clock_timestamp()
        AND start_time <= clock_timestamp() + make_interval(secs => :ahead)
""")
_LOCK = text("SELECT id FROM flash_sales WHERE id = ANY(CAST(:ids AS uuid[])) ORDER BY product_id, id FOR UPDATE")
# Gives the unsold units of sales back to stock. Held units go back when their hold ends.
_CLOSE = f"""
    WITH due AS ({{which}}), returned AS (
        UPDATE flash_sales s
        SET closed_as = :closed_as, returned = allocation - held - sold, version = version + 1,
            end_time = CASE WHEN :closed_as = 'ENDED'
                THEN least(end_time, greatest(clock_timestamp(), start_time + interval '1 microsecond'))
                ELSE end_time END,
            update_time = clock_timestamp()
        FROM due WHERE s.id = due.id
        RETURNING s.id, s.product_id, new.returned - old.returned AS units
    ), {stock.RETURN_FROM_SALES}
    SELECT count(*) FROM returned
"""  # noqa: S608
_CLOSE_ONE = text(_CLOSE.format(which="SELECT CAST(:id AS uuid) AS id"))
_CLOSE_ENDED = text(
    _CLOSE.format(
        # The clock stands in a query of its own, which runs once: an index cannot be searched for a moving value. Rows
        # come in the order of that index. This is not the order of locks, but a statement that skips locked rows waits
        # for none.
        which="""
            SELECT id FROM flash_sales WHERE closed_as IS NULL AND end_time <= (SELECT clock_timestamp())
            ORDER BY end_time LIMIT :most FOR UPDATE SKIP LOCKED
        """
    )
)
# The check is the write: one statement grants the units that are there, so two batches never see the same unit.
_HOLD = text("""
    WITH wanted AS (
        SELECT * FROM unnest(CAST(:pools AS uuid[]), CAST(:products AS uuid[]), CAST(:units AS integer[]))
            AS w (id, product_id, units)
    ), locked AS (
        SELECT s.id FROM flash_sales s JOIN wanted w ON s.id = w.id AND s.product_id = w.product_id
        ORDER BY s.product_id, s.id FOR UPDATE OF s
    )
    UPDATE flash_sales s
    SET held = s.held + least(w.units, s.allocation - s.held - s.sold - s.returned), update_time = clock_timestamp()
    FROM wanted w JOIN locked USING (id)
    WHERE s.id = w.id AND s.product_id = w.product_id AND s.closed_as IS NULL
        AND s.start_time <= clock_timestamp() AND s.end_time > clock_timestamp()
        AND s.allocation - s.held - s.sold - s.returned > 0
    RETURNING s.id, s.product_id, new.held - old.held AS units, s.price_minor, s.currency, s.hold_seconds,
        s.per_customer_limit, s.abandoned_hold_limit, s.allocation - s.held - s.sold - s.returned AS remaining
""")
_UNDO_HOLD = text("""
    UPDATE flash_sales s SET held = s.held - w.units
    FROM unnest(CAST(:pools AS uuid[]), CAST(:units AS integer[])) AS w (id, units) WHERE s.id = w.id
""")
_SELL = text("""
    WITH w AS (
        SELECT * FROM unnest(CAST(:pools AS uuid[]), CAST(:units AS integer[])) AS w (id, units)
    ), locked AS (
        SELECT s.id FROM flash_sales s JOIN w USING (id) ORDER BY s.product_id, s.id FOR UPDATE OF s
    )
    UPDATE flash_sales s
    SET held = s.held - w.units, sold = s.sold + w.units, update_time = clock_timestamp()
    FROM w JOIN locked USING (id) WHERE s.id = w.id
""")
# A closed sale cannot sell units that come back: they go on to ordinary stock, with a movement in the ledger.
_GIVE_BACK = f"""
    WITH w AS (
        SELECT * FROM unnest(CAST(:pools AS uuid[]), CAST(:units AS integer[])) AS w (id, units)
    ), locked AS (
        SELECT s.id FROM flash_sales s JOIN w USING (id) ORDER BY s.product_id, s.id FOR UPDATE OF s
    ), returned AS (
        UPDATE flash_sales s SET {{column}} = s.{{column}} - w.units, update_time = clock_timestamp(),
            returned = s.returned + CASE WHEN s.closed_as IS NULL THEN 0 ELSE w.units END
        FROM w JOIN locked USING (id) WHERE s.id = w.id
        RETURNING s.id, s.product_id, new.returned - old.returned AS units, s.closed_as IS NULL
            AND s.end_time > clock_timestamp() AND old.held + old.sold + old.returned = s.allocation AS is_available
    ), {stock.RETURN_FROM_SALES}
    SELECT id FROM returned WHERE is_available
"""  # noqa: S608
_GIVE_BACK_FROM = {column: text(_GIVE_BACK.format(column=column)) for column in ("held", "sold")}
_SOLD_OUT = text("""
    SELECT id FROM flash_sales WHERE id = ANY(CAST(:ids AS uuid[])) AND closed_as IS NULL
        AND end_time > clock_timestamp() AND held + sold + returned = allocation
    ORDER BY id
""")
_WHY_NOT = text("""
    SELECT id, product_id, CASE
        WHEN closed_as IS NOT NULL THEN closed_as
        WHEN end_time <= clock_timestamp() THEN 'ENDED'
        WHEN start_time > clock_timestamp() THEN 'SCHEDULED'
        ELSE 'LIVE' END AS state, allocation - held - sold - returned AS remaining
    FROM flash_sales WHERE id = ANY(CAST(:ids AS uuid[]))
""")
_COLUMNS = [field.name for field in fields(FlashSale) if field.name not in ("price", "state")]


class Availability(NamedTuple):
    """Whether units of a sale can be bought. `state` is `LIVE` also if it is sold out."""

    product_id: uuid.UUID
    state: SaleState
    remaining: int


class OpenSale(NamedTuple):
    """A sale as the gate needs it. It starts in the future if `starts_in`, in seconds, is positive."""

    id: uuid.UUID
    remaining: int
    held: int
    starts_in: float


async def find_sale(tx: AsyncSession, sale_id: uuid.UUID, *, lock: bool = False) -> FlashSale:
    """Return a sale; with `lock`, lock its row. Raises `FlashSaleNotFound`."""
    if lock:  # by a statement of its own: the clock of the other must not be read before the wait is over
        await tx.execute(_LOCK, {"ids": [sale_id]})
    for sale in await find_sales(tx, [sale_id]):
        return sale
    raise FlashSaleNotFound(flashSaleId=sale_id)


async def find_sales(tx: AsyncSession, sale_ids: Sequence[uuid.UUID]) -> list[FlashSale]:
    """Return the sales that exist."""
    return [_sale(row) for row in await tx.execute(_FIND, {"ids": list(sale_ids)})]


async def list_sales(
    tx: AsyncSession, *, state: SaleState | None, product_id: uuid.UUID | None, before: uuid.UUID | None, limit: int
) -> list[FlashSale]:
    """Return sales newest first, from the one before id `before` on; None stands for no filter."""
    # Only filters in use stand in the query, otherwise the planner could not see which index serves it.
    also = " AND product_id = :product" * (product_id is not None) + " AND id < :before" * (before is not None)
    arms = [_IN_STATE[state], _JUST_ENDED] if state is SaleState.ENDED else [_IN_STATE[state]]
    page = " UNION ALL ".join(f"(SELECT * FROM flash_sales {arm.format(also=also)})" for arm in arms)  # noqa: S608
    query = text(f"{_SALES} FROM (SELECT * FROM ({page}) p {_NEWEST}) s ORDER BY id DESC")  # noqa: S608
    arguments = {"product": product_id, "before": before, "most": limit}
    rows = await tx.execute(query, {name: value for name, value in arguments.items() if value is not None})
    return [_sale(row) for row in rows]


async def check_overlap(
    tx: AsyncSession, product_id: uuid.UUID, sale_id: uuid.UUID, start_time: datetime, end_time: datetime
) -> None:
    """Raise `SaleOverlaps` if another sale of the product runs in that time. Its stock must be locked."""
    overlapping = await tx.scalar(
        select(FlashSaleRow.id).where(
            FlashSaleRow.product_id == product_id,
            FlashSaleRow.id != sale_id,
            FlashSaleRow.closed_as.is_(None),
            FlashSaleRow.start_time < end_time,
            FlashSaleRow.end_time > start_time,
        )
    )
    if overlapping:
        raise SaleOverlaps(flashSaleId=overlapping)


async def now(tx: AsyncSession) -> datetime:
    """Return the time by the database's clock."""
    return (await tx.execute(text("SELECT clock_timestamp()"))).scalar_one()  # type: ignore[no-any-return]


async def insert_sale(tx: AsyncSession, sale_id: uuid.UUID, new: NewSale) -> None:
    """Insert a sale, whose start time must be set."""
    tx.add(FlashSaleRow(id=sale_id, **_columns({field.name: getattr(new, field.name) for field in fields(new)})))
    await tx.flush()


async def change_sale(tx: AsyncSession, sale_id: uuid.UUID, terms: Mapping[str, Any]) -> None:
    """Set terms of a sale, by the names that `FlashSale` has for them; it gets a new version."""
    values = {**_columns(terms), "version": FlashSaleRow.version + 1, "update_time": func.clock_timestamp()}
    await tx.execute(update(FlashSaleRow).where(FlashSaleRow.id == sale_id).values(values))


async def close_sale(tx: AsyncSession, sale_id: uuid.UUID, end: SaleState) -> None:
    """Close a sale, and give its unsold units back to stock."""
    await tx.execute(_CLOSE_ONE, {"id": sale_id, "closed_as": end})


async def close_ended_sales(tx: AsyncSession, *, most: int) -> int:
    """Close sales whose time is over; return how many."""
    arguments = {"closed_as": SaleState.ENDED, "most": most}
    return (await tx.execute(_CLOSE_ENDED, arguments)).scalar_one()  # type: ignore[no-any-return]


async def lock(tx: AsyncSession, sale_ids: Collection[uuid.UUID]) -> None:
    """Lock sales, in order."""
    if sale_ids:
        await tx.execute(_LOCK, {"ids": list(sale_ids)})


async def hold(tx: AsyncSession, units: Mapping[Pool, int]) -> dict[Pool, Grant]:
    """Hold as many of these units as there are in live sales."""
    arguments = _arguments(units)
    return {
        (row.product_id, row.id): Grant(
            row.units,
            Money(row.currency, row.price_minor),
            row.hold_seconds,
            row.per_customer_limit,
            row.remaining,
            row.abandoned_hold_limit,
        )
        for row in (await tx.execute(_HOLD, arguments) if arguments else ())
    }


async def undo_hold(tx: AsyncSession, units: Mapping[Pool, int]) -> None:
    """Undo part of what `hold` did in this very transaction; no other transaction saw it."""
    if arguments := _arguments(units):
        await tx.execute(_UNDO_HOLD, arguments)


async def sell(tx: AsyncSession, units: Mapping[Pool, int]) -> None:
    """Make held units of sales sold ones."""
    if arguments := _arguments(units):
        await tx.execute(_SELL, arguments)


async def give_back(
    tx: AsyncSession, units: Mapping[Pool, int], *, counted_as: Literal["held", "sold"]
) -> list[uuid.UUID]:
    """Put units of sales on sale again; if the sale is closed, into ordinary stock.

    Returns the sales that had no unit left before.
    """
    arguments = _arguments(units)
    return list(await tx.scalars(_GIVE_BACK_FROM[counted_as], arguments)) if arguments else []


async def sold_out(tx: AsyncSession, sale_ids: Collection[uuid.UUID]) -> list[uuid.UUID]:
    """Return those of these sales that are live and have no unit left."""
    return list(await tx.scalars(_SOLD_OUT, {"ids": list(sale_ids)})) if sale_ids else []


async def availability(tx: AsyncSession, sale_ids: Collection[uuid.UUID]) -> dict[uuid.UUID, Availability]:
    """Return why units may be refused, by sale."""
    if not sale_ids:
        return {}
    rows = await tx.execute(_WHY_NOT, {"ids": list(sale_ids)})
    return {row.id: Availability(row.product_id, SaleState(row.state), row.remaining) for row in rows}


async def open_sales(db: Database, *, ahead_seconds: float) -> list[OpenSale]:
    """Return the sales that are open, or will be within these seconds."""
    rows = await run_autocommit(db, _OPEN, {"ahead": ahead_seconds})
    return [OpenSale(row.id, row.remaining, row.held, row.starts_in) for row in rows]


def _columns(terms: Mapping[str, Any]) -> dict[str, Any]:
    """Return the values of columns, given those of terms by the names that `FlashSale` has for them."""
    values = dict(terms)
    if price := values.pop("price", None):
        values |= {"price_minor": price.minor, "currency": price.currency}
    return values


def _arguments(units: Mapping[Pool, int]) -> dict[str, list[uuid.UUID] | list[int]]:
    """Return the products, ids and units of the sales among pools; empty if there are none."""
    of_sales = [(product_id, sale_id, n) for (product_id, sale_id), n in units.items() if sale_id]
    products, ids, numbers = zip(*of_sales, strict=True) if of_sales else ((), (), ())
    return {"products": list(products), "pools": list(ids), "units": list(numbers)} if ids else {}


def _sale(row: Any) -> FlashSale:
    values = {name: getattr(row, name) for name in _COLUMNS}
    return FlashSale(price=Money(row.currency, row.price_minor), state=SaleState(row.state), **values)
