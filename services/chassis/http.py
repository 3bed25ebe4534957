"""The gateway's side of a service: gRPC's messages over plain HTTP/1.1, at a fraction of the cost (docs/adr/0006).

A call is a POST of one gRPC frame to `/package.Service/Method`. The answer is 200 with one frame, or many for a stream,
and no trailers. A refusal is 200 without a body, its status in the headers, as in gRPC where nothing was said before.
Envoy's transcoder takes both for the answers of a gRPC server.
"""

import asyncio
import base64
import contextlib
import struct
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from functools import lru_cache
from typing import Any
from urllib.parse import quote

import structlog
import uvicorn
from google.protobuf.message import Message

from services.chassis.calls import Metadata
from services.chassis.guard import Stream, Unary
from services.chassis.statuses import INTERNAL, Answer
from services.chassis.watch import DROPPED

log = structlog.get_logger()

# The gateway closes idle connections after a minute. Were it ours to do so, it could send into one that is closing.
_IDLE_SECONDS = 90
_BODY_BYTES_MOST = 4 * 1024 * 1024
# Before this long, whoever hung up costs less than to ask whether they did.
_PATIENCE_SECONDS = 1.0
_FRAME = struct.Struct("!BI")
_UNITS = {"H": 3600.0, "M": 60.0, "S": 1.0, "m": 1e-3, "u": 1e-6, "n": 1e-9}
_CONTENT_TYPE = (b"content-type", b"application/grpc")

Headers = list[tuple[bytes, bytes]]
Decode = Callable[[bytes], Message | None]
Encode = Callable[[Any], bytes]
Receive = Callable[[], Awaitable[dict[str, Any]]]
Send = Callable[[dict[str, Any]], Awaitable[None]]


class HttpServer:
    """An ASGI application that answers the methods added to it. `GET /healthz` says 200 while `ready`, else 503."""

    def __init__(self) -> None:
        self.ready = False
        self._methods: dict[str, Callable[[bytes, Metadata, Receive, Send], Awaitable[None]]] = {}
        self._streams: set[asyncio.Task[Any]] = set()
        self._ending = False

    def add_unary(self, method: str, guarded: Unary, decode: Decode, encode: Encode) -> None:
        """Serves `/package.Service/Method`."""

        async def answer(body: bytes, metadata: Metadata, receive: Receive, send: Send) -> None:
            with _until_hung_up(receive, after=_PATIENCE_SECONDS):
                outcome = await guarded(_request(body, decode), metadata, _seconds(metadata.get("grpc-timeout")))
                if isinstance(outcome, Answer):
                    await _refuse(outcome, send)
                else:
                    # Without a length, which the transcoder would pass on as that of its JSON.
                    await _start(send, [_CONTENT_TYPE])
                    await _frame(encode(outcome), send, more=False)

        self._methods[method] = answer

    def add_stream(self, method: str, guarded: Stream, decode: Decode, encode: Encode) -> None:
        """As `add_unary`, for a method that answers many times."""

        async def answer(body: bytes, metadata: Metadata, receive: Receive, send: Send) -> None:
            outcomes = guarded(_request(body, decode), metadata)
            try:
                with self._open_stream(), _until_hung_up(receive, after=0):
                    async with contextlib.aclosing(outcomes):
                        first = await anext(outcomes, None)
                        if isinstance(first, Answer):
                            await _refuse(first, send)
                            return
                        await _start(send, [_CONTENT_TYPE])
                        if first is not None:
                            await _frame(encode(first), send, more=True)
                        async for outcome in outcomes:
                            if isinstance(outcome, Answer):
                                break  # too late to say why; whoever watches comes back, and is told
                            await _frame(encode(outcome), send, more=True)
            except asyncio.CancelledError as cancelled:
                if cancelled.args != (DROPPED,):
                    raise
                return  # without an end, which would wait behind what the client does not read: uvicorn closes
            await send({"type": "http.response.body", "body": b""})

        self._methods[method] = answer

    async def __call__(self, scope: dict[str, Any], receive: Receive, send: Send) -> None:
        answer = self._methods.get(scope["path"])
        if answer is None:
            await self._plain(scope["path"], send)
            return
        body = await _body(receive)
        if body is None:
            return  # hung up, or too long to be meant well
        metadata: Metadata = {name.decode("ascii"): value.decode("latin-1") for name, value in scope["headers"]}
        try:
            await answer(body, metadata, receive, send)
        except Exception:
            # The guard foresees what handlers raise: this is a message that cannot be encoded, or a bug here.
            log.exception("unforeseen failure", method=scope["path"])
            await _refuse(INTERNAL, send)

    @contextlib.asynccontextmanager
    async def listening(self, address: str, *, drain_seconds: float) -> AsyncIterator[None]:
        """Answers on `host:port`. At the end, streams are ended and what is in flight may still finish."""
        host, _, port = address.rpartition(":")
        config = uvicorn.Config(
            self, host=host, port=int(port), http="httptools", ws="none", lifespan="off", interface="asgi3",
            log_config=None, log_level="warning", access_log=False, proxy_headers=False, server_header=False,
            date_header=False, timeout_keep_alive=_IDLE_SECONDS, timeout_graceful_shutdown=int(drain_seconds),
            backlog=4096,
        )  # fmt: skip
        server = _Server(config)
        serving = asyncio.create_task(server.serve())
        try:
            yield
        finally:
            self._ending = True
            for stream in self._streams:
                stream.cancel()
            server.should_exit = True
            await serving

    @contextlib.contextmanager
    def _open_stream(self) -> Iterator[None]:
        task = asyncio.current_task()
        assert task
        self._streams.add(task)
        try:
            yield
        except asyncio.CancelledError:
            if not self._ending:
                raise
        finally:
            self._streams.discard(task)

    async def _plain(self, path: str, send: Send) -> None:
        status = (200 if self.ready else 503) if path == "/healthz" else 404
        await _start(send, [(b"content-length", b"0")], status)
        await send({"type": "http.response.body", "body": b""})


