"""The shop under test as its people see it: builders for what a test needs, and what buyers and staff do with it."""

import asyncio
import json
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from typing import Any
from urllib.parse import urlencode

import psycopg

from deploy.audit import Sources, audit
from deploy.client import Answer, Json, Patience, Rest, User, new_id
from deploy.client.shop import ADMIN_EMAIL, create_product, create_sale, line, money, sign_up
from deploy.local import EVERYTHING, Mesh
from tests.support.rest import check
from tests.support.waiting import PAUSE_SECONDS, eventually

VISA = "pm_card_visa"
DECLINED = "pm_card_chargeDeclined"
SECURE = "pm_card_authenticationRequired"
ENDS = ("PAID", "FAILED", "CANCELLED", "EXPIRED")
PASSWORD = "correct horse battery"
_CONNECTIONS = 200
_CALL_SECONDS = 40
_AT_ONCE = 16

# Numbers of rows, and versions of rows that change: if they stay the same, nothing was changed.
_COUNTS = {
    "catalog": "SELECT (SELECT count(*) FROM products), (SELECT sum(version) FROM products)",
    "identity": "SELECT (SELECT count(*) FROM users), (SELECT count(*) FROM sessions)",
    "inventory": "SELECT (SELECT count(*) FROM stock), (SELECT sum(on_hand) FROM stock),"
    " (SELECT count(*) FROM stock_movements), (SELECT count(*) FROM flash_sales), (SELECT count(*) FROM reservations)",
    "orders": "SELECT (SELECT count(*) FROM orders), (SELECT count(*) FROM order_log)",
    "payments": "SELECT (SELECT count(*) FROM payments), (SELECT count(*) FROM refunds),"
    " (SELECT sum(refunded_minor) FROM payments), (SELECT count(*) FROM provider_events)",
}


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
        body: Json = {"lines": [line(thing, quantity) for thing in goods]}
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

    async def buy_unpaid(self, *goods: Json) -> Json:
        """Places an order without a payment method; returns it once its customer can pay."""
        return await self.until_payable((await self.buy(*goods, card=None, wait=0)).expect().json["id"])

    def patient(self, *, seconds: float = 60) -> "Buyer":
        """The buyer, whose requests are retried while a part of the shop is unavailable."""
        return replace(self, rest=patient(self.rest, seconds=seconds))

    async def insist(self, *goods: Json, seconds: float = 60, **how: Any) -> Answer:
        """`buy`, retried under the same request id while a part of the shop is unavailable."""
        return await self.patient(seconds=seconds).buy(*goods, **how)

    async def buy_when_back(self, sale: Json) -> Answer:
        """`buy` of a unit that came back; for a second, the gate and the caches may still refuse everybody."""
        return await eventually(lambda: self.buy(sale), lambda answer: answer.reason != "SOLD_OUT")

    async def order(self, order_id: str) -> Json:
        return (await self.rest.get(f"/v1/orders/{order_id}")).expect().json

    async def pay(self, order: Json, *, key: str | None = None, **how: Any) -> Answer:
        """Asks for another attempt to pay an order: with `paymentMethod`, `provider`, and others of `PayOrder`."""
        return await self.rest.post(f"/v1/orders/{order['id']}:pay", {"requestId": key or new_id(), **how})

    async def cancel(self, order_id: str) -> Answer:
        return await self.rest.post(f"/v1/orders/{order_id}:cancel")

    async def until(self, order_id: str, *states: str, seconds: float = 15) -> Json:
        """The order, once it is in one of the states; 503 is retried."""

        async def look() -> Json:
            answer = await self.rest.get(f"/v1/orders/{order_id}")
            return {"state": "not known"} if answer.status == 503 else answer.expect().json

        return await eventually(look, lambda order: order["state"] in states, seconds=seconds)

    async def until_payable(self, order_id: str) -> Json:
        """The order, once its customer can go on to pay."""
        return await eventually(
            lambda: self.order(order_id), lambda order: bool((order.get("payment") or {}).get("clientSecret"))
        )


class _Impatience(Patience):
    """Retries as if no answer named a time."""

    def pause(self, tries: int, retry_after: float | None) -> float:
        return super().pause(tries, None)


def patient(rest: Rest, *, seconds: float = 60) -> Rest:
    """The client with short retries, whatever `Retry-After` demands: a test waits hardly longer than it must.

    The pauses grow: a crowd that retries without rest takes the processor from the part that is being started.
    """
    return replace(rest, patience=_Impatience(seconds=seconds, first_pause=PAUSE_SECONDS, longest_pause=0.32))


