"""The HTTP server for the gateway: a real uvicorn, servicers behind the real guard, and a plain HTTP client."""

import asyncio
import base64
import contextlib
import io
import struct
import time
import urllib.parse
import uuid
from collections.abc import AsyncIterator, Callable
from typing import Any

import aiohttp
import grpc
import pytest
from google.protobuf.message import Message
from google.rpc import error_details_pb2, status_pb2

from services.chassis import request_context
from services.chassis.errors import Unavailable, WrongState
from services.chassis.server import guard, http_server
from services.chassis.server.http_server import HttpServer
from services.chassis.server.registry import Registry
from stampede.catalog.v1 import catalog_service_pb2 as pb
from stampede.catalog.v1 import snapshot_service_pb2 as snapshot_pb
from stampede.catalog.v1.catalog_service_pb2_grpc import CatalogServiceServicer, add_CatalogServiceServicer_to_server
from stampede.catalog.v1.snapshot_service_pb2_grpc import (
    SnapshotServiceServicer,
    add_SnapshotServiceServicer_to_server,
)
from stampede.inventory.v1 import flash_sale_service_pb2 as sales_pb
from stampede.inventory.v1.flash_sale_service_pb2_grpc import (
    FlashSaleServiceServicer,
    add_FlashSaleServiceServicer_to_server,
)
from stampede.type.v1.money_pb2 import Money
from tests.support import tokens

CREATE = "/stampede.catalog.v1.CatalogService/CreateProduct"
SNAPSHOTS = "/stampede.catalog.v1.SnapshotService/GetSnapshots"
WATCH = "/stampede.inventory.v1.FlashSaleService/WatchFlashSale"
SALE = "01890000-0000-7000-8000-0000000000ad"
SECRET = "password=hunter2"
REQUEST = pb.CreateProductRequest(
    sku="RETRO-CLOCK", name="Clock", price=Money(currency_code="USD", minor_units=1999)
)  # fmt: skip


class Catalog(CatalogServiceServicer):
    """Does what a test sets, and records the call and how it ended."""

    def __init__(self) -> None:
        self.raises: BaseException | None = None
        self.answers: Any = None
        self.entered, self.gate = asyncio.Event(), asyncio.Event()
        self.gate.set()
        self.ended: asyncio.Queue[str] = asyncio.Queue()
        self.call: request_context.Call | None = None

    async def CreateProduct(self, request: Any, context: Any) -> Any:  # type: ignore[override]
        self.call = request_context.current()
        self.entered.set()
        try:
            await self.gate.wait()
        except asyncio.CancelledError:
            self.ended.put_nowait("cancelled")
            raise
        if self.raises:
            raise self.raises
        self.ended.put_nowait("finished")
        return self.answers or pb.Product(id=request.request_id, name=request.name)


class Stubborn(Catalog):
    """Finishes its work also when it is cancelled."""

    async def CreateProduct(self, request: Any, context: Any) -> Any:  # type: ignore[override]
        return await asyncio.shield(asyncio.ensure_future(super().CreateProduct(request, context)))


class FlashSales(FlashSaleServiceServicer):
    """Sends what a test puts in; None ends the stream, an exception fails it."""

    def __init__(self) -> None:
        self.news: asyncio.Queue[sales_pb.FlashSale | Exception | None] = asyncio.Queue()
        self.entered, self.freed = asyncio.Event(), asyncio.Event()

    async def WatchFlashSale(self, request: Any, context: Any) -> AsyncIterator[Any]:  # type: ignore[override]
        self.entered.set()
        try:
            while (latest := await self.news.get()) is not None:
                if isinstance(latest, Exception):
                    raise latest
                yield latest
        finally:
            self.freed.set()


