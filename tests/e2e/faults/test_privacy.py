"""Errors of all kinds leave no personal data and no secret in any log."""

import asyncio
from typing import Any

from tests.e2e.shop import PASSWORD, SECURE, Buyer, Shop
from tests.support.private import kept_in_databases, leaks, open_to_others
from tests.support.rest import Json, new_id

_NAME, _STREET, _CARD = "Ada Lovelace-Byron", "17 Leakage Lane", "4000056655665556"
_GROUPED = "4000 0566 5566 5556"
_NOTE = "behind the third flowerpot"


def _address() -> Json:
    return {"name": _NAME, "line1": _STREET, "city": "Beverly Hills", "postalCode": "90210", "countryCode": "US"}


async def _refused(shop: Shop, buyer: Buyer, tokens: Json, goods: Json) -> None:
    """Requests that are refused by the contract, a rule, or a constraint."""
    account = {"email": buyer.email, "password": PASSWORD, "displayName": _NAME, "requestId": new_id()}
    order: dict[str, Any] = {"lines": [{"productId": goods["id"], "quantity": 1}], "shippingAddress": _address()}
    body = {**order, "paymentMethod": _CARD, "requestId": new_id(), "note": _NOTE}
    await asyncio.gather(
        *(shop.rest.post("/v1/auth/register", {**account, "requestId": new_id()}) for _ in range(3)),
        shop.rest.post("/v1/auth/register", {**account, "email": "x" * 300 + buyer.email}),
        shop.rest.post("/v1/auth/register", {**account, "displayName": _NAME * 1000}),
        shop.rest.post("/v1/auth/register", {**account, "displayName": f"{_NAME}\0"}),
        shop.rest.post("/v1/auth/login", {"email": buyer.email, "password": PASSWORD + "?"}),
        shop.rest.post("/v1/auth/refresh", {"refreshToken": tokens["refreshToken"] + "?"}),
        shop.rest.get("/v1/auth/me", access_token=tokens["accessToken"], email=buyer.email),
        shop.rest.as_(tokens["refreshToken"]).get("/v1/auth/me"),
        buyer.rest.post("/v1/orders", body),
        buyer.rest.post("/v1/orders", {**body, "lines": [{"productId": _STREET, "quantity": 1}]}),
        buyer.rest.post("/v1/orders", {**body, "note": _NOTE * 100}),
        buyer.rest.post("/v1/orders", {**body, "shippingAddress": {**_address(), "line1": _STREET * 100}}),
        shop.rest.post("/v1/webhooks/stripe", {"type": "payment_intent.succeeded", "email": buyer.email}),
    )


async def test_errors_put_no_personal_data_and_no_secret_into_a_log(shop: Shop) -> None:
    buyer, goods = await shop.a_buyer(), await shop.a_product()
    site = shop.mesh.site
    credentials = {"email": buyer.email, "password": PASSWORD}
    tokens = (await shop.rest.post("/v1/auth/login", credentials)).expect().json
    waiting = (await buyer.buy(goods, card=SECURE, wait=0)).expect().json
    client_secret = (await buyer.until_payable(waiting["id"]))["payment"]["clientSecret"]
    await _refused(shop, buyer, tokens, goods)

    shop.mesh.keep_down("postgres")
    await shop.mesh.kill("postgres")
    try:
        await _refused(shop, buyer, tokens, goods)
        await shop.rest.post("/v1/auth/register", {**credentials, "email": f"new-{buyer.email}", "requestId": new_id()})
        await shop.rest.post("/v1/auth/login", credentials)
        await shop.sandbox.authenticate(client_secret)  # its webhook meets no database
        await buyer.cancel(waiting["id"])
    finally:
        await shop.mesh.restart("postgres")
        await shop.all_parts_answer()

    private = (PASSWORD, _NAME, _STREET, _NOTE, client_secret, tokens["accessToken"], tokens["refreshToken"])
    assert not leaks(site.home / "logs", [*private, *site.secrets.values()])


async def test_no_other_user_can_read_what_the_mesh_stores(shop: Shop) -> None:
    assert not await asyncio.to_thread(open_to_others, shop.mesh.site.home)


async def test_card_numbers_are_refused_and_kept_nowhere(shop: Shop) -> None:
    """In any text of any service, also in addresses of pages; neither a log nor a database contains one afterwards."""
    buyer, goods, staff = await shop.a_buyer(), await shop.a_product(), shop.staff
    placed = (await buyer.buy(goods, wait=0)).expect().json
    order = await buyer.until(placed["id"], "PAID")
    lines = [{"productId": goods["id"], "quantity": 1}]
    body: dict[str, Any] = {"lines": lines, "paymentMethod": "pm_card_visa", "shippingAddress": _address()}
    refund = {"full": True, "reason": f"to {_CARD}"}
    product = {"sku": "C-1", "name": "Clock", "price": goods["price"]}
    account = {"email": f"new-{buyer.email}", "password": PASSWORD, "displayName": _CARD}
    refused = await asyncio.gather(
        buyer.rest.post("/v1/orders", {**body, "paymentMethod": _CARD, "requestId": new_id()}),
        buyer.rest.post("/v1/orders", {**body, "paymentMethod": _GROUPED, "requestId": new_id()}),
        buyer.rest.post(
            "/v1/orders", {**body, "shippingAddress": {**_address(), "line2": _GROUPED}, "requestId": new_id()}
        ),
        buyer.rest.post(f"/v1/orders/{order['id']}:cancel", {"reason": _CARD, "requestId": new_id()}),
        staff.post(f"/v1/orders/{order['id']}:refund", {**refund, "amount": order["total"], "requestId": new_id()}),
        staff.post(f"/v1/payments/{order['payment']['id']}:refund", {**refund, "requestId": new_id()}),
        staff.post("/v1/products", {**product, "description": _CARD, "requestId": new_id()}),
        staff.post("/v1/products", {**product, "attributes": {_CARD: "a"}, "requestId": new_id()}),
        shop.rest.post("/v1/auth/register", {**account, "requestId": new_id()}),
        shop.rest.get("/v1/products", query=_CARD),
        shop.rest.get(f"/v1/products/by-slug/{_CARD}"),
        shop.rest.get(f"/v1/products/{_CARD}"),
        buyer.rest.get(f"/v1/orders/{_CARD}"),
    )
    for answer in refused:
        assert answer.status == 400, answer
        assert _CARD not in str(answer.json), answer
        assert answer.reason == "INVALID_FIELDS", answer
    (violation,) = refused[0].json["details"][1]["fieldViolations"]
    assert (violation["field"], violation["reason"]) == ("paymentMethod", "CARD_NUMBER")

    numbers = [_CARD, _GROUPED, _GROUPED.replace(" ", "%20")]
    assert not leaks(shop.mesh.site.home / "logs", numbers)
    assert not await asyncio.to_thread(kept_in_databases, shop.mesh.site, numbers)
