"""A real process that receives SIGTERM during a call."""

import asyncio
import contextlib
import os
import signal
import socket
import struct
import sys
import uuid
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import aiohttp
import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from stampede.catalog.v1 import catalog_service_pb2 as pb
from stampede.catalog.v1.catalog_service_pb2_grpc import CatalogServiceStub
from tests.support.infra import Infra

ROOT = Path(__file__).parents[3]
SERVING, NOT_SERVING = health_pb2.HealthCheckResponse.SERVING, health_pb2.HealthCheckResponse.NOT_SERVING
PRODUCT = str(uuid.uuid4())


class Slow:
    """The process, a channel to it, and the lines that it prints."""

    def __init__(self, process: asyncio.subprocess.Process, channel: grpc.aio.Channel, http: str) -> None:
        self.process, self.channel, self.http = process, channel, http
        self.catalog: Any = CatalogServiceStub(channel)
        self.health: Any = health_pb2_grpc.HealthStub(channel).Watch(health_pb2.HealthCheckRequest())

    async def prints(self, word: str) -> None:
        assert self.process.stdout
        while (line := await self.process.stdout.readline()).strip() != word.encode():
            assert line, f"it ended without printing {word}"

    async def turns(self, state: int) -> None:
        while (await self.health.read()).status != state:
            pass

    async def refuses_calls(self) -> None:
        with contextlib.suppress(grpc.aio.AioRpcError):
            while True:
                await health_pb2_grpc.HealthStub(self.channel).Check(health_pb2.HealthCheckRequest(), timeout=5)

    async def answers(self, path: str, body: bytes | None = None) -> tuple[int, bytes]:
        """Returns status and body over HTTP; status 0 if nothing listens."""
        method = "GET" if body is None else "POST"
        try:
            async with aiohttp.request(method, f"http://{self.http}{path}", data=body) as reply:
                return reply.status, await reply.read()
        except aiohttp.ClientConnectorError:
            return 0, b""

    def finish(self, line: str) -> None:
        assert self.process.stdin
        self.process.stdin.write(f"{line}\n".encode())


@pytest.fixture
async def slow(infra: Infra, request: pytest.FixtureRequest) -> AsyncIterator[Slow]:
    """The parameter, if there is one, says what its background task does."""
    with socket.socket() as first, socket.socket() as second:
        for probe in (first, second):
            probe.bind(("127.0.0.1", 0))
        address, http = (f"127.0.0.1:{probe.getsockname()[1]}" for probe in (first, second))
    environment = {
        "ENVIRONMENT": "local", "LISTEN": address, "HTTP_LISTEN": http,
        "DATABASE_URL": infra.database_url("postgres"), "NATS_URL": infra.nats_url,
        "MESH_SECRET": "m" * 32, "PAGE_SECRET": "p" * 32, "RESTOCK": getattr(request, "param", ""),
    }  # fmt: skip
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "tests.integration.chassis.slow_service", cwd=ROOT, env={**os.environ, **environment},
        stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE,
    )  # fmt: skip
    async with grpc.aio.insecure_channel(address, options=[("grpc.initial_reconnect_backoff_ms", 100)]) as channel:
        async with asyncio.timeout(60):
            await channel.channel_ready()
        yield Slow(process, channel, http)
    if process.returncode is None:
        process.kill()
    await process.wait()


async def test_drain_turns_health_first_and_loses_no_call(slow: Slow) -> None:
    request = pb.GetProductRequest(product_id=PRODUCT)
    body = request.SerializeToString()
    path, frame = "/stampede.catalog.v1.CatalogService/GetProduct", struct.pack("!BI", 0, len(body)) + body
    async with asyncio.timeout(60):
        await slow.turns(SERVING)
        while await slow.answers("/healthz") != (200, b""):
            pass
        over_grpc = asyncio.ensure_future(slow.catalog.GetProduct(request, timeout=20))
        over_http = [asyncio.create_task(slow.answers(path, frame))]
        for _ in range(2):
            await slow.prints("entered")
        slow.process.send_signal(signal.SIGTERM)
        await slow.turns(NOT_SERVING)
        slow.health.cancel()
        # It still accepts calls, for a gateway that has not checked readiness yet.
        assert await slow.answers("/healthz") == (503, b"")
        assert await slow.answers("/livez") == (200, b"")
        over_http.append(asyncio.create_task(slow.answers(path, frame)))
        await slow.prints("entered")
        await slow.refuses_calls()
        while (await slow.answers("/livez"))[0]:
            pass
        assert not any(call.done() for call in (over_grpc, *over_http))
        for _ in range(3):
            slow.finish("finished")
        product = pb.Product(id=PRODUCT, name="finished")
        answer = product.SerializeToString()
        assert await over_grpc == product
        assert await asyncio.gather(*over_http) == 2 * [(200, struct.pack("!BI", 0, len(answer)) + answer)]
        await slow.prints("closed")
        assert await slow.process.wait() == 0


async def test_idle_process_stops_at_once(slow: Slow) -> None:
    async with asyncio.timeout(60):
        await slow.turns(SERVING)
        slow.health.cancel()
        slow.process.send_signal(signal.SIGTERM)
        assert await slow.process.wait() == 0


@pytest.mark.parametrize("slow", ["ends", "hangs"], indirect=True)
async def test_process_whose_background_task_stands_still_ends_and_names_it(slow: Slow) -> None:
    """Also one that no supervisor asks: the process ends by itself, so that whatever runs it starts it again."""
    async with asyncio.timeout(60):
        slow.finish("stand still")
        while (answer := await slow.answers("/livez"))[0] == 200:
            pass
        # On a busy machine, others may have been late as well.
        assert answer[0] == 503
        assert b"restock" in answer[1].split(b", ")
        assert (await slow.answers("/healthz"))[0] == 503
        slow.health.cancel()
        assert await slow.process.wait() == 1