class Server:
    """A client of the HTTP server of one service."""

    def __init__(self, http: HttpServer, port: int, client: aiohttp.ClientSession) -> None:
        self.http, self.port, self.client = http, port, client

    @property
    def state(self) -> Any:
        """uvicorn's connections and the tasks that answer."""
        return self.http._server.server_state

    async def post(self, path: str, body: bytes, *metadata: tuple[str, str]) -> "Reply":
        url = f"http://127.0.0.1:{self.port}{path}"
        async with self.client.post(url, data=io.BytesIO(body), headers=list(metadata)) as reply:
            return Reply(reply, await reply.read())

    async def create(self, *metadata: tuple[str, str]) -> "Reply":
        return await self.post(CREATE, frame(REQUEST), *tokens.as_staff(), *metadata)

    @contextlib.asynccontextmanager
    async def watching(self, sale_id: str = SALE) -> AsyncIterator[aiohttp.ClientResponse]:
        body = frame(sales_pb.WatchFlashSaleRequest(sale_id=sale_id))
        async with self.client.post(f"http://127.0.0.1:{self.port}{WATCH}", data=body) as reply:
            yield reply

    async def get(self, path: str) -> int:
        async with self.client.get(f"http://127.0.0.1:{self.port}{path}") as reply:
            return reply.status

    @contextlib.asynccontextmanager
    async def connected(self) -> AsyncIterator[tuple[asyncio.StreamReader, asyncio.StreamWriter]]:
        """A bare connection; leaving the block closes it."""
        reader, writer = await asyncio.open_connection("127.0.0.1", self.port)
        try:
            yield reader, writer
        finally:
            writer.close()
            with contextlib.suppress(ConnectionError):
                await writer.wait_closed()


class Reply:
    """A whole answer, decoded."""

    def __init__(self, reply: aiohttp.ClientResponse, body: bytes) -> None:
        self.http, self.headers, self.body = reply.status, reply.headers, body
        self.code = int(reply.headers.get("grpc-status", 0))
        self.message = urllib.parse.unquote(reply.headers.get("grpc-message", ""))
        packed = reply.headers.get("grpc-status-details-bin", "")
        self.status = status_pb2.Status.FromString(base64.b64decode(packed, validate=True))
        self.info, self.fields = error_details_pb2.ErrorInfo(), error_details_pb2.BadRequest()
        for detail in self.status.details:
            _ = detail.Unpack(self.info) or detail.Unpack(self.fields)

    @property
    def refused(self) -> tuple[int, str]:
        assert (self.http, self.body) == (200, b"")
        return self.code, self.info.reason


def frame(message: Message) -> bytes:
    body = message.SerializeToString()
    return struct.pack("!BI", 0, len(body)) + body


async def until(true: Callable[[], object]) -> None:
    while not true():  # noqa: ASYNC110 - uvicorn has no event for it
        await asyncio.sleep(0)


async def next_sale(reply: aiohttp.ClientResponse) -> sales_pb.FlashSale:
    compressed, length = struct.unpack("!BI", await reply.content.readexactly(5))
    assert not compressed
    return sales_pb.FlashSale.FromString(await reply.content.readexactly(length))


@contextlib.asynccontextmanager
async def serving(service: str, add: Any, *servicers: Any) -> AsyncIterator[Server]:
    server = HttpServer(service)
    registry = Registry(guard.Guard(service, tokens.gatekeeper(service)), grpc.aio.server(), server)
    for number, servicer in enumerate(servicers):
        (add if number == 0 else add_SnapshotServiceServicer_to_server)(servicer, registry)
    port = server.start("127.0.0.1:0")
    try:
        async with aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=20)) as client:
            yield Server(server, port, client)
    finally:
        await server.stop(1)


@pytest.fixture
def servicer() -> Catalog:
    return Catalog()


@pytest.fixture(autouse=True)
def quiet(caplog: pytest.LogCaptureFixture) -> Any:
    """However a call ends, uvicorn logs nothing."""
    yield
    records = [record for when in ("setup", "call", "teardown") for record in caplog.get_records(when)]
    assert [record.getMessage() for record in records if record.name.startswith("uvicorn")] == []


class Stage(CatalogServiceServicer):
    """Lets many tests share a server, because stopping one takes uvicorn a fifth of a second."""

    now: Catalog

    def CreateProduct(self, request: Any, context: Any) -> Any:
        return self.now.CreateProduct(request, context)


