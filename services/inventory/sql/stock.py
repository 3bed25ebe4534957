"""The tables `stock` and `stock_movements`: ordinary units of products, and the ledger of their changes."""

import uuid
from collections.abc import Collection, Mapping, Sequence

from sqlalchemy import func, select, text
from sqlalchemy.ext.asyncio import AsyncSession

from services.inventory.domain import Grant, Line, OutOfStock, Pool, StockNotFound, units_by_pool
from services.inventory.sql.schema import Movement, Stock

# New rows come first, in the order of products: a transaction that waits for one of them has no stock locked yet.
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
_ADJUST = text("""
    UPDATE stock SET on_hand = on_hand + :delta, update_time = clock_timestamp()
    WHERE product_id = :product AND on_hand + :delta >= held RETURNING product_id
""")
_ALLOCATE = text("""
    UPDATE stock SET on_hand = on_hand - :units, update_time = clock_timestamp()
    WHERE product_id = :product AND on_hand - held >= :units RETURNING product_id
""")
_UPDATE = """
    WITH w AS (
        SELECT * FROM unnest(CAST(:pools AS uuid[]), CAST(:units AS integer[])) AS w (product_id, units)
    ), locked AS (
        SELECT s.product_id FROM stock s JOIN w USING (product_id) ORDER BY s.product_id FOR UPDATE OF s
    ){moved}
    UPDATE stock s SET {change}, update_time = clock_timestamp()
    FROM w JOIN locked USING (product_id) WHERE s.product_id = w.product_id
"""
_MOVED = """, moved AS (
        INSERT INTO stock_movements (product_id, delta, kind, reference_id)
        SELECT product_id, {delta}, '{kind}', reference_id FROM unnest(
            CAST(:products AS uuid[]), CAST(:quantities AS integer[]), CAST(:references AS uuid[])
        ) AS m (product_id, units, reference_id)
    )"""
# The check is the write: one statement grants the units that are there, so two batches never see the same unit.
_HOLD = text(
    _UPDATE.format(moved="", change="held = s.held + least(w.units, s.on_hand - s.held)")
    + " AND s.on_hand > s.held RETURNING s.product_id AS id, new.held - old.held AS units"
)
_UNHOLD = text(_UPDATE.format(moved="", change="held = s.held - w.units"))
_SELL = text(
    _UPDATE.format(
        moved=_MOVED.format(delta="-units", kind="SOLD"),
        change="on_hand = s.on_hand - w.units, held = s.held - w.units",
    )
)
_RESTOCK = text(
    _UPDATE.format(moved=_MOVED.format(delta="units", kind="RESTOCKED"), change="on_hand = s.on_hand + w.units")
)
RETURN_FROM_SALES = """
    back AS (
        SELECT product_id, sum(units)::integer AS units FROM returned WHERE units > 0 GROUP BY product_id
    ), stocked AS (
        SELECT s.product_id FROM stock s JOIN back USING (product_id) ORDER BY s.product_id FOR UPDATE OF s
    ), restocked AS (
        UPDATE stock SET on_hand = on_hand + back.units, update_time = clock_timestamp()
        FROM back JOIN stocked USING (product_id) WHERE stock.product_id = back.product_id
    ), moved AS (
        INSERT INTO stock_movements (product_id, delta, kind, reference_id)
        SELECT product_id, units, 'RETURNED', id FROM returned WHERE units > 0
    )
"""
"""Common table expressions that move the units of `returned` (id, product_id, units), sales' rows, to stock."""


async def find_stock(tx: AsyncSession, product_id: uuid.UUID, *, lock: bool = False) -> Stock:
    """Return the stock of a product; with `lock`, lock its row. Raises `StockNotFound`."""
    query = select(Stock).where(Stock.product_id == product_id)
    stock = await tx.scalar(query.with_for_update() if lock else query)
    if stock is None:
        raise StockNotFound(productId=product_id)
    return stock


async def find_stocks(tx: AsyncSession, products: Sequence[uuid.UUID]) -> list[Stock]:
    """Return the stocks of products, in their order. All must exist."""
    found = await tx.scalars(select(Stock).where(Stock.product_id == func.any(list(products))))
    stocks = {stock.product_id: stock for stock in found}
    return [stocks[product_id] for product_id in products]


async def stocked(tx: AsyncSession, products: Collection[uuid.UUID]) -> set[uuid.UUID]:
    """Return the products that have a stock."""
    return set(await tx.scalars(select(Stock.product_id).where(Stock.product_id == func.any(list(products)))))


