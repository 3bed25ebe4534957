"""Requests that must be refused: each with the right status and reason, nothing changed, and never a 5xx.

All bad input is known to `tests/contract/test_bad_input.py`; one case of each kind comes through the gateway here, and
all those that only a handler refuses.
"""

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Iterable
from contextlib import asynccontextmanager
from dataclasses import dataclass

import pytest

from tests.e2e.shop import Buyer, Shop, assert_books_add_up, money
from tests.support.bad_input import CASES, EMOJI, PRODUCT, Case
from tests.support.rest import Answer, Json, Rest, new_id

UNREADABLE, INVALID = (400, ""), (400, "INVALID_FIELDS")
ARABIC = "ساعة \u202eحائط"
FUTURE = "2099-01-01T00:00:00Z"
ADDRESS = {"name": "Ada", "line1": "1 High Street", "city": "London", "countryCode": "GB"}
_AT_ONCE = 8


@dataclass(frozen=True)
class Scene:
    """The product and the buyer that the requests of this module name."""

    shop: Shop
    product: Json
    buyer: Buyer

    def an_order(self, **changed: object) -> Json:
        """One that would be taken, but for `changed`."""
        lines = [{"productId": self.product["id"], "quantity": 1}]
        return {"requestId": new_id(), "lines": lines} | changed

    def as_caller(self, role: str) -> Rest:
        return {"staff": self.shop.staff, "customer": self.buyer.rest}.get(role, self.shop.rest)

    @asynccontextmanager
    async def unchanged(self) -> AsyncIterator[None]:
        """Fail if anything of consequence changes within the block."""
        before, stock = await self.shop.counts(), await self.shop.stock(self.product)
        yield
        assert await self.shop.counts() == before, "something was changed"
        assert await self.shop.stock(self.product) == stock


@pytest.fixture(scope="module")
async def scene(shop: Shop) -> Scene:
    return Scene(shop, await shop.a_product(stock=100), await shop.a_buyer())


async def all_of(calls: Iterable[Awaitable[Answer]]) -> list[Answer]:
    """The answers, of which some are waited for at a time."""
    some = asyncio.Semaphore(_AT_ONCE)

    async def one(call: Awaitable[Answer]) -> Answer:
        async with some:
            return await call

    return list(await asyncio.gather(*map(one, calls)))


def one_of_each_kind() -> list[Case]:
    by_contract = {case.kind: case for case in reversed(CASES) if case.by_contract}
    return [*by_contract.values(), *(case for case in CASES if not case.by_contract)]


async def test_bad_input_is_refused_and_changes_nothing(scene: Scene) -> None:
    cases = one_of_each_kind()

    def send(case: Case) -> Awaitable[Answer]:
        path = case.path.replace(PRODUCT, scene.product["id"])
        body = case.body and json.loads(json.dumps(case.body).replace(PRODUCT, scene.product["id"]))
        return scene.as_caller(case.caller).send(case.verb, path, json_body=body)

    async with scene.unchanged():
        answers = await all_of(map(send, cases))

    wrong = [
        f"{case}: {answer.refusal} {answer.text[:200]}"
        for case, answer in zip(cases, answers, strict=True)
        if answer.status != case.refusal[0] or case.refusal[1] not in (None, answer.reason)
    ]
    assert not wrong, "\n".join(wrong)


_BODIES = (
    ("cut off", b'{"requestId": "', UNREADABLE),
    ("no json", b"requestId=1&lines=2", UNREADABLE),
    ("empty", b"", INVALID),
    ("empty object", b"{}", INVALID),
    ("list", b"[]", UNREADABLE),
    ("string", b'"order"', UNREADABLE),
    ("number", b"7", UNREADABLE),
    ("not UTF-8", b'{"requestId": "\xff\xfe"}', UNREADABLE),
    ("half a surrogate", b'{"requestId": "\\ud800"}', UNREADABLE),
    ("NUL outside of strings", b'{"requestId": \x00}', UNREADABLE),
    ("trailing words", b'{"requestId": "a"} and more', UNREADABLE),
    ("very deep", b'{"lines":' + b"[" * 20000, UNREADABLE),
    ("deep unknown field", b'{"x":' + b"[" * 5000 + b"]" * 5000 + b"}", UNREADABLE),
    ("HUGE number", b'{"lines": [{"quantity": 1' + b"0" * 400 + b"}]}", UNREADABLE),
    ("not a number", b'{"lines": [{"quantity": NaN}]}', UNREADABLE),
)


async def test_a_body_that_is_no_order_is_refused(scene: Scene) -> None:
    async with scene.unchanged():
        answers = await all_of(scene.buyer.rest.send("POST", "/v1/orders", body=body) for _, body, _ in _BODIES)

    found = {name: answer.refusal for (name, _, _), answer in zip(_BODIES, answers, strict=True)}
    assert found == {name: refusal for name, _, refusal in _BODIES}


