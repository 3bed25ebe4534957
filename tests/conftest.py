"""Fixtures that every level shares. Servers are real; a fresh database costs milliseconds."""

import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from pathlib import Path

import pytest
from xdist.scheduler import LoadScopeScheduling

sys.path.insert(0, str(Path(__file__).parents[1] / "protos"))
import generate

if generate.stale():
    generate.generate()

from services.chassis.data import db
from tests.support import infra as infrastructure


class Runners(LoadScopeScheduling):
    """Gives each runner whole files; one of them gets all end-to-end tests, so that one mesh is enough."""

    def _split_scope(self, nodeid: str) -> str:
        return "tests/e2e" if nodeid.startswith("tests/e2e/") else nodeid.partition("::")[0]


def pytest_xdist_make_scheduler(config: pytest.Config, log: object) -> Runners:
    """Called where `pytest -n` asks for several runners."""
    return Runners(config, log)


@pytest.fixture(scope="session")
def infra() -> Iterator[infrastructure.Infra]:
    """PostgreSQL, Valkey and NATS, started once for the session."""
    with infrastructure.running() as running:
        yield running


@pytest.fixture(scope="session")
def template(infra: infrastructure.Infra) -> Callable[[str], Awaitable[str]]:
    """Returns a function that migrates, once per service, a database to copy from."""
    made: dict[str, str] = {}

    async def make(service: str) -> str:
        if service not in made:
            name = f"template_{service}"
            infra.admin(f"CREATE DATABASE {name}")
            await db.migrate(service, infra.database_url(name))
            made[service] = name
        return made[service]

    return make


OpenDatabase = Callable[[str], Awaitable[db.Database]]


@pytest.fixture
async def database(
    infra: infrastructure.Infra, template: Callable[[str], Awaitable[str]]
) -> AsyncIterator[OpenDatabase]:
    """Returns a function that opens a fresh copy of a service's database: `await database("catalog")`."""
    opened = []

    async def open_(service: str) -> db.Database:
        name = f"test_{service}_{len(opened)}"
        infra.admin(f"DROP DATABASE IF EXISTS {name}", f"CREATE DATABASE {name} TEMPLATE {await template(service)}")
        engine, sessions = db.connect(infra.database_url(name), pool_size=20)
        opened.append((name, engine))
        return sessions

    yield open_
    for name, engine in opened:
        await engine.dispose()
        infra.admin(f"DROP DATABASE {name} WITH (FORCE)")
