"""Requests that must be refused, with the refusal of each.

Every case runs in process, against the contract's rules (`tests/contract`); and one case of each kind
for each route through the real gateway, with all those that only a handler refuses (`tests/e2e/gateway`).
"""

from dataclasses import dataclass

from tests.support.rest import Json, new_id

UNREADABLE = (400, "")
"""Refused by the gateway: it cannot make the method's request of it."""
INVALID = (400, "INVALID_FIELDS")
"""Refused by the contract's rules, before the handler."""
BY_HANDLER = (400, "INVALID_FIELDS", "handler")
"""The same answer, from the handler."""
BY_GATEWAY = (400, "INVALID_FIELDS", "gateway")
"""The same answer to a body that Envoy's transcoder reads in a way of its own."""
PRODUCT = "0196f5c0-0000-7000-8000-000000000001"
"""Stands for the product of a test, in paths and bodies."""
EMOJI = "⏰🦄👩‍👩‍👧"
_HUGE = 10**400
_FUTURE = "2099-01-01T00:00:00Z"

Refusal = tuple[int, str | None] | tuple[int, str, str]


@dataclass(frozen=True)
class Case:
    """One request that must be refused."""

    name: str
    verb: str
    path: str
    body: Json | None
    refusal: Refusal
    caller: str = "staff"
    """`customer`, `staff`, or nobody."""

    @property
    def by_contract(self) -> bool:
        """Whether the contract alone refuses it."""
        return self.refusal in (UNREADABLE, INVALID)

    @property
    def by_handler(self) -> bool:
        return not self.by_contract and self.refusal[-1] != "gateway"

    @property
    def kind(self) -> tuple[str, str, object]:
        """One case of each kind goes through the gateway."""
        return self.verb, self.path.partition("?")[0], self.refusal

    def __str__(self) -> str:
        return f"{self.verb} {self.path.partition('?')[0]}: {self.name}"


def money(minor_units: int, currency: str = "USD") -> Json:
    return {"currencyCode": currency, "minorUnits": str(minor_units)}


_LINES: tuple[tuple[str, Json, Refusal], ...] = (
    ("quantity in words", {"quantity": "two"}, UNREADABLE),
    ("quantity as a list", {"quantity": [1]}, UNREADABLE),
    ("quantity as an object", {"quantity": {"units": 1}}, UNREADABLE),
    ("quantity true", {"quantity": True}, UNREADABLE),
    ("half a unit", {"quantity": 1.5}, UNREADABLE),
    ("2^31 units", {"quantity": 2**31}, UNREADABLE),
    ("10^400 units", {"quantity": _HUGE}, UNREADABLE),
    ("10^400 units as text", {"quantity": str(_HUGE)}, UNREADABLE),
    ("quantity null", {"quantity": None}, INVALID),
    ("no units", {"quantity": 0}, INVALID),
    ("-1 units", {"quantity": -1}, INVALID),
    ("-2^31 units", {"quantity": -(2**31)}, INVALID),
    ("1,001 units", {"quantity": 1001}, INVALID),
    ("2^31 - 1 units", {"quantity": 2**31 - 1}, INVALID),
    ("no product", {"productId": ""}, INVALID),
    ("product null", {"productId": None}, INVALID),
    ("product as a number", {"productId": 7}, UNREADABLE),
    ("product as an object", {"productId": {"id": 7}}, UNREADABLE),
    ("a word as product", {"productId": "clock"}, INVALID),
    ("a UUID and more", {"productId": new_id() + "0"}, INVALID),
    ("a UUID in braces", {"productId": "{" + new_id() + "}"}, INVALID),
    ("a UUID without hyphens", {"productId": new_id().replace("-", "")}, INVALID),
    ("SQL as product", {"productId": "' OR 1=1; --"}, INVALID),
    ("a word as sale", {"flashSaleId": "summer"}, INVALID),
    ("NUL in the sale", {"flashSaleId": new_id()[:-1] + "\x00"}, INVALID),
    ("an unknown product", {"productId": new_id()}, (404, "PRODUCT_NOT_FOUND")),
    ("an unknown sale", {"flashSaleId": new_id()}, (404, "FLASH_SALE_NOT_FOUND")),
    ("too many for the stock", {"quantity": 1000}, (400, "OUT_OF_STOCK")),
)