@dataclass(frozen=True, kw_only=True)
class Sandbox:
    """The payment provider: what its dashboard shows, and what buyers' browsers and banks do there."""

    rest: Rest
    """Signed in with the secret key."""

    async def captured(self, *order_ids: str) -> list[Json]:
        """Every successful payment of these orders."""
        ledger = (await self.rest.get("/_sandbox/ledger", detail="true")).expect()
        paid = [json.loads(entry) for entry in ledger.text.splitlines()]
        return [entry for entry in paid if entry["metadata"].get("order_id") in order_ids]

    async def intent(self, name: str) -> Json:
        return await self.get(f"/v1/payment_intents/{name}")

    async def get(self, path: str) -> Json:
        return _with_status(await self.rest.get(path))

    async def pay_in_browser(self, client_secret: str, card: str = VISA) -> Json:
        """Pay as the provider's script does in the buyer's page, with the publishable key."""
        name = client_secret.partition("_secret_")[0]
        form = urlencode({"client_secret": client_secret, "payment_method": card}).encode()
        browser = self.rest.as_(self.rest.token.replace("sk_", "pk_"))
        headers = {"content-type": "application/x-www-form-urlencoded"}
        path = f"/v1/payment_intents/{name}/confirm"
        return _with_status(await browser.send("POST", path, body=form, headers=headers))

    async def authenticate(self, client_secret: str, *, succeed: bool = True) -> None:
        """The buyer's answer to the bank."""
        await self._decide(client_secret.partition("_secret_")[0], "authenticate", succeed=succeed)

    async def settle(self, order_id: str, *, succeed: bool = True) -> None:
        """The end of a payment that the provider is processing, such as a bank transfer."""
        intents = (await self.get("/v1/payment_intents?limit=100"))["data"]
        name = next(intent["id"] for intent in intents if intent["metadata"].get("order_id") == order_id)
        await self._decide(name, "settle", succeed=succeed)

    async def _decide(self, intent: str, question: str, *, succeed: bool) -> None:
        outcome = {"outcome": "succeed" if succeed else "fail"}
        (await self.rest.post(f"/_sandbox/payment_intents/{intent}/{question}", outcome)).expect()

    async def fail_refund(self, refund: str) -> None:
        """The bank sends back a refund that had succeeded."""
        (await self.rest.post(f"/_sandbox/refunds/{refund}/fail", {})).expect()

    async def settle_refund(self, refund: str) -> None:
        """The bank takes a pending refund."""
        (await self.rest.post(f"/_sandbox/refunds/{refund}/settle", {"outcome": "succeed"})).expect()

    async def dispute(self, order_id: str) -> str:
        """The buyer's bank demands the money of an order back; returns the dispute's id."""
        (paid,) = await self.captured(order_id)
        wanted = {"reason": "fraudulent", "amount": paid["amount"]}
        made = await self.rest.post(f"/_sandbox/payment_intents/{paid['id']}/dispute", wanted)
        return str(made.expect().json["id"])

    async def decide_dispute(self, dispute: str, *, won: bool) -> None:
        """The end of a dispute."""
        (await self.rest.post(f"/_sandbox/disputes/{dispute}/decide", {"outcome": "win" if won else "lose"})).expect()

    async def faults(self, **switches: object) -> None:
        (await self.rest.post("/_sandbox/faults", switches)).expect()

    async def no_faults(self) -> None:
        (await self.rest.send("DELETE", "/_sandbox/faults")).expect()


def _with_status(answer: Answer) -> Json:
    return {"http": answer.status, **answer.json}


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
    _connecting: asyncio.Lock = field(default_factory=asyncio.Lock, repr=False)

    @classmethod
    @asynccontextmanager
    async def of(cls, mesh: Mesh) -> AsyncIterator["Shop"]:
        """The shop that this mesh runs; signed in as its admin."""
        secrets = mesh.site.secrets
        async with Rest.open(mesh.site.url, connections=_CONNECTIONS, seconds=_CALL_SECONDS) as opened:
            rest = replace(opened, check=check(secrets.values()))
            staff = await rest.sign_in(User(ADMIN_EMAIL, secrets["admin"]))
            sandbox = Sandbox(rest=replace(opened, url=mesh.site.sandbox_url).as_(secrets["stripe/key"]))
            running = cls(mesh=mesh, rest=rest, staff=staff, sandbox=sandbox)
            yield running
            await running.close()

    async def a_product(
        self, *, stock: int | None = 100, price: int = 1999, currency: str = "USD", **said: Any
    ) -> Json:
        """A product on sale, of which there is stock."""
        return await create_product(self.staff, price=money(price, currency), stock=stock, **said)

    async def a_sale(
        self,
        *,
        units: int = 10,
        price: int = 999,
        limit: int = 0,
        hold: str = "600s",
        product: Json | None = None,
        **terms: Any,
    ) -> Json:
        """A live flash sale, of a product of its own unless one is given."""
        product = product or await self.a_product(stock=units)
        price_ = money(price, product["price"]["currencyCode"])
        return await create_sale(
            self.staff, product, units=units, price=price_, limit=limit, holdDuration=hold, **terms
        )

    async def a_buyer(self) -> Buyer:
        """Somebody new, signed in. On a slow machine the queue of passwords may be full for a moment."""
        account = User(f"{new_id()}@example.com", PASSWORD)
        user = await sign_up(patient(self.rest), account)
        return Buyer(rest=self.rest.as_(account), id=user["id"], email=account.email)

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
        """Rows of a service's database."""
        connection = await self._database(service)
        try:
            return await (await connection.execute(query)).fetchall()
        except psycopg.OperationalError:  # PostgreSQL has been restarted meanwhile
            await connection.close()
            return await (await (await self._database(service)).execute(query)).fetchall()

    async def _database(self, service: str) -> psycopg.AsyncConnection[tuple[Any, ...]]:
        """The one connection to this database; a closed one is replaced."""
        async with self._connecting:
            if service not in self._databases or self._databases[service].closed:
                # As the owner: tests also move times that no service changes.
                url = self.mesh.site.database_url(service, f"{service}_owner").replace("+psycopg", "")
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


def states(orders: Sequence[Json]) -> list[str]:
    return [order["state"] for order in orders]
