"""Razorpay's synchronous SDK in threads: deadlines of ours, bounded, and nothing on stdout."""

import asyncio
import contextlib
import inspect
import threading
import time
from collections.abc import AsyncIterator, Callable
from typing import Any

import pytest
import razorpay
from aiohttp import web

from services.payments.providers import limits
from services.payments.providers.border import NoAnswer, Refused
from services.payments.providers.limits import ProviderLimits, Turn
from services.payments.providers.limits.pacer import Endpoint
from services.payments.providers.razorpay import transport
from services.payments.providers.razorpay.transport import Transport

Answer = Callable[[web.BaseRequest], Any]


class Server:
    """Answers as a test wants, and counts."""

    def __init__(self) -> None:
        self.answer: Answer = lambda _: web.json_response({"items": []})
        self.calls = 0
        self.leave = asyncio.Event()

    async def handle(self, request: web.BaseRequest) -> web.StreamResponse:
        self.calls += 1
        answer = self.answer(request)
        made: web.StreamResponse = await answer if inspect.isawaitable(answer) else answer
        return made

    async def hang(self, _: web.BaseRequest) -> web.Response:
        await self.leave.wait()
        return web.json_response({})


@pytest.fixture
async def server() -> AsyncIterator[Server]:
    made = Server()
    runner = web.ServerRunner(web.Server(made.handle), shutdown_timeout=0.1)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    made.url = f"http://127.0.0.1:{runner.addresses[0][1]}"  # type: ignore[attr-defined]
    yield made
    made.leave.set()
    await runner.cleanup()


@pytest.fixture
async def api(server: Server, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Transport]:
    for name, seconds in {"_CONNECT": 0.5, "_READ": 0.3, "_CALL": 0.6, "_STUCK": 1.0}.items():
        monkeypatch.setattr(transport, f"{name}_SECONDS", seconds)
    monkeypatch.setattr(limits, "RETRY_SECONDS", 0.01)
    made = _transport(server.url)  # type: ignore[attr-defined]
    yield made
    await made.aclose()


def _transport(url: str) -> Transport:
    bounds = ProviderLimits("razorpay", calls_per_second=0, concurrency=2)
    return Transport("rzp_test_1", "secret", api_base=url, limits=bounds, threads=2)


async def _list(api: Transport, **more: Any) -> Any:
    return await api.call("list", Turn(Endpoint.CHECK), api.sdk.order.all, {"count": 1}, **more)


async def test_an_answer_arrives(api: Transport, server: Server) -> None:
    seen: list[tuple[str, str]] = []

    def answer(request: web.BaseRequest) -> web.Response:
        seen.append((request.path_qs, request.headers["Authorization"][:6]))
        return web.json_response({"items": []})

    server.answer = answer
    assert await _list(api) == {"items": []}
    assert seen == [("/v1/orders?count=1", "Basic ")]


@pytest.mark.parametrize(
    ("status", "body", "error", "ended"),
    [
        (400, {"error": {"code": "BAD_REQUEST_ERROR", "reason": "x", "description": "no"}}, Refused, True),
        (400, {"error": {"code": "SOMETHING_NEW"}}, NoAnswer, False),
        (400, {"error": "text"}, NoAnswer, False),
        (401, {"error": {"code": "BAD_REQUEST_ERROR"}}, NoAnswer, True),
        (409, {"error": {"code": "BAD_REQUEST_ERROR"}}, NoAnswer, False),
        (429, {"error": {"code": "BAD_REQUEST_ERROR"}}, NoAnswer, True),
        (500, {"error": {"code": "SERVER_ERROR"}}, NoAnswer, True),
        (502, {}, NoAnswer, False),
        (504, {"error": {"code": "GATEWAY_ERROR"}}, NoAnswer, False),
        (302, {}, NoAnswer, False),
        (200, [], NoAnswer, False),
    ],
)
async def test_what_an_answer_means(
    api: Transport, server: Server, status: int, body: Any, error: type[Exception], ended: bool
) -> None:
    """Only Razorpay's own refusal is a decision. `ended`: the call can take no effect later."""
    server.answer = lambda _: web.json_response(body, status=status, headers={"Location": "/elsewhere"})
    with pytest.raises(error) as failed:
        await _list(api)
    assert isinstance(failed.value, NoAnswer | Refused)
    assert failed.value.has_ended is ended
    assert server.calls == (1 if error is Refused or status == 429 else 2), "repeated once, but not against a limit"


