"""The table `sale_customers`: how many units each customer has of a sale with a limit."""

import uuid
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Literal

from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncSession

from services.inventory.domain import Grant, Hold, Line, Pool

_COUNTED = text("""
    SELECT c.sale_id, c.customer_id, c.units
    FROM sale_customers c JOIN unnest(CAST(:sales AS uuid[]), CAST(:customers AS uuid[])) AS w (sale_id, customer_id)
        USING (sale_id, customer_id)
""")
_COUNT = text("""
    INSERT INTO sale_customers AS c (sale_id, customer_id, units)
    SELECT w.sale_id, w.customer_id, w.units
    FROM unnest(
        CAST(:sales AS uuid[]), CAST(:customers AS uuid[]), CAST(:units AS integer[]), CAST(:limits AS integer[])
    ) AS w (sale_id, customer_id, units, most)
    WHERE w.units <= w.most
    ORDER BY w.sale_id, w.customer_id
    ON CONFLICT (sale_id, customer_id) DO UPDATE SET units = c.units + excluded.units
    WHERE c.units + excluded.units <= (SELECT per_customer_limit FROM flash_sales WHERE id = c.sale_id)
    RETURNING customer_id
""")
# Sales without a limit have no counts, so for them this finds no row.
_RECOUNT = text("""
    UPDATE sale_customers c SET units = c.units + w.units
    FROM unnest(CAST(:sales AS uuid[]), CAST(:customers AS uuid[]), CAST(:units AS integer[]))
        AS w (sale_id, customer_id, units)
    WHERE c.sale_id = w.sale_id AND c.customer_id = w.customer_id
""")


async def counted(
    tx: AsyncSession, holds: Sequence[Hold], grants: Mapping[Pool, Grant]
) -> dict[tuple[uuid.UUID, uuid.UUID], int]:
    """Return the units that the customers of `holds` have of sales with a limit, by sale and customer."""
    units = _limited(holds, grants)
    rows = await tx.execute(_COUNTED, _arguments(units)) if units else ()
    return {(row.sale_id, row.customer_id): row.units for row in rows}


async def count(tx: AsyncSession, holds: Sequence[Hold], grants: Mapping[Pool, Grant]) -> None:
    """Count units against the limits of their sales. `domain.allot` respects these; the statement enforces them."""
    units = _limited(holds, grants)
    if not units:
        return
    limit = {sale_id: grant.per_customer_limit for (_, sale_id), grant in grants.items()}
    limits = [limit[sale_id] for sale_id, _ in units]
    done = (await tx.scalars(_COUNT, {**_arguments(units), "limits": limits})).all()
    assert len(done) == len(units), "a customer was counted while the sale was locked"


async def recount(tx: AsyncSession, lines: Iterable[tuple[uuid.UUID, Iterable[Line]]], *, sign: Literal[-1, 1]) -> None:
    """Take the units of customers' lines out of the counts, or with `sign` 1 add them again, whatever the limit is."""
    units: Counter[tuple[uuid.UUID, uuid.UUID]] = Counter()
    for customer_id, of_customer in lines:
        for line in of_customer:
            if line.sale_id:
                units[line.sale_id, customer_id] += sign * line.quantity
    if units:
        await tx.execute(_RECOUNT, _arguments(units))


def _limited(holds: Sequence[Hold], grants: Mapping[Pool, Grant]) -> Counter[tuple[uuid.UUID, uuid.UUID]]:
    """The units that `holds` are of sales with a limit, by sale and customer."""
    units: Counter[tuple[uuid.UUID, uuid.UUID]] = Counter()
    for hold in holds:
        for line in hold.lines:
            if line.sale_id and line.pool in grants and grants[line.pool].per_customer_limit:
                units[line.sale_id, hold.customer_id] += line.quantity
    return units


def _arguments(units: Mapping[tuple[uuid.UUID, uuid.UUID], int]) -> dict[str, list[uuid.UUID] | list[int]]:
    sales, customers = zip(*units, strict=True)
    return {"sales": list(sales), "customers": list(customers), "units": list(units.values())}
