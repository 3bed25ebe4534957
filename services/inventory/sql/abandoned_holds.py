"""The table `abandoned_holds`: how many of a customer's holds of a sale have ended unpaid."""

import uuid
from collections import Counter
from collections.abc import Sequence

from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncSession

from services.chassis.data.cleanup import Cleanup
from services.inventory.domain import Hold, Reservation

AT_LIMIT = """
    SELECT a.sale_id, a.customer_id FROM abandoned_holds a
    JOIN flash_sales s ON s.id = a.sale_id AND s.abandoned_hold_limit > 0 AND a.holds >= s.abandoned_hold_limit
"""
"""The customers whom a sale refuses."""
_AT_LIMIT = text(f"""
    {AT_LIMIT} JOIN unnest(CAST(:sales AS uuid[]), CAST(:customers AS uuid[])) AS w (sale_id, customer_id)
        ON w.sale_id = a.sale_id AND w.customer_id = a.customer_id
""")
_ADD = text("""
    INSERT INTO abandoned_holds AS a (sale_id, customer_id, holds)
    SELECT sale_id, customer_id, holds
    FROM unnest(CAST(:sales AS uuid[]), CAST(:customers AS uuid[]), CAST(:holds AS integer[]))
        AS w (sale_id, customer_id, holds)
    ORDER BY sale_id, customer_id
    ON CONFLICT (sale_id, customer_id) DO UPDATE SET holds = a.holds + excluded.holds
""")
_TAKE_BACK = text("""
    UPDATE abandoned_holds a SET holds = greatest(a.holds - w.holds, 0)
    FROM unnest(CAST(:sales AS uuid[]), CAST(:customers AS uuid[]), CAST(:holds AS integer[]))
        AS w (sale_id, customer_id, holds)
    WHERE a.sale_id = w.sale_id AND a.customer_id = w.customer_id
""")
CLEANUP = Cleanup(
    "abandoned_holds",
    """DELETE FROM abandoned_holds WHERE (sale_id, customer_id) IN (
        SELECT a.sale_id, a.customer_id FROM abandoned_holds a JOIN flash_sales s ON s.id = a.sale_id
        WHERE s.closed_as IS NOT NULL AND s.end_time < now() - interval '1 day' LIMIT :most)""",
)


async def at_limit(tx: AsyncSession, holds: Sequence[Hold]) -> set[tuple[uuid.UUID, uuid.UUID]]:
    """Return those sales and customers of `holds` of which the sale refuses the customer."""
    pairs = {(line.sale_id, hold.customer_id) for hold in holds for line in hold.lines if line.sale_id}
    if not pairs:
        return set()
    sales, customers = zip(*pairs, strict=True)
    rows = await tx.execute(_AT_LIMIT, {"sales": list(sales), "customers": list(customers)})
    return {(row.sale_id, row.customer_id) for row in rows}


async def add(tx: AsyncSession, ended: Sequence[Reservation]) -> None:
    """Count holds that have ended unpaid. The locks on their sales keep the counts in order."""
    if arguments := _arguments(ended):
        await tx.execute(_ADD, arguments)


async def take_back(tx: AsyncSession, retaken: Sequence[Reservation]) -> None:
    """Uncount holds that had expired and are paid after all."""
    if arguments := _arguments(retaken):
        await tx.execute(_TAKE_BACK, arguments)


def _arguments(reservations: Sequence[Reservation]) -> dict[str, list[uuid.UUID] | list[int]]:
    holds = Counter(
        (sale_id, r.customer_id) for r in reservations for sale_id in {line.sale_id for line in r.lines if line.sale_id}
    )
    if not holds:
        return {}
    sales, customers = zip(*holds, strict=True)
    return {"sales": list(sales), "customers": list(customers), "holds": list(holds.values())}
