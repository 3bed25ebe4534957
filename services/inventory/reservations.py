"""Reservations as rows: how they are found, written and counted back. Shared by all that moves their units.

Lock order, everywhere: reservations by id, then sales by product, then stock by product. `reserving` skips the first
step: it only inserts, and waits for nobody who waits for it.
"""

import uuid
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Literal

from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncSession

from services.chassis.errors import AppError
from services.chassis.money import Money
from services.inventory.domain import Line, Reservation, State

Outcome = Reservation | AppError
"""What became of one item of a batch."""

_FIND = "SELECT id, customer_id, state, lines, expire_time FROM reservations"
LOCK = text(f"{_FIND} WHERE id = ANY(CAST(:ids AS uuid[])) ORDER BY id FOR UPDATE")
# The clock stands in a query of its own, which is asked once: an index cannot be searched for a moving value.
LOCK_EXPIRED = text(
    f"{_FIND} WHERE state = 'HELD' AND expire_time <= (SELECT clock_timestamp())"
    " ORDER BY expire_time LIMIT :most FOR UPDATE SKIP LOCKED"
)
_LOCK_SALES = text("SELECT id FROM flash_sales WHERE id = ANY(CAST(:ids AS uuid[])) ORDER BY product_id, id FOR UPDATE")
_LOCK_STOCK = text(
    "SELECT product_id FROM stock WHERE product_id = ANY(CAST(:ids AS uuid[])) ORDER BY product_id FOR UPDATE"
)

# A sale that is over has no use for units that come back: they go on to ordinary stock, and the ledger says so.
_GIVE_BACK = """
    WITH w AS (
        SELECT * FROM unnest(CAST(:pools AS uuid[]), CAST(:units AS integer[])) AS w (id, units)
    ), locked AS (
        SELECT s.id FROM flash_sales s JOIN w USING (id) ORDER BY s.product_id, s.id FOR UPDATE OF s
    ), given AS (
        UPDATE flash_sales s SET {column} = s.{column} - w.units, update_time = clock_timestamp(),
            returned = s.returned + CASE WHEN s.closed_as IS NULL THEN 0 ELSE w.units END
        FROM w JOIN locked USING (id) WHERE s.id = w.id
        RETURNING s.id, s.product_id, new.returned - old.returned AS returned
    ), back AS (
        SELECT product_id, sum(returned)::integer AS units FROM given WHERE returned > 0 GROUP BY product_id
    ), stocked AS (
        SELECT s.product_id FROM stock s JOIN back USING (product_id) ORDER BY s.product_id FOR UPDATE OF s
    ), restocked AS (
        UPDATE stock SET on_hand = on_hand + back.units, update_time = clock_timestamp()
        FROM back JOIN stocked USING (product_id) WHERE stock.product_id = back.product_id
    )
    INSERT INTO stock_movements (product_id, delta, kind, reference_id)
    SELECT product_id, returned, 'RETURNED', id FROM given WHERE returned > 0
"""
_GIVE_BACK_FROM = {column: text(_GIVE_BACK.format(column=column)) for column in ("held", "sold")}


async def lock_pools(tx: AsyncSession, lines: Iterable[Line]) -> None:
    """Locks all that `lines` may touch, in order: for those who then change it piece by piece, in another order."""
    asked = list(lines)
    for query, pools in (
        (_LOCK_SALES, {line.sale_id for line in asked if line.sale_id}),
        (_LOCK_STOCK, {line.product_id for line in asked}),
    ):
        if pools:
            await tx.execute(query, {"ids": list(pools)})


async def give_back_to_sales(
    tx: AsyncSession, units: Mapping[uuid.UUID, int], *, counted_as: Literal["held", "sold"]
) -> None:
    """Puts units on sale again, by sale; or into ordinary stock, where the sale is closed."""
    await tx.execute(_GIVE_BACK_FROM[counted_as], {"pools": list(units), "units": list(units.values())})


def units_by_pool(lines: Iterable[Line]) -> tuple[dict[uuid.UUID, int], dict[uuid.UUID, int]]:
    """How many units stand in each sale, and in each product's ordinary stock."""
    sales: dict[uuid.UUID, int] = defaultdict(int)
    stock: dict[uuid.UUID, int] = defaultdict(int)
    for line in lines:
        if line.sale_id:
            sales[line.sale_id] += line.quantity
        else:
            stock[line.product_id] += line.quantity
    return sales, stock


async def uncount_customers(tx: AsyncSession, taken: Iterable[tuple[uuid.UUID, Iterable[Line]]]) -> None:
    """Gives customers their allowance back: (customer, lines) pairs."""
    await _count_again(tx, taken, sign=-1)


async def recount_customers(tx: AsyncSession, taken: Iterable[tuple[uuid.UUID, Iterable[Line]]]) -> None:
    """Takes the allowance once more that `uncount_customers` gave back, whatever the limit says."""
    await _count_again(tx, taken, sign=1)


async def _count_again(
    tx: AsyncSession, taken: Iterable[tuple[uuid.UUID, Iterable[Line]]], *, sign: Literal[-1, 1]
) -> None:
    units: dict[tuple[uuid.UUID, uuid.UUID], int] = defaultdict(int)
    for customer_id, lines in taken:
        for line in lines:
            if line.sale_id:
                units[line.sale_id, customer_id] += sign * line.quantity
    if units:
        await tx.execute(
            # Sales without a limit keep no count, so for them this finds no row.
            text("""
                UPDATE sale_customers c SET units = c.units + w.units
                FROM unnest(CAST(:sales AS uuid[]), CAST(:customers AS uuid[]), CAST(:units AS integer[]))
                    AS w (sale_id, customer_id, units)
                WHERE c.sale_id = w.sale_id AND c.customer_id = w.customer_id
            """),
            {
                "sales": [sale for sale, _ in units],
                "customers": [customer for _, customer in units],
                "units": list(units.values()),
            },
        )


def from_row(row: Any) -> Reservation:
    """A row of `LOCK` or `LOCK_EXPIRED`, or another with these columns."""
    return Reservation(row.id, row.customer_id, State(row.state), lines_from_json(row.lines), row.expire_time)


def lines_to_json(lines: Sequence[Line]) -> list[dict[str, object]]:
    """`lines` as the column of that name keeps them."""
    return [
        {
            "product_id": line.product_id,
            "sale_id": line.sale_id,
            "quantity": line.quantity,
            "price_minor": line.sale_price.minor if line.sale_price else None,
            "currency": line.sale_price.currency if line.sale_price else None,
        }
        for line in lines
    ]


def lines_from_json(lines: list[dict[str, Any]]) -> tuple[Line, ...]:
    """The reverse of `lines_to_json`."""
    return tuple(
        Line(
            uuid.UUID(line["product_id"]),
            uuid.UUID(line["sale_id"]) if line["sale_id"] else None,
            line["quantity"],
            Money(line["currency"], line["price_minor"]) if line["currency"] else None,
        )
        for line in lines
    )
