"""What must be refused: each with the right status and reason, nothing changed, and never a 5xx."""

import json
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Any

import pytest

from tests.e2e.shop import Buyer, Shop, money
from tests.support.rest import Answer, Json, Rest, new_id

UNREADABLE, INVALID = (400, ""), (400, "INVALID_FIELDS")
HUGE = 10**400
EMOJI, ARABIC = "⏰🦄👩‍👩‍👧", "ساعة \u202eحائط"
FUTURE = "2099-01-01T00:00:00Z"


@dataclass(frozen=True)
class Scene:
    """What the requests of this module are about."""

    shop: Shop
    product: Json
    buyer: Buyer

    def an_order(self, **changed: object) -> Json:
        """One that would be taken, but for `changed`."""
        lines = [{"productId": self.product["id"], "quantity": 1}]
        return {"requestId": new_id(), "lines": lines} | changed

    def an_order_line(self, **changed: object) -> Json:
        return self.an_order(lines=[{"productId": self.product["id"], "quantity": 1} | changed])


@pytest.fixture(scope="module")
async def scene(shop: Shop) -> Scene:
    return Scene(shop, await shop.a_product(stock=100), await shop.a_buyer())


@pytest.fixture(autouse=True)
async def _nothing_changes(request: pytest.FixtureRequest, shop: Shop, scene: Scene) -> AsyncIterator[None]:
    if request.node.get_closest_marker("parametrize") is None:
        yield
        return
    before, stock = await shop.counts(), await shop.stock(scene.product)
    yield
    assert await shop.counts() == before, "something was changed"
    assert await shop.stock(scene.product) == stock


def case(name: str, *values: object) -> Any:
    return pytest.param(*values, id=name)


@pytest.mark.parametrize(
    ("body", "refusal"),
    [
        case("cut off", b'{"requestId": "', UNREADABLE),
        case("no json", b"requestId=1&lines=2", UNREADABLE),
        case("empty", b"", INVALID),
        case("empty object", b"{}", INVALID),
        case("list", b"[]", UNREADABLE),
        case("string", b'"order"', UNREADABLE),
        case("number", b"7", UNREADABLE),
        case("not UTF-8", b'{"requestId": "\xff\xfe"}', UNREADABLE),
        case("half a surrogate", b'{"requestId": "\\ud800"}', UNREADABLE),
        case("NUL outside of strings", b'{"requestId": \x00}', UNREADABLE),
        case("trailing words", b'{"requestId": "a"} and more', UNREADABLE),
        case("very deep", b'{"lines":' + b"[" * 20000, UNREADABLE),
        case("deep unknown field", b'{"x":' + b"[" * 5000 + b"]" * 5000 + b"}", UNREADABLE),
        case("HUGE number", b'{"lines": [{"quantity": 1' + b"0" * 400 + b"}]}", UNREADABLE),
        case("not a number", b'{"lines": [{"quantity": NaN}]}', UNREADABLE),
    ],
)
async def test_a_body_that_is_no_order_is_refused(scene: Scene, body: bytes, refusal: tuple[int, str]) -> None:
    answer = await scene.buyer.rest.send("POST", "/v1/orders", body=body)

    assert answer.refusal == refusal, answer.text


