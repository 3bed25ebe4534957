"""The counted statements, compared with those that the server logged."""

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
    """A database whose statements the server logs."""
    infra.admin("CREATE DATABASE test_statements", "ALTER DATABASE test_statements SET log_statement = 'all'")
    engine, sessions = databases.connect(infra.database_url("test_statements"), pool_size=1)
    await select(sessions)  # a new connection sends some statements of its own
    async with sessions.begin() as tx:
        await tx.execute(text("CREATE TABLE things (id integer PRIMARY KEY)"))
    yield sessions
    await engine.dispose()
    infra.admin("DROP DATABASE test_statements WITH (FORCE)")


@pytest.fixture
def sent(infra: Infra) -> Callable[[], tuple[float, list[str]]]:
    """Returns a function that returns the number of counted statements, and those that the server logged."""

    def read() -> tuple[float, list[str]]:
        log = infra.postgres_log.read_text(errors="replace")
        seen = re.findall(r"LOG:  (?:statement|execute [^:]+): (.*)", log)
        return counted("call") + counted("background"), seen

    return read


async def select(sessions: Database) -> None:
    async with sessions() as tx:
        await tx.execute(text("SELECT 1"))


def counted(cause: str) -> float:
    return REGISTRY.get_sample_value("stampede_sql_statements_total", {"cause": cause}) or 0.0


async def test_every_statement_is_counted_once(logged: Database, sent: Callable[[], tuple[float, list[str]]]) -> None:
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
        pass  # without a statement, nothing is sent
    await databases.run_autocommit(logged, text("SELECT id FROM things WHERE id = :id"), {"id": 7})
    for number in range(8):  # after the fifth, psycopg prepares it
        await databases.run_autocommit(logged, text("SELECT id FROM things WHERE id = :id + 1"), {"id": number})
    async with logged.begin() as tx:
        await tx.execute(text("DELETE FROM things WHERE id = :id"), [{"id": 1}, {"id": 2}, {"id": 3}])

    after, seen = sent()
    assert after - before == len(seen) - len(seen_before) == 4 + 3 + 3 + 0 + 1 + 8 + 5, seen[len(seen_before) :]


async def test_statements_of_calls_and_background_work_are_counted_apart(logged: Database) -> None:
    async def answer() -> None:
        request_context.enter(request_context.Call(method="/some.Service/Method", request_id="one"))
        await select(logged)

    request_context.enter(None)  # type: ignore[arg-type]  # tests before this one may have entered a call
    before = counted("call"), counted("background")
    await asyncio.create_task(answer())  # each call is answered in its own task
    assert (counted("call"), counted("background")) == (before[0] + 3, before[1])
    await select(logged)
    assert (counted("call"), counted("background")) == (before[0] + 3, before[1] + 3)
