"""The shop under test as its people see it: builders for what a test needs, and what buyers and staff do with it."""

import asyncio
import json
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any, TypeVar

import aiohttp
import psycopg

from deploy.audit import Sources, audit
from deploy.local import EVERYTHING, Mesh
from tests.support.rest import Answer, Json, Rest, new_id

T = TypeVar("T")

VISA = "pm_card_visa"
DECLINED = "pm_card_chargeDeclined"
SECURE = "pm_card_authenticationRequired"
ADMIN = "admin@stampede.local"
ENDS = ("PAID", "FAILED", "CANCELLED", "EXPIRED")
PASSWORD = "correct horse battery"
_PAUSE_SECONDS = 0.05
_CONNECTIONS = 200
_AT_ONCE = 16

# What tells that nothing was changed: rows, and the versions of those that change.
_COUNTS = {
    "catalog": "SELECT (SELECT count(*) FROM products), (SELECT sum(version) FROM products)",
    "identity": "SELECT (SELECT count(*) FROM users), (SELECT count(*) FROM sessions)",
    "inventory": "SELECT (SELECT count(*) FROM stock), (SELECT sum(on_hand) FROM stock),"
    " (SELECT count(*) FROM stock_movements), (SELECT count(*) FROM flash_sales), (SELECT count(*) FROM reservations)",
    "orders": "SELECT (SELECT count(*) FROM orders), (SELECT count(*) FROM order_log)",
    "payments": "SELECT (SELECT count(*) FROM payments), (SELECT count(*) FROM refunds),"
    " (SELECT sum(refunded_minor) FROM payments), (SELECT count(*) FROM provider_events)",
}


async def eventually(look: Callable[[], Awaitable[T]], wanted: Callable[[T], bool], *, seconds: float = 15) -> T:
    """What `look` finds, once it is as wanted. Fails with what was found last."""
    deadline = time.monotonic() + seconds
    while not wanted(found := await look()):
        assert time.monotonic() < deadline, f"after {seconds} s still {found!r}"
        await asyncio.sleep(_PAUSE_SECONDS)
    return found


@dataclass(frozen=True, kw_only=True)
class Buyer:
    """A signed-in customer."""

    rest: Rest
    id: str
    email: str

    async def buy(
        self,
        *goods: Json,
        quantity: int = 1,
        card: str | None = VISA,
        wait: int = 10,
        request_id: str | None = None,
        key: str | None = None,
    ) -> Answer:
        """Orders flash sales and products, whichever is given; `wait` seconds for the end.

        With `key`, the request is named by the header instead of the field.
        """
        body: Json = {"lines": [_line(thing, quantity) for thing in goods]}
        headers = {}
        if key:
            headers["idempotency-key"] = key
        else:
            body["requestId"] = request_id or new_id()
        if card:
            body["paymentMethod"] = card
        if wait:
            body["preferWait"] = f"{wait}s"
        return await self.rest.post("/v1/orders", body, **headers)

    async def insist(self, *goods: Json, seconds: float = 60, **how: Any) -> Answer:
        """`buy`, as a patient client does it: again under the same request id while a part of the shop is away."""
        request_id = new_id()

        async def once() -> Answer | None:
            try:
                return await self.buy(*goods, request_id=request_id, **how)
            except aiohttp.ClientConnectionError:  # the gateway itself
                return None

        answer = await eventually(once, lambda a: a is not None and a.status not in (429, 503), seconds=seconds)
        assert answer is not None
        return answer

    async def order(self, order_id: str) -> Json:
        return (await self.rest.get(f"/v1/orders/{order_id}")).expect().json

    async def cancel(self, order_id: str) -> Answer:
        return await self.rest.post(f"/v1/orders/{order_id}:cancel")

    async def until(self, order_id: str, *states: str, seconds: float = 15) -> Json:
        """The order, once it is in one of the states; while a part of the shop is away, it is asked for again."""

        async def look() -> Json:
            answer = await self.rest.get(f"/v1/orders/{order_id}")
            return {"state": "not known"} if answer.status == 503 else answer.expect().json

        return await eventually(look, lambda order: order["state"] in states, seconds=seconds)

    async def until_payable(self, order_id: str) -> Json:
        """The order, once its customer can go on to pay."""
        return await eventually(
            lambda: self.order(order_id), lambda order: bool((order.get("payment") or {}).get("clientSecret"))
        )


def _line(thing: Json, quantity: int) -> Json:
    """A sale names its product; a product is bought from ordinary stock."""
    if "allocation" in thing:
        return {"productId": thing["productId"], "flashSaleId": thing["id"], "quantity": quantity}
    return {"productId": thing["id"], "quantity": quantity}