@pytest.mark.parametrize(
    ("line", "refusal"),
    [
        case("quantity in words", {"quantity": "two"}, UNREADABLE),
        case("quantity as a list", {"quantity": [1]}, UNREADABLE),
        case("quantity as an object", {"quantity": {"units": 1}}, UNREADABLE),
        case("quantity true", {"quantity": True}, UNREADABLE),
        case("half a unit", {"quantity": 1.5}, UNREADABLE),
        case("2^31 units", {"quantity": 2**31}, UNREADABLE),
        case("10^400 units", {"quantity": HUGE}, UNREADABLE),
        case("10^400 units as text", {"quantity": str(HUGE)}, UNREADABLE),
        case("quantity null", {"quantity": None}, INVALID),
        case("no units", {"quantity": 0}, INVALID),
        case("-1 units", {"quantity": -1}, INVALID),
        case("-2^31 units", {"quantity": -(2**31)}, INVALID),
        case("1,001 units", {"quantity": 1001}, INVALID),
        case("2^31 - 1 units", {"quantity": 2**31 - 1}, INVALID),
        case("no product", {"productId": ""}, INVALID),
        case("product null", {"productId": None}, INVALID),
        case("product as a number", {"productId": 7}, UNREADABLE),
        case("product as an object", {"productId": {"id": 7}}, UNREADABLE),
        case("a word as product", {"productId": "clock"}, INVALID),
        case("a UUID and more", {"productId": new_id() + "0"}, INVALID),
        case("a UUID in braces", {"productId": "{" + new_id() + "}"}, INVALID),
        case("a UUID without hyphens", {"productId": new_id().replace("-", "")}, INVALID),
        case("SQL as product", {"productId": "' OR 1=1; --"}, INVALID),
        case("a word as sale", {"flashSaleId": "summer"}, INVALID),
        case("NUL in the sale", {"flashSaleId": new_id()[:-1] + "\x00"}, INVALID),
        case("an unknown product", {"productId": new_id()}, (404, "PRODUCT_NOT_FOUND")),
        case("an unknown sale", {"flashSaleId": new_id()}, (404, "FLASH_SALE_NOT_FOUND")),
        case("too many for the stock", {"quantity": 1000}, (400, "OUT_OF_STOCK")),
    ],
)
async def test_an_order_line_that_cannot_be_is_refused(scene: Scene, line: Json, refusal: tuple[int, str]) -> None:
    answer = await scene.buyer.rest.post("/v1/orders", scene.an_order_line(**line))

    assert answer.refusal == refusal, answer.text


@pytest.mark.parametrize(
    ("changed", "refusal"),
    [
        case("no request id", {"requestId": ""}, INVALID),
        case("request id null", {"requestId": None}, INVALID),
        case("a word as request id", {"requestId": "first try"}, INVALID),
        case("request id as a number", {"requestId": 1}, UNREADABLE),
        case("no lines", {"lines": []}, INVALID),
        case("lines null", {"lines": None}, INVALID),
        # Envoy's transcoder takes an object for a list of one.
        case("lines as an object", {"lines": {"productId": new_id()}}, INVALID),
        case("lines of words", {"lines": ["clock"]}, UNREADABLE),
        case("21 lines", {"lines": [{"productId": new_id(), "quantity": 1} for _ in range(21)]}, INVALID),
        case("5,000 lines", {"lines": [{"productId": new_id(), "quantity": 1} for _ in range(5000)]}, INVALID),
        case("a product twice", {"lines": [{"productId": "1" * 8 + new_id()[8:], "quantity": 1}] * 2}, INVALID),
        case("a card with spaces", {"paymentMethod": "4242 4242 4242 4242"}, INVALID),
        case("NUL in the card", {"paymentMethod": "pm_card\x00visa"}, INVALID),
        case("a very long card", {"paymentMethod": "p" * 201}, INVALID),
        case("card as an object", {"paymentMethod": {"number": "4242"}}, UNREADABLE),
        case("21 s of patience", {"preferWait": "21s"}, INVALID),
        case("-1 s of patience", {"preferWait": "-1s"}, INVALID),
        case("patience in words", {"preferWait": "a while"}, UNREADABLE),
        case("patience as a number", {"preferWait": 5}, UNREADABLE),
        case("endless patience", {"preferWait": "999999999999s"}, UNREADABLE),
        case("an empty address", {"shippingAddress": {}}, INVALID),
        case("address in words", {"shippingAddress": "at home"}, UNREADABLE),
    ],
)
async def test_an_order_that_cannot_be_is_refused(scene: Scene, changed: Json, refusal: tuple[int, str]) -> None:
    answer = await scene.buyer.rest.post("/v1/orders", scene.an_order(**changed))

    assert answer.refusal == refusal, answer.text


ADDRESS = {"name": "Ada", "line1": "1 High Street", "city": "London", "countryCode": "GB"}


