"""Databases of a session: each is made once per service, and emptied after each test."""

import asyncio
import itertools
from collections import defaultdict
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import psycopg
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncSession

from services.chassis.data import db
from tests.support.infra import Infra
from tests.support.privileges import Privileges

# Changes whenever a test changes the schema: a column, a constraint, an index, a trigger, a partition.
_SHAPE = """
    SELECT (SELECT count(*) FROM pg_class WHERE relnamespace = n),
        (SELECT sum(hashtext(a.attrelid::text || attname || atttypid || attnotnull || attisdropped))
            FROM pg_attribute a JOIN pg_class c ON c.oid = attrelid WHERE relnamespace = n AND attnum > 0),
        (SELECT sum(hashtext(oid::text || conname)) FROM pg_constraint WHERE connamespace = n),
        (SELECT sum(hashtext(t.oid::text || tgname || tgenabled::text)) FROM pg_trigger t),
        (SELECT sum(hashtext(p.oid::text || prosrc)) FROM pg_proc p WHERE pronamespace = n)
    FROM (SELECT 'public'::regnamespace AS n)
"""
# A table that never had a row has no page. A partition is emptied with its table, whose sequence starts again too.
_FILLED = """
    SELECT DISTINCT coalesce(pg_partition_root(oid), oid)::regclass::text FROM pg_class
    WHERE relnamespace = 'public'::regnamespace AND relkind = 'r' AND relname <> 'alembic_version'
      AND pg_relation_size(oid) > 0
"""
_TERMINATE = """
    SELECT pg_terminate_backend(pid) FROM pg_stat_activity
    WHERE datname = current_database() AND pid <> pg_backend_pid()
"""


_POOL_SIZE = 20


async def fill_pool(sessions: db.Database) -> None:
    """Open all connections of a pool, so that concurrent calls of a test start together and not one by one."""
    all_open = asyncio.Barrier(_POOL_SIZE)

    async def connect() -> None:
        async with sessions() as tx:
            await tx.execute(text("SELECT 1"))
            await all_open.wait()

    await asyncio.gather(*(connect() for _ in range(_POOL_SIZE)))


async def empty(tx: AsyncSession) -> None:
    """Empty the tables that have had rows; each one costs new files for itself and its indexes."""
    await tx.execute(text("SET LOCAL lock_timeout = '5s'"))
    if filled := (await tx.scalars(text(_FILLED))).all():
        await tx.execute(text(f"TRUNCATE {', '.join(filled)} RESTART IDENTITY CASCADE"))


class Databases:
    """All databases that the tests of one session have used."""

    def __init__(self, infra: Infra) -> None:
        self._infra = infra
        self._privileges = Privileges(infra)
        self._privileges.install()
        self._templates: dict[str, str] = {}
        self._shapes: dict[str, object] = {}
        self._connections: dict[str, psycopg.Connection[tuple[object, ...]]] = {}
        self._free: dict[str, list[str]] = defaultdict(list)
        self._numbers = itertools.count()

    async def template(self, service: str) -> str:
        """Migrate, once per session, a database of this service to copy from; return its name."""
        if service not in self._templates:
            name = f"template_{service}"
            self._infra.admin(f"CREATE DATABASE {name}")
            await db.migrate(service, self._infra.database_url(name))
            self._templates[service] = name
        return self._templates[service]

    @asynccontextmanager
    async def opened(self, service: str) -> AsyncIterator[db.Database]:
        """An empty database of this service, which nobody else uses until the block ends."""
        name = self._free[service].pop() if self._free[service] else await self._copied(service)
        engine, sessions = db.connect(self._infra.database_url(name), pool_size=_POOL_SIZE)
        try:
            yield sessions
        finally:
            await engine.dispose()
        missing, self._privileges.missing = self._privileges.missing, []
        assert not missing, missing
        if self._emptied(name):
            self._free[service].append(name)

    async def _copied(self, service: str) -> str:
        name = f"test_{service}_{next(self._numbers)}"
        self._infra.admin(f"CREATE DATABASE {name} TEMPLATE {await self.template(service)}")
        url = self._infra.database_url(name).replace("+psycopg", "")
        self._connections[name] = psycopg.connect(url, autocommit=True)
        self._shapes[name] = self._connections[name].execute(_SHAPE).fetchone()
        return name

    def _emptied(self, name: str) -> bool:
        """Empty the database; False where a test changed its schema, so that it is dropped."""
        connection = self._connections[name]
        # A process that a test left behind would hold a lock.
        connection.execute(_TERMINATE)
        if filled := [str(row[0]) for row in connection.execute(_FILLED)]:
            connection.execute(f"TRUNCATE {', '.join(filled)} RESTART IDENTITY CASCADE")  # type: ignore[call-overload]
        if connection.execute(_SHAPE).fetchone() == self._shapes[name]:
            return True
        connection.close()
        self._infra.admin(f"DROP DATABASE {name} WITH (FORCE)")
        return False

    def close(self) -> None:
        self._privileges.remove()
        for connection in self._connections.values():
            connection.close()
