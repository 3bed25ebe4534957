"""Statements about parked rows of `payments` and `refunds`, for operators. The tables' own modules write all else."""

import uuid
from datetime import datetime
from typing import NamedTuple

from sqlalchemy import text

from services.chassis.data.db import Database, run_autocommit


class Parked(NamedTuple):
    """A refund or a payment that waits for an operator."""

    kind: str
    id: uuid.UUID
    order_id: uuid.UUID
    state: str
    amount_minor: int
    currency: str
    problem: str
    cause: str
    update_time: datetime


_READ = text("""
    SELECT 'refund' AS kind, r.id, p.order_id, r.state, r.amount_minor, p.currency, r.problem,
        r.failure_reason AS cause, r.update_time
    FROM refunds AS r JOIN payments AS p ON p.id = r.payment_id WHERE r.problem <> ''
    UNION ALL
    SELECT 'payment', id, order_id, state, amount_minor, currency, problem, failure_reason, update_time
    FROM payments WHERE problem <> ''
    ORDER BY update_time LIMIT :most
""")
_COUNT = text("""
    SELECT (SELECT count(*) FROM refunds WHERE problem <> '') AS refunds,
        (SELECT count(*) FROM payments WHERE problem <> '') AS payments,
        (SELECT coalesce(extract(epoch FROM now() - min(create_time)), 0) FROM refunds
            WHERE next_check_time IS NOT NULL) AS oldest_seconds
""")


async def read(db: Database, *, most: int) -> list[Parked]:
    """Return parked refunds and payments, the longest first."""
    return [Parked(**row._mapping) for row in await run_autocommit(db, _READ, {"most": most})]


async def count(db: Database) -> tuple[int, int, float]:
    """Return how many refunds and payments are parked, and the age of the oldest refund without an end."""
    row = (await run_autocommit(db, _COUNT, {}))[0]
    return row.refunds, row.payments, float(row.oldest_seconds)