@pytest.mark.parametrize(
    "changed",
    [
        case("NUL in the name", {"name": "A\x00da"}),
        case("NUL in the street", {"line1": "High\x00Street"}),
        case("NUL in the city", {"city": "\x00"}),
        case("NUL in the postal code", {"postalCode": "\x00"}),
        case("a long name", {"name": "a" * 101}),
        case("a long street", {"line1": "a" * 201}),
        case("a long postal code", {"postalCode": "1" * 21}),
        case("a lower case country", {"countryCode": "gb"}),
        case("a long country", {"countryCode": "GBR"}),
        case("no country", {"countryCode": ""}),
        case("no name", {"name": ""}),
    ],
)
async def test_an_address_that_cannot_be_is_refused(scene: Scene, changed: Json) -> None:
    wish = scene.an_order(shippingAddress=ADDRESS | changed)

    answer = await scene.buyer.rest.post("/v1/orders", wish)

    assert answer.refusal == INVALID, answer.text


@pytest.mark.parametrize("key", ["x" * 256, "x" * 5000], ids=["256", "5000"])
async def test_an_idempotency_key_that_is_too_long_is_refused(scene: Scene, key: str) -> None:
    answer = await scene.buyer.buy(scene.product, key=key)

    assert answer.refusal == INVALID, answer.text


@pytest.mark.parametrize(
    ("changed", "refusal"),
    [
        case("no sku", {"sku": ""}, INVALID),
        case("a sku with spaces", {"sku": "a b"}, INVALID),
        case("a long sku", {"sku": "s" * 65}, INVALID),
        case("an emoji as sku", {"sku": EMOJI}, INVALID),
        case("a slug with capitals", {"slug": "Clock"}, INVALID),
        case("a slug that climbs", {"slug": "../admin"}, INVALID),
        case("no name", {"name": ""}, INVALID),
        case("a long name", {"name": "n" * 201}, INVALID),
        case("NUL in the name", {"name": "clo\x00ck"}, INVALID),
        case("NUL in the description", {"description": "\x00"}, INVALID),
        case("NUL in the category", {"category": "\x00"}, INVALID),
        case("NUL in an attribute", {"attributes": {"colour": "\x00"}}, INVALID),
        case("NUL in an attribute's name", {"attributes": {"\x00": "red"}}, INVALID),
        case("an attribute without name", {"attributes": {"": "red"}}, INVALID),
        case("a long description", {"description": "d" * 10001}, INVALID),
        case("51 attributes", {"attributes": {str(n): "x" for n in range(51)}}, INVALID),
        case("attributes as a list", {"attributes": ["red"]}, UNREADABLE),
        case("no price", {"price": None}, INVALID),
        case("price as a number", {"price": 1999}, UNREADABLE),
        case("price without currency", {"price": {"minorUnits": "5"}}, INVALID),
        case("a lower case currency", {"price": money(5, "usd")}, INVALID),
        case("a currency too many", {"price": money(5, "USDT")}, INVALID),
        case("a negative price", {"price": money(-1)}, INVALID),
        case("a price beyond the bound", {"price": money(100_000_000)}, INVALID),
        case("a price of 2^63", {"price": money(2**63)}, UNREADABLE),
        case("a price of 10^400", {"price": {"currencyCode": "USD", "minorUnits": HUGE}}, UNREADABLE),
        case("half a cent", {"price": {"currencyCode": "USD", "minorUnits": "0.5"}}, UNREADABLE),
        case("active maybe", {"active": "maybe"}, UNREADABLE),
        case("a word as request id", {"requestId": "again"}, INVALID),
    ],
)
async def test_a_product_that_cannot_be_is_refused(scene: Scene, changed: Json, refusal: tuple[int, str]) -> None:
    wish = {"sku": f"SKU-{new_id()}", "name": "Clock", "price": money(5)} | changed

    answer = await scene.shop.staff.post("/v1/products", wish)

    assert answer.refusal == refusal, answer.text