async def test_an_idempotency_key_that_is_too_long_is_refused(scene: Scene) -> None:
    async with scene.unchanged():
        for length in (256, 5000):
            assert (await scene.buyer.buy(scene.product, key="x" * length)).refusal == INVALID


async def test_a_sign_in_that_fails_says_as_little_as_possible(scene: Scene) -> None:
    """A wrong password and an unknown address get one answer."""
    known = {"email": scene.buyer.email, "password": "incorrect horse"}

    answers = [
        await scene.shop.rest.post("/v1/auth/login", body) for body in (known, known | {"email": "nobody@example.com"})
    ]

    assert [answer.refusal for answer in answers] == [(401, "UNAUTHENTICATED")] * 2
    assert answers[0].text == answers[1].text


async def test_stock_cannot_grow_beyond_what_can_be_counted(scene: Scene) -> None:
    product = await scene.shop.a_product(stock=1_000_000_000)
    more = {"delta": 1_000_000_000, "reason": "more"}

    answers = [await scene.shop.staff.post(f"/v1/stock/{product['id']}:adjust", more) for _ in range(3)]

    assert answers[-1].status == 400, answers[-1].text
    assert answers[-1].reason


@pytest.mark.parametrize("action", ["cancel", "activate", "deactivate", "adjust", "refund", "end"])
@pytest.mark.parametrize("name", ["mine", new_id()], ids=["word", "unknown"])
async def test_an_action_on_what_is_not_there_is_refused(scene: Scene, action: str, name: str) -> None:
    kind = {"cancel": "orders", "adjust": "stock", "refund": "payments", "end": "flash-sales"}.get(action, "products")
    bodies = {"refund": {"full": True, "requestId": new_id()}, "adjust": {"delta": 1}}
    body = {"reason": "r", **bodies[action]} if action in bodies else {}

    answer = await scene.shop.staff.post(f"/v1/{kind}/{name}:{action}", body)

    assert answer.status == (400 if name == "mine" else 404), answer.text
    assert answer.reason.endswith("INVALID_FIELDS" if name == "mine" else "_NOT_FOUND")


async def test_texts_of_all_scripts_come_back_as_they_were_sent(shop: Shop, scene: Scene) -> None:
    name, word = f"{EMOJI} {ARABIC} Ω≈ç \u200b", f"wörd{new_id()[:8]}"
    product = await shop.a_product(name=name, description=word, attributes={"colour": "röd ❤"}, category=EMOJI)
    address = ADDRESS | {"name": name, "city": "København"}
    line = {"productId": product["id"], "quantity": 1}

    found = (await shop.rest.get("/v1/products", query=word)).expect().json["products"]
    order = (
        (await scene.buyer.rest.post("/v1/orders", scene.an_order(lines=[line], shippingAddress=address))).expect().json
    )

    assert [(one["name"], one["attributes"], one["category"]) for one in found] == [(name, {"colour": "röd ❤"}, EMOJI)]
    assert (order["lines"][0]["name"], order["shippingAddress"]["name"]) == (name, name)
    assert order["shippingAddress"]["city"] == "København"
    (await scene.buyer.cancel(order["id"])).expect()


async def test_unknown_fields_of_a_body_are_ignored(scene: Scene) -> None:
    body = scene.an_order(colour="red", state="PAID", total=money(1), customerId=new_id())

    order = (await scene.buyer.rest.post("/v1/orders", body)).expect().json

    assert (order["state"], order["customerId"], order["total"]) == ("PENDING", scene.buyer.id, scene.product["price"])
    (await scene.buyer.cancel(order["id"])).expect()


async def test_20_lines_are_one_order(shop: Shop, scene: Scene) -> None:
    products = [await shop.a_product(stock=1, price=100) for _ in range(20)]

    order = (await scene.buyer.buy(*products)).expect().json

    assert (order["state"], order["total"], len(order["lines"])) == ("PAID", money(2000), 20)


async def test_an_order_beyond_what_can_be_paid_is_refused_and_holds_nothing(shop: Shop, scene: Scene) -> None:
    product = await shop.a_product(stock=10, price=99_999_999)

    assert (await scene.buyer.buy(product, quantity=2)).refusal == (400, "ORDER_TOO_LARGE")
    assert await shop.stock(product) == (10, 0, 10)


async def test_two_currencies_in_one_order_are_refused_and_hold_nothing(shop: Shop, scene: Scene) -> None:
    dollars, yen = await shop.a_product(stock=5), await shop.a_product(stock=5, currency="JPY")

    assert (await scene.buyer.buy(dollars, yen)).refusal == (400, "CURRENCY_MISMATCH")
    assert await shop.stock(dollars) == (5, 0, 5)
    assert await shop.stock(yen) == (5, 0, 5)


