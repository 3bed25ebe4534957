"""What the chassis says about its own use of the database, held against what the server saw."""

import asyncio
import re
from collections.abc import AsyncIterator, Callable

import pytest
from prometheus_client import REGISTRY
from sqlalchemy import text
from sqlalchemy.exc import DBAPIError

from services.chassis import request_context
from services.chassis.data import db as databases
from services.chassis.data.db import Database
from tests.support.infra import Infra


@pytest.fixture
async def logged(infra: Infra) -> AsyncIterator[Database]:
    """A database of which the server logs every statement."""
    infra.admin("CREATE DATABASE test_statements", "ALTER DATABASE test_statements SET log_statement = 'all'")
    engine, sessions = databases.connect(infra.database_url("test_statements"), pool_size=1)
    await databases.ping(sessions)  # what a new connection asks once is none of the test's business
    async with sessions.begin() as tx:
        await tx.execute(text("CREATE TABLE things (id integer PRIMARY KEY)"))
    yield sessions
    await engine.dispose()
    infra.admin("DROP DATABASE test_statements WITH (FORCE)")


@pytest.fixture
def sent(infra: Infra) -> Callable[[], tuple[float, list[str]]]:
    """Returns a function that tells how many statements were counted, and which the server logged."""

    def look() -> tuple[float, list[str]]:
        log = infra.postgres_log.read_text(errors="replace")
        seen = re.findall(r"LOG:  (?:statement|execute [^:]+): (.*)", log)
        return counted("call") + counted("background"), seen

    return look


def counted(cause: str) -> float:
    return REGISTRY.get_sample_value("stampede_sql_statements_total", {"cause": cause}) or 0.0


async def test_every_statement_that_the_server_sees_is_counted_once(
    logged: Database, sent: Callable[[], tuple[float, list[str]]]
) -> None:
    before, seen_before = sent()

    async with logged.begin() as tx:
        await tx.execute(text("INSERT INTO things SELECT generate_series(1, 100)"))
        await tx.execute(text("SELECT count(*) FROM things"))
    async with logged() as tx:
        await tx.execute(text("SELECT 1"))
    with pytest.raises(DBAPIError):
        async with logged.begin() as tx:
            await tx.execute(text("INSERT INTO things VALUES (1)"))
    async with logged.begin():
        pass  # says nothing, so nothing is sent
    await databases.run_autocommit(logged, text("SELECT id FROM things WHERE id = :id"), {"id": 7})
    for number in range(8):  # after the fifth, psycopg prepares it
        await databases.run_autocommit(logged, text("SELECT id FROM things WHERE id = :id + 1"), {"id": number})
    async with logged.begin() as tx:
        await tx.execute(text("DELETE FROM things WHERE id = :id"), [{"id": 1}, {"id": 2}, {"id": 3}])

    after, seen = sent()
    assert after - before == len(seen) - len(seen_before) == 4 + 3 + 3 + 0 + 1 + 8 + 5, seen[len(seen_before) :]


async def test_statements_for_calls_are_told_from_background_work(logged: Database) -> None:
    async def answer() -> None:
        request_context.enter(request_context.Call(method="/some.Service/Method", request_id="one"))
        await databases.ping(logged)

    before = counted("call"), counted("background")
    await asyncio.create_task(answer())  # as each call is answered in a task of its own
    assert (counted("call"), counted("background")) == (before[0] + 3, before[1])
    await databases.ping(logged)
    assert (counted("call"), counted("background")) == (before[0] + 3, before[1] + 3)