async def begin_stocks(tx: AsyncSession, products: Sequence[uuid.UUID]) -> dict[uuid.UUID, int]:
    """Begin and lock the stocks of products; return the units held by product."""
    await tx.execute(_BEGIN, {"products": list(products)})
    return {row.product_id: row.held for row in await tx.execute(_LOCK, {"products": list(products)})}


async def set_stocks(tx: AsyncSession, counted: Mapping[uuid.UUID, int], *, reason: str, actor: uuid.UUID) -> None:
    """Set the units on hand by product, and write the differences to the ledger."""
    arguments = {"products": list(counted), "on_hand": list(counted.values()), "reason": reason, "actor": actor}
    await tx.execute(_SET, arguments)


async def adjust(tx: AsyncSession, stock: Stock, delta: int, *, reason: str, actor: uuid.UUID) -> None:
    """Change the units on hand by `delta`, and refresh `stock`. Raises `OutOfStock`."""
    if await tx.scalar(_ADJUST, {"product": stock.product_id, "delta": delta}) is None:
        raise OutOfStock(productId=stock.product_id)
    tx.add(Movement(product_id=stock.product_id, delta=delta, kind="ADJUSTED", reason=reason, reference_id=actor))
    await tx.flush()
    await tx.refresh(stock)


async def allocate(tx: AsyncSession, product_id: uuid.UUID, sale_id: uuid.UUID, units: int) -> None:
    """Take available units out of stock for a sale; if `units` is negative, give them back. Raises `OutOfStock`."""
    if await tx.scalar(_ALLOCATE, {"product": product_id, "units": units}) is None:
        raise OutOfStock(productId=product_id)
    kind = "ALLOCATED" if units > 0 else "RETURNED"
    tx.add(Movement(product_id=product_id, delta=-units, kind=kind, reference_id=sale_id))


async def list_movements(
    tx: AsyncSession, product_id: uuid.UUID, *, before: int | None, limit: int
) -> Sequence[Movement]:
    """Return changes of a product's stock, newest first, from the one before id `before` on."""
    query = select(Movement).where(Movement.product_id == product_id).order_by(Movement.id.desc()).limit(limit)
    return (await tx.scalars(query if before is None else query.where(Movement.id < before))).all()


async def lock(tx: AsyncSession, products: Collection[uuid.UUID]) -> None:
    """Lock the stocks of products, in order."""
    if products:
        await tx.execute(_LOCK, {"products": list(products)})


async def hold(tx: AsyncSession, units: Mapping[Pool, int]) -> dict[Pool, Grant]:
    """Hold as many of these ordinary units as there are."""
    arguments = _arguments(units)
    rows = await tx.execute(_HOLD, arguments) if arguments else ()
    return {(row.id, None): Grant(row.units) for row in rows}


async def unhold(tx: AsyncSession, units: Mapping[Pool, int]) -> None:
    """Make held ordinary units available again."""
    if arguments := _arguments(units):
        await tx.execute(_UNHOLD, arguments)


async def sell(tx: AsyncSession, lines: Sequence[tuple[uuid.UUID, Line]]) -> None:
    """Take the held units of ordinary lines out of stock, each for the order whose id comes with it."""
    if arguments := _with_references(lines):
        await tx.execute(_SELL, arguments)


async def restock(tx: AsyncSession, lines: Sequence[tuple[uuid.UUID, Line]]) -> None:
    """Put the sold units of ordinary lines back into stock, each for the order whose id comes with it."""
    if arguments := _with_references(lines):
        await tx.execute(_RESTOCK, arguments)


def _with_references(lines: Sequence[tuple[uuid.UUID, Line]]) -> dict[str, list[uuid.UUID] | list[int]]:
    ordinary = [(id_, line) for id_, line in lines if not line.sale_id]
    arguments = _arguments(units_by_pool(line for _, line in ordinary))
    return arguments and {
        **arguments,
        "products": [line.product_id for _, line in ordinary],
        "quantities": [line.quantity for _, line in ordinary],
        "references": [id_ for id_, _ in ordinary],
    }


def _arguments(units: Mapping[Pool, int]) -> dict[str, list[uuid.UUID] | list[int]]:
    """Return the products and units of ordinary pools; empty if there are none."""
    ordinary = {product_id: n for (product_id, sale_id), n in units.items() if not sale_id}
    return {"pools": list(ordinary), "units": list(ordinary.values())} if ordinary else {}
