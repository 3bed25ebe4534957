"""The HTTP server for the gateway: gRPC's messages over plain HTTP/1.1, at a fraction of the cost (docs/adr/0006).

A call is a POST of one gRPC frame to `/package.Service/Method`. The answer is 200 with one frame, or many for a stream,
and no trailers. A refusal is 200 without a body and with the status in the headers, as gRPC's "trailers only".
Envoy's transcoder accepts both as the answers of a gRPC server.
"""

import asyncio
import base64
import contextlib
import re
import socket
import struct
from collections.abc import Awaitable, Callable, Iterator
from functools import lru_cache
from typing import Any
from urllib.parse import quote

import structlog
import uvicorn
from google.protobuf.message import Message

from services.chassis.errors import InvalidFields, Unavailable
from services.chassis.request_context import Metadata
from services.chassis.server import statuses
from services.chassis.server.guard import Stream, Unary
from services.chassis.server.statuses import INTERNAL, Answer
from services.chassis.server.watch import DROPPED

log = structlog.get_logger()

# The gateway closes idle connections after a minute. If this side did, the gateway could send into a closing one.
_IDLE_SECONDS = 90
_BACKLOG = 4096
# uvloop accepts one connection of each listener in a turn of its loop; in a rush, turns are long and connections many.
_LISTENERS = 8
_BODY_BYTES_MAX = 4 * 1024 * 1024
# Polling for a disconnect costs more than finishing a call shorter than this.
_DISCONNECT_POLL_SECONDS = 1.0
# A drain closes the connections after this many consecutive checks without a new call.
_IDLE_CHECKS, _CHECK_SECONDS = 5, 0.02
# Calls that are cancelled at the end of a drain have this long to answer.
_CANCEL_SECONDS = 1.0
_FRAME = struct.Struct("!BI")
_TIMEOUT = re.compile(r"([0-9]{1,8})([HMSmun])")
_UNITS = {"H": 3600.0, "M": 60.0, "S": 1.0, "m": 1e-3, "u": 1e-6, "n": 1e-9}
_CONTENT_TYPE = (b"content-type", b"application/grpc")

Headers = list[tuple[bytes, bytes]]
Decode = Callable[[bytes], Message | None]
Encode = Callable[[Any], bytes]
Receive = Callable[[], Awaitable[dict[str, Any]]]
Send = Callable[[dict[str, Any]], Awaitable[None]]


