"""The bench's shop: customers, sales, and load jobs that place orders."""

import asyncio
import contextlib
import json
import uuid
from collections.abc import AsyncIterator, Sequence
from datetime import timedelta
from typing import Any

import psycopg

from deploy.client import Json, Rest, User, new_id
from deploy.client.shop import ADMIN_EMAIL, create_product, create_sale, line, money
from deploy.local import Site
from tests.bench.accounts import Accounts
from tests.bench.load.generator import REQUEST_ID, Job

UNITS = 1_000_000
_CARD = "pm_card_visa"
PRICE = money(1999)
_SALE_LASTS = timedelta(hours=2)
_SETTLE_SECONDS = 120
_POLL_SECONDS = 0.1
_AT_ONCE = 64
_SALES_AT_ONCE = 8
_CALL_SECONDS = 60  # with the wait for a free connection


class Shop:
    """One shop, called through its gateway; only the open sagas are read from the database."""

    def __init__(self, site: Site, staff: Rest, accounts: Accounts) -> None:
        self.site, self._staff, self._accounts = site, staff, accounts

    @classmethod
    @contextlib.asynccontextmanager
    async def open(cls, site: Site) -> AsyncIterator["Shop"]:
        calls = Rest.open(site.url, connections=_AT_ONCE, seconds=_CALL_SECONDS)
        async with calls as rest, Accounts.of(site) as accounts:
            yield cls(site, await rest.sign_in(User(ADMIN_EMAIL, site.secrets["admin"])), accounts)

    async def tokens(self, count: int) -> list[str]:
        """Return new access tokens of `count` customers; they expire after a quarter of an hour."""
        return await self._accounts.tokens(count)

    async def sale(self, units: int = UNITS, *, limit: int = 0, price: Json = PRICE) -> Json:
        """Create a live sale of a new product; its holds last longer than any measurement."""
        product = await create_product(self._staff, price=PRICE, stock=units)
        return await create_sale(
            self._staff, product, units=units, price=price, limit=limit, lasts=_SALE_LASTS, holdDuration="3600s"
        )

    async def sales(self, count: int) -> list[Json]:
        """Create `count` sales, each of its own product; few at once, as a slow machine refuses more with 429."""
        places = asyncio.Semaphore(_SALES_AT_ONCE)

        async def one() -> Json:
            async with places:
                return await self.sale()

        return await asyncio.gather(*(one() for _ in range(count)))

    def job(
        self,
        *sales: Json,
        tokens: Sequence[str],
        connections: int,
        requests: int,
        shuffled: bool = False,
        progress: str = "",
    ) -> Job:
        """Return a job that orders one unit, of each sale in turn."""
        bodies = []
        for sale in sales:
            bodies.append(json.dumps({"requestId": REQUEST_ID, "lines": [line(sale)], "paymentMethod": _CARD}))
        port = self.site.ports.gateway
        return Job(
            port, "/v1/orders", bodies, list(tokens), connections, requests, shuffled=shuffled, progress=progress
        )

    async def pending(self, tokens: Sequence[str]) -> list[str]:
        """Place one order for each token without a payment method; return the order ids."""
        sale = await self.sale(len(tokens))

        async def place(token: str) -> str:
            body = {"requestId": new_id(), "lines": [line(sale)]}
            order = (await self._staff.as_(token).post("/v1/orders", body)).expect().json
            if order["state"] != "PENDING":
                raise RuntimeError(f"an order without a payment is {order['state']} instead of PENDING")
            return str(order["id"])

        return await asyncio.gather(*(place(token) for token in tokens))

    async def look(self, sale: Json) -> Json:
        """Return the sale's current state."""
        return (await self._staff.get(f"/v1/flash-sales/{sale['id']}")).expect().json

    async def unsettled(self) -> list[uuid.UUID]:
        """Return the ids of orders with an open saga."""
        async with self._orders() as orders:
            return [row[0] for row in await (await orders.execute("SELECT order_id FROM sagas")).fetchall()]

    async def settled(self, *, but: Sequence[uuid.UUID]) -> float:
        """Wait until no saga is open, except those of `but`; return the seconds. Raises `TimeoutError`."""
        loop = asyncio.get_running_loop()
        started, query = loop.time(), "SELECT count(*) FROM sagas WHERE order_id <> ALL(%s)"
        async with self._orders() as orders, asyncio.timeout(_SETTLE_SECONDS):
            while True:
                row = await (await orders.execute(query, [list(but)])).fetchone()
                if row and not row[0]:
                    return loop.time() - started
                await asyncio.sleep(_POLL_SECONDS)

    @contextlib.asynccontextmanager
    async def _orders(self) -> AsyncIterator[psycopg.AsyncConnection[tuple[Any, ...]]]:
        url = self.site.database_url("orders").replace("+psycopg", "")
        async with await psycopg.AsyncConnection.connect(url, autocommit=True) as connection:
            yield connection