@pytest.mark.parametrize(
    ("changed", "refusal"),
    [
        case("an unknown field", {"updateMask": "colour"}, (400, None)),
        case("an output field", {"updateMask": "createTime"}, (400, None)),
        case("a path into the void", {"updateMask": "price.x.y"}, (400, None)),
        case("a mask of numbers", {"updateMask": 7}, UNREADABLE),
        case("no name", {"updateMask": "name", "name": ""}, INVALID),
        case("a stale etag", {"name": "x", "etag": '"0"'}, (409, "STALE_ETAG")),
        case("NUL in the name", {"name": "\x00"}, INVALID),
        case("a negative price", {"price": money(-5)}, INVALID),
    ],
)
async def test_a_change_that_cannot_be_is_refused(scene: Scene, changed: Json, refusal: tuple[int, str | None]) -> None:
    answer = await scene.shop.staff.patch(f"/v1/products/{scene.product['id']}", changed)

    assert answer.status == refusal[0], answer.text
    assert refusal[1] in (None, answer.reason), answer.text


@pytest.mark.parametrize(
    ("method", "action", "body", "refusal"),
    [
        case("no count", "PUT", "", {"reason": "r"}, INVALID),
        case("no reason", "PUT", "", {"onHand": 1}, INVALID),
        case("-1 on hand", "PUT", "", {"onHand": -1, "reason": "r"}, INVALID),
        case("too many on hand", "PUT", "", {"onHand": 1_000_000_001, "reason": "r"}, INVALID),
        case("2^31 on hand", "PUT", "", {"onHand": 2**31, "reason": "r"}, UNREADABLE),
        case("NUL in the reason", "PUT", "", {"onHand": 101, "reason": "\x00"}, INVALID),
        case("a long reason", "PUT", "", {"onHand": 101, "reason": "r" * 501}, INVALID),
        case("adjust by nothing", "POST", ":adjust", {"delta": 0, "reason": "r"}, INVALID),
        case("adjust NUL", "POST", ":adjust", {"delta": 1, "reason": "a\x00b"}, INVALID),
        case("adjust by 2^31", "POST", ":adjust", {"delta": 2**31, "reason": "r"}, UNREADABLE),
        case("take what is not there", "POST", ":adjust", {"delta": -101, "reason": "r"}, (400, "OUT_OF_STOCK")),
        case("take it all and more", "POST", ":adjust", {"delta": -(10**9), "reason": "r"}, (400, "OUT_OF_STOCK")),
    ],
)
async def test_stock_that_cannot_be_is_refused(
    scene: Scene, method: str, action: str, body: Json, refusal: tuple[int, str]
) -> None:
    answer = await scene.shop.staff.send(method, f"/v1/stock/{scene.product['id']}{action}", json_body=body)

    assert answer.refusal == refusal, answer.text


async def test_stock_cannot_grow_beyond_what_can_be_counted(scene: Scene) -> None:
    product = await scene.shop.a_product(stock=1_000_000_000)
    more = {"delta": 1_000_000_000, "reason": "more"}

    answers = [await scene.shop.staff.post(f"/v1/stock/{product['id']}:adjust", more) for _ in range(3)]

    assert answers[-1].status == 400, answers[-1].text
    assert answers[-1].reason