_ORDERS: tuple[tuple[str, Json, Refusal], ...] = (
    ("no request id", {"requestId": ""}, INVALID),
    ("request id null", {"requestId": None}, INVALID),
    ("a word as request id", {"requestId": "first try"}, INVALID),
    ("request id as a number", {"requestId": 1}, UNREADABLE),
    ("no lines", {"lines": []}, INVALID),
    ("lines null", {"lines": None}, INVALID),
    # Envoy's transcoder takes an object for a list of one.
    ("lines as an object", {"lines": {"productId": new_id()}}, BY_GATEWAY),
    ("lines of words", {"lines": ["clock"]}, (400, "", "gateway")),
    ("21 lines", {"lines": [{"productId": new_id(), "quantity": 1} for _ in range(21)]}, INVALID),
    ("5,000 lines", {"lines": [{"productId": new_id(), "quantity": 1} for _ in range(5000)]}, INVALID),
    ("a product twice", {"lines": [{"productId": "1" * 8 + new_id()[8:], "quantity": 1}] * 2}, INVALID),
    ("a card with spaces", {"paymentMethod": "4242 4242 4242 4242"}, INVALID),
    ("NUL in the card", {"paymentMethod": "pm_card\x00visa"}, INVALID),
    ("a very long card", {"paymentMethod": "p" * 201}, INVALID),
    ("card as an object", {"paymentMethod": {"number": "4242"}}, UNREADABLE),
    ("21 s of patience", {"preferWait": "21s"}, INVALID),
    ("-1 s of patience", {"preferWait": "-1s"}, INVALID),
    ("patience in words", {"preferWait": "a while"}, UNREADABLE),
    ("patience as a number", {"preferWait": 5}, UNREADABLE),
    ("endless patience", {"preferWait": "999999999999s"}, UNREADABLE),
    ("an empty address", {"shippingAddress": {}}, INVALID),
    ("address in words", {"shippingAddress": "at home"}, (400, "", "gateway")),
)

_ADDRESSES: tuple[tuple[str, Json], ...] = (
    ("NUL in the name", {"name": "A\x00da"}),
    ("NUL in the street", {"line1": "High\x00Street"}),
    ("NUL in the city", {"city": "\x00"}),
    ("NUL in the postal code", {"postalCode": "\x00"}),
    ("a long name", {"name": "a" * 101}),
    ("a long street", {"line1": "a" * 201}),
    ("a long postal code", {"postalCode": "1" * 21}),
    ("a lower case country", {"countryCode": "gb"}),
    ("a long country", {"countryCode": "GBR"}),
    ("no country", {"countryCode": ""}),
    ("no name", {"name": ""}),
)

_PRODUCTS: tuple[tuple[str, Json, Refusal], ...] = (
    ("no sku", {"sku": ""}, INVALID),
    ("a sku with spaces", {"sku": "a b"}, INVALID),
    ("a long sku", {"sku": "s" * 65}, INVALID),
    ("an emoji as sku", {"sku": EMOJI}, INVALID),
    ("a slug with capitals", {"slug": "Clock"}, INVALID),
    ("a slug that climbs", {"slug": "../admin"}, INVALID),
    ("no name", {"name": ""}, INVALID),
    ("a long name", {"name": "n" * 201}, INVALID),
    ("NUL in the name", {"name": "clo\x00ck"}, INVALID),
    ("NUL in the description", {"description": "\x00"}, INVALID),
    ("NUL in the category", {"category": "\x00"}, INVALID),
    ("NUL in an attribute", {"attributes": {"colour": "\x00"}}, INVALID),
    ("NUL in an attribute's name", {"attributes": {"\x00": "red"}}, INVALID),
    ("an attribute without name", {"attributes": {"": "red"}}, INVALID),
    ("a long description", {"description": "d" * 10001}, INVALID),
    ("51 attributes", {"attributes": {str(n): "x" for n in range(51)}}, INVALID),
    ("attributes as a list", {"attributes": ["red"]}, UNREADABLE),
    ("no price", {"price": None}, INVALID),
    ("price as a number", {"price": 1999}, UNREADABLE),
    ("price without currency", {"price": {"minorUnits": "5"}}, INVALID),
    ("a misspelt price", {"price": {"currencyCode": "USD", "amount": "99900"}}, INVALID),
    ("a lower case currency", {"price": money(5, "usd")}, INVALID),
    ("a currency too many", {"price": money(5, "USDT")}, INVALID),
    ("a negative price", {"price": money(-1)}, INVALID),
    ("a currency that is none", {"price": money(5, "ZZZ")}, BY_HANDLER),
    ("a tenth of a fils", {"price": money(12345, "KWD")}, BY_HANDLER),
    ("a price beyond the bound", {"price": money(100_000_000)}, INVALID),
    ("a price of 2^63", {"price": money(2**63)}, UNREADABLE),
    ("a price of 10^400", {"price": {"currencyCode": "USD", "minorUnits": _HUGE}}, UNREADABLE),
    ("half a cent", {"price": {"currencyCode": "USD", "minorUnits": "0.5"}}, UNREADABLE),
    ("active maybe", {"active": "maybe"}, UNREADABLE),
    ("a word as request id", {"requestId": "again"}, INVALID),
)

