"""Clients that stop reading a stream, over real gRPC and HTTP connections."""

import asyncio
import uuid
from collections.abc import AsyncIterator, Sequence
from typing import Any

import grpc
import pytest

from services.chassis.errors import RateLimited
from services.chassis.server import watch
from services.chassis.server.guard import Guard
from services.chassis.server.http_server import HttpServer
from services.chassis.server.registry import Registry
from services.chassis.server.watch import Watch
from stampede.inventory.v1 import flash_sale_service_pb2 as pb
from stampede.inventory.v1.flash_sale_service_pb2_grpc import (
    FlashSaleServiceServicer,
    FlashSaleServiceStub,
    add_FlashSaleServiceServicer_to_server,
)
from tests.support import tokens
from tests.support.serving import refusal, serving

SALE = pb.WatchFlashSaleRequest(sale_id=str(uuid.UUID(int=1)))
# Large enough to fill the buffers between server and client, which are some megabytes.
NEWS = "x" * 200_000


class Sales(FlashSaleServiceServicer):
    """Changes with every fetch, and accepts two watchers."""

    def __init__(self) -> None:
        self.sold = 0
        self.views: Watch[str, int] = Watch(self._fetch, interval_seconds=0.002, watchers_max=2)
        self.ended = asyncio.Event()

    async def _fetch(self, keys: Sequence[str]) -> dict[str, int]:
        self.sold += 1
        return dict.fromkeys(keys, self.sold)

    async def WatchFlashSale(self, request: Any, context: Any) -> AsyncIterator[Any]:  # type: ignore[override]
        try:
            with self.views.subscribe(request.sale_id) as values:
                async for sold in values:
                    yield pb.FlashSale(sold=sold, title=NEWS)
        finally:
            self.ended.set()

    def is_full(self) -> bool:
        try:
            with self.views.subscribe("another"):
                return False
        except RateLimited:
            return True


@pytest.fixture
async def sales(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Sales]:
    monkeypatch.setattr(watch, "_UNREAD_SECONDS", 0.3)
    sales = Sales()
    running = asyncio.create_task(sales.views.run())
    yield sales
    running.cancel()
    await asyncio.gather(running, return_exceptions=True)


async def test_grpc_client_that_stops_reading_is_dropped_with_too_slow(sales: Sales) -> None:
    ports: list[int] = []
    async with (
        asyncio.timeout(60),
        serving("inventory", lambda s: add_FlashSaleServiceServicer_to_server(sales, s), ports=ports) as channel,
        grpc.aio.insecure_channel(f"127.0.0.1:{ports[0]}", [("grpc.use_local_subchannel_pool", 1)]) as another,
    ):
        asleep, awake = (FlashSaleServiceStub(c).WatchFlashSale(SALE) for c in (another, channel))
        await asleep.read()
        await awake.read()
        assert sales.is_full()

        while sales.is_full():
            await awake.read()

        await sales.ended.wait()
        seen = [await asleep.read()]

        async def rest() -> None:
            while (message := await asleep.read()) is not grpc.aio.EOF:
                seen.append(message)

        refused = await refusal(rest())
        assert (refused.code, refused.reason, refused.domain) == (
            "RESOURCE_EXHAUSTED", "TOO_SLOW", "inventory.stampede",
        )  # fmt: skip
        assert (await awake.read()).sold > seen[-1].sold


async def test_disconnect_frees_the_slot(sales: Sales) -> None:
    async with (
        asyncio.timeout(60),
        serving("inventory", lambda s: add_FlashSaleServiceServicer_to_server(sales, s)) as channel,
    ):
        stays, leaves = (FlashSaleServiceStub(channel).WatchFlashSale(SALE) for _ in range(2))
        await stays.read()
        await leaves.read()
        assert sales.is_full()

        leaves.cancel()

        while sales.is_full():
            await stays.read()


async def connected(port: int) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    """A connection to a server that may still be starting."""
    while True:
        try:
            return await asyncio.open_connection("127.0.0.1", port)
        except ConnectionRefusedError:
            await asyncio.sleep(0)


async def test_http_client_that_stops_reading_is_disconnected(sales: Sales) -> None:
    http = HttpServer("inventory")
    registry = Registry(Guard("inventory", tokens.gatekeeper("inventory")), grpc.aio.server(), http)
    add_FlashSaleServiceServicer_to_server(sales, registry)  # type: ignore[arg-type]
    frame = b"\0" + len(SALE.SerializeToString()).to_bytes(4, "big") + SALE.SerializeToString()
    request = (
        b"POST /stampede.inventory.v1.FlashSaleService/WatchFlashSale HTTP/1.1\r\nhost: sales\r\n"
        b"content-length: %d\r\n\r\n%s" % (len(frame), frame)
    )
    port = http.start("127.0.0.1:0")
    async with asyncio.timeout(60):
        asleep, awake = [await connected(port) for _ in range(2)]
        for reader, writer in (asleep, awake):
            writer.write(request)
            await reader.readuntil(b"\r\n\r\n")
        assert sales.is_full()

        while sales.is_full():
            await awake[0].readexactly(len(NEWS))

        await sales.ended.wait()
        assert not (await asleep[0].read()).endswith(b"0\r\n\r\n"), "the stream did not end regularly"
        await awake[0].readexactly(len(NEWS))
        for _, writer in (asleep, awake):
            writer.close()
        await http.stop(1)
