"""What is measured: a whole mesh of the bench's own, and E's two bare processes beside it."""

import asyncio
import contextlib
import os
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import aiohttp

from deploy.local import EVERYTHING, Mesh, Site, free_base
from deploy.local.ports import HOST
from deploy.local.wheels import envoy
from gateway.render import Address, bare, write
from tests.bench.load import Job
from tests.bench.measure import Measured, Pids, measure
from tests.bench.shop import Shop

_ROOT = Path(__file__).parents[2]
_PORTS_OF_E = (30000, 32000)


@contextlib.asynccontextmanager
async def mesh(home: Path, *, sagas_at_once: int) -> AsyncIterator[tuple[Shop, Pids]]:
    """A mesh of the bench's own, in a new folder; 0 sagas leave every placed order as it is, with its stock held."""
    home.mkdir()
    os.environ["SAGAS_AT_ONCE"] = str(sagas_at_once)  # the services inherit it
    async with Mesh(Site.at(home, free_base())) as running, Shop.open(running.site) as shop:
        yield shop, pids_of(running)


def pids_of(running: Mesh) -> Pids:
    return {part: running.pid(part) for part in EVERYTHING}


class Yardstick:
    """E: an empty RPC through the same Envoy build, with nothing but the transcoder, to a bare server."""

    def __init__(self, port: int, pids: Pids) -> None:
        self._port, self.pids = port, pids

    @classmethod
    @contextlib.asynccontextmanager
    async def running(cls, folder: Path) -> AsyncIterator["Yardstick"]:
        """Starts both processes on free ports, and ends them."""
        port = free_base(*_PORTS_OF_E)
        service = "stampede.identity.v1.IdentityService"
        config = bare(_ROOT / "protos/gen/gateway.binpb", Address(HOST, port), Address(HOST, port + 1), [service])
        command = (str(envoy()), "--config-path", str(write(config, folder)), "--concurrency", "1")
        quietly = ("--log-level", "error", "--use-dynamic-base-id")
        server = await asyncio.create_subprocess_exec(
            sys.executable, "-m", "tests.bench.bare", str(port + 1), cwd=_ROOT
        )
        gateway = await asyncio.create_subprocess_exec(*command, *quietly)
        try:
            await _answers(f"http://{HOST}:{port}/v1/auth/logout")
            yield cls(port, {"gateway": gateway.pid, "bare": server.pid})
        finally:
            for process in (gateway, server):
                process.terminate()
                await process.wait()

    async def measure(self, *, connections: int, requests: int) -> Measured:
        """E, now. Raises `RuntimeError` where it gives wrong answers."""
        e = await measure("E", self.job(connections=connections, requests=requests), self.pids)
        if e.others:
            raise RuntimeError(f"E answers {e.others}; nothing can be held against that")
        return e

    def job(self, *, connections: int, requests: int) -> Job:
        return Job(self._port, "/v1/auth/logout", ["{}"], [], connections, requests)


async def _answers(url: str) -> None:
    async with aiohttp.ClientSession() as http, asyncio.timeout(30):
        while True:
            with contextlib.suppress(aiohttp.ClientError):
                async with http.post(url, json={}) as response:
                    if response.status == 200:
                        return
            await asyncio.sleep(0.1)