@pytest.fixture(scope="module")
async def stage() -> AsyncIterator[tuple[Server, Stage]]:
    stage = Stage()
    async with serving("catalog", add_CatalogServiceServicer_to_server, stage, SnapshotServiceServicer()) as server:
        yield server, stage


@pytest.fixture
def catalog(stage: tuple[Server, Stage], servicer: Catalog) -> Server:
    server, stage[1].now = stage[0], servicer
    server.http.ready = False
    return server


@pytest.fixture
async def ending(servicer: Catalog) -> AsyncIterator[Server]:
    """A server of catalog for one test alone."""
    async with serving("catalog", add_CatalogServiceServicer_to_server, servicer) as server:
        yield server


@pytest.fixture
async def sales() -> AsyncIterator[tuple[Server, FlashSales]]:
    servicer = FlashSales()
    async with serving("inventory", add_FlashSaleServiceServicer_to_server, servicer) as server:
        yield server, servicer


# -- one answer --------------------------------------------------------------------------------------------------------


async def test_answer_is_one_frame_without_content_length(catalog: Server) -> None:
    reply = await catalog.create()
    assert reply.body == frame(pb.Product(name="Clock"))
    assert (reply.http, reply.headers["content-type"]) == (200, "application/grpc")
    # The transcoder would pass it on as the length of its JSON.
    assert "content-length" not in reply.headers


async def test_refusal_arrives_whole_in_the_headers(catalog: Server, servicer: Catalog) -> None:
    servicer.raises = WrongState(resource="50 % größe\n", state="OLD", wanted="NEW")
    reply = await catalog.create()
    assert reply.refused == (9, "WRONG_STATE")
    message = "The 50 % größe\n is OLD; it cannot become NEW."
    assert (reply.message, reply.status.message, reply.status.code) == (message, message, 9)
    assert reply.info.domain == "catalog.stampede"
    assert reply.info.metadata == {"resource": "50 % größe\n", "state": "OLD", "wanted": "NEW"}
    assert reply.headers["grpc-message"].isascii()
    assert "%25" in reply.headers["grpc-message"]


async def test_retryable_refusal_has_retry_after(catalog: Server, servicer: Catalog) -> None:
    servicer.raises = Unavailable(part="database")
    reply = await catalog.create()
    assert reply.refused == (14, "UNAVAILABLE")
    assert reply.headers["retry-after"] == "1"


@pytest.mark.parametrize("error", [ValueError(SECRET), KeyError(SECRET), AssertionError(SECRET)])
async def test_bug_is_internal_without_details(catalog: Server, servicer: Catalog, error: Exception) -> None:
    servicer.raises = error
    reply = await catalog.create()
    assert (reply.refused, reply.message) == ((13, ""), "Internal error.")
    assert SECRET not in str(reply.headers)


async def test_answer_that_cannot_be_encoded_is_internal(catalog: Server, servicer: Catalog) -> None:
    servicer.answers = SECRET
    reply = await catalog.create()
    assert (reply.refused, reply.message) == ((13, ""), "Internal error.")


async def test_cancellation_inside_a_handler_is_internal(catalog: Server, servicer: Catalog) -> None:
    servicer.raises = asyncio.CancelledError()
    assert (await catalog.create()).refused == (13, "")


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"\0\0\0",
        frame(REQUEST)[:-1],
        frame(REQUEST) + b"\0",
        frame(REQUEST) * 2,
        bytes(5) + REQUEST.SerializeToString(),
        b"\1" + frame(REQUEST)[1:],
        struct.pack("!BI", 0, 2) + b"\xff\xff",
        struct.pack("!BI", 0, 3) + b"\x0a\x01\xff",
    ],
    ids=["nothing", "no-header", "short", "long", "two", "lies", "compressed", "garbage", "not-utf-8"],
)
async def test_malformed_body_is_refused(catalog: Server, servicer: Catalog, body: bytes) -> None:
    reply = await catalog.post(CREATE, body, *tokens.as_staff())
    assert reply.refused == (3, "INVALID_FIELDS")
    assert [violation.field for violation in reply.fields.field_violations] == ["request"]
    assert servicer.call is None


