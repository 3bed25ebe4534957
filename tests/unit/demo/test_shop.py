"""The demo's customers against a door that is sometimes shut: real HTTP, on a port of its own."""

import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest
from aiohttp import web

from deploy.demo import shop as shop_module
from deploy.demo.shop import CannotRun, Customer, Shop, pause


@asynccontextmanager
async def door(*answers: tuple[int, dict[str, object]] | None) -> AsyncIterator[tuple[Shop, list[dict[str, str]]]]:
    """A shop that gives these answers in turn, and what it was asked. None hangs up without a word."""
    asked: list[dict[str, str]] = []
    waiting = iter(answers)

    async def handle(request: web.BaseRequest) -> web.StreamResponse:
        asked.append(json.loads(await request.read() or b"{}"))
        answer = next(waiting)
        if answer is None:
            assert request.transport
            request.transport.close()
            return web.Response()
        return web.json_response(answer[1], status=answer[0], headers={"Retry-After": "0"} if answer[0] == 503 else {})

    runner = web.ServerRunner(web.Server(handle))
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    port = runner.addresses[0][1]
    try:
        async with Shop(f"http://127.0.0.1:{port}", connections=4) as shop:
            yield shop, asked
    finally:
        await runner.cleanup()


async def test_what_can_be_asked_again_is_under_the_same_request_id() -> None:
    async with door((503, {}), None, (429, {}), (200, {"id": "o"})) as (shop, asked):
        answer = await shop.call("POST", "/v1/orders", {"requestId": "r"})
    assert (answer.ok, answer.body) == (True, {"id": "o"})
    assert asked == [{"requestId": "r"}] * 4
    assert shop.retries == {"503": 1, "network": 1, "429": 1}


async def test_a_refusal_is_an_answer_and_not_asked_again() -> None:
    refusal = {"code": 9, "details": [{"@type": "…", "reason": "SOLD_OUT"}]}
    async with door((400, refusal)) as (shop, asked):
        answer = await shop.call("POST", "/v1/orders", {})
    assert (answer.reason, len(asked)) == ("SOLD_OUT", 1)


async def test_an_expired_token_is_renewed_once() -> None:
    async with door((401, {}), (200, {"accessToken": "new"}), (200, {})) as (shop, _asked):
        customer = Customer("ann@demo.example", "secret", "old")
        assert (await shop.call("GET", "/v1/orders", by=customer)).ok
    assert customer.token == "new"


async def test_nobody_there_ends_with_a_word_and_not_for_ever(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shop_module, "_PATIENCE_SECONDS", 0.2)
    async with Shop("http://127.0.0.1:9", connections=1) as shop:
        answer = await shop.call("GET", "/")
        with pytest.raises(CannotRun, match="it does not answer"):
            await shop.must("GET", "/")
    assert (answer.status, answer.reason) == (0, "NO_ANSWER")


def test_pauses_grow_but_follow_what_they_are_told_within_bounds() -> None:
    assert 0.1 <= pause(0, None) <= 0.13 < 1.9 < pause(9, None) <= 2.6
    assert 3.0 <= pause(0, 3.0) <= 3.9
    assert pause(0, 3600.0) <= 6.5
