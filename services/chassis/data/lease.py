"""Leases: one process of a service, the leader, does a job that one process is enough for.

A row in the service's database holds the leader's name and the end of its lease by the database's clock. The leader
renews the lease every second. One that is killed, paused or disconnected does not, and after three seconds another
process takes over. An advisory lock would not do: the session of a paused leader keeps it.

Each takeover raises `term`. Nobody can stop a leader that is paused between its last look at the clock and its next
write. So what it writes elsewhere must carry the term, and be refused where a later term is known.
"""

import asyncio
import os
import socket
import time
from collections.abc import Awaitable, Callable
from datetime import datetime

import structlog
from prometheus_client import Gauge
from sqlalchemy import text
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.orm import Mapped, mapped_column

from services.chassis import ids
from services.chassis.data.db import Base, Database, run_autocommit

log = structlog.get_logger()

LASTS_SECONDS = 3.0
_RENEW_SECONDS = 1.0
_RELEASE_SECONDS = 1.0
_LEADER = Gauge("stampede_leader", "1 if this process holds the lease.", ["name"])


class LeaseRow(Base):
    """The lease of the job called `name`."""

    __tablename__ = "leases"

    name: Mapped[str] = mapped_column(primary_key=True)
    holder: Mapped[str]
    term: Mapped[int]
    expire_time: Mapped[datetime]


TABLE = """
CREATE TABLE leases (
    name        text PRIMARY KEY,
    holder      text NOT NULL,
    term        bigint NOT NULL,
    expire_time timestamptz NOT NULL
) WITH (fillfactor = 50);
"""

# The other processes only read: writing would lock the row once a second for each of them.
_LOOK = text("""
    SELECT term, extract(epoch FROM expire_time - clock_timestamp())::double precision AS seconds_left
    FROM leases WHERE name = :name
""")
_ACQUIRE = text("""
    INSERT INTO leases AS l (name, holder, term, expire_time)
    VALUES (:name, :holder, 1, clock_timestamp() + make_interval(secs => :seconds))
    ON CONFLICT (name) DO UPDATE SET holder = excluded.holder, expire_time = excluded.expire_time,
        term = l.term + CASE WHEN l.expire_time > clock_timestamp() THEN 0 ELSE 1 END
    WHERE l.expire_time <= clock_timestamp() OR l.holder = excluded.holder
    RETURNING term
""")
_RELEASE = text("""
    UPDATE leases SET expire_time = clock_timestamp() WHERE name = :name AND holder = :holder AND term = :term
    RETURNING term
""")


class Lease:
    """The lease called `name` in one process."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.holder = f"{socket.gethostname()}/{os.getpid()}/{ids.new()}"
        """Readable, and different from that of every other process, earlier or later."""
        self._seen, self._seen_until = 0, 0.0

    def term(self) -> int | None:
        """The latest term that this process has heard of, its own or another's; None where it knows nothing recent.

        It may be behind by a second, never ahead.
        """
        return self._seen if time.monotonic() < self._seen_until else None

    async def lead(self, db: Database, work: Callable[[int], Awaitable[None]]) -> None:
        """Runs `work(term)` whenever this process leads; until cancelled.

        `work` is cancelled when the lease could not be renewed in time. When it ends or raises, the lease is given up,
        so that another may try; what it raises is raised here.
        """
        while True:
            try:
                term, until, pause = await self._look(db)
            except SQLAlchemyError as error:
                term, until, pause = None, 0.0, _RENEW_SECONDS
                log.warning("the lease cannot be read", lease=self.name, cause=repr(error)[:200])
            if term is not None:
                await self._work(db, term, until, work)
            await asyncio.sleep(pause)

    async def _look(self, db: Database) -> tuple[int | None, float, float]:
        """What `_acquire` returns, where nobody else leads; and when to look again, in seconds."""
        asked = time.monotonic()
        for row in await run_autocommit(db, _LOOK, {"name": self.name}):
            if row.seconds_left > 0:
                self._know(row.term, asked)
                return None, 0.0, min(row.seconds_left, _RENEW_SECONDS)
        return *await self._acquire(db), _RENEW_SECONDS

    async def _acquire(self, db: Database) -> tuple[int | None, float]:
        """Acquires or renews the lease: its term, and until when by the monotonic clock. None: somebody else has it."""
        asked = time.monotonic()
        arguments = {"name": self.name, "holder": self.holder, "seconds": LASTS_SECONDS}
        for row in await run_autocommit(db, _ACQUIRE, arguments):
            self._know(row.term, asked)
            return row.term, asked + LASTS_SECONDS
        return None, 0.0

    def _know(self, term: int, asked: float) -> None:
        self._seen, self._seen_until = term, asked + LASTS_SECONDS

    async def _work(self, db: Database, term: int, until: float, work: Callable[[int], Awaitable[None]]) -> None:
        log.info("leads", lease=self.name, term=term)
        _LEADER.labels(self.name).set(1)
        working = asyncio.ensure_future(work(term))
        keeping = asyncio.create_task(self._keep(db, term, until, working))
        try:
            await asyncio.wait([working])
        finally:
            keeping.cancel()
            working.cancel()
            await asyncio.gather(keeping, working, return_exceptions=True)
            _LEADER.labels(self.name).set(0)
            log.info("leads no more", lease=self.name, term=term)
            await self._release(db, term)
        if not working.cancelled() and (error := working.exception()):
            raise error

    async def _keep(self, db: Database, term: int, until: float, working: "asyncio.Future[None]") -> None:
        """Renews the lease, and cancels `working` when that fails for too long."""
        # A timer of its own: a database that is cut off may hold a statement, and thus this coroutine, for long.
        loop = asyncio.get_running_loop()
        alarm = loop.call_later(until - time.monotonic(), working.cancel)
        try:
            while True:
                await asyncio.sleep(_RENEW_SECONDS)
                try:
                    renewed, until = await self._acquire(db)
                except SQLAlchemyError as error:
                    log.warning("a lease is not renewed", lease=self.name, cause=repr(error)[:200])
                    continue
                if renewed != term:
                    return  # it had run out, and others may have led since
                alarm.cancel()
                alarm = loop.call_later(until - time.monotonic(), working.cancel)
        finally:
            alarm.cancel()
            working.cancel()

    async def _release(self, db: Database, term: int) -> None:
        arguments = {"name": self.name, "holder": self.holder, "term": term}
        releasing = asyncio.create_task(run_autocommit(db, _RELEASE, arguments))
        await asyncio.wait([releasing], timeout=_RELEASE_SECONDS)
        if not releasing.done() or releasing.exception():
            releasing.cancel()  # then it expires
