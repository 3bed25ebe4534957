"""Lists for people: payments by state for staff, and what is parked for operators. Other modules write the tables.

A page of payments costs about the same, however many there are. It walks their ids, which follow the time. With a
state, it looks at `_CANDIDATES_MOST` at most.
"""

import uuid
from datetime import datetime
from typing import NamedTuple

from sqlalchemy import text

from services.chassis.data.db import Database, run_autocommit
from services.payments.domain import Payment, State
from services.payments.sql.payment_columns import NAMES, from_row

_CANDIDATES_MOST = 2_000
_NEWEST = uuid.UUID(int=2**128 - 1)
_CANDIDATES = """
    SELECT id FROM payments WHERE id < :before ORDER BY id DESC
"""
_PAGE = text(f"""
    SELECT {", ".join(f"p.{name}" for name in NAMES)}
    FROM ({_CANDIDATES} LIMIT :candidates) AS candidate JOIN payments AS p USING (id)
    WHERE CAST(:state AS text) IS NULL OR p.state = :state ORDER BY p.id DESC LIMIT :most
""")  # noqa: S608  # columns of our own
_EDGE = text(f"{_CANDIDATES} OFFSET :candidates - 1 LIMIT 1")


async def page_of_payments(
    db: Database, state: State | None, *, before: uuid.UUID | None, most: int
) -> tuple[list[Payment], uuid.UUID | None]:
    """Return one page of payments, newest first, and the id at its end; None on the last page.

    A page may hold fewer than `most` payments and not be the last, if few of the candidates are in the state.
    """
    candidates = _CANDIDATES_MOST if state else most + 1
    arguments = {"before": before or _NEWEST, "state": state, "candidates": candidates, "most": most + 1}
    found = [from_row(row) for row in await run_autocommit(db, _PAGE, arguments)]
    if len(found) > most:
        return found[:most], found[most - 1].id
    if state is None:
        return found, None
    edge = await run_autocommit(db, _EDGE, {"before": before or _NEWEST, "candidates": _CANDIDATES_MOST})
    return found, edge[0].id if edge else None


class Parked(NamedTuple):
    """A refund or a payment that waits for an operator."""

    kind: str
    id: uuid.UUID
    payment_id: uuid.UUID
    order_id: uuid.UUID
    state: str
    amount_minor: int
    currency: str
    problem: str
    cause: str
    update_time: datetime


class Position(NamedTuple):
    """The position of parked money in lists."""

    update_time: datetime
    id: uuid.UUID


_PARKED = text("""
    SELECT * FROM (
        SELECT 'refund' AS kind, r.id, r.payment_id, p.order_id, r.state, r.amount_minor, p.currency, r.problem,
            r.failure_reason AS cause, r.update_time
        FROM refunds AS r JOIN payments AS p ON p.id = r.payment_id WHERE r.problem <> ''
        UNION ALL
        SELECT 'payment', id, id, order_id, state, amount_minor, currency, problem, failure_reason, update_time
        FROM payments WHERE problem <> ''
    ) AS parked WHERE (CAST(:problem AS text) IS NULL OR problem = :problem) AND (CAST(:time AS timestamptz) IS NULL
        OR (update_time, id) > (CAST(:time AS timestamptz), CAST(:id AS uuid)))
    ORDER BY update_time, id LIMIT :most
""")
_COUNT_PARKED = text("""
    SELECT (SELECT count(*) FROM refunds WHERE problem <> '') AS refunds,
        (SELECT count(*) FROM payments WHERE problem <> '') AS payments,
        (SELECT coalesce(extract(epoch FROM now() - min(create_time)), 0) FROM refunds
            WHERE next_check_time IS NOT NULL) AS oldest_seconds
""")


async def read_parked(
    db: Database, *, most: int, problem: str | None = None, after: Position | None = None
) -> list[Parked]:
    """Return parked refunds and payments, the longest first, from the one after a position on."""
    time, id_ = after or (None, None)
    arguments = {"most": most, "problem": problem, "time": time, "id": id_}
    return [Parked(**row._mapping) for row in await run_autocommit(db, _PARKED, arguments)]


async def count_parked(db: Database) -> tuple[int, int, float]:
    """Return how many refunds and payments are parked, and the age of the oldest refund without an end."""
    row = (await run_autocommit(db, _COUNT_PARKED, {}))[0]
    return row.refunds, row.payments, float(row.oldest_seconds)
