"""Which payments still want their money, read directly before a call that takes it; how many are open."""

import uuid
from collections.abc import Sequence

from sqlalchemy import text

from services.chassis.data.db import Database, run_autocommit
from services.payments.domain import OPEN

_WANTED = text("""
    SELECT id, attempt FROM payments
    WHERE id = ANY(CAST(:ids AS uuid[])) AND state = ANY(:open) AND (NOT cancel_requested OR capture = 'REQUESTED')
""")


async def read_wanted(db: Database, payment_ids: Sequence[uuid.UUID]) -> set[tuple[uuid.UUID, int]]:
    """Return those payments, each with its attempt, whose money is still wanted."""
    rows = await run_autocommit(db, _WANTED, {"ids": list(payment_ids), "open": [str(state) for state in OPEN]})
    return {(row.id, row.attempt) for row in rows}


_COUNT_OPEN = text("SELECT state, count(*) AS number FROM payments WHERE next_check_time IS NOT NULL GROUP BY state")


async def count_open(db: Database) -> dict[str, int]:
    """Return how many payments are in each open state."""
    return {row.state: row.number for row in await run_autocommit(db, _COUNT_OPEN, {})}
