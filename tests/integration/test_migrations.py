"""Every service's history makes exactly the schema of its mapped classes and of the chassis's tables."""

import asyncio
import importlib
import os
import sys
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import psycopg
import pytest
from sqlalchemy import CheckConstraint, ForeignKeyConstraint, Table, UniqueConstraint
from sqlalchemy.dialects import postgresql

from services.chassis.data import db, idempotency, lease
from services.chassis.data.db import Base
from services.chassis.events import outbox, subscriber
from tests.support.infra import Infra

ROOT = Path(__file__).parents[2]
SERVICES = sorted(path.parents[1].name for path in ROOT.glob("services/*/migrations/0001_*.py"))
DIALECT = postgresql.dialect()  # type: ignore[no-untyped-call]
# SQLAlchemy's names of types that Postgres calls otherwise; a varchar without a length is a text.
SAME = {"varchar": "text", "character varying": "text", "float": "double precision", "char(3)": "character(3)"}
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


@pytest.fixture(scope="module")
def chassis(infra: Infra) -> str:
    """A database with the tables of the chassis as new services make them."""
    infra.admin("CREATE DATABASE chassis_tables")
    with psycopg.connect(f"postgresql://postgres@127.0.0.1:{infra.postgres_port}/chassis_tables") as connection:
        for module in (idempotency, lease, outbox, subscriber):
            connection.execute(module.TABLE.encode())
    return "chassis_tables"


def mapped(service: str) -> list[Table]:
    """The mapped tables of a service."""
    schema = "sql.schema" if (ROOT / "services" / service / "sql/schema.py").exists() else "tables"
    importlib.import_module(f"services.{service}.{schema}")
    found = []
    for mapper in Base.registry.mappers:
        assert isinstance(mapper.local_table, Table)
        if mapper.class_.__module__.split(".")[1] == service:
            found.append(mapper.local_table)
    return found


def rows(infra: Infra, name: str, query: str) -> set[Any]:
    with psycopg.connect(f"postgresql://postgres@127.0.0.1:{infra.postgres_port}/{name}") as connection:
        return set(connection.execute(query).fetchall())


def type_name(name: str) -> str:
    return SAME.get(name.lower(), name.lower())


def mapped_type(column: Any) -> str:
    return type_name(column.type.compile(DIALECT))


def default_name(table: Table, constraint: Any) -> str:
    """The name that Postgres gives to a constraint without a name of its own."""
    kind = "fkey" if isinstance(constraint, ForeignKeyConstraint) else "key"
    return "_".join([table.name, *(column.name for column in constraint.columns), kind])


async def migrating(service: str, url: str) -> asyncio.subprocess.Process:
    """A process that migrates, as a replica does when it starts; Alembic cannot twice at once within one."""
    code = "import asyncio, sys; from services.chassis.data import db; asyncio.run(db.migrate(*sys.argv[1:]))"
    return await asyncio.create_subprocess_exec(
        sys.executable, "-c", code, service, url,
        cwd=ROOT, env={**os.environ, "PYTHONPATH": f"{ROOT}:{ROOT / 'protos/gen'}"}, stderr=asyncio.subprocess.PIPE,
    )  # fmt: skip


@pytest.mark.parametrize("service", SERVICES)
async def test_migrations_and_mapped_classes_agree(
    service: str, infra: Infra, chassis: str, template: Callable[[str], Awaitable[str]]
) -> None:
    name = await template(service)
    columns = {(table, column, type_name(kind), *rest) for table, column, kind, *rest in rows(infra, name, COLUMNS)}
    tables, present = mapped(service), {row[0] for row in columns}
    of_chassis = {row for row in rows(infra, chassis, COLUMNS) if row[0] in present}

    assert columns == of_chassis | {
        (table.name, column.name, mapped_type(column), not column.nullable, column.computed is not None)
        for table in tables
        for column in table.columns
    }
    constraints_of_chassis = {row for row in rows(infra, chassis, CONSTRAINTS) if row[0] in present}
    assert rows(infra, name, CONSTRAINTS) == constraints_of_chassis | {
        (table.name, constraint.name or default_name(table, constraint))
        for table in tables
        for constraint in table.constraints
        if isinstance(constraint, CheckConstraint | UniqueConstraint | ForeignKeyConstraint)
    }


@pytest.mark.parametrize("service", SERVICES)
async def test_four_replicas_can_migrate_at_once(service: str, infra: Infra) -> None:
    name = f"at_once_{service}"
    infra.admin(f"CREATE DATABASE {name}")
    try:
        replicas = [await migrating(service, infra.database_url(name)) for _ in range(4)]
        ends = [await replica.communicate() for replica in replicas]
        assert [replica.returncode for replica in replicas] == [0] * 4, ends
        assert rows(infra, name, "SELECT count(*) FROM alembic_version") == {(1,)}
        await db.migrate(service, infra.database_url(name))
    finally:
        infra.admin(f"DROP DATABASE {name} WITH (FORCE)")
