"""A database with the chassis's own tables, and JetStream."""

import itertools
from collections.abc import AsyncIterator

import nats
import pytest
from nats.aio.client import Client
from nats.js import JetStreamContext
from sqlalchemy import text

from services.chassis.data import db as databases
from services.chassis.data import idempotency, lease
from services.chassis.data.db import Database
from services.chassis.events import outbox, subscriber
from tests.support.infra import Infra

_numbers = itertools.count()
_EMPTY = """
DROP SCHEMA public CASCADE;
CREATE SCHEMA public;
GRANT USAGE ON SCHEMA public TO PUBLIC;
"""


@pytest.fixture(scope="session")
def database_name(infra: Infra) -> str:
    """One database for all tests of the chassis; `db` empties it."""
    infra.admin("CREATE DATABASE test_chassis")
    return "test_chassis"


@pytest.fixture
async def db(infra: Infra, database_name: str) -> AsyncIterator[Database]:
    engine, sessions = databases.connect(infra.database_url(database_name), pool_size=20)
    async with sessions.begin() as tx:
        for statements in (_EMPTY, outbox.TABLE, subscriber.TABLE, idempotency.TABLE, lease.TABLE):
            for statement in statements.split(";\n"):
                if statement.strip():
                    await tx.execute(text(statement))
    yield sessions
    await engine.dispose()
    infra.admin(f"SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = '{database_name}'")


@pytest.fixture
async def broker(infra: Infra) -> AsyncIterator[Client]:
    connection = await nats.connect(infra.nats_url)
    yield connection
    await connection.close()


@pytest.fixture
def jetstream(broker: Client) -> JetStreamContext:
    return broker.jetstream()


@pytest.fixture
def service() -> str:
    """The name of a service that has published nothing, so that a test has a stream of its own."""
    return f"service{next(_numbers)}"
