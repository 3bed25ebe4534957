"""Stripe's SDK under our transport: what it must not do on the way of each charge."""

from collections.abc import AsyncIterator

import pytest
import stripe
from aiohttp import web

from services.payments.providers.limits import ProviderLimits, Turn
from services.payments.providers.limits.pacer import Endpoint
from services.payments.providers.stripe.transport import Transport


@pytest.fixture
async def api() -> AsyncIterator[Transport]:
    async def answer(_: web.BaseRequest) -> web.Response:
        return web.json_response({"id": "pi_1"}, headers={"Request-Id": "req_1"})

    runner = web.ServerRunner(web.Server(answer), shutdown_timeout=0.1)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    limits = ProviderLimits("stripe", calls_per_second=0, concurrency=2)
    made = Transport("sk_test_1", api_base=f"http://127.0.0.1:{runner.addresses[0][1]}", limits=limits)
    yield made
    await made.aclose()
    await runner.cleanup()


async def test_sdk_formats_no_logs_of_requests_and_answers(api: Transport, monkeypatch: pytest.MonkeyPatch) -> None:
    """The texts have client secrets, nobody logs them, and they cost a fifth of a call."""
    formatted = list[object]()
    monkeypatch.setattr(stripe._util, "logfmt", formatted.append)

    answer = await api.post("create", "/v1/payment_intents", Turn(Endpoint.CHARGE), {"amount": 1}, "key")

    assert (answer["id"], formatted) == ("pi_1", [])