async def test_too_long_body_is_refused_and_the_connection_stays(catalog: Server) -> None:
    async with catalog.connected() as (reader, writer):
        for body, code in ((bytes(4 * 1024 * 1024 + 1), b"3"), (frame(REQUEST), b"16")):
            writer.write(request(CREATE, body))
            assert b"grpc-status: " + code in await reader.readuntil(b"\r\n\r\n")
    (violation,) = (await catalog.post(CREATE, bytes(4 * 1024 * 1024 + 1))).fields.field_violations
    assert (violation.field, violation.description) == ("request", "must have at most 4194304 bytes")


async def test_endless_body_is_refused_before_its_end(catalog: Server) -> None:
    async with asyncio.timeout(60), catalog.connected() as (reader, writer):
        writer.write(request(CREATE, b"").replace(b"length: 0", b"length: 99999999") + bytes(5 * 1024 * 1024))
        assert b"grpc-status: 3" in await reader.readuntil(b"\r\n\r\n")


async def test_longest_allowed_body_is_read(catalog: Server) -> None:
    reply = await catalog.post(CREATE, b"\0" * (4 * 1024 * 1024), *tokens.as_staff())
    assert [violation.description for violation in reply.fields.field_violations] == [
        "is not a message of this method, or contains text that is not UTF-8"
    ]


def request(path: str, body: bytes) -> bytes:
    head = f"POST {path} HTTP/1.1\r\nhost: catalog\r\ncontent-length: {len(body)}\r\n\r\n"
    return head.encode() + body


async def test_pipelined_calls_are_answered_in_order(catalog: Server, servicer: Catalog) -> None:
    bodies = [frame(pb.CreateProductRequest(request_id="1")), b"", frame(REQUEST)]
    async with catalog.connected() as (reader, writer):
        writer.write(b"".join(request(CREATE, body) for body in bodies))
        heads = [await reader.readuntil(b"\r\n\r\n") for _ in bodies]
    assert [head.count(b"grpc-status: 16") for head in heads] == [1, 0, 1]


@pytest.mark.parametrize(
    "path", ["/", "/metrics", "/healthz/", CREATE.lower(), CREATE + "/", CREATE.rpartition("/")[0]]
)
async def test_unknown_path_is_404(catalog: Server, path: str) -> None:
    assert (await catalog.post(path, frame(REQUEST), *tokens.as_staff())).http == 404


async def test_mesh_method_is_not_served(catalog: Server) -> None:
    body = frame(snapshot_pb.GetSnapshotsRequest(product_ids=[SALE]))
    assert (await catalog.post(SNAPSHOTS, body, *tokens.as_service("orders"))).http == 404


async def test_health_follows_readiness(catalog: Server) -> None:
    before = await catalog.get("/healthz"), await catalog.get("/livez")
    catalog.http.ready = True
    after = await catalog.get("/healthz"), await catalog.get("/livez")
    assert (before, after) == ((503, 200), (200, 200))


# -- metadata ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("timeout", "seconds"),
    [("1H", 3600), ("2M", 120), ("14S", 14), ("14000m", 14), ("14000000u", 14), ("99999999n", 0.1), ("0S", 0)],
)
async def test_deadline_reaches_the_handler(catalog: Server, servicer: Catalog, timeout: str, seconds: float) -> None:
    began = time.monotonic()
    await catalog.create(("grpc-timeout", timeout))
    ended = time.monotonic()
    assert servicer.call
    assert servicer.call.deadline
    assert began + seconds <= servicer.call.deadline + 0.001
    assert servicer.call.deadline <= ended + seconds


@pytest.mark.parametrize(
    "rubbish", ["", "S", "14", "14s", "-1S", "1.5S", "123456789S", "\u00b2S", "1e3S", "٣S", " 1S1"]
)
async def test_malformed_deadline_is_no_limit(catalog: Server, servicer: Catalog, rubbish: str) -> None:
    reply = await catalog.create(("grpc-timeout", rubbish))
    assert (reply.http, reply.code) == (200, 0)
    assert servicer.call
    assert servicer.call.deadline is None