async def test_a_product_off_sale_cannot_be_ordered(shop: Shop, scene: Scene) -> None:
    product = await shop.a_product(active=False)

    assert (await scene.buyer.buy(product)).refusal == (400, "PRODUCT_NOT_ACTIVE")


async def test_a_sale_that_has_not_begun_cannot_be_bought_in(shop: Shop, scene: Scene) -> None:
    product = await shop.a_product(stock=5)
    body = {
        "productId": product["id"], "title": "Later", "salePrice": money(5), "allocation": 5,
        "perCustomerLimit": 0, "startTime": "2098-01-01T00:00:00Z", "endTime": FUTURE,
    }  # fmt: skip
    sale = (await shop.staff.post("/v1/flash-sales", body)).expect().json

    assert sale["state"] == "SCHEDULED"
    assert (await scene.buyer.buy(sale)).refusal == (400, "SALE_NOT_LIVE")
    overlapping = await shop.staff.post("/v1/flash-sales", body | {"allocation": 1})
    assert overlapping.refusal in {(400, "SALE_OVERLAPS"), (400, "OUT_OF_STOCK")}


async def test_a_card_nobody_knows_fails_the_order_and_charges_nothing(shop: Shop, scene: Scene) -> None:
    product = await shop.a_product(stock=5)

    order = (await scene.buyer.buy(product, card="pm_card_of_nobody")).expect().json

    assert (order["state"], bool(order["stateReason"])) == ("FAILED", True)
    assert await shop.stock(product) == (5, 0, 5)
    assert await shop.sandbox.captured(order["id"]) == []


async def test_an_order_that_costs_nothing_comes_to_an_end(shop: Shop, scene: Scene) -> None:
    product = await shop.a_product(stock=5, price=0)

    order = (await scene.buyer.buy(product)).expect().json
    browser = (await scene.buyer.buy(product, card=None)).expect().json
    cancelled = (await shop.staff.post(f"/v1/orders/{browser['id']}:cancel")).expect().json

    assert (order["state"], browser["state"], cancelled["state"]) == ("PAID", "PAID", "CANCELLED")
    assert await shop.sandbox.captured(order["id"], browser["id"]) == []
    assert await shop.stock(product) == (4, 0, 4)
    await assert_books_add_up(shop, product)


def _nasty(depth: int) -> object:
    """One value of each kind, to be put wherever a field is."""
    return [None, True, -1, 0, 2**63, 1e308, "", "\x00", EMOJI, "x" * 5000, [], {}, [[]], {"": ""}][depth]


FIELDS = (
    "requestId", "lines", "email", "password", "refreshToken", "price", "sku", "name", "updateMask", "etag", "onHand",
    "delta", "reason", "productId", "title", "salePrice", "allocation", "endTime", "amount", "active", "attributes",
    "startTime", "holdDuration", "perCustomerLimit", "updates",
)  # fmt: skip


ROUTES = (
    ("POST", "/v1/orders"), ("POST", "/v1/orders/{id}:cancel"), ("POST", "/v1/auth/register"),
    ("POST", "/v1/auth/login"), ("POST", "/v1/auth/refresh"), ("POST", "/v1/products"),
    ("PATCH", "/v1/products/{id}"), ("POST", "/v1/products/{id}:activate"), ("PUT", "/v1/stock/{id}"),
    ("POST", "/v1/stock/{id}:adjust"), ("POST", "/v1/flash-sales"), ("POST", "/v1/payments/{id}:refund"),
    ("POST", "/v1/webhooks/stripe"), ("PATCH", "/v1/flash-sales/{id}"), ("POST", "/v1/flash-sales/{id}:cancel"),
    ("POST", "/v1/flash-sales/{id}:end"), ("POST", "/v1/stock:batchUpdate"),
)  # fmt: skip


async def test_no_value_of_any_kind_in_any_field_is_more_than_refused(scene: Scene) -> None:
    bodies = [json.dumps(dict.fromkeys(FIELDS, _nasty(kind))).encode() for kind in range(14)]
    sent = [(method, path.format(id=scene.product["id"]), body) for method, path in ROUTES for body in bodies]

    def as_staff(path: str) -> Rest:  # whose client would sign in again after a login that fails
        return scene.shop.rest if path.startswith("/v1/auth/") else scene.shop.staff

    async with scene.unchanged():
        answers = await all_of(as_staff(path).send(method, path, body=body) for method, path, body in sent)

    failed = [
        f"{one[0]} {one[1]}: {answer.text}" for one, answer in zip(sent, answers, strict=True) if answer.status >= 500
    ]
    assert not failed, "\n".join(failed)