class _Server(uvicorn.Server):
    """Leaves signals to the process."""

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


@contextlib.contextmanager
def _until_hung_up(receive: Receive, *, after: float) -> Iterator[None]:
    """Cancels the block when the client hangs up; looks from `after` seconds on."""
    loop, block = asyncio.get_running_loop(), asyncio.current_task()
    assert block
    looking: list[asyncio.Task[None]] = []
    gone = False

    async def look() -> None:
        nonlocal gone
        while (await receive())["type"] != "http.disconnect":
            pass
        gone = True
        block.cancel()

    timer = loop.call_later(after, lambda: looking.append(loop.create_task(look())))
    try:
        yield
    except asyncio.CancelledError:
        if not gone:
            raise
    finally:
        timer.cancel()
        for task in looking:
            task.cancel()


async def _body(receive: Receive) -> bytes | None:
    message = await receive()
    body: bytes = message.get("body", b"")
    while message.get("more_body"):
        message = await receive()
        body += message.get("body", b"")
        if len(body) > _BODY_BYTES_MOST:
            return None
    return None if message["type"] == "http.disconnect" else body


def _request(body: bytes, decode: Decode) -> Message | None:
    """The message in the one frame of `body`; None where it is none."""
    if len(body) < _FRAME.size:
        return None
    compressed, length = _FRAME.unpack_from(body)
    if compressed or length != len(body) - _FRAME.size:
        return None
    return decode(body[_FRAME.size :])


def _seconds(timeout: str | bytes | None) -> float | None:
    """`grpc-timeout`, such as 14S."""
    if not timeout:
        return None
    return int(timeout[:-1]) * _UNITS[str(timeout[-1])]


async def _start(send: Send, headers: Headers, status: int = 200) -> None:
    await send({"type": "http.response.start", "status": status, "headers": headers})


async def _frame(message: bytes, send: Send, *, more: bool) -> None:
    body = _FRAME.pack(0, len(message)) + message
    await send({"type": "http.response.body", "body": body, "more_body": more})


async def _refuse(answer: Answer, send: Send) -> None:
    await _start(send, _refusal(answer))
    await send({"type": "http.response.body", "body": b""})


# In a rush nearly all answers are the same refusal of the same sale.
@lru_cache(maxsize=4096)
def _refusal(answer: Answer) -> Headers:
    return [
        _CONTENT_TYPE,
        (b"content-length", b"0"),
        (b"grpc-status", b"%d" % answer.code.value[0]),
        (b"grpc-message", quote(answer.message, safe=" !\"#$&'()*+,/:;<=>?@[]^`{|}~").encode("ascii")),
        *((name.encode("ascii"), base64.b64encode(value)) for name, value in answer.trailing),
        *((name.encode("ascii"), value.encode("ascii")) for name, value in answer.initial),
    ]
