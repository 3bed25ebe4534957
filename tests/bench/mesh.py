"""The processes that the bench measures: a mesh of its own, and the two processes of E, the baseline."""

import asyncio
import contextlib
import os
import sys
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path

from deploy.client import Patience, Rest
from deploy.local import EVERYTHING, Mesh, Site, free_base
from deploy.local.parts import service_environment
from deploy.local.ports import HOST
from deploy.local.wheels import envoy
from gateway.render import Address, bare, write
from tests.bench.load.generator import Job
from tests.bench.measure.jobs import Measured, Pids, measure
from tests.bench.shop import Shop

_ROOT = Path(__file__).parents[2]
_PORTS_OF_E = (30000, 32000)


class BenchMesh:
    """A running mesh and the shop that it serves."""

    def __init__(self, running: Mesh, shop: Shop) -> None:
        self._running, self.shop = running, shop

    @classmethod
    @contextlib.asynccontextmanager
    async def running(cls, home: Path, *, sagas_at_once: int) -> AsyncIterator["BenchMesh"]:
        """Start a mesh in the new folder `home`; with 0 sagas, placed orders stay `PENDING`, with their stock held."""
        home.mkdir()
        os.environ["SAGAS_AT_ONCE"] = str(sagas_at_once)  # the services inherit it
        async with Mesh(Site.at(home, free_base())) as running, Shop.open(running.site) as shop:
            yield cls(running, shop)

    @property
    def pids(self) -> Pids:
        return pids_of(self._running)

    async def turn_gate_off(self) -> None:
        """Restart inventory without its gate; it keeps its data."""
        environment = service_environment(self._running.site, "inventory") | {"GATE_ENABLED": "false"}
        self._running.alter("inventory", environment=environment)
        await self._running.restart("inventory")


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
        port = free_base(*_PORTS_OF_E)
        service = "stampede.identity.v1.IdentityService"
        config = bare(_ROOT / "protos/gen/gateway.binpb", Address(HOST, port), Address(HOST, port + 1), [service])
        command = (str(envoy()), "--config-path", str(write(config, folder)), "--concurrency", "1")
        quiet = ("--log-level", "error", "--use-dynamic-base-id")
        server = await asyncio.create_subprocess_exec(
            sys.executable, "-m", "tests.bench.empty_rpc", str(port + 1), cwd=_ROOT
        )
        gateway = await asyncio.create_subprocess_exec(*command, *quiet)
        try:
            await _wait_for_answer(f"http://{HOST}:{port}")
            yield cls(port, {"gateway": gateway.pid, "empty RPC": server.pid})
        finally:
            for process in (gateway, server):
                process.terminate()
                await process.wait()

    async def measure(self, *, connections: int, requests: int) -> Measured:
        """Measure E. Raises `RuntimeError` if any answer is not 200."""
        e = await measure("E", self.job(connections=connections, requests=requests), self.pids)
        if e.others:
            raise RuntimeError(f"E answered {e.others}; a ratio to it means nothing")
        return e

    def job(self, *, connections: int, requests: int) -> Job:
        return Job(self._port, "/v1/auth/logout", ["{}"], [], connections, requests)


async def _wait_for_answer(url: str) -> None:
    async with Rest.open(url, connections=1) as rest:
        patient = replace(rest, patience=Patience(seconds=30, longest_pause=0.1))
        (await patient.post("/v1/auth/logout")).expect()
