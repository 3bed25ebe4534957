"""Every service's history makes exactly the schema that its mapped classes describe."""

import asyncio
import importlib
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import psycopg
import pytest
from sqlalchemy import CheckConstraint, ForeignKeyConstraint, Table, UniqueConstraint
from sqlalchemy.dialects import postgresql

from services.chassis import db
from services.chassis.db import Base
from tests.support.infra import Infra

SERVICES = sorted(path.parents[1].name for path in Path(__file__).parents[2].glob("services/*/migrations/0001_*.py"))
DIALECT = postgresql.dialect()  # type: ignore[no-untyped-call]
# SQLAlchemy's names of types that Postgres calls otherwise; a varchar without a length is a text.
SAME = {"varchar": "text", "float": "double precision", "char(3)": "character(3)"}
COLUMNS = """
    SELECT c.relname, a.attname, format_type(a.atttypid, a.atttypmod), a.attnotnull, a.attgenerated = 's'
    FROM pg_attribute a JOIN pg_class c ON c.oid = a.attrelid
    WHERE c.relnamespace = 'public'::regnamespace AND c.relkind IN ('r', 'p') AND NOT c.relispartition
      AND a.attnum > 0 AND NOT a.attisdropped AND c.relname <> 'alembic_version'
"""
CONSTRAINTS = """
    SELECT c.relname, k.conname
    FROM pg_constraint k JOIN pg_class c ON c.oid = k.conrelid
    WHERE c.relnamespace = 'public'::regnamespace AND NOT c.relispartition AND k.contype IN ('c', 'u', 'f')
"""


def mapped(service: str, present: set[str]) -> list[Table]:
    """The tables of a service: its own, and those of the chassis that its history makes."""
    importlib.import_module(f"services.{service}.tables")
    for module in ("once", "outbox", "events"):
        importlib.import_module(f"services.chassis.{module}")
    found = []
    for mapper in Base.registry.mappers:
        owner, table = mapper.class_.__module__.split(".")[1], mapper.local_table
        assert isinstance(table, Table)
        if owner == service or (owner == "chassis" and table.name in present):
            found.append(table)
    return found


def rows(infra: Infra, name: str, query: str) -> set[Any]:
    with psycopg.connect(f"postgresql://postgres@127.0.0.1:{infra.postgres_port}/{name}") as connection:
        return set(connection.execute(query).fetchall())  # type: ignore[call-overload]


def type_name(column: Any) -> str:
    name = column.type.compile(DIALECT).lower()
    return SAME.get(name, name)


@pytest.mark.parametrize("service", SERVICES)
async def test_migrations_and_mapped_classes_agree(
    service: str, infra: Infra, template: Callable[[str], Awaitable[str]]
) -> None:
    name = await template(service)
    columns = rows(infra, name, COLUMNS)
    tables = mapped(service, {row[0] for row in columns})

    assert columns == {
        (table.name, column.name, type_name(column), not column.nullable, column.computed is not None)
        for table in tables
        for column in table.columns
    }
    assert rows(infra, name, CONSTRAINTS) == {
        (table.name, constraint.name)
        for table in tables
        for constraint in table.constraints
        if isinstance(constraint, CheckConstraint | UniqueConstraint | ForeignKeyConstraint)
    }


@pytest.mark.parametrize("service", SERVICES)
async def test_four_replicas_can_migrate_at_once(service: str, infra: Infra) -> None:
    name = f"at_once_{service}"
    infra.admin(f"CREATE DATABASE {name}")
    try:
        await asyncio.gather(*(db.migrate(service, infra.database_url(name)) for _ in range(4)))
        assert rows(infra, name, "SELECT count(*) FROM alembic_version") == {(1,)}
        await db.migrate(service, infra.database_url(name))
    finally:
        infra.admin(f"DROP DATABASE {name} WITH (FORCE)")
