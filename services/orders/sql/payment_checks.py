"""The table `payment_checks`: orders to be compared with payments, because an event said that their payment changed."""

import uuid
from collections.abc import Sequence
from datetime import datetime
from typing import NamedTuple

from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncSession

from services.chassis.data.db import Database, run_autocommit

KEEP_DAYS = 35
"""How far back the walk goes: the time in which refunds are common."""

# Ids that no order has are left out: an event may be forged. An event without a refund matters only to an order that
# was refunded, as a refund has failed after it had succeeded; or whose payment was only authorised, because that was
# captured or voided. So an ordinary payment writes nothing here.
_REQUEST = text("""
    INSERT INTO payment_checks (order_id)
    SELECT id FROM orders
    WHERE id = ANY(CAST(:ids AS uuid[]))
        AND (refunded_minor > 0 OR payment->>'state' = 'AUTHORIZED' OR id = ANY(CAST(:wanted AS uuid[]))) ORDER BY id
    ON CONFLICT (order_id) DO UPDATE SET due_time = clock_timestamp(), attempts = 0
""")
# A claimed check is due again later, and later each time: its order may have a saga, or its process may die.
_CLAIM = text("""
    WITH due AS (
        SELECT order_id FROM payment_checks WHERE due_time <= now() ORDER BY due_time LIMIT :most
        FOR UPDATE SKIP LOCKED
    )
    UPDATE payment_checks c SET attempts = c.attempts + 1,
        due_time = clock_timestamp() + least(interval '1 second' * 2 ^ least(c.attempts, 6), interval '1 minute')
    FROM due WHERE c.order_id = due.order_id RETURNING c.order_id, c.attempts
""")
# Unless it was requested again meanwhile.
_FINISH = text("""
    DELETE FROM payment_checks c USING unnest(CAST(:ids AS uuid[]), CAST(:attempts AS integer[])) AS w (id, attempts)
    WHERE c.order_id = w.id AND c.attempts = w.attempts
""")
_PAGE = text(f"""
    SELECT create_time, id AS order_id FROM orders
    WHERE create_time > now() - interval '{KEEP_DAYS} days' AND state <> 'PENDING' AND NOT refunding
        AND (CAST(:id AS uuid) IS NULL OR (create_time, id) < (CAST(:time AS timestamptz), :id))
    ORDER BY create_time DESC, id DESC LIMIT :most
""")  # noqa: S608


class Check(NamedTuple):
    """A requested check, and how often it was claimed."""

    order_id: uuid.UUID
    attempts: int


class Position(NamedTuple):
    """The position of an order in the walk."""

    create_time: datetime
    order_id: uuid.UUID


async def request(tx: AsyncSession, order_ids: Sequence[uuid.UUID], *, wanted: Sequence[uuid.UUID]) -> None:
    """Requests that orders are compared with payments: those in `wanted`, and others that were refunded before."""
    await tx.execute(_REQUEST, {"ids": list(order_ids), "wanted": list(wanted)})


async def claim_due(db: Database, most: int) -> list[Check]:
    """Claims requested checks. One that is not finished is due again later."""
    return [Check(row.order_id, row.attempts) for row in await run_autocommit(db, _CLAIM, {"most": most})]


async def finish(db: Database, checks: Sequence[Check]) -> None:
    """Removes checks that were carried out."""
    arguments = {"ids": [check.order_id for check in checks], "attempts": [check.attempts for check in checks]}
    async with db.begin() as tx:
        await tx.execute(_FINISH, arguments)


async def page(db: Database, *, after: Position | None, most: int) -> list[Position]:
    """Settled orders of the last weeks, newest first, from the one after a position on."""
    time, id_ = after or (None, None)
    rows = await run_autocommit(db, _PAGE, {"time": time, "id": id_, "most": most})
    return [Position(row.create_time, row.order_id) for row in rows]
