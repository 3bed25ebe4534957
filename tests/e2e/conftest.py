"""One whole mesh for all end-to-end tests, behind its real gateway."""

import asyncio
import shutil
import tempfile
from collections.abc import AsyncIterator
from pathlib import Path

import aiohttp
import pytest

from deploy.local import Mesh, Site, free_base
from tests.e2e.shop import Sandbox, Shop
from tests.support.rest import Rest

_ADMIN = "admin@stampede.local"
_CONNECTIONS = 200


@pytest.fixture(scope="session")
async def mesh(request: pytest.FixtureRequest) -> AsyncIterator[Mesh]:
    home = Path(tempfile.mkdtemp(prefix="stampede-e2e-"))
    await asyncio.to_thread(home.chmod, 0o755)  # PostgreSQL may run as another user
    async with Mesh(Site.at(home, free_base())) as running:
        yield running
    if request.session.testsfailed:
        shutil.rmtree(home / "data", ignore_errors=True)
        print(f"\nThe logs of the mesh are in {home / 'logs'}")
    else:
        shutil.rmtree(home, ignore_errors=True)


@pytest.fixture(scope="session")
async def shop(mesh: Mesh) -> AsyncIterator[Shop]:
    timeout, connector = aiohttp.ClientTimeout(total=40), aiohttp.TCPConnector(limit=_CONNECTIONS)
    async with aiohttp.ClientSession(timeout=timeout, connector=connector) as http:
        rest = Rest(http=http, url=mesh.site.url, secrets=frozenset(mesh.site.secrets.values()))
        account = {"email": _ADMIN, "password": mesh.site.secrets["admin"]}
        token = (await rest.post("/v1/auth/login", account)).expect().json["accessToken"]
        sandbox = Sandbox(rest=Rest(http=http, url=mesh.site.sandbox_url), key=mesh.site.secrets["stripe/key"])
        running = Shop(mesh=mesh, rest=rest, staff=rest.as_(token), sandbox=sandbox)
        yield running
        await running.close()


@pytest.fixture(autouse=True)
async def _a_provider_without_faults(request: pytest.FixtureRequest) -> AsyncIterator[None]:
    yield
    if "shop" in request.fixturenames:
        await request.getfixturevalue("shop").sandbox.no_faults()
