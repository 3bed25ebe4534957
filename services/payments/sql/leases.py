"""Statements that `payments` and `refunds` share: claim due rows, hasten waiting ones, renew leases."""

import uuid
from collections.abc import Sequence
from typing import Any

from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncSession

from services.payments.domain import LEASE_SECONDS


async def claim(
    tx: AsyncSession,
    table: str,
    columns: Sequence[str],
    *,
    key_time: str,
    besides: Sequence[uuid.UUID],
    most: int,
    sent: bool = False,
) -> Sequence[Any]:
    """Lease at most `most` due rows of `table`.

    Return their columns, the age of their idempotency key, and that of the last call that may still take effect. The
    call that the caller is about to make counts as such a call until its answer is stored. With `sent`, also whether
    one was sent before: only `payments` knows.
    """
    claimed = await tx.execute(
        text(
            f"UPDATE {table} AS t SET checks = t.checks + 1,"  # noqa: S608  # names of our own
            f" next_check_time = now() + make_interval(secs => :lease), unanswered_time = now(){', sent = true' * sent}"
            f" WHERE t.id IN (SELECT id FROM {table} WHERE next_check_time <= now()"
            " AND id <> ALL(CAST(:besides AS uuid[])) ORDER BY next_check_time LIMIT :most FOR UPDATE SKIP LOCKED)"
            f" RETURNING {', '.join(f't.{column}' for column in columns)}, now() - t.{key_time},"
            f" now() - old.unanswered_time{', old.sent' * sent}"
        ),
        {"lease": LEASE_SECONDS, "besides": list(besides), "most": most},
    )
    return claimed.all()


async def renew(tx: AsyncSession, table: str, ids: Sequence[uuid.UUID]) -> None:
    """Extend the leases of rows in progress here. Rows that another transaction has locked are left out."""
    await tx.execute(
        text(
            f"UPDATE {table} SET next_check_time = now() + make_interval(secs => :lease),"  # noqa: S608
            " unanswered_time = CASE WHEN unanswered_time IS NOT NULL THEN now() END"
            f" WHERE id IN (SELECT id FROM {table} WHERE id = ANY(CAST(:ids AS uuid[]))"
            " AND next_check_time IS NOT NULL ORDER BY id FOR UPDATE SKIP LOCKED)"
        ),
        {"ids": list(ids), "lease": LEASE_SECONDS},
    )


async def hasten(tx: AsyncSession, table: str, ids: Sequence[uuid.UUID]) -> None:
    """Make rows due whose next call has a pause before it: not those in progress, which are leased, nor parked ones.

    A repeated request must not make the call itself: only a claimed one is counted and knows the age of its key. It
    would also begin the pause anew, so that requests in close succession keep the next check away for ever.
    """
    await tx.execute(
        text(
            f"UPDATE {table} SET next_check_time = now()"  # noqa: S608
            f" WHERE id IN (SELECT id FROM {table} WHERE id = ANY(CAST(:ids AS uuid[])) AND problem = ''"
            " AND next_check_time > now() + make_interval(secs => :lease) ORDER BY id FOR UPDATE SKIP LOCKED)"
        ),
        {"ids": list(ids), "lease": LEASE_SECONDS},
    )