@pytest.mark.parametrize(
    ("changed", "refusal"),
    [
        case("no title", {"title": ""}, INVALID),
        case("NUL in the title", {"title": "Sa\x00le"}, INVALID),
        case("a long title", {"title": "t" * 201}, INVALID),
        case("no units", {"allocation": 0}, INVALID),
        case("-1 units", {"allocation": -1}, INVALID),
        case("too many units", {"allocation": 10_000_001}, INVALID),
        case("2^31 units", {"allocation": 2**31}, UNREADABLE),
        case("more than there is", {"allocation": 101}, (400, "OUT_OF_STOCK")),
        case("a negative limit", {"perCustomerLimit": -1}, INVALID),
        case("a negative price", {"salePrice": money(-1)}, INVALID),
        case("a price beyond the bound", {"salePrice": money(10**8)}, INVALID),
        case("no end", {"endTime": None}, INVALID),
        case("an end in the past", {"endTime": "2020-01-01T00:00:00Z"}, INVALID),
        case("an end in words", {"endTime": "tomorrow"}, UNREADABLE),
        case("an end in the year 10000", {"endTime": "10000-01-01T00:00:00Z"}, UNREADABLE),
        case("an end on February 30th", {"endTime": "2099-02-30T00:00:00Z"}, UNREADABLE),
        case("an end before the start", {"startTime": "2099-02-01T00:00:00Z"}, INVALID),
        case("no hold", {"holdDuration": "0s"}, INVALID),
        case("a hold of half a second", {"holdDuration": "0.5s"}, INVALID),
        case("a hold of two hours", {"holdDuration": "7200s"}, INVALID),
        case("a negative hold", {"holdDuration": "-5s"}, INVALID),
        case("a hold in words", {"holdDuration": "a minute"}, UNREADABLE),
        case("a product without stock", {"productId": new_id()}, (404, "STOCK_NOT_FOUND")),
    ],
)
async def test_a_sale_that_cannot_be_is_refused(scene: Scene, changed: Json, refusal: tuple[int, str]) -> None:
    wish = {
        "productId": scene.product["id"], "title": "Sale", "salePrice": money(5), "allocation": 1, "endTime": FUTURE,
    } | changed  # fmt: skip

    answer = await scene.shop.staff.post("/v1/flash-sales", wish)

    assert answer.refusal == refusal, answer.text


@pytest.mark.parametrize(
    ("changed", "refusal"),
    [
        case("no e-mail", {"email": ""}, INVALID),
        case("a word as e-mail", {"email": "ada"}, INVALID),
        case("two addresses", {"email": "a@example.com, b@example.com"}, INVALID),
        case("NUL in the e-mail", {"email": "a\x00@example.com"}, INVALID),
        case("a line break in the e-mail", {"email": "a@example.com\nBcc: all@example.com"}, INVALID),
        case("a long e-mail", {"email": "a" * 250 + "@example.com"}, INVALID),
        case("no password", {"password": ""}, INVALID),
        case("a short password", {"password": "1234567"}, INVALID),
        case("a long password", {"password": "p" * 73}, INVALID),
        case("a password that is long in bytes", {"password": "🦄" * 19}, INVALID),
        case("NUL in the password", {"password": "correct\x00horse"}, INVALID),
        case("NUL in the name", {"displayName": "A\x00da"}, INVALID),
        case("a long name", {"displayName": "n" * 101}, INVALID),
        case("e-mail as an object", {"email": {"to": "a@example.com"}}, UNREADABLE),
        case("password as a number", {"password": 12345678}, UNREADABLE),
    ],
)
async def test_an_account_that_cannot_be_is_refused(scene: Scene, changed: Json, refusal: tuple[int, str]) -> None:
    wish = {"email": f"{new_id()}@example.com", "password": "correct horse"} | changed

    answer = await scene.shop.rest.post("/v1/auth/register", wish)

    assert answer.refusal == refusal, answer.text


@pytest.mark.parametrize(
    ("changed", "refusal"),
    [
        case("a wrong password", {"password": "incorrect horse"}, (401, "UNAUTHENTICATED")),
        case("an unknown address", {"email": "nobody@example.com"}, (401, "UNAUTHENTICATED")),
        case("NUL in the password", {"password": "a\x00b"}, (400, "INVALID_FIELDS")),
        case("NUL in the address", {"email": "a\x00@example.com"}, (400, "INVALID_FIELDS")),
        case("no password", {"password": ""}, INVALID),
        case("a long password", {"password": "p" * 73}, INVALID),
        case("a password in emoji", {"password": EMOJI}, (401, "UNAUTHENTICATED")),
        case("a list of passwords", {"password": ["a", "b"]}, UNREADABLE),
    ],
)
async def test_a_sign_in_that_fails_says_as_little_as_possible(
    scene: Scene, changed: Json, refusal: tuple[int, str]
) -> None:
    wish = {"email": scene.buyer.email, "password": "incorrect horse"} | changed

    answer = await scene.shop.rest.post("/v1/auth/login", wish)

    assert answer.refusal == refusal, answer.text


