"""Fixtures that every level shares. Servers are real; databases are emptied after each test."""

import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import AsyncExitStack, closing
from pathlib import Path

import pytest
from xdist.scheduler import LoadScopeScheduling

sys.path.insert(0, str(Path(__file__).parents[1] / "protos"))
import generate

if generate.stale():
    generate.generate()

from services.chassis.data import db
from tests.support import infra as infrastructure
from tests.support.databases import Databases


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
def databases(infra: infrastructure.Infra) -> Iterator[Databases]:
    """The databases of this session."""
    with closing(Databases(infra)) as made:
        yield made


@pytest.fixture(scope="session")
def template(databases: Databases) -> Callable[[str], Awaitable[str]]:
    """Returns a function that migrates, once per service, a database to copy from."""
    return databases.template


OpenDatabase = Callable[[str], Awaitable[db.Database]]


@pytest.fixture
async def database(databases: Databases) -> AsyncIterator[OpenDatabase]:
    """Returns a function that opens an empty database of a service: `await database("catalog")`."""
    async with AsyncExitStack() as stack:
        yield lambda service: stack.enter_async_context(databases.opened(service))
