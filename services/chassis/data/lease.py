"""Leases: one process of a service, the leader, does a job that one process is enough for.

A row in the service's database holds the leader's name and the end of its lease by the database's clock. The leader
renews the lease every second. One that is killed, paused or disconnected does not, and after three seconds another
process takes over. An advisory lock would not do: the session of a paused leader keeps it.

A leader that is paused just before a write can write after another process took over. So its work must do no harm if
two processes do it at once.
"""

import asyncio
import os
import socket
import time
from collections.abc import Awaitable, Callable

import structlog
from prometheus_client import Gauge
from sqlalchemy import text
from sqlalchemy.exc import SQLAlchemyError

from services.chassis import ids
from services.chassis.data.db import Database, run_autocommit
from services.chassis.data.grants import Grant
from services.chassis.telemetry.heartbeats import beat, waiting

log = structlog.get_logger()

LASTS_SECONDS = 3.0
_RENEW_SECONDS = 1.0
_RELEASE_SECONDS = 1.0
_LEADER = Gauge("stampede_leader", "1 if this process holds the lease.", ["name"])


TABLE = """
CREATE TABLE leases (
    name        text PRIMARY KEY,
    holder      text NOT NULL,
    expire_time timestamptz NOT NULL
) WITH (fillfactor = 50);
"""
GRANT = Grant(insert=True, update=("holder", "expire_time"))
# For databases in which leases still have terms.
DROP_TERM = "ALTER TABLE leases DROP COLUMN IF EXISTS term"

# The other processes only read: writing would lock the row once a second for each of them.
_LOOK = text("""
    SELECT extract(epoch FROM expire_time - clock_timestamp())::double precision AS seconds_left
    FROM leases WHERE name = :name
""")
_ACQUIRE = text("""
    INSERT INTO leases AS l (name, holder, expire_time)
    VALUES (:name, :holder, clock_timestamp() + make_interval(secs => :seconds))
    ON CONFLICT (name) DO UPDATE SET holder = excluded.holder, expire_time = excluded.expire_time
    WHERE l.expire_time <= clock_timestamp() OR l.holder = excluded.holder
    RETURNING holder
""")
_RELEASE = text("""
    UPDATE leases SET expire_time = clock_timestamp() WHERE name = :name AND holder = :holder RETURNING holder
""")


class Lease:
    """The lease called `name` in one process."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.holder = f"{socket.gethostname()}/{os.getpid()}/{ids.new()}"
        """Readable, and different from that of every other process, earlier or later."""

    async def lead(self, db: Database, work: Callable[[], Awaitable[None]]) -> None:
        """Runs `work` whenever this process leads; until cancelled.

        `work` is cancelled when the lease could not be renewed in time. When it ends or raises, the lease is released,
        so that another process can try; this raises what `work` raised.
        """
        while beat():
            try:
                until, pause = await self._look(db)
            except SQLAlchemyError as error:
                until, pause = None, _RENEW_SECONDS
                log.warning("the lease cannot be read", lease=self.name, cause=error)
            if until is not None:
                await self._work(db, until, work)
            await asyncio.sleep(pause)

    async def _look(self, db: Database) -> tuple[float | None, float]:
        """Returns the result of `_acquire` if no other process leads, and the seconds until the next look."""
        for row in await run_autocommit(db, _LOOK, {"name": self.name}):
            if row.seconds_left > 0:
                return None, min(row.seconds_left, _RENEW_SECONDS)
        return await self._acquire(db), _RENEW_SECONDS

    async def _acquire(self, db: Database) -> float | None:
        """Acquires or renews the lease. Returns its end by the monotonic clock, or None if another process has it."""
        asked = time.monotonic()
        arguments = {"name": self.name, "holder": self.holder, "seconds": LASTS_SECONDS}
        return asked + LASTS_SECONDS if await run_autocommit(db, _ACQUIRE, arguments) else None

    async def _work(self, db: Database, until: float, work: Callable[[], Awaitable[None]]) -> None:
        log.info("leads", lease=self.name)
        _LEADER.labels(self.name).set(1)
        working = asyncio.ensure_future(work())
        keeping = asyncio.create_task(self._keep(db, until, working))
        try:
            await waiting(asyncio.wait([working]))
        finally:
            keeping.cancel()
            working.cancel()
            await asyncio.gather(keeping, working, return_exceptions=True)
            _LEADER.labels(self.name).set(0)
            log.info("leads no more", lease=self.name)
            await self._release(db)
        if not working.cancelled() and (error := working.exception()):
            raise error

    async def _keep(self, db: Database, until: float, working: "asyncio.Future[None]") -> None:
        """Renews the lease, and cancels `working` when that fails for too long."""
        # A timer of its own: a disconnected database can hold a statement, and thus this coroutine, for long.
        loop = asyncio.get_running_loop()
        alarm = loop.call_later(until - time.monotonic(), working.cancel)
        try:
            while True:
                await asyncio.sleep(_RENEW_SECONDS)
                try:
                    renewed = await self._acquire(db)
                except SQLAlchemyError as error:
                    log.warning("a lease is not renewed", lease=self.name, cause=error)
                    continue
                if renewed is None:
                    return  # another process has taken over
                alarm.cancel()
                alarm = loop.call_later(renewed - time.monotonic(), working.cancel)
        finally:
            alarm.cancel()
            working.cancel()

    async def _release(self, db: Database) -> None:
        releasing = asyncio.create_task(run_autocommit(db, _RELEASE, {"name": self.name, "holder": self.holder}))
        await asyncio.wait([releasing], timeout=_RELEASE_SECONDS)
        if not releasing.done() or releasing.exception():
            releasing.cancel()  # then it expires