@pytest.mark.parametrize(
    ("path", "refusal"),
    [
        case("a query nobody knows", "/v1/products?colour=red", UNREADABLE),
        case("a query in words", "/v1/products?pageSize=all", UNREADABLE),
        case("a huge page", "/v1/products?pageSize=2147483648", UNREADABLE),
        case("10^400 on a page", f"/v1/products?pageSize={HUGE}", UNREADABLE),
        case("-1 on a page", "/v1/products?pageSize=-1", INVALID),
        case("a negative price", "/v1/products?minPrice=-1", INVALID),
        case("a price of 2^63", f"/v1/products?maxPrice={2**63}", UNREADABLE),
        case("an order nobody knows", "/v1/products?orderBy=luck", INVALID),
        case("SQL as order", "/v1/products?orderBy=price;DROP%20TABLE%20products", INVALID),
        case("a long query", f"/v1/products?query={'q' * 201}", INVALID),
        case("NUL in the query", "/v1/products?query=a%00b", INVALID),
        case("NUL in the category", "/v1/products?category=%00", INVALID),
        case("NUL in the attribute", "/v1/products?attribute=a:%00", INVALID),
        case("an attribute without value", "/v1/products?attribute=colour", INVALID),
        case("a forged page token", "/v1/products?pageToken=AAAA", INVALID),
        case("a page token in emoji", "/v1/products?pageToken=%F0%9F%A6%84", INVALID),
        case("a long page token", f"/v1/products?pageToken={'A' * 1001}", INVALID),
        case("a query that is not UTF-8", "/v1/products?query=%ff%fe", (400, None)),
        case("a product by word", "/v1/products/clock", INVALID),
        case("a product by number", "/v1/products/0", INVALID),
        case("an unknown product", f"/v1/products/{new_id()}", (404, "PRODUCT_NOT_FOUND")),
        case("an unknown slug", "/v1/products/by-slug/no-such-clock", (404, "PRODUCT_NOT_FOUND")),
        case("unknown stock", f"/v1/stock/{new_id()}", (404, "STOCK_NOT_FOUND")),
        case("stock by word", "/v1/stock/clock", INVALID),
        case("an unknown sale", f"/v1/flash-sales/{new_id()}", (404, "FLASH_SALE_NOT_FOUND")),
        case("a sale by word", "/v1/flash-sales/summer", INVALID),
        case("a state nobody knows", "/v1/flash-sales?state=HAPPY", UNREADABLE),
        case("a state by number", "/v1/flash-sales?state=99", (400, None)),
        case("a forged page of sales", "/v1/flash-sales?pageToken=eyJ9", INVALID),
        case("a forged page of orders", "/v1/orders?pageToken=eyJ9", INVALID),
        case("orders in a state nobody knows", "/v1/orders?state=HAPPY", UNREADABLE),
        case("an order by word", "/v1/orders/mine", INVALID),
        case("an unknown order", f"/v1/orders/{new_id()}", (404, "ORDER_NOT_FOUND")),
        case("a payment by word", "/v1/payments/mine", INVALID),
        case("an unknown payment", f"/v1/payments/{new_id()}", (404, "PAYMENT_NOT_FOUND")),
        case("movements of unknown stock", f"/v1/stock/{new_id()}/movements", (404, "STOCK_NOT_FOUND")),
    ],
)
async def test_a_question_that_makes_no_sense_is_refused(
    scene: Scene, path: str, refusal: tuple[int, str | None]
) -> None:
    asker = scene.buyer.rest if path.startswith("/v1/orders") else scene.shop.staff

    answer = await asker.get(path)

    assert answer.status == refusal[0], answer.text
    assert refusal[1] in (None, answer.reason), answer.text


