"""Each thing that speaks Stripe's protocol, with Stampede's adapter in front of it."""

from __future__ import annotations

import asyncio
import os
import uuid
from collections.abc import AsyncIterator
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl, urlencode

import aiohttp
import pytest
import stripe
from aiohttp import web

from sandbox import server
from sandbox.settings import Settings
from services.payments.domain import Payment, Refund, RefundState
from services.payments.providers.stripe.adapter import Stripe
from services.payments.providers.stripe.webhook import StripeWebhook
from tests.support.ports import free_port
from tests.support.waiting import until
from tests.unit.payments.test_payments_domain import a_payment

ROOT = Path(__file__).parents[3]
LOCALSTRIPE = ROOT / ".venv-localstripe/bin/python"
REAL_KEY = os.environ.get("STRIPE_TEST_KEY", "")
SECRET = "whsec_of_the_contract"
# Each was seen to fail with localstripe 1.15.
_LACKS = {
    "idempotency": "localstripe ignores idempotency keys",
    "challenge": "localstripe has no test card that needs a challenge on an intent",
    "capture": "localstripe does not say how much it captured",
    "over-refund": "localstripe refunds more than was charged",
    "search": "localstripe lists intents by no time",
    "confirm": "localstripe answers 500 to a method that is named when an intent is confirmed",
    "declines": "localstripe lets declined cards succeed",
    "refusals": "localstripe does not name the parameter that it refuses",
}


@dataclass(frozen=True)
class Backend:
    """One account, the adapter that calls it, and the SDK for what the adapter does not do."""

    name: str
    adapter: Stripe
    sdk: stripe.StripeClient
    lacks: frozenset[str] = frozenset()

    def needs(self, feature: str) -> None:
        if feature in self.lacks:
            pytest.skip(_LACKS[feature])


def payment(**changes: Any) -> Payment:
    """A payment that no account has seen."""
    now = datetime.now(UTC)
    fresh = {"id": uuid.uuid4(), "order_id": uuid.uuid4(), "create_time": now, "update_time": now}
    return replace(a_payment(), **{**fresh, **changes})


def refund_of(paid: Payment, reference: str, amount: int, **changes: Any) -> Refund:
    made = Refund(
        id=uuid.uuid4(), payment_id=paid.id, provider="stripe", amount_minor=amount, state=RefundState.PENDING,
        stray=False, external=False, charge_reference=reference, provider_reference=None, failure_reason="",
        problem="", attempt=1, checks=0,
    )  # fmt: skip
    return replace(made, **changes)


async def wanted() -> None:
    """The check of a call that is still wanted."""


@pytest.fixture(scope="module", params=["sandbox", "localstripe", *(["stripe"] if REAL_KEY else [])])
async def backend(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Backend]:
    start = {"sandbox": _sandbox, "localstripe": _localstripe, "stripe": _real}[request.param]
    async with asyncio.timeout(60):
        url, key, lacks, stop = await start(tmp_path_factory.mktemp(request.param))
    adapter = Stripe(
        key,
        webhook=StripeWebhook(SECRET, api_key=key),
        api_base=url,
        calls_per_second=20.0 if request.param == "stripe" else 0.0,
        concurrency=10,
    )
    sdk = stripe.StripeClient(key, base_addresses={"api": url}, http_client=stripe.AIOHTTPClient())
    yield Backend(request.param, adapter, sdk, lacks)
    await adapter.aclose()
    await sdk._requestor._client.close_async()
    await stop()


async def _sandbox(home: Path) -> tuple[str, str, frozenset[str], Any]:
    running = await server.start(Settings(state=home / "state.jsonl"))
    return running.url, "sk_test_sandbox", frozenset(), running.stop


async def _real(_home: Path) -> tuple[str, str, frozenset[str], Any]:
    if not REAL_KEY.startswith(("sk_test_", "rk_test_")):
        pytest.fail("STRIPE_TEST_KEY names no key of Stripe's test mode")

    async def stop() -> None:
        return None

    return "https://api.stripe.com", REAL_KEY, frozenset(), stop


async def _localstripe(home: Path) -> tuple[str, str, frozenset[str], Any]:
    """The unmodified program in a process and an environment of its own; a proxy leaves one parameter out."""
    if not LOCALSTRIPE.exists():
        pytest.skip("localstripe is not installed: make test installs it")
    port = free_port()
    with (home / "log").open("wb") as log:
        process = await asyncio.create_subprocess_exec(
            str(LOCALSTRIPE), "-m", "localstripe", "--port", str(port), "--from-scratch",
            stdout=log, stderr=log, cwd=home, env={"HOME": str(home), "PATH": os.environ["PATH"]},
        )  # fmt: skip
    http = aiohttp.ClientSession()
    url = f"http://127.0.0.1:{port}"

    async def answers() -> bool:
        try:
            async with http.get(f"{url}/v1/customers", headers={"Authorization": "Bearer sk_test_local"}) as answer:
                return answer.status == 200
        except aiohttp.ClientError:
            return False

    await until(answers)

    async def forward(request: web.BaseRequest) -> web.Response:
        # It refuses this parameter, which Stripe has by default and Stampede always sends.
        form = parse_qsl(await request.text())
        kept = urlencode([(name, value) for name, value in form if not name.startswith("automatic_payment_methods")])
        headers = {name: request.headers[name] for name in ("Authorization",) if name in request.headers}
        if kept:
            headers["Content-Type"] = "application/x-www-form-urlencoded"
        async with http.request(request.method, url + request.path_qs, data=kept, headers=headers) as answer:
            return web.Response(status=answer.status, body=await answer.read(), content_type="application/json")

    runner = web.ServerRunner(web.Server(forward))
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()

    async def stop() -> None:
        await runner.cleanup()
        await http.close()
        process.terminate()
        await process.wait()

    proxy = f"http://127.0.0.1:{runner.addresses[0][1]}"
    return proxy, "sk_test_local", frozenset(_LACKS), stop


def yesterday() -> datetime:
    return datetime.now(UTC) - timedelta(days=1)
