"""A real sandbox on loopback for each test, and the official SDK to talk to it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import aiohttp
import pytest
import stripe
from aiohttp import web

from sandbox import server
from sandbox.settings import Settings, Target

SECRET = "whsec_test"


class Provider:
    """A sandbox that can be restarted, with SDK clients and a plain HTTP client."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.http = aiohttp.ClientSession()
        self._clients: list[stripe.StripeClient] = []

    async def start(self) -> None:
        self._running = await server.start(self.settings)
        self.url = self._running.url
        self.sandbox = self._running.sandbox

    async def stop(self) -> None:
        for client in self._clients:
            await client._requestor._client.close_async()
        self._clients.clear()
        await self._running.stop()

    async def restart(self) -> None:
        await self.stop()
        await self.start()

    def sdk(self, key: str | None = None, retries: int = 0) -> stripe.StripeClient:
        client = stripe.StripeClient(
            key or self.settings.api_key,
            base_addresses={"api": self.url},
            http_client=stripe.AIOHTTPClient(),
            max_network_retries=retries,
        )
        self._clients.append(client)
        return client

    async def control(self, method: str, path: str, body: Any = None) -> Any:
        async with self.http.request(method, f"{self.url}/_sandbox/{path}", json=body) as answer:
            assert answer.status == 200, await answer.text()
            return await answer.json()


class Listener:
    """A webhook receiver that verifies events and gives the answers that a test set."""

    def __init__(self) -> None:
        self.seen: asyncio.Queue[Any] = asyncio.Queue()
        self.answers: list[int] = []

    async def start(self) -> str:
        self._runner = web.ServerRunner(web.Server(self._take))
        await self._runner.setup()
        await web.TCPSite(self._runner, "127.0.0.1", 0).start()
        host, port = self._runner.addresses[0][:2]
        return f"http://{host}:{port}/hooks"

    async def stop(self) -> None:
        await self._runner.cleanup()

    async def _take(self, request: web.BaseRequest) -> web.Response:
        payload = await request.read()
        event = stripe.Webhook.construct_event(payload, request.headers["Stripe-Signature"], SECRET)
        status = self.answers.pop(0) if self.answers else 200
        self.seen.put_nowait((status, event))
        return web.Response(status=status)

    async def take(self, number: int) -> list[Any]:
        async with asyncio.timeout(60):
            return [await self.seen.get() for _ in range(number)]


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    return Settings(state=tmp_path / "state.jsonl")


@pytest.fixture
async def provider(settings: Settings) -> AsyncIterator[Provider]:
    made = Provider(settings)
    await made.start()
    yield made
    await made.stop()
    await made.http.close()


@pytest.fixture
async def listener() -> AsyncIterator[Listener]:
    made = Listener()
    made.url = await made.start()
    yield made
    await made.stop()


@pytest.fixture
async def notifying(settings: Settings, listener: Listener) -> AsyncIterator[Provider]:
    """A provider whose webhooks go to `listener`."""
    made = Provider(replace(settings, webhooks={"stripe": Target(url=listener.url, secret=SECRET)}))
    await made.start()
    yield made
    await made.stop()
    await made.http.close()


@pytest.fixture
def order() -> Callable[..., dict[str, Any]]:
    """The parameters of an ordinary purchase."""

    def make(method: str = "pm_card_visa", **more: Any) -> dict[str, Any]:
        return {
            "amount": 2500,
            "currency": "usd",
            "confirm": True,
            "payment_method": method,
            "automatic_payment_methods": {"enabled": True, "allow_redirects": "never"},
            "metadata": {"order": "o-1"},
            **more,
        }

    return make