async def test_a_missing_object_is_told_from_other_refusals(api: Transport, server: Server) -> None:
    for text, missing in (("The id provided does not exist", True), ("The amount is wrong", False)):
        error = {"error": {"code": "BAD_REQUEST_ERROR", "description": text}}
        server.answer = lambda _, error=error: web.json_response(error, status=400)  # type: ignore[misc]
        with pytest.raises(Refused) as refused:
            await _list(api)
        assert refused.value.is_missing is missing


async def test_a_silent_server_costs_a_bounded_time(api: Transport, server: Server) -> None:
    server.answer = server.hang
    started = time.monotonic()
    with pytest.raises(NoAnswer) as failed:
        await _list(api, repeats=False)
    assert time.monotonic() - started < 1.5
    assert not failed.value.has_ended


async def test_a_dripping_server_costs_a_bounded_time(api: Transport, server: Server) -> None:
    """Each piece comes in time, and the whole never: the SDK's timeout alone would wait for ever."""

    async def drip(request: web.BaseRequest) -> web.StreamResponse:
        response = web.StreamResponse()
        await response.prepare(request)
        while not server.leave.is_set():
            try:
                await response.write(b" ")
            except ConnectionError:
                break
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(0.05):
                    await server.leave.wait()
        return response

    server.answer = drip
    started = time.monotonic()
    with pytest.raises(NoAnswer):
        await _list(api, repeats=False)
    assert time.monotonic() - started < 2


async def test_threads_are_bounded_and_calls_wait_for_their_turn(api: Transport, server: Server) -> None:
    server.answer = server.hang
    calls = [asyncio.create_task(_list(api, repeats=False)) for _ in range(6)]
    results = await asyncio.gather(*calls, return_exceptions=True)
    assert {type(result) for result in results} == {NoAnswer}
    assert len([one for one in threading.enumerate() if one.name.startswith("razorpay")]) <= 2


async def test_a_call_that_no_thread_has_begun_takes_no_effect(api: Transport, server: Server) -> None:
    """All threads are stuck, for example in the resolver: a further call ends, and is known to have done nothing."""
    free = threading.Event()
    try:
        ends = [
            asyncio.create_task(api.call("stuck", Turn(Endpoint.CHECK), free.wait, repeats=False)) for _ in range(2)
        ]
        stuck = await asyncio.gather(*ends, return_exceptions=True)
        assert [isinstance(one, NoAnswer) and one.has_ended for one in stuck] == [False, False]
        with pytest.raises(NoAnswer) as late:
            await _list(api, repeats=False)
        assert late.value.has_ended
        assert server.calls == 0
    finally:
        free.set()


async def test_nothing_is_printed(api: Transport, capfd: pytest.CaptureFixture[str]) -> None:
    """The SDK prints connection errors to stdout, which is the log."""
    gone = _transport("http://127.0.0.1:9")
    with pytest.raises(NoAnswer):
        await _list(gone, repeats=False)
    await gone.aclose()
    assert "Connection failed" not in capfd.readouterr().out


async def test_the_environment_chooses_no_proxy(
    api: Transport, server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:9")
    assert await _list(api) == {"items": []}
    assert server.calls == 1


async def test_concurrent_captures_keep_their_amounts(api: Transport, server: Server) -> None:
    """The SDK writes the amount into a dict that all calls would share."""
    bodies: list[Any] = []

    async def answer(request: web.BaseRequest) -> web.Response:
        bodies.append(await request.json())
        return web.json_response({})

    server.answer = answer
    for amount in (1, 2):
        await api.call("capture", Turn(Endpoint.CHARGE), api.sdk.payment.capture, "pay_1", amount, {"currency": "INR"})
    assert bodies == [{"currency": "INR", "amount": 1}, {"currency": "INR", "amount": 2}]
    assert razorpay.resources.payment.Payment.capture.__defaults__ == ({},)