class HttpServer:
    """An ASGI application that answers the methods added to it, and the server that runs it.

    `GET /healthz` returns 200 while `ready`, else 503. `GET /livez` returns 200 while the process answers and no
    background task is `dead`, else 503 with their names.
    """

    def __init__(self, service: str) -> None:
        self.ready, self.dead = False, ""
        self._methods: dict[str, Callable[[bytes, Metadata, Receive, Send], Awaitable[None]]] = {}
        self._streams: set[asyncio.Task[Any]] = set()
        self._calls, self._stopping = 0, False
        domain = f"{service}.stampede"
        self._unavailable = statuses.answer(Unavailable(part=service), domain)
        too_long = {"request": f"must have at most {_BODY_BYTES_MAX} bytes"}
        self._too_long = statuses.answer(InvalidFields(too_long), domain)

    def add_unary(self, method: str, guarded: Unary, decode: Decode, encode: Encode) -> None:
        """Serves `/package.Service/Method`."""

        async def answer(body: bytes, metadata: Metadata, receive: Receive, send: Send) -> None:
            outcome: Message | Answer = self._unavailable
            try:
                with _until_disconnected(receive, after=_DISCONNECT_POLL_SECONDS):
                    outcome = await guarded(_request(body, decode), metadata, _seconds(metadata.get("grpc-timeout")))
            except asyncio.CancelledError:
                if not self._stopping:
                    raise
            if isinstance(outcome, Answer):
                await _refuse(outcome, send)
            else:
                message = encode(outcome)
                # No content-length: the transcoder would pass it on as that of its JSON.
                await _start(send, [_CONTENT_TYPE])
                await _frame(message, send, more=False)

        self._methods[method] = answer

    def add_stream(self, method: str, guarded: Stream, decode: Decode, encode: Encode) -> None:
        """As `add_unary`, for a method with many responses."""

        async def answer(body: bytes, metadata: Metadata, receive: Receive, send: Send) -> None:
            if self._stopping:
                await _refuse(self._unavailable, send)
                return
            outcome: Message | Answer | None = self._unavailable
            begun = False
            try:
                with self._open_stream(), _until_disconnected(receive, after=0):
                    async with contextlib.aclosing(guarded(_request(body, decode), metadata)) as outcomes:
                        async for outcome in outcomes:
                            if isinstance(outcome, Answer):
                                break
                            message = encode(outcome)
                            if not begun:
                                await _start(send, [_CONTENT_TYPE])
                                begun = True
                            await _frame(message, send, more=True)
                        else:
                            outcome = None
            except asyncio.CancelledError as cancelled:
                if cancelled.args != (DROPPED,):
                    raise
                return  # no end of the body, which would queue behind unread messages: uvicorn closes
            if isinstance(outcome, Answer) and not begun:
                await _refuse(outcome, send)
                return
            # After the first message a refusal cannot be sent; the client reconnects and receives it then.
            if not begun:
                await _start(send, [_CONTENT_TYPE])
            await send({"type": "http.response.body", "body": b""})

        self._methods[method] = answer

    async def __call__(self, scope: dict[str, Any], receive: Receive, send: Send) -> None:
        answer = self._methods.get(scope["path"])
        if answer is None:
            await self._plain(scope["path"], send)
            return
        self._calls += 1
        try:
            body = await _body(receive)
            if body is None:
                return  # disconnected
            if len(body) > _BODY_BYTES_MAX:
                await _refuse(self._too_long, send)
                return
            metadata: Metadata = {name.decode("ascii"): value.decode("latin-1") for name, value in scope["headers"]}
            await answer(body, metadata, receive, send)
        except asyncio.CancelledError:
            if not self._stopping:
                raise
            # The drain ended before the client had sent or received all of it.
        except Exception:
            # The guard maps what handlers raise: this is a message that cannot be encoded, or a bug here.
            log.exception("unexpected failure", method=scope["path"])
            await _refuse(INTERNAL, send)

    def start(self, address: str) -> int:
        """Listens on `host:port` and returns the port; for 0, a free one."""
        host, _, port = address.rpartition(":")
        host = host.strip("[]")
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        listener = socket.create_server((host, int(port)), family=family, backlog=_BACKLOG)
        config = uvicorn.Config(
            self, http="httptools", ws="none", lifespan="off", interface="asgi3", log_config=None, log_level="warning",
            access_log=False, proxy_headers=False, server_header=False, date_header=False, backlog=_BACKLOG,
            timeout_keep_alive=_IDLE_SECONDS,
        )  # fmt: skip
        self._server = _Server(config)
        listeners = [listener, *(listener.dup() for _ in range(_LISTENERS - 1))]
        self._serving = asyncio.create_task(self._server.serve(sockets=listeners))
        bound: int = listener.getsockname()[1]
        return bound

    async def stop(self, seconds: float) -> None:
        """Ends streams, lets other calls finish within `seconds` (then they are `UNAVAILABLE`), and closes all.

        Turn `ready` off before, so that the gateway sends new calls elsewhere.
        """
        ends = asyncio.get_running_loop().time() + seconds
        self._stopping = True
        for stream in self._streams:
            if not stream.cancelling():  # do not interrupt its cleanup
                stream.cancel()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(seconds / 2):
                await self._wait_for_silence()
        # Its type says int, but uvicorn accepts fractions.
        self._server.config.timeout_graceful_shutdown = ends - asyncio.get_running_loop().time()  # type: ignore[assignment]
        self._server.should_exit = True
        await self._serving
        if cancelled := self._server.server_state.tasks:
            await asyncio.wait(cancelled, timeout=_CANCEL_SECONDS)

    async def _wait_for_silence(self) -> None:
        """Returns when no more calls arrive.

        In a rush the kernel holds calls that have not arrived here; closing their connections would lose them.
        """
        silent = 0
        while silent < _IDLE_CHECKS:
            before = self._calls
            await asyncio.sleep(_CHECK_SECONDS)
            silent = silent + 1 if self._calls == before else 0

    @contextlib.contextmanager
    def _open_stream(self) -> Iterator[None]:
        """Leaves the block without an error if `stop` cancels it."""
        task = asyncio.current_task()
        assert task
        self._streams.add(task)
        try:
            yield
        except asyncio.CancelledError:
            if not self._stopping:
                raise
        finally:
            self._streams.discard(task)

    async def _plain(self, path: str, send: Send) -> None:
        status = {"/healthz": 200 if self.ready else 503, "/livez": 503 if self.dead else 200}.get(path, 404)
        body = self.dead.encode() if path == "/livez" else b""
        await _start(send, [(b"content-length", b"%d" % len(body))], status)
        await send({"type": "http.response.body", "body": body})