@pytest.mark.parametrize("action", ["cancel", "activate", "deactivate", "adjust", "refund", "end"])
@pytest.mark.parametrize("name", ["mine", new_id()], ids=["word", "unknown"])
async def test_an_action_on_what_is_not_there_is_refused(scene: Scene, action: str, name: str) -> None:
    kind = {"cancel": "orders", "adjust": "stock", "refund": "payments", "end": "flash-sales"}.get(action, "products")
    body = {"refund": {"reason": "r", "requestId": new_id()}, "adjust": {"delta": 1, "reason": "r"}}.get(action, {})

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
    wish = scene.an_order(colour="red", state="PAID", total=money(1), customerId=new_id())

    order = (await scene.buyer.rest.post("/v1/orders", wish)).expect().json

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
    wish = {
        "productId": product["id"], "title": "Later", "salePrice": money(5), "allocation": 5,
        "startTime": "2098-01-01T00:00:00Z", "endTime": FUTURE,
    }  # fmt: skip
    sale = (await shop.staff.post("/v1/flash-sales", wish)).expect().json

    assert sale["state"] == "SCHEDULED"
    assert (await scene.buyer.buy(sale)).refusal == (400, "SALE_NOT_LIVE")
    overlapping = await shop.staff.post("/v1/flash-sales", wish | {"allocation": 1})
    assert overlapping.refusal in {(400, "SALE_OVERLAPS"), (400, "OUT_OF_STOCK")}


async def test_a_card_nobody_knows_fails_the_order_and_charges_nothing(shop: Shop, scene: Scene) -> None:
    product = await shop.a_product(stock=5)

    order = (await scene.buyer.buy(product, card="pm_card_of_nobody")).expect().json

    assert (order["state"], bool(order["stateReason"])) == ("FAILED", True)
    assert await shop.stock(product) == (5, 0, 5)
    assert await shop.sandbox.captured(order["id"]) == []


async def test_an_order_that_costs_nothing_comes_to_an_end(shop: Shop, scene: Scene) -> None:
    product = await shop.a_product(stock=5, price=0)

    answer = await scene.buyer.buy(product)

    if answer.status == 200:
        assert answer.json["state"] in ("PAID", "FAILED")
        assert (await shop.stock(product))[1] == 0
    else:
        assert answer.status == 400, answer.text


def _nasty(depth: int) -> object:
    """One value of each kind, to be put wherever a field is."""
    return [None, True, -1, 0, 2**63, 1e308, "", "\x00", EMOJI, "x" * 5000, [], {}, [[]], {"": ""}][depth]


FIELDS = (
    "requestId", "lines", "email", "password", "refreshToken", "price", "sku", "name", "updateMask", "etag", "onHand",
    "delta", "reason", "productId", "title", "salePrice", "allocation", "endTime", "amount", "active", "attributes",
    "startTime", "holdDuration", "perCustomerLimit", "updates",
)  # fmt: skip


async def every_body(rest: Rest, method: str, path: str) -> AsyncIterator[Answer]:
    for kind in range(14):
        yield await rest.send(method, path, body=json.dumps(dict.fromkeys(FIELDS, _nasty(kind))).encode())


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("POST", "/v1/orders"), ("POST", "/v1/orders/{id}:cancel"), ("POST", "/v1/auth/register"),
        ("POST", "/v1/auth/login"), ("POST", "/v1/auth/refresh"), ("POST", "/v1/products"),
        ("PATCH", "/v1/products/{id}"), ("POST", "/v1/products/{id}:activate"), ("PUT", "/v1/stock/{id}"),
        ("POST", "/v1/stock/{id}:adjust"), ("POST", "/v1/flash-sales"), ("POST", "/v1/payments/{id}:refund"),
        ("POST", "/v1/webhooks/stripe"), ("PATCH", "/v1/flash-sales/{id}"), ("POST", "/v1/flash-sales/{id}:cancel"),
        ("POST", "/v1/flash-sales/{id}:end"), ("POST", "/v1/stock:batchUpdate"),
    ],
)  # fmt: skip
async def test_no_value_of_any_kind_in_any_field_is_more_than_refused(scene: Scene, method: str, path: str) -> None:
    async for answer in every_body(scene.shop.staff, method, path.format(id=scene.product["id"])):
        assert answer.status < 500, answer.text
