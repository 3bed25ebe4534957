"""What is done for a client ends with it, and nothing else does, at whatever moment it hangs up."""

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
    """A call of `length` steps, in a race with a client that hangs up and with somebody who cancels it."""

    def __init__(self, length: int, *, hangs_up: int, cancelled: int = NEVER, cleans_up: int = 0) -> None:
        self._length, self._hangs_up, self._cancelled, self._cleans_up = length, hangs_up, cancelled, cleans_up
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
        for _ in range(self._hangs_up):
            await asyncio.sleep(0)
        return {"type": "http.disconnect"}

    async def _cancel(self, call: "asyncio.Task[None]") -> None:
        for _ in range(self._cancelled):
            await asyncio.sleep(0)
        call.cancel()


@pytest.mark.parametrize("cleans_up", [0, 3])
async def test_to_hang_up_ends_the_call_and_never_what_comes_after_it(cleans_up: int) -> None:
    cut_short = 0
    for length, hangs_up in product(range(12), range(12)):
        moments = Moments(length, hangs_up=hangs_up, cleans_up=cleans_up)
        call = await moments.run()
        assert not call.cancelled(), (length, hangs_up)
        assert call.exception() is None
        assert moments.went_on, (length, hangs_up)
        assert call.cancelling() == 0, (length, hangs_up)
        cut_short += moments.steps < length
    assert cut_short > 30


@pytest.mark.parametrize("cleans_up", [0, 3])
async def test_whoever_else_cancels_a_call_succeeds(cleans_up: int) -> None:
    for length, hangs_up, cancelled in product(range(8), [*range(12), NEVER], range(12)):
        moments = Moments(length, hangs_up=hangs_up, cancelled=cancelled, cleans_up=cleans_up)
        call = await moments.run()
        assert call.cancelled(), (length, hangs_up, cancelled)
        assert not moments.went_on


async def test_a_client_that_stays_gets_the_whole_call() -> None:
    moments = Moments(50, hangs_up=NEVER)
    call = await moments.run()
    assert (moments.steps, moments.left, call.cancelling()) == (50, True, 0)


async def test_a_call_that_goes_on_although_nobody_waits_leaves_nothing_behind() -> None:
    async def receive() -> dict[str, Any]:
        return {"type": "http.disconnect"}

    async def stubborn() -> None:
        with _until_disconnected(receive, after=0):
            try:
                await asyncio.Event().wait()
            except asyncio.CancelledError:
                await asyncio.sleep(0)
        # Were it still taken for cancelled, this would not know its own timeout from it.
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0):
                await asyncio.Event().wait()

    await asyncio.ensure_future(stubborn())


async def test_what_fails_while_the_client_hangs_up_is_not_hidden() -> None:
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


async def test_a_stream_that_cannot_be_sent_is_closed() -> None:
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


async def test_a_server_is_not_closed_while_calls_keep_coming(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(http_server, "_CHECK_SECONDS", 0)
    server = HttpServer("catalog")
    silence = asyncio.create_task(server._wait_for_silence())
    for moment in range(100):
        server._calls += moment % 3 == 0
        await asyncio.sleep(0)
        assert not silence.done()
    async with asyncio.timeout(10):
        await silence


def test_a_crowd_that_connects_at_once_is_let_in_by_more_than_one_at_a_time() -> None:
    """On uvloop, as services do: a call whose connection waits to be accepted is late, and lost at the end."""

    async def turns(visitors: int) -> int:
        server, taken = HttpServer("catalog"), 0
        port = server.start("127.0.0.1:0")
        await asyncio.sleep(0)
        crowd = [socket.create_connection(("127.0.0.1", port)) for _ in range(visitors)]
        while len(server._server.server_state.connections) < visitors:
            await asyncio.sleep(0)
            taken += 1
        for visitor in crowd:
            visitor.close()
        await server.stop(1)
        return taken

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        assert runner.run(turns(100)) < 50