@dataclass(frozen=True, kw_only=True)
class Sandbox:
    """The payment provider: what its dashboard shows, and what buyers' browsers and banks do there."""

    rest: Rest
    """Without the gateway's promises: only `http` and `url` are used."""
    key: str = field(repr=False)

    async def captured(self, *order_ids: str) -> list[Json]:
        """Every successful payment of these orders."""
        async with self.rest.http.get(f"{self.rest.url}/_sandbox/ledger?detail=true") as answer:
            entries = (await answer.text()).splitlines()
        paid = [json.loads(entry) for entry in entries]
        return [entry for entry in paid if entry["metadata"].get("order_id") in order_ids]

    async def intent(self, name: str) -> Json:
        return await self.get(f"/v1/payment_intents/{name}")

    async def get(self, path: str) -> Json:
        return await self._stripe("GET", path, self.key)

    async def pay_in_browser(self, client_secret: str, card: str = VISA) -> Json:
        """What the provider's script does in the buyer's page, with the publishable key."""
        name = client_secret.partition("_secret_")[0]
        form = {"client_secret": client_secret, "payment_method": card}
        return await self._stripe("POST", f"/v1/payment_intents/{name}/confirm", self.key.replace("sk_", "pk_"), form)

    async def authenticate(self, client_secret: str, *, succeed: bool = True) -> None:
        """The buyer's answer to the bank."""
        name = client_secret.partition("_secret_")[0]
        outcome = {"outcome": "succeed" if succeed else "fail"}
        url = f"{self.rest.url}/_sandbox/payment_intents/{name}/authenticate"
        async with self.rest.http.post(url, json=outcome) as answer:
            assert answer.status == 200, await answer.text()

    async def settle(self, order_id: str, *, succeed: bool = True) -> None:
        """The end of a payment that the provider is at work on, such as a bank transfer."""
        intents = (await self.get("/v1/payment_intents?limit=100"))["data"]
        name = next(intent["id"] for intent in intents if intent["metadata"].get("order_id") == order_id)
        url = f"{self.rest.url}/_sandbox/payment_intents/{name}/settle"
        async with self.rest.http.post(url, json={"outcome": "succeed" if succeed else "fail"}) as answer:
            assert answer.status == 200, await answer.text()

    async def faults(self, **switches: object) -> None:
        async with self.rest.http.post(f"{self.rest.url}/_sandbox/faults", json=switches) as answer:
            assert answer.status == 200, await answer.text()

    async def no_faults(self) -> None:
        async with self.rest.http.delete(f"{self.rest.url}/_sandbox/faults") as answer:
            assert answer.status == 200, await answer.text()

    async def _stripe(self, method: str, path: str, key: str, form: Json | None = None) -> Json:
        headers = {"authorization": f"Bearer {key}"}
        async with self.rest.http.request(method, self.rest.url + path, headers=headers, data=form) as answer:
            told: Json = await answer.json()
            return {"http": answer.status, **told}