_CHANGES: tuple[tuple[str, Json, Refusal], ...] = (
    ("an unknown field", {"updateMask": "colour"}, (400, None)),
    ("an output field", {"updateMask": "createTime"}, (400, None)),
    ("a path into the void", {"updateMask": "price.x.y"}, (400, None)),
    ("a mask of numbers", {"updateMask": 7}, UNREADABLE),
    ("no name", {"updateMask": "name", "name": ""}, INVALID),
    ("a stale etag", {"name": "x", "etag": '"0"'}, (409, "STALE_ETAG")),
    ("NUL in the name", {"name": "\x00"}, INVALID),
    ("a negative price", {"price": money(-5)}, INVALID),
    ("another currency", {"price": money(5, "EUR")}, BY_HANDLER),
    ("a misspelt price", {"price": {"currencyCode": "USD", "minor_unit": "5"}}, INVALID),
)

_SALES: tuple[tuple[str, Json, Refusal], ...] = (
    ("no title", {"title": ""}, INVALID),
    ("NUL in the title", {"title": "Sa\x00le"}, INVALID),
    ("a long title", {"title": "t" * 201}, INVALID),
    ("no units", {"allocation": 0}, INVALID),
    ("-1 units", {"allocation": -1}, INVALID),
    ("too many units", {"allocation": 10_000_001}, INVALID),
    ("2^31 units", {"allocation": 2**31}, UNREADABLE),
    ("more than there is", {"allocation": 101}, (400, "OUT_OF_STOCK")),
    ("a negative limit", {"perCustomerLimit": -1}, INVALID),
    ("no word about the limit", {"perCustomerLimit": None}, INVALID),
    ("a misspelt limit", {"perCustomerLimit": None, "perCustomerLimt": 1}, INVALID),
    ("a misspelt start", {"startTime": None, "startsAt": _FUTURE}, INVALID),
    ("a misspelt price", {"salePrice": {"currencyCode": "USD", "amount": "99900"}}, INVALID),
    ("a price null", {"salePrice": {"currencyCode": "USD", "minorUnits": None}}, INVALID),
    ("an empty price", {"salePrice": {}}, INVALID),
    ("a negative price", {"salePrice": money(-1)}, INVALID),
    ("a price beyond the bound", {"salePrice": money(10**8)}, INVALID),
    ("no end", {"endTime": None}, INVALID),
    ("an end in the past", {"endTime": "2020-01-01T00:00:00Z"}, INVALID),
    ("an end in words", {"endTime": "tomorrow"}, UNREADABLE),
    ("an end in the last second", {"endTime": "9999-12-31T23:59:59Z"}, INVALID),
    ("an end in the last nanosecond", {"endTime": "9999-12-31T23:59:59.999999999Z"}, INVALID),
    (
        "a start and an end in the last second",
        {"startTime": "9999-12-31T23:59:59.1Z", "endTime": "9999-12-31T23:59:59.2Z"},
        INVALID,
    ),
    ("an end in the year 10000", {"endTime": "10000-01-01T00:00:00Z"}, UNREADABLE),
    ("an end on February 30th", {"endTime": "2099-02-30T00:00:00Z"}, UNREADABLE),
    ("an end before the start", {"startTime": "2099-02-01T00:00:00Z"}, INVALID),
    ("no hold", {"holdDuration": "0s"}, INVALID),
    ("a hold of half a second", {"holdDuration": "0.5s"}, INVALID),
    ("a hold of an hour and a second", {"holdDuration": "3601s"}, INVALID),
    ("a hold of 1.9 seconds", {"holdDuration": "1.9s"}, INVALID),
    ("a hold of 1.000000001 seconds", {"holdDuration": "1.000000001s"}, INVALID),
    ("a negative hold", {"holdDuration": "-5s"}, INVALID),
    ("a hold in words", {"holdDuration": "a minute"}, UNREADABLE),
    ("an unknown product", {"productId": new_id()}, (404, "PRODUCT_NOT_FOUND")),
    ("another currency than the product's", {"salePrice": money(999, "JPY")}, BY_HANDLER),
    ("a currency that is none", {"salePrice": money(999, "ZZZ")}, BY_HANDLER),
)