class _Server(uvicorn.Server):
    """A server that leaves signals to the process."""

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


@contextlib.contextmanager
def _until_disconnected(receive: Receive, *, after: float) -> Iterator[None]:
    """Cancels the block when the client disconnects, and leaves it without an error; polls from `after` seconds on.

    Other cancellations pass through. Another task polls. It can cancel the block only while that waits inside, because
    it ends before the block is left.
    """
    loop, block = asyncio.get_running_loop(), asyncio.current_task()
    assert block
    polling: list[asyncio.Task[None]] = []
    cancelled_before, disconnected = block.cancelling(), False

    async def poll() -> None:
        nonlocal disconnected
        while (await receive())["type"] != "http.disconnect":
            pass
        disconnected = True
        block.cancel()

    timer = loop.call_later(after, lambda: polling.append(loop.create_task(poll())))
    try:
        yield
    except asyncio.CancelledError:
        if not disconnected or block.cancelling() > cancelled_before + 1:
            raise
    finally:
        timer.cancel()
        for task in polling:
            task.cancel()
        if disconnected:
            block.uncancel()


async def _body(receive: Receive) -> bytes | None:
    """Returns the body, or a beginning of it that is too long; None if the client disconnects before its end."""
    body = b""
    while len(body) <= _BODY_BYTES_MAX:
        message = await receive()
        if message["type"] == "http.disconnect":
            return None
        body += message["body"]
        if not message["more_body"]:
            break
    return body


def _request(body: bytes, decode: Decode) -> Message | None:
    """Returns the message in the one frame of `body`; None if it is malformed."""
    if len(body) < _FRAME.size:
        return None
    compressed, length = _FRAME.unpack_from(body)
    if compressed or length != len(body) - _FRAME.size:
        return None
    return decode(body[_FRAME.size :])


def _seconds(timeout: str | bytes | None) -> float | None:
    """Parses `grpc-timeout`, such as 14S. A malformed one is no limit, as for gRPC."""
    found = _TIMEOUT.fullmatch(str(timeout)) if timeout else None
    return int(found[1]) * _UNITS[found[2]] if found else None


async def _start(send: Send, headers: Headers, status: int = 200) -> None:
    await send({"type": "http.response.start", "status": status, "headers": headers})


async def _frame(message: bytes, send: Send, *, more: bool) -> None:
    body = _FRAME.pack(0, len(message)) + message
    await send({"type": "http.response.body", "body": body, "more_body": more})


async def _refuse(answer: Answer, send: Send) -> None:
    await _start(send, _refusal(answer))
    await send({"type": "http.response.body", "body": b""})


# In a rush nearly all answers are the same refusal of the same sale.
@lru_cache(maxsize=512)
def _refusal(answer: Answer) -> Headers:
    return [
        _CONTENT_TYPE,
        (b"content-length", b"0"),
        (b"grpc-status", b"%d" % answer.code.value[0]),
        (b"grpc-message", quote(answer.message, safe=" !\"#$&'()*+,/:;<=>?@[]^`{|}~").encode("ascii")),
        *((name.encode("ascii"), base64.b64encode(value)) for name, value in answer.trailing),
        *((name.encode("ascii"), value.encode("ascii")) for name, value in answer.initial),
    ]
