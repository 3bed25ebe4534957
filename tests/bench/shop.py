"""The shop as the bench needs it: customers, sales, and jobs that buy."""

import asyncio
import contextlib
import json
import uuid
from collections.abc import AsyncIterator, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any

import aiohttp
import psycopg

from deploy.local import Site
from tests.bench.accounts import Accounts
from tests.bench.load.generator import REQUEST_ID, Job

UNITS = 1_000_000
_CARD = "pm_card_visa"
_SETTLE_SECONDS = 120
_LOOK_SECONDS = 0.1
_AT_ONCE = 64

Sale = dict[str, Any]
"""A flash sale, as the gateway shows it."""


class Shop:
    """One shop, through its gateway; behind it only where there is no other way to know."""

    def __init__(self, site: Site, http: aiohttp.ClientSession, accounts: Accounts) -> None:
        self.site, self._http, self._accounts = site, http, accounts
        self._staff = ""

    @classmethod
    @contextlib.asynccontextmanager
    async def open(cls, site: Site) -> AsyncIterator["Shop"]:
        async with aiohttp.ClientSession(base_url=site.url) as http, Accounts.of(site) as accounts:
            yield cls(site, http, accounts)

    async def tokens(self, count: int) -> list[str]:
        """Fresh access tokens of as many customers, for the next quarter of an hour."""
        return await self._accounts.tokens(count)

    async def sale(self, units: int = UNITS, *, limit: int = 0) -> Sale:
        """A live sale of a new product, whose holds outlast every measurement."""
        price = {"currencyCode": "USD", "minorUnits": "1999"}
        product = await self._send(
            "POST", "/v1/products", {"sku": f"BENCH-{uuid.uuid4()}", "name": "A", "price": price}
        )
        await self._send("PUT", f"/v1/stock/{product['id']}", {"onHand": units, "reason": "bench"})
        terms = {
            "productId": product["id"], "title": "Rush", "salePrice": price, "allocation": units,
            "perCustomerLimit": limit, "endTime": (datetime.now(UTC) + timedelta(hours=2)).isoformat(),
            "holdDuration": "3600s",
        }  # fmt: skip
        return await self._send("POST", "/v1/flash-sales", terms)

    async def sales(self, count: int) -> list[Sale]:
        """As many sales, each of a product of its own."""
        places = asyncio.Semaphore(_AT_ONCE)

        async def one() -> Sale:
            async with places:
                return await self.sale()

        await self._sign_in()
        return await asyncio.gather(*(one() for _ in range(count)))

    def job(
        self,
        *sales: Sale,
        tokens: Sequence[str],
        connections: int,
        requests: int,
        shuffled: bool = False,
        progress: str = "",
    ) -> Job:
        """Orders of one unit, of each sale in turn."""
        bodies = []
        for sale in sales:
            line = {"productId": sale["productId"], "quantity": 1, "flashSaleId": sale["id"]}
            bodies.append(json.dumps({"requestId": REQUEST_ID, "lines": [line], "paymentMethod": _CARD}))
        port = self.site.ports.gateway
        return Job(port, "/v1/orders", bodies, list(tokens), connections, requests, shuffled, progress)

    async def pending(self, tokens: Sequence[str]) -> list[str]:
        """The ids of new orders, one of each customer, which wait for their payment."""
        sale, places = await self.sale(len(tokens)), asyncio.Semaphore(_AT_ONCE)
        line = {"productId": sale["productId"], "quantity": 1, "flashSaleId": sale["id"]}

        async def one(token: str) -> str:
            body = {"requestId": str(uuid.uuid4()), "lines": [line]}
            async with places:
                status, order = await self._answer("POST", "/v1/orders", body, token)
            if status != 200 or order["state"] != "PENDING":
                raise RuntimeError(f"an order that was to wait for its payment: {status} {order}")
            return str(order["id"])

        return await asyncio.gather(*(one(token) for token in tokens))

    async def look(self, sale: Sale) -> Sale:
        """The sale as it is now."""
        return await self._send("GET", f"/v1/flash-sales/{sale['id']}")

    async def unsettled(self) -> list[uuid.UUID]:
        """The orders that have not ended."""
        async with self._orders() as orders:
            return [row[0] for row in await (await orders.execute("SELECT order_id FROM sagas")).fetchall()]

    async def settled(self, *, but: Sequence[uuid.UUID]) -> float:
        """Waits until every order has ended, `but` those; returns after how many seconds. Raises `TimeoutError`."""
        loop = asyncio.get_running_loop()
        started, query = loop.time(), "SELECT count(*) FROM sagas WHERE order_id <> ALL(%s)"
        async with self._orders() as orders, asyncio.timeout(_SETTLE_SECONDS):
            while True:
                row = await (await orders.execute(query, [list(but)])).fetchone()
                if row and not row[0]:
                    return loop.time() - started
                await asyncio.sleep(_LOOK_SECONDS)

    @contextlib.asynccontextmanager
    async def _orders(self) -> AsyncIterator[psycopg.AsyncConnection[tuple[Any, ...]]]:
        url = self.site.database_url("orders").replace("+psycopg", "")
        async with await psycopg.AsyncConnection.connect(url, autocommit=True) as connection:
            yield connection

    async def _send(self, method: str, path: str, body: dict[str, Any] | None = None) -> dict[str, Any]:
        """As staff."""
        await self._sign_in()
        status, answer = await self._answer(method, path, body)
        if status == 401:  # after a quarter of an hour
            await self._sign_in(anew=True)
            status, answer = await self._answer(method, path, body)
        if status != 200:
            raise RuntimeError(f"{method} {path}: {status} {answer}")
        return answer

    async def _sign_in(self, *, anew: bool = False) -> None:
        if self._staff and not anew:
            return
        self._staff = ""
        admin = {"email": "admin@stampede.local", "password": self.site.secrets["admin"]}
        self._staff = (await self._answer("POST", "/v1/auth/login", admin))[1]["accessToken"]

    async def _answer(
        self, method: str, path: str, body: dict[str, Any] | None, token: str = ""
    ) -> tuple[int, dict[str, Any]]:
        """As whose token it is; as staff without one."""
        bearer = token or self._staff
        headers = {"authorization": f"Bearer {bearer}"} if bearer else {}
        async with self._http.request(method, path, json=body, headers=headers) as response:
            return response.status, await response.json()
