"""One whole mesh for all end-to-end tests, behind its real gateway."""

import shutil
import tempfile
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from deploy.local import Mesh, Site
from deploy.local.ports import SERVICES
from tests.e2e.shop import PASSWORD, Shop
from tests.support.ports import free_base
from tests.support.private import leaks


@pytest.fixture(scope="session")
async def mesh(request: pytest.FixtureRequest) -> AsyncIterator[Mesh]:
    home = Path(tempfile.mkdtemp(prefix="stampede e2e-"))
    site = Site.at(home, free_base())
    mesh = Mesh(site)
    postgres = mesh.alter("postgres")
    # Its process may die in a test; the machine does not, so no test needs the disk.
    mesh.alter("postgres", command=(*postgres.command, "--fsync=off"))
    async with mesh as running:
        for service in SERVICES:
            # Its database is migrated: a process that is started again needs a second less.
            command = mesh.alter(service).command
            mesh.alter(service, command=(*command[:-1], "serve"))
        yield running
    assert not (found := leaks(site.home / "logs", [PASSWORD, *site.secrets.values()])), found
    if request.session.testsfailed:
        shutil.rmtree(home / "data", ignore_errors=True)
    else:
        shutil.rmtree(home, ignore_errors=True)


@pytest.fixture(scope="session")
async def shop(mesh: Mesh) -> AsyncIterator[Shop]:
    async with Shop.of(mesh) as running:
        yield running


@pytest.fixture(autouse=True)
async def _a_provider_without_faults(request: pytest.FixtureRequest) -> AsyncIterator[None]:
    """Restore the provider after each test; a failure names the folder of the mesh's logs."""
    if "shop" in request.fixturenames:
        logs = request.getfixturevalue("mesh").site.home / "logs"
        request.node.add_report_section("call", "mesh", f"its logs are in {logs}")
    yield
    if "shop" in request.fixturenames:
        await request.getfixturevalue("shop").sandbox.no_faults()
