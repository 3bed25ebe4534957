"""The REST client against a server that refuses, hangs up or streams: real HTTP, on a port of its own."""

import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace

import aiohttp
import pytest
from aiohttp import web

from deploy.client import Json, Patience, Rest, RestError, User

QUICK = Patience(seconds=30, first_pause=0, longest_pause=0)


@dataclass
class Server:
    """Gives its answers in turn: status and body. None closes the connection without an answer."""

    answers: list[tuple[int, object] | None]
    bodies: list[Json] = field(default_factory=list)
    tokens: list[str] = field(default_factory=list)

    async def handle(self, request: web.BaseRequest) -> web.StreamResponse:
        self.bodies.append(json.loads(await request.read() or b"{}"))
        self.tokens.append(request.headers.get("authorization", ""))
        answer = self.answers.pop(0)
        if answer is None:
            assert request.transport
            request.transport.close()
            return web.Response()
        status, body = answer
        if isinstance(body, str):
            return web.Response(text=body, status=status, content_type="text/event-stream")
        return web.json_response(body, status=status, headers={"Retry-After": "0"} if status == 503 else {})


@asynccontextmanager
async def serving(*answers: tuple[int, object] | None) -> AsyncIterator[tuple[Rest, Server]]:
    server = Server(list(answers))
    runner = web.ServerRunner(web.Server(server.handle))
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    try:
        async with Rest.open(f"http://127.0.0.1:{runner.addresses[0][1]}", connections=4) as rest:
            yield rest, server
    finally:
        await runner.cleanup()


def refusal(reason: str) -> Json:
    return {"code": 9, "details": [{"@type": "type.googleapis.com/google.rpc.ErrorInfo", "reason": reason}]}


async def test_patience_retries_under_the_same_request_id() -> None:
    async with serving((503, {}), None, (429, {}), (200, {"id": "o"})) as (rest, server):
        patient = replace(rest, patience=QUICK)
        answer = await patient.as_("t").post("/v1/orders", {"requestId": "r"})
    assert (answer.ok, answer.json) == (True, {"id": "o"})
    assert server.bodies == [{"requestId": "r"}] * 4
    assert rest.retries == {"503": 1, "network": 1, "429": 1}


async def test_without_patience_one_try_is_all() -> None:
    async with serving((503, {}), None) as (rest, _):
        assert (await rest.post("/v1/orders")).status == 503
        with pytest.raises(aiohttp.ClientError):
            await rest.post("/v1/orders")


async def test_a_refusal_is_not_retried() -> None:
    async with serving((400, refusal("SOLD_OUT"))) as (rest, server):
        answer = await replace(rest, patience=QUICK).post("/v1/orders")
    assert (answer.refusal, len(server.bodies)) == ((400, "SOLD_OUT"), 1)
    with pytest.raises(RestError, match="POST /v1/orders: 400 SOLD_OUT") as caught:
        answer.expect()
    assert (caught.value.status, caught.value.reason) == (400, "SOLD_OUT")


async def test_an_expired_token_is_renewed_once() -> None:
    new = {"accessToken": "new"}
    async with serving((401, {}), (200, new), (200, {}), (401, {}), (200, new), (401, {})) as (rest, server):
        user = User("ann@demo.example", "secret", "old")
        assert (await rest.as_(user).get("/v1/orders")).ok
        assert (user.token, server.tokens) == ("new", ["Bearer old", "", "Bearer new"])
        assert (await rest.as_(user).get("/v1/orders")).status == 401


async def test_a_renewal_waits_for_the_queue_of_passwords() -> None:
    async with serving((401, {}), (503, {}), (429, {}), (200, {"accessToken": "new"}), (200, {})) as (rest, _):
        assert (await rest.as_(User("ann@demo.example", "secret", "old")).get("/v1/orders")).ok


async def test_a_token_without_a_password_is_not_renewed() -> None:
    async with serving((401, {})) as (rest, _):
        assert (await rest.as_("old").get("/v1/orders")).status == 401


async def test_patience_with_an_unreachable_server_ends() -> None:
    async with Rest.open("http://127.0.0.1:9", connections=1) as rest:
        answer = await replace(rest, patience=replace(QUICK, seconds=0)).get("/")
    assert answer.refusal == (0, "NO_ANSWER")


@pytest.mark.parametrize("body", ["", "no JSON", "[]", '{"details": [{}]}'])
async def test_an_odd_error_body_has_no_reason(body: str) -> None:
    async with serving((502, body)) as (rest, _):
        answer = await rest.get("/")
    assert (answer.reason, answer.fields) == ("", [])


async def test_a_stream_gives_its_messages() -> None:
    text = 'data: {"n": 1}\n\n: alive\n\ndata: {"n": 2}\n\n'
    async with serving((200, text)) as (rest, _), rest.watching("/v1/orders/o:watch") as messages:
        assert [message["n"] async for message in messages] == [1, 2]


async def test_a_refused_stream_raises_its_reason() -> None:
    async with serving((404, refusal("ORDER_NOT_FOUND"))) as (rest, _):
        with pytest.raises(RestError, match="404 ORDER_NOT_FOUND"):
            async with rest.watching("/v1/orders/o:watch"):
                pass


def test_pauses_double_and_follow_retry_after_within_bounds() -> None:
    pause = Patience().pause
    assert 0.1 <= pause(0, None) <= 0.13 < 1.9 < pause(9, None) <= 2.6
    assert 3.0 <= pause(0, 3.0) <= 3.9
    assert pause(0, 3600.0) <= 6.5
