"""A disconnect ends the call of its client and nothing else, whenever it happens."""

import asyncio
import socket
from collections.abc import AsyncGenerator
from itertools import product
from typing import Any

import pytest
import uvloop
from google.protobuf.empty_pb2 import Empty

from services.chassis.server import http_server
from services.chassis.server.http_server import HttpServer, _until_disconnected

NEVER = 99


class Moments:
    """A call of `length` steps, which races with a disconnect and with a cancellation."""

    def __init__(self, length: int, *, disconnects: int, cancelled: int = NEVER, cleans_up: int = 0) -> None:
        self._length, self._disconnects, self._cancelled, self._cleans_up = length, disconnects, cancelled, cleans_up
        self.steps, self.left, self.went_on = 0, False, False

    async def run(self) -> "asyncio.Task[None]":
        call = asyncio.ensure_future(self._call())
        other = asyncio.ensure_future(self._cancel(call))
        await asyncio.wait([call])
        other.cancel()
        return call

    async def _call(self) -> None:
        with _until_disconnected(self._receive, after=0):
            try:
                for _ in range(self._length):
                    await asyncio.sleep(0)
                    self.steps += 1
            finally:
                for _ in range(self._cleans_up):
                    await asyncio.sleep(0)
        self.left = True
        for _ in range(40):  # what uvicorn does afterwards
            await asyncio.sleep(0)
        self.went_on = True

    async def _receive(self) -> dict[str, Any]:
        for _ in range(self._disconnects):
            await asyncio.sleep(0)
        return {"type": "http.disconnect"}

    async def _cancel(self, call: "asyncio.Task[None]") -> None:
        for _ in range(self._cancelled):
            await asyncio.sleep(0)
        call.cancel()


@pytest.mark.parametrize("cleans_up", [0, 3])
async def test_disconnect_ends_the_call_and_nothing_after_it(cleans_up: int) -> None:
    interrupted = 0
    for length, disconnects in product(range(12), range(12)):
        moments = Moments(length, disconnects=disconnects, cleans_up=cleans_up)
        call = await moments.run()
        assert not call.cancelled(), (length, disconnects)
        assert call.exception() is None
        assert moments.went_on, (length, disconnects)
        assert call.cancelling() == 0, (length, disconnects)
        interrupted += moments.steps < length
    assert interrupted > 30


@pytest.mark.parametrize("cleans_up", [0, 3])
async def test_other_cancellation_passes_through(cleans_up: int) -> None:
    for length, disconnects, cancelled in product(range(8), [*range(12), NEVER], range(12)):
        moments = Moments(length, disconnects=disconnects, cancelled=cancelled, cleans_up=cleans_up)
        call = await moments.run()
        assert call.cancelled(), (length, disconnects, cancelled)
        assert not moments.went_on


async def test_call_of_a_connected_client_is_not_cancelled() -> None:
    moments = Moments(50, disconnects=NEVER)
    call = await moments.run()
    assert (moments.steps, moments.left, call.cancelling()) == (50, True, 0)


async def test_call_that_survives_a_disconnect_is_not_left_cancelled() -> None:
    async def receive() -> dict[str, Any]:
        return {"type": "http.disconnect"}

    async def stubborn() -> None:
        with _until_disconnected(receive, after=0):
            try:
                await asyncio.Event().wait()
            except asyncio.CancelledError:
                await asyncio.sleep(0)
        # If the task still counted as cancelled, this timeout would not be recognised as one.
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0):
                await asyncio.Event().wait()

    await asyncio.ensure_future(stubborn())


async def test_exception_during_a_disconnect_is_raised() -> None:
    async def receive() -> dict[str, Any]:
        return {"type": "http.disconnect"}

    async def fails() -> None:
        with _until_disconnected(receive, after=0):
            try:
                await asyncio.Event().wait()
            finally:
                raise ValueError

    with pytest.raises(ValueError):
        await asyncio.ensure_future(fails())


async def test_stream_that_cannot_be_sent_is_closed() -> None:
    closed = False

    async def outcomes(_request: Any, _metadata: Any) -> AsyncGenerator[Any, None]:
        nonlocal closed
        try:
            while True:
                yield Empty()
        finally:
            await asyncio.sleep(0)
            closed = True

    async def receive() -> dict[str, Any]:
        return {"type": "http.request", "body": b"\0\0\0\0\0", "more_body": False}

    async def send(_message: dict[str, Any]) -> None:
        raise ConnectionError

    server = HttpServer("inventory")
    server.add_stream("/Watch", outcomes, Empty.FromString, Empty.SerializeToString)
    with pytest.raises(ConnectionError):
        await server({"path": "/Watch", "headers": []}, receive, send)
    assert closed


async def test_drain_waits_while_calls_arrive(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(http_server, "_CHECK_SECONDS", 0)
    server = HttpServer("catalog")
    silence = asyncio.create_task(server._wait_for_silence())
    for moment in range(100):
        server._calls += moment % 3 == 0
        await asyncio.sleep(0)
        assert not silence.done()
    async with asyncio.timeout(10):
        await silence


def test_concurrent_connections_are_accepted_in_few_turns() -> None:
    """On uvloop, as in services. A call whose connection waits to be accepted is late, and lost in a drain."""

    async def turns(clients: int) -> int:
        server, passed = HttpServer("catalog"), 0
        port = server.start("127.0.0.1:0")
        await asyncio.sleep(0)
        connections = [socket.create_connection(("127.0.0.1", port)) for _ in range(clients)]
        while len(server._server.server_state.connections) < clients:
            await asyncio.sleep(0)
            passed += 1
        for client in connections:
            client.close()
        await server.stop(1)
        return passed

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        assert runner.run(turns(100)) < 50
