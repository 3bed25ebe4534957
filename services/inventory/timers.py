"""What time alone brings about: sales end, holds expire, the gate is rebuilt. One process does it for all; see `lease`.

Two leaders for a moment do no harm: what one of them has locked the other skips, and what is done is not done again.
"""

import asyncio
from collections.abc import Awaitable, Callable

import structlog
from prometheus_client import Counter, Gauge

from services.chassis.data.db import Database
from services.chassis.events.outbox import Relay
from services.inventory import sales, settling, tickets
from services.inventory.gate import rebuild
from services.inventory.gate.gate import Gate

log = structlog.get_logger()

_TICK_SECONDS = 0.25
_MEASURE_SECONDS = 1.0
_EXPIRED = Counter("stampede_holds_expired_total", "Holds that ran out and were ended by this process.")
_OVERDUE = Gauge("stampede_holds_overdue_seconds", "How late the oldest hold is that should have been ended.")
_TICKETS = Gauge("stampede_tickets_kept", "Tickets that are kept; 10,000 where there are more.")
_OLDEST_TICKET = Gauge("stampede_tickets_oldest_seconds", "For how long the oldest of them has been kept.")


async def run(db: Database, gate: Gate, relay: Relay) -> None:
    """Does the work of the leader, until cancelled."""

    async def close_sales() -> bool:
        return await sales.close_ended_sales(db) == sales.CLOSE_MOST

    async def end_holds() -> bool:
        expired = await settling.expire(db)
        if expired:
            relay.nudge()
            _EXPIRED.inc(len(expired))
            await gate.give_back((r, line) for r in expired for line in r.lines)
        return len(expired) == settling.EXPIRE_MOST

    async with asyncio.TaskGroup() as group:
        group.create_task(_repeatedly("sale clock", close_sales))
        group.create_task(_repeatedly("expiry", end_holds))
        group.create_task(rebuild.keep_rebuilt(db, gate))


async def _repeatedly(name: str, act: Callable[[], Awaitable[bool]]) -> None:
    """Calls `act` every tick, and at once when it says that there is more to do. What fails is tried again."""
    while True:
        try:
            more = await act()
        except Exception as error:
            log.warning("a timer failed", timer=name, cause=repr(error)[:300])
            more = False
        if not more:
            await asyncio.sleep(_TICK_SECONDS)


async def measure(db: Database) -> None:
    """Keeps gauges up to date, until cancelled; in every process, as a leader may hang."""
    while True:
        _OVERDUE.set(await settling.overdue_seconds(db))
        number, oldest_seconds = await tickets.kept(db)
        _TICKETS.set(number)
        _OLDEST_TICKET.set(oldest_seconds)
        await asyncio.sleep(_MEASURE_SECONDS)