@dataclass(frozen=True, kw_only=True)
class Shop:
    """One running shop."""

    mesh: Mesh
    rest: Rest
    """Nobody in particular."""
    staff: Rest
    sandbox: Sandbox
    _crowd: list[Buyer] = field(default_factory=list, repr=False)
    _databases: dict[str, psycopg.AsyncConnection[tuple[Any, ...]]] = field(default_factory=dict, repr=False)

    @classmethod
    @asynccontextmanager
    async def of(cls, mesh: Mesh) -> AsyncIterator["Shop"]:
        """The shop that this mesh runs; signed in as its admin."""
        timeout, connector = aiohttp.ClientTimeout(total=40), aiohttp.TCPConnector(limit=_CONNECTIONS)
        async with aiohttp.ClientSession(timeout=timeout, connector=connector) as http:
            rest = Rest(http=http, url=mesh.site.url, secrets=frozenset(mesh.site.secrets.values()))
            account = {"email": ADMIN, "password": mesh.site.secrets["admin"]}
            token = (await rest.post("/v1/auth/login", account)).expect().json["accessToken"]
            sandbox = Sandbox(rest=Rest(http=http, url=mesh.site.sandbox_url), key=mesh.site.secrets["stripe/key"])
            running = cls(mesh=mesh, rest=rest, staff=rest.as_(token), sandbox=sandbox)
            yield running
            await running.close()

    async def a_product(
        self, *, stock: int | None = 100, price: int = 1999, currency: str = "USD", **said: Any
    ) -> Json:
        """A product on sale, of which there is stock."""
        product = {"sku": f"SKU-{new_id()}", "name": "Retro clock", "price": money(price, currency), **said}
        made = (await self.staff.post("/v1/products", product)).expect().json
        if stock is not None:
            (await self.staff.put(f"/v1/stock/{made['id']}", {"onHand": stock, "reason": "delivery"})).expect()
        return made

    async def a_sale(
        self, *, units: int = 10, price: int = 999, limit: int = 0, hold: str = "600s", product: Json | None = None
    ) -> Json:
        """A live flash sale, of a product of its own unless one is given."""
        product = product or await self.a_product(stock=units)
        sale = {
            "productId": product["id"],
            "title": "Sixty seconds of clocks",
            "salePrice": money(price, product["price"]["currencyCode"]),
            "allocation": units,
            "perCustomerLimit": limit,
            "endTime": (datetime.now(UTC) + timedelta(hours=1)).isoformat(),
            "holdDuration": hold,
        }
        return (await self.staff.post("/v1/flash-sales", sale)).expect().json

    async def a_buyer(self) -> Buyer:
        """Somebody new, signed in."""
        email = f"{new_id()}@example.com"
        account = {"email": email, "password": PASSWORD}
        user = (await self.rest.post("/v1/auth/register", account)).expect().json["user"]
        tokens = (await self.rest.post("/v1/auth/login", account)).expect().json
        return Buyer(rest=self.rest.as_(tokens["accessToken"]), id=user["id"], email=email)

    async def a_crowd(self, size: int) -> list[Buyer]:
        """So many different buyers. They have bought before: passwords cost time."""
        some = asyncio.Semaphore(_AT_ONCE)

        async def join() -> Buyer:
            async with some:
                return await self.a_buyer()

        self._crowd.extend(await asyncio.gather(*(join() for _ in range(size - len(self._crowd)))))
        return self._crowd[:size]

    async def sale(self, sale: Json) -> Json:
        return (await self.rest.get(f"/v1/flash-sales/{sale['id']}")).expect().json

    async def all_parts_answer(self) -> None:
        """Returns once every part is up and answers; the gateway may not even have noticed that one was down."""
        for part in EVERYTHING:
            await self.mesh.ready(part, timeout=30)
        paths = ("/readyz", "/v1/products", "/v1/auth/me", "/v1/flash-sales", "/v1/orders", f"/v1/payments/{new_id()}")

        async def look() -> list[int]:
            return [(await self.staff.get(path)).status for path in paths]

        await eventually(look, lambda found: max(found) < 500, seconds=30)

    async def counters(self, sale: Json) -> tuple[int, int, int]:
        """Units of a sale that remain, are held, are sold."""
        now = await self.sale(sale)
        return now["remaining"], now["held"], now["sold"]

    async def stock(self, product: Json) -> tuple[int, int, int]:
        """Units on hand, held, available."""
        now = (await self.rest.get(f"/v1/stock/{product['id']}")).expect().json
        return now["onHand"], now["held"], now["available"]

    async def payment(self, order: Json) -> Json:
        return (await self.staff.get(f"/v1/payments/{order['payment']['id']}")).expect().json

    async def rows(self, service: str, query: str) -> list[tuple[Any, ...]]:
        """What a service's database holds."""
        try:
            return await (await (await self._database(service)).execute(query)).fetchall()
        except psycopg.OperationalError:  # PostgreSQL has been restarted meanwhile
            await self._databases.pop(service).close()
            return await (await (await self._database(service)).execute(query)).fetchall()

    async def _database(self, service: str) -> psycopg.AsyncConnection[tuple[Any, ...]]:
        if service not in self._databases:
            url = self.mesh.site.database_url(service).replace("+psycopg", "")
            self._databases[service] = await psycopg.AsyncConnection.connect(url, autocommit=True)
        return self._databases[service]

    async def close(self) -> None:
        for connection in self._databases.values():
            await connection.close()

    async def counts(self) -> dict[str, list[tuple[Any, ...]]]:
        """Changes whenever anything of consequence does."""
        return {service: await self.rows(service, query) for service, query in _COUNTS.items()}


async def assert_books_add_up(shop: Shop, *things: Json, patience_seconds: float = 15) -> None:
    """Units and money of these sales and products are conserved, over all databases and the provider's ledger."""
    products = {thing.get("productId") or thing["id"] for thing in things}
    report = await asyncio.to_thread(
        audit, Sources.of(shop.mesh.site), products=products, patience_seconds=patience_seconds
    )
    assert report.adds_up, [finding.text for finding in report.wrong]


def money(minor_units: int, currency: str = "USD") -> Json:
    return {"currencyCode": currency, "minorUnits": str(minor_units)}


def states(orders: Sequence[Json]) -> list[str]:
    return [order["state"] for order in orders]
