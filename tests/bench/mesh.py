"""The processes that the bench measures: a mesh of its own, and the two processes of E, the baseline."""

import contextlib
import sys
from collections.abc import AsyncIterator, Mapping
from pathlib import Path

from deploy.client import Rest
from deploy.local import EVERYTHING, Mesh, Part, Site, free_base, probes
from deploy.local.parts import service_environment
from deploy.local.ports import HOST
from deploy.local.wheels import envoy
from gateway.render import Address, bare, write
from tests.bench.load.generator import Job
from tests.bench.measure.jobs import Measured, Pids, measure
from tests.bench.shop import Shop
from tests.support.waiting import until

_ROOT = Path(__file__).parents[2]
_PORTS_OF_E = (30000, 32000)


class BenchMesh:
    """A running mesh and the shop that it serves."""

    def __init__(self, running: Mesh, shop: Shop, settings: Mapping[str, Mapping[str, str]]) -> None:
        self._running, self.shop = running, shop
        self._settings = settings

    @classmethod
    @contextlib.asynccontextmanager
    async def running(cls, home: Path, *, sagas_at_once: int) -> AsyncIterator["BenchMesh"]:
        """Start a mesh in the new folder `home`; with 0 sagas, placed orders stay `PENDING`, with their stock held."""
        home.mkdir()
        mesh = Mesh(Site.at(home, free_base()))
        settings = {
            "orders": {"SAGAS_AT_ONCE": str(sagas_at_once), "WATCHERS_PER_USER": "5000"},
            # A few dozen customers hold all units of a row unpaid.
            "inventory": {"OPEN_ORDERS_MAX": "0", "HELD_UNITS_MAX": "0"},
        }
        for service, own in settings.items():
            mesh.alter(service, environment=service_environment(mesh.site, service) | own)
        async with mesh as running, Shop.open(running.site) as shop:
            yield cls(running, shop, settings)

    @property
    def pids(self) -> Pids:
        return pids_of(self._running)

    async def restart(self, service: str, **settings: str) -> None:
        """Restart a service with these settings beside its usual ones, until calls reach it. It keeps its data."""
        own = self._settings.get(service, {})
        environment = service_environment(self._running.site, service) | own | settings
        self._running.alter(service, environment=environment)
        await self._running.restart(service)
        await until(probes.http(self._running.site.ports.gateway, "/readyz"))


def pids_of(running: Mesh) -> Pids:
    return {part: running.pid(part) for part in EVERYTHING}


class Baseline:
    """E: an empty RPC through the same Envoy build, with the transcoder as its only filter, to an empty handler."""

    def __init__(self, port: int, pids: Pids) -> None:
        self._port, self.pids = port, pids

    @classmethod
    @contextlib.asynccontextmanager
    async def running(cls, folder: Path) -> AsyncIterator["Baseline"]:
        """Start both processes on free ports, and stop them after the block."""
        site = Site.at(folder / "baseline", free_base(*_PORTS_OF_E))
        port, server_port = site.ports.gateway, site.ports.http("identity")
        service = "stampede.identity.v1.IdentityService"
        config = bare(_ROOT / "protos/gen/gateway.binpb", Address(HOST, port), Address(HOST, server_port), [service])
        command = (str(envoy()), "--config-path", str(write(config, folder)), "--concurrency", "1")
        quiet = ("--log-level", "error", "--use-dynamic-base-id")

        async def answers() -> bool:
            async with Rest.open(site.url, connections=1) as rest:
                return (await rest.post("/v1/auth/logout")).ok

        server = (sys.executable, "-m", "tests.bench.empty_rpc", str(server_port))
        parts = (
            Part(name="empty RPC", command=server, ports=(server_port,), ready=answers),
            Part(name="gateway", command=(*command, *quiet), ports=(port,), ready=answers),
        )
        async with Mesh(site, parts=parts) as running:
            yield cls(port, {part.name: running.pid(part.name) for part in parts})

    async def measure(self, *, connections: int, requests: int) -> Measured:
        """Measure E. Raises `RuntimeError` if any answer is not 200."""
        e = await measure("E", self.job(connections=connections, requests=requests), self.pids)
        if e.others:
            raise RuntimeError(f"E answered {e.others}; a ratio to it means nothing")
        return e

    def job(self, *, connections: int, requests: int) -> Job:
        return Job(self._port, "/v1/auth/logout", ["{}"], [], connections, requests)
