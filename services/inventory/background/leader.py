"""The work of the leader: close sales that are over, expire holds, rebuild the gate. One process does it for all.

Two leaders for a moment do no harm: each skips the rows that the other has locked, and no row is changed twice.
"""

import asyncio
from collections.abc import Awaitable, Callable

import structlog
from prometheus_client import Counter, Gauge

from services.chassis.data.db import Database
from services.chassis.telemetry.heartbeats import beat, together
from services.inventory import sales
from services.inventory.gate import rebuild
from services.inventory.gate.gate import Gate
from services.inventory.reservations import settle
from services.inventory.sql import reservations

log = structlog.get_logger()

_TICK_SECONDS = 0.25
_MEASURE_SECONDS = 1.0
_EXPIRED = Counter("stampede_holds_expired_total", "Holds that this process expired.")
_OVERDUE = Gauge("stampede_holds_overdue_seconds", "How late the oldest hold is that should have expired.")


async def lead(db: Database, gate: Gate, *, nudge: Callable[[], None]) -> None:
    """Do the work of the leader, until cancelled. Calls `nudge` when there are events to publish."""

    async def close_sales() -> bool:
        return await sales.close_ended_sales(db) == sales.CLOSE_MOST

    async def expire_holds() -> bool:
        expired = await settle.expire(db)
        if expired:
            nudge()
            _EXPIRED.inc(len(expired))
            await gate.give_back((r, line) for r in expired for line in r.lines)
        return len(expired) == settle.EXPIRE_MOST

    works = {"close sales": _repeat("close sales", close_sales), "expire holds": _repeat("expire holds", expire_holds)}
    await together({**works, "rebuild the gate": rebuild.keep_rebuilt(db, gate)})


async def _repeat(name: str, act: Callable[[], Awaitable[bool]]) -> None:
    """Call `act` every tick, and at once if it returns that there is more to do. A failure is tried again."""
    while beat():
        try:
            more = await act()
        except Exception as error:
            log.warning("a timer failed", timer=name, cause=error)
            more = False
        if not more:
            await asyncio.sleep(_TICK_SECONDS)


async def measure(db: Database) -> None:
    """Keep the gauge up to date, until cancelled; in every process, because a leader can hang."""
    while beat():
        _OVERDUE.set(await reservations.overdue_seconds(db))
        await asyncio.sleep(_MEASURE_SECONDS)