async def test_metadata_may_contain_any_byte(catalog: Server, servicer: Catalog) -> None:
    reply = await catalog.create(("x-note", "größe \u20ac"), ("idempotency-key", "größe \u20ac"))
    assert reply.code == 0
    assert servicer.call
    assert str(servicer.call.metadata["x-note"]).encode("latin-1").decode() == "größe \u20ac"


async def test_metadata_that_grpc_cannot_carry_is_not_forwarded(catalog: Server, servicer: Catalog) -> None:
    await catalog.create(("x-request-id", "größe"), ("traceparent", "größe"))
    assert servicer.call
    assert uuid.UUID(servicer.call.request_id)
    assert servicer.call.traceparent == ""
    await catalog.create(("x-request-id", "trace-me"), ("traceparent", "00-1-2-01"))
    assert (servicer.call.request_id, servicer.call.traceparent) == ("trace-me", "00-1-2-01")


async def test_token_that_is_not_ascii_is_refused(catalog: Server) -> None:
    reply = await catalog.post(CREATE, frame(REQUEST), ("authorization", "Bearer größe.größe.größe"))
    assert reply.refused == (16, "UNAUTHENTICATED")


async def test_cancellation_without_a_reason_is_reported(
    catalog: Server, servicer: Catalog, caplog: pytest.LogCaptureFixture
) -> None:
    """Only a disconnect and the end of the process are reasons."""
    servicer.gate.clear()
    call = asyncio.create_task(catalog.create())
    await servicer.entered.wait()
    for task in catalog.state.tasks:
        task.cancel()
    assert (await call).http == 500
    assert [record.exc_info is not None for record in caplog.records] == [True]
    caplog.clear()


# -- disconnects -------------------------------------------------------------------------------------------------------


async def call_and_disconnect(server: Server, servicer: Catalog) -> None:
    """Sends a call, and disconnects when the handler has begun."""
    servicer.gate.clear()
    async with server.connected() as (_, writer):
        token = "\r\n".join(": ".join(pair) for pair in tokens.as_staff())
        writer.write(request(CREATE, frame(REQUEST)).replace(b"host: catalog", token.encode()))
        await servicer.entered.wait()


