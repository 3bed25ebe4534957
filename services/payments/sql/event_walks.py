"""The table `event_walks`: how far the events that a provider lists were read."""

from datetime import datetime

from sqlalchemy import text

from services.chassis.data.db import Database, run_autocommit

# The first walk begins an hour back: what was lost before the first start is of no payment here.
_CLAIM = text("""
    INSERT INTO event_walks AS w (provider, done_time, next_time)
    VALUES (:provider, now() - interval '1 hour', now() + make_interval(secs => :pause))
    ON CONFLICT (provider) DO UPDATE SET next_time = excluded.next_time WHERE w.next_time <= now()
    RETURNING done_time, now() AS now
""")
_ADVANCE = text("""
    UPDATE event_walks SET done_time = greatest(done_time, :done) WHERE provider = :provider RETURNING provider
""")


async def claim(db: Database, provider: str, *, pause: float) -> tuple[datetime, datetime] | None:
    """Claim the next walk. Return the time up to which events were read, and now; None if it is not due.

    The next one is due after `pause` seconds, whether this one ends or not.
    """
    rows = await run_autocommit(db, _CLAIM, {"provider": provider, "pause": pause})
    return (rows[0].done_time, rows[0].now) if rows else None


async def advance(db: Database, provider: str, done: datetime) -> None:
    """Note that the events before `done` were read."""
    await run_autocommit(db, _ADVANCE, {"provider": provider, "done": done})
