"""Tickets: what orders needs to write an order later, kept with its hold. They are sealed; here nobody can read them.

`everyday` and `reserving` keep them, in the hold's own transaction. What becomes of the hold is none of theirs.
"""

import uuid
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime
from itertools import accumulate
from typing import Any

from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncSession

from services.chassis.data.db import Database, run_autocommit
from services.inventory.domain import Hold, Reservation
from services.inventory.reservations import from_row

# One value for all of them, cut up here: an array of bytes would be sent as text, at five times the size.
KEEP = """
    INSERT INTO tickets (reservation_id, ticket)
    SELECT id, substr(CAST(:tickets AS bytea), first, size)
    FROM unnest(CAST(:bearers AS uuid[]), CAST(:firsts AS integer[]), CAST(:sizes AS integer[])) WITH ORDINALITY
        AS t (id, first, size, position) {which}
    ORDER BY position
"""
"""Keeps the tickets of `bearers`; `which` may leave some out."""
_KEEP = text(KEEP.format(which=""))
_FIND = """
    SELECT t.id AS number, t.ticket, t.create_time, r.id, r.customer_id, r.state, r.lines, r.expire_time
    FROM (SELECT * FROM tickets {which}) t JOIN reservations r ON r.id = t.reservation_id ORDER BY t.id
"""
_LIST = text(_FIND.format(which="WHERE id > :after ORDER BY id LIMIT :most"))
_GET = text(_FIND.format(which="WHERE reservation_id = ANY(CAST(:ids AS uuid[]))"))
# In the order of ids, as all who lock several of anything.
_DROP = text("""
    DELETE FROM tickets WHERE reservation_id IN (
        SELECT reservation_id FROM tickets WHERE reservation_id = ANY(CAST(:ids AS uuid[]))
        ORDER BY reservation_id FOR UPDATE
    ) RETURNING reservation_id
""")
_KEPT = text("""
    SELECT count(*) AS number, coalesce(extract(epoch FROM clock_timestamp() - (
        SELECT create_time FROM tickets ORDER BY id LIMIT 1
    )), 0)::double precision AS oldest_seconds FROM (SELECT FROM tickets LIMIT :most) t
""")
COUNTED_MOST = 10_000
"""Where more are kept, so many are said to be: to count a long queue every second costs more than it tells."""


@dataclass(frozen=True, slots=True)
class Ticket:
    """A ticket that is kept, and its reservation as it is now."""

    number: int
    """Lists are in its order."""
    ticket: bytes
    create_time: datetime
    reservation: Reservation


def bearers(holds: Iterable[Hold]) -> dict[str, Any]:
    """What `KEEP` asks for; empty where none of `holds` brings a ticket."""
    some = [hold for hold in holds if hold.ticket]
    if not some:
        return {}
    sizes = [len(hold.ticket) for hold in some]
    return {
        "bearers": [hold.id for hold in some],
        "tickets": b"".join(hold.ticket for hold in some),
        "firsts": [1, *(1 + end for end in accumulate(sizes[:-1]))],
        "sizes": sizes,
    }


async def keep(tx: AsyncSession, holds: Iterable[Hold]) -> None:
    """Keeps the tickets of holds that were made in this very transaction."""
    if arguments := bearers(holds):
        await tx.execute(_KEEP, arguments)


async def oldest(db: Database, *, limit: int, after: int = 0) -> list[Ticket]:
    """Those that have been kept for the longest time, oldest first, from the one after number `after` on."""
    return [_ticket(row) for row in await run_autocommit(db, _LIST, {"after": after, "most": limit})]


async def of_reservations(db: Database, ids: Sequence[uuid.UUID]) -> list[Ticket]:
    """Those of these reservations that are kept."""
    return [_ticket(row) for row in await run_autocommit(db, _GET, {"ids": list(ids)})]


async def drop(db: Database, ids: Sequence[uuid.UUID]) -> None:
    """Forgets the tickets of these reservations, if they are kept."""
    await run_autocommit(db, _DROP, {"ids": list(ids)})


async def kept(db: Database) -> tuple[int, float]:
    """How many are kept, `COUNTED_MOST` at most, and for how many seconds the oldest has been."""
    (row,) = await run_autocommit(db, _KEPT, {"most": COUNTED_MOST})
    return row.number, row.oldest_seconds


def _ticket(row: Any) -> Ticket:
    return Ticket(row.number, row.ticket, row.create_time, from_row(row))