_ACCOUNTS: tuple[tuple[str, Json, Refusal], ...] = (
    ("no e-mail", {"email": ""}, INVALID),
    ("a word as e-mail", {"email": "ada"}, INVALID),
    ("two addresses", {"email": "a@example.com, b@example.com"}, INVALID),
    ("NUL in the e-mail", {"email": "a\x00@example.com"}, INVALID),
    ("a line break in the e-mail", {"email": "a@example.com\nBcc: all@example.com"}, INVALID),
    ("a long e-mail", {"email": "a" * 250 + "@example.com"}, INVALID),
    ("no password", {"password": ""}, INVALID),
    ("a short password", {"password": "1234567"}, INVALID),
    ("a long password", {"password": "p" * 73}, INVALID),
    ("a password that is long in bytes", {"password": "🦄" * 19}, INVALID),
    ("NUL in the password", {"password": "correct\x00horse"}, INVALID),
    ("NUL in the name", {"displayName": "A\x00da"}, INVALID),
    ("a long name", {"displayName": "n" * 101}, INVALID),
    ("e-mail as an object", {"email": {"to": "a@example.com"}}, UNREADABLE),
    ("password as a number", {"password": 12345678}, UNREADABLE),
)

_SIGN_INS: tuple[tuple[str, Json, Refusal], ...] = (
    ("a wrong password", {"password": "incorrect horse"}, (401, "UNAUTHENTICATED")),
    ("an unknown address", {"email": "nobody@example.com"}, (401, "UNAUTHENTICATED")),
    ("NUL in the password", {"password": "a\x00b"}, (400, "INVALID_FIELDS")),
    ("NUL in the address", {"email": "a\x00@example.com"}, (400, "INVALID_FIELDS")),
    ("no password", {"password": ""}, INVALID),
    ("a long password", {"password": "p" * 73}, INVALID),
    ("a password in emoji", {"password": EMOJI}, (401, "UNAUTHENTICATED")),
    ("a list of passwords", {"password": ["a", "b"]}, UNREADABLE),
)

_STOCK: tuple[tuple[str, str, str, Json, Refusal], ...] = (
    ("no count", "PUT", "", {"reason": "r"}, INVALID),
    ("no reason", "PUT", "", {"onHand": 1}, INVALID),
    ("-1 on hand", "PUT", "", {"onHand": -1, "reason": "r"}, INVALID),
    ("too many on hand", "PUT", "", {"onHand": 1_000_000_001, "reason": "r"}, INVALID),
    ("2^31 on hand", "PUT", "", {"onHand": 2**31, "reason": "r"}, UNREADABLE),
    ("NUL in the reason", "PUT", "", {"onHand": 101, "reason": "\x00"}, INVALID),
    ("a long reason", "PUT", "", {"onHand": 101, "reason": "r" * 501}, INVALID),
    ("adjust by nothing", "POST", ":adjust", {"delta": 0, "reason": "r"}, INVALID),
    ("adjust NUL", "POST", ":adjust", {"delta": 1, "reason": "a\x00b"}, INVALID),
    ("adjust by 2^31", "POST", ":adjust", {"delta": 2**31, "reason": "r"}, UNREADABLE),
    ("take what is not there", "POST", ":adjust", {"delta": -101, "reason": "r"}, (400, "OUT_OF_STOCK")),
    ("take it all and more", "POST", ":adjust", {"delta": -(10**9), "reason": "r"}, (400, "OUT_OF_STOCK")),
)

