"""Errors of the database, whose texts reach the logs of the services and of PostgreSQL."""

import traceback
from collections.abc import AsyncIterator, Mapping

import pytest
from sqlalchemy import text
from sqlalchemy.exc import DBAPIError

from services.chassis.data import db as databases
from services.chassis.data.db import Database
from tests.support.infra import Infra

PERSONAL = "ada.lovelace@example.com"
_TABLES = """
    CREATE TABLE people (id integer PRIMARY KEY, email varchar(40) UNIQUE CHECK (email = lower(email)), age date);
    CREATE TABLE letters (email text REFERENCES people (email));
    INSERT INTO people VALUES (1, 'ada.lovelace@example.com');
"""
_FAILING: tuple[tuple[str, Mapping[str, object]], ...] = (
    ("INSERT INTO people VALUES (2, :email)", {"email": PERSONAL}),
    ("INSERT INTO people VALUES (1, :email)", {"email": "x" + PERSONAL}),
    ("INSERT INTO people VALUES (2, :email)", {"email": "A" + PERSONAL}),
    ("INSERT INTO people VALUES (2, :email)", {"email": PERSONAL * 9}),
    ("INSERT INTO people VALUES (NULL, :email)", {"email": "x" + PERSONAL}),
    ("INSERT INTO letters VALUES (:email)", {"email": "x" + PERSONAL}),
    ("INSERT INTO nowhere VALUES (:email)", {"email": PERSONAL}),
    ("INSERT INTO people VALUES (2, :email)", {"email": PERSONAL + "\0"}),
    ("SELECT CAST(:email AS text)::jsonb", {"email": PERSONAL}),
    ("SELECT CAST(:email AS text)::date", {"email": PERSONAL}),
)


@pytest.fixture(scope="module")
async def people(infra: Infra) -> AsyncIterator[Database]:
    infra.admin("CREATE DATABASE test_error_texts")
    engine, sessions = databases.connect(infra.database_url("test_error_texts"), pool_size=1)
    async with sessions.begin() as tx:
        for statement in _TABLES.split(";")[:-1]:
            await tx.execute(text(statement))
    yield sessions
    await engine.dispose()
    infra.admin("DROP DATABASE test_error_texts WITH (FORCE)")


@pytest.mark.parametrize(("statement", "values"), _FAILING)
async def test_no_traceback_contains_a_row_a_key_or_a_value(
    people: Database, statement: str, values: Mapping[str, object]
) -> None:
    with pytest.raises(DBAPIError) as failed:
        async with people.begin() as tx:
            await tx.execute(text(statement), values)

    shown = "".join(traceback.format_exception(failed.value)) + repr(failed.value) + repr(failed.value.orig)
    assert "lovelace" not in shown


async def test_postgresql_logs_no_row_that_violates_a_constraint(people: Database, infra: Infra) -> None:
    before = len(infra.postgres_log.read_text(errors="replace"))
    for statement, values in _FAILING[:7]:
        with pytest.raises(DBAPIError):
            async with people.begin() as tx:
                await tx.execute(text(statement), values)

    log = infra.postgres_log.read_text(errors="replace")[before:]
    assert 'violates unique constraint "people_email_key"' in log
    assert "lovelace" not in log


async def test_an_error_still_names_its_constraint_and_its_kind(people: Database) -> None:
    with pytest.raises(DBAPIError, match=r'^\(psycopg\.errors\.UniqueViolation\) .*"people_email_key"') as failed:
        async with people.begin() as tx:
            await tx.execute(text("INSERT INTO people VALUES (2, :email)"), {"email": PERSONAL})
    assert databases.violated_constraint(failed.value) == "people_email_key"  # type: ignore[arg-type]