async def test_disconnect_cancels_a_slow_handler(
    catalog: Server, servicer: Catalog, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(http_server, "_DISCONNECT_POLL_SECONDS", 0.01)
    async with asyncio.timeout(60):
        await call_and_disconnect(catalog, servicer)
        assert await servicer.ended.get() == "cancelled"
    servicer.gate.set()
    assert (await catalog.create()).code == 0


async def test_handler_finishes_what_it_shields(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(http_server, "_DISCONNECT_POLL_SECONDS", 0.01)
    servicer = Stubborn()
    async with asyncio.timeout(60), serving("catalog", add_CatalogServiceServicer_to_server, servicer) as server:
        await call_and_disconnect(server, servicer)
        await until(lambda: not server.state.tasks)
        servicer.gate.set()
        assert await servicer.ended.get() == "finished"


async def test_disconnect_does_not_cancel_a_fast_handler(catalog: Server, servicer: Catalog) -> None:
    """Polling for the disconnect would cost more than finishing."""
    async with asyncio.timeout(60):
        others = catalog.state.connections.copy()
        await call_and_disconnect(catalog, servicer)
        await until(lambda: catalog.state.connections <= others)
        servicer.gate.set()
        assert await servicer.ended.get() == "finished"


async def test_incomplete_request_is_not_a_call(catalog: Server, servicer: Catalog) -> None:
    async with asyncio.timeout(60):
        async with catalog.connected() as (_, writer):
            writer.write(request(CREATE, frame(REQUEST))[:-1])
            await until(lambda: catalog.state.tasks)
        await until(lambda: not catalog.state.tasks)
    assert servicer.call is None


# -- many answers ------------------------------------------------------------------------------------------------------


async def test_stream_sends_each_message_at_once(sales: tuple[Server, FlashSales]) -> None:
    server, servicer = sales
    servicer.news.put_nowait(sales_pb.FlashSale(remaining=2))
    async with server.watching() as reply:
        assert (reply.status, reply.headers["content-type"]) == (200, "application/grpc")
        assert (await next_sale(reply)).remaining == 2
        servicer.news.put_nowait(sales_pb.FlashSale(remaining=1))
        assert (await next_sale(reply)).remaining == 1
        servicer.news.put_nowait(None)
        assert await reply.read() == b""
    assert servicer.freed.is_set()


async def test_stream_may_be_empty(sales: tuple[Server, FlashSales]) -> None:
    server, servicer = sales
    servicer.news.put_nowait(None)
    async with server.watching() as reply:
        assert (reply.status, await reply.read(), "grpc-status" in reply.headers) == (200, b"", False)


async def test_stream_is_refused_before_its_first_message(sales: tuple[Server, FlashSales]) -> None:
    server, servicer = sales
    async with server.watching("no id") as reply:
        assert Reply(reply, await reply.read()).refused == (3, "INVALID_FIELDS")
    servicer.news.put_nowait(WrongState(resource="sale", state="ENDED", wanted="LIVE"))
    async with server.watching() as reply:
        assert Reply(reply, await reply.read()).refused == (9, "WRONG_STATE")
    servicer.news.put_nowait(ValueError(SECRET))
    async with server.watching() as reply:
        assert Reply(reply, await reply.read()).refused == (13, "")


@pytest.mark.parametrize("error", [WrongState(resource="sale", state="ENDED", wanted="LIVE"), ValueError(SECRET)])
async def test_stream_that_fails_after_a_message_ends(sales: tuple[Server, FlashSales], error: Exception) -> None:
    server, servicer = sales
    servicer.news.put_nowait(sales_pb.FlashSale(remaining=2))
    servicer.news.put_nowait(error)
    async with server.watching() as reply:
        assert (await next_sale(reply)).remaining == 2
        assert await reply.read() == b""
    assert servicer.freed.is_set()


async def test_disconnect_closes_the_stream_at_once(sales: tuple[Server, FlashSales]) -> None:
    server, servicer = sales
    for begun in (True, False):
        servicer.entered.clear()
        servicer.freed.clear()
        async with asyncio.timeout(60), server.connected() as (reader, writer):
            writer.write(request(WATCH, frame(sales_pb.WatchFlashSaleRequest(sale_id=SALE))))
            await servicer.entered.wait()
            if begun:
                servicer.news.put_nowait(sales_pb.FlashSale())
                await reader.readuntil(b"\r\n\r\n")
        async with asyncio.timeout(60):
            await servicer.freed.wait()


async def test_closed_stream_closes_its_generator_at_once() -> None:
    """Not at some later garbage collection."""
    servicer = FlashSales()
    stream = guard.Guard("inventory", tokens.gatekeeper("inventory")).stream(WATCH, servicer.WatchFlashSale)
    servicer.news.put_nowait(sales_pb.FlashSale())
    outcomes = stream(sales_pb.WatchFlashSaleRequest(sale_id=SALE), {})
    await anext(outcomes)
    await outcomes.aclose()
    assert servicer.freed.is_set()


class Flood(FlashSaleServiceServicer):
    """Sends as much as the client reads."""

    def __init__(self) -> None:
        self.sent, self.freed = 0, asyncio.Event()

    async def WatchFlashSale(self, request: Any, context: Any) -> AsyncIterator[Any]:  # type: ignore[override]
        try:
            while True:
                yield sales_pb.FlashSale(title="x" * 100_000)
                self.sent += 1
                await asyncio.sleep(0)
        finally:
            self.freed.set()


async def until_blocked(flood: Flood) -> int:
    """Returns how much was sent when sending has stopped."""
    before = -1
    while flood.sent != before:
        before = flood.sent
        for _ in range(1000):
            await asyncio.sleep(0)
    return before


async def test_stream_waits_for_a_slow_reader(monkeypatch: pytest.MonkeyPatch) -> None:
    flood = Flood()
    async with asyncio.timeout(60), serving("inventory", add_FlashSaleServiceServicer_to_server, flood) as server:
        async with server.watching() as reply:
            sent = await until_blocked(flood)
            for _ in range(sent + 10):
                await next_sale(reply)
            assert flood.sent > sent
            await until_blocked(flood)
            assert not flood.freed.is_set()
        await flood.freed.wait()


# -- the drain ---------------------------------------------------------------------------------------------------------


async def test_drain_ends_streams_and_finishes_calls(
    sales: tuple[Server, FlashSales], ending: Server, servicer: Catalog
) -> None:
    shop, watched = sales
    watched.news.put_nowait(sales_pb.FlashSale(remaining=2))
    servicer.gate.clear()
    async with asyncio.timeout(60), shop.watching() as reply:
        assert (await next_sale(reply)).remaining == 2
        call = asyncio.create_task(ending.create())
        await servicer.entered.wait()
        ends = [asyncio.create_task(server.http.stop(5)) for server in (shop, ending)]
        assert await reply.read() == b""
        assert watched.freed.is_set()
        with pytest.raises(aiohttp.ClientConnectorError):
            while True:  # until nothing listens there
                await ending.get("/healthz")
        assert not call.done()
        servicer.gate.set()
        assert (await call).code == 0
        await asyncio.gather(*ends)


async def test_drain_refuses_streams_without_a_message_as_unavailable(sales: tuple[Server, FlashSales]) -> None:
    server, servicer = sales
    async with asyncio.timeout(60):
        watching = asyncio.create_task(server.post(WATCH, frame(sales_pb.WatchFlashSaleRequest(sale_id=SALE))))
        await servicer.entered.wait()
        async with server.connected() as (reader, writer):
            end = asyncio.create_task(server.http.stop(5))
            assert (await watching).refused == (14, "UNAVAILABLE")
            # A stream that begins during the drain.
            writer.write(request(WATCH, frame(sales_pb.WatchFlashSaleRequest(sale_id=SALE))))
            assert b"grpc-status: 14\r\n" in await reader.readuntil(b"\r\n\r\n")
        await end


class Parting(FlashSaleServiceServicer):
    """Cleans up when its stream ends."""

    def __init__(self) -> None:
        self.entered, self.left, self.gate, self.done = (asyncio.Event() for _ in range(4))

    async def WatchFlashSale(self, request: Any, context: Any) -> AsyncIterator[Any]:  # type: ignore[override]
        try:
            self.entered.set()
            await asyncio.Event().wait()
            yield
        finally:
            self.left.set()
            await self.gate.wait()
            self.done.set()


async def test_drain_does_not_interrupt_cleanup_of_a_stream() -> None:
    parting = Parting()
    async with asyncio.timeout(60), serving("inventory", add_FlashSaleServiceServicer_to_server, parting) as server:
        async with server.connected() as (_, writer):
            writer.write(request(WATCH, frame(sales_pb.WatchFlashSaleRequest(sale_id=SALE))))
            await parting.entered.wait()
        await parting.left.wait()
        end = asyncio.create_task(server.http.stop(5))
        await asyncio.sleep(0)
        parting.gate.set()
        await end
        assert parting.done.is_set()


async def test_drain_refuses_calls_that_take_too_long_as_unavailable(
    ending: Server, servicer: Catalog, caplog: pytest.LogCaptureFixture
) -> None:
    servicer.gate.clear()
    async with asyncio.timeout(60):
        call = asyncio.create_task(ending.create())
        await servicer.entered.wait()
        await ending.http.stop(0.01)
        assert not ending.state.tasks
        assert (await call).refused == (14, "UNAVAILABLE")
        assert await servicer.ended.get() == "cancelled"
    assert [record.levelno for record in caplog.records if record.exc_info] == []
    caplog.clear()


async def test_client_that_does_not_read_does_not_delay_the_drain(caplog: pytest.LogCaptureFixture) -> None:
    flood = Flood()
    add = add_FlashSaleServiceServicer_to_server
    async with asyncio.timeout(60), serving("inventory", add, flood) as server, server.watching():
        await until_blocked(flood)
        await server.http.stop(0.01)
        await flood.freed.wait()
    assert [record.levelno for record in caplog.records if record.exc_info] == []
    caplog.clear()