_QUESTIONS: tuple[tuple[str, str, Refusal], ...] = (
    ("a query nobody knows", "/v1/products?colour=red", UNREADABLE),
    ("a query in words", "/v1/products?pageSize=all", UNREADABLE),
    ("a huge page", "/v1/products?pageSize=2147483648", UNREADABLE),
    ("10^400 on a page", f"/v1/products?pageSize={_HUGE}", UNREADABLE),
    ("-1 on a page", "/v1/products?pageSize=-1", INVALID),
    ("a negative price", "/v1/products?minPrice=-1", INVALID),
    ("a price of 2^63", f"/v1/products?maxPrice={2**63}", UNREADABLE),
    ("an order nobody knows", "/v1/products?orderBy=luck", INVALID),
    ("SQL as order", "/v1/products?orderBy=price;DROP%20TABLE%20products", INVALID),
    ("a long query", f"/v1/products?query={'q' * 201}", INVALID),
    ("NUL in the query", "/v1/products?query=a%00b", INVALID),
    ("NUL in the category", "/v1/products?category=%00", INVALID),
    ("NUL in the attribute", "/v1/products?attribute=a:%00", INVALID),
    ("an attribute without value", "/v1/products?attribute=colour", INVALID),
    ("a forged page token", "/v1/products?pageToken=AAAA", BY_HANDLER),
    ("a page token in emoji", "/v1/products?pageToken=%F0%9F%A6%84", BY_HANDLER),
    ("a long page token", f"/v1/products?pageToken={'A' * 4001}", INVALID),
    ("a query that is not UTF-8", "/v1/products?query=%ff%fe", (400, None)),
    ("a product by word", "/v1/products/clock", INVALID),
    ("a product by number", "/v1/products/0", INVALID),
    ("an unknown product", f"/v1/products/{new_id()}", (404, "PRODUCT_NOT_FOUND")),
    ("an unknown slug", "/v1/products/by-slug/no-such-clock", (404, "PRODUCT_NOT_FOUND")),
    ("unknown stock", f"/v1/stock/{new_id()}", (404, "STOCK_NOT_FOUND")),
    ("stock by word", "/v1/stock/clock", INVALID),
    ("an unknown sale", f"/v1/flash-sales/{new_id()}", (404, "FLASH_SALE_NOT_FOUND")),
    ("a sale by word", "/v1/flash-sales/summer", INVALID),
    ("a state nobody knows", "/v1/flash-sales?state=HAPPY", UNREADABLE),
    ("a state by number", "/v1/flash-sales?state=99", (400, "", "gateway")),
    ("a forged page of sales", "/v1/flash-sales?pageToken=eyJ9", BY_HANDLER),
    ("a forged page of orders", "/v1/orders?pageToken=eyJ9", BY_HANDLER),
    ("orders in a state nobody knows", "/v1/orders?state=HAPPY", UNREADABLE),
    ("an order by word", "/v1/orders/mine", INVALID),
    ("an unknown order", f"/v1/orders/{new_id()}", (404, "ORDER_NOT_FOUND")),
    ("a payment by word", "/v1/payments/mine", INVALID),
    ("an unknown payment", f"/v1/payments/{new_id()}", (404, "PAYMENT_NOT_FOUND")),
    ("movements of unknown stock", f"/v1/stock/{new_id()}/movements", (404, "STOCK_NOT_FOUND")),
)

_LINE: Json = {"productId": PRODUCT, "quantity": 1}
_ADDRESS: Json = {"name": "Ada", "line1": "1 High Street", "city": "London", "countryCode": "GB"}
_PRODUCT: Json = {"sku": f"SKU-{new_id()}", "name": "Clock", "price": money(5)}
_SALE: Json = {
    "productId": PRODUCT, "title": "Sale", "salePrice": money(5), "allocation": 1, "perCustomerLimit": 0,
    "startTime": "2026-01-01T00:00:00Z", "endTime": _FUTURE,
}  # fmt: skip
_ACCOUNT: Json = {"email": f"{new_id()}@example.com", "password": "correct horse"}


def _an_order(**changed: object) -> Json:
    """An order that would be taken, but for `changed`."""
    return {"requestId": new_id(), "lines": [_LINE]} | changed


def _asker(path: str) -> str:
    return "customer" if path.startswith("/v1/orders") else "staff"


CASES: tuple[Case, ...] = (
    *(Case(n, "POST", "/v1/orders", _an_order(lines=[_LINE | line]), r, "customer") for n, line, r in _LINES),
    *(Case(n, "POST", "/v1/orders", _an_order(**changed), r, "customer") for n, changed, r in _ORDERS),
    *(
        Case(f"address: {n}", "POST", "/v1/orders", _an_order(shippingAddress=_ADDRESS | changed), INVALID, "customer")
        for n, changed in _ADDRESSES
    ),
    *(Case(n, "POST", "/v1/products", _PRODUCT | changed, r) for n, changed, r in _PRODUCTS),
    *(Case(n, "PATCH", f"/v1/products/{PRODUCT}", changed, r) for n, changed, r in _CHANGES),
    *(Case(n, verb, f"/v1/stock/{PRODUCT}{action}", body, r) for n, verb, action, body, r in _STOCK),
    *(Case(n, "POST", "/v1/flash-sales", _SALE | changed, r) for n, changed, r in _SALES),
    *(Case(n, "POST", "/v1/auth/register", _ACCOUNT | changed, r, "") for n, changed, r in _ACCOUNTS),
    *(Case(n, "POST", "/v1/auth/login", _ACCOUNT | changed, r, "") for n, changed, r in _SIGN_INS),
    *(Case(n, "GET", path, None, r, _asker(path)) for n, path, r in _QUESTIONS),
)
