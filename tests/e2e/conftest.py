"""One whole mesh for all end-to-end tests, behind its real gateway."""

import shutil
import tempfile
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from deploy.local import Mesh, Site
from tests.e2e.shop import PASSWORD, Shop
from tests.support.ports import free_base
from tests.support.private import leaks


@pytest.fixture(scope="session")
async def mesh(request: pytest.FixtureRequest) -> AsyncIterator[Mesh]:
    home = Path(tempfile.mkdtemp(prefix="stampede e2e-"))
    site = Site.at(home, free_base())
    async with Mesh(site) as running:
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
