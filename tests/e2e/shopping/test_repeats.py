"""Clients ask again: the same request id means the same answer, whatever has happened in between."""

import asyncio

import pytest

from tests.e2e.clock import time_passes
from tests.e2e.shop import DECLINED, VISA, Shop, assert_books_add_up, money
from tests.support.rest import Answer, Json, new_id
from tests.support.waiting import eventually


async def test_the_same_request_sent_many_times_at_once_is_one_order(shop: Shop) -> None:
    sale, buyer, request_id = await shop.a_sale(units=5), await shop.a_buyer(), new_id()

    answers = await asyncio.gather(*(buyer.buy(sale, request_id=request_id) for _ in range(8)))

    orders = [answer.expect().json for answer in answers]
    assert len({order["id"] for order in orders}) == 1
    assert {order["state"] for order in orders} == {"PAID"}
    assert await shop.counters(sale) == (4, 0, 1)
    assert len(await shop.sandbox.captured(orders[0]["id"])) == 1
    await assert_books_add_up(shop, sale)


async def test_note_of_an_order_is_kept_and_is_part_of_the_request(shop: Shop) -> None:
    product, buyer = await shop.a_product(), await shop.a_buyer()
    body = {
        "requestId": new_id(), "lines": [{"productId": product["id"], "quantity": 1}], "paymentMethod": VISA,
        "note": "Ring twice.\nÜber den Hof", "preferWait": "20s",
    }  # fmt: skip
    order = (await buyer.rest.post("/v1/orders", body)).expect().json
    assert (order["state"], order["note"]) == ("PAID", body["note"])
    assert (await buyer.order(order["id"]))["note"] == body["note"]
    assert (await shop.staff.get(f"/v1/orders/{order['id']}")).expect().json["note"] == body["note"]
    assert (await buyer.rest.post("/v1/orders", body)).expect().json["id"] == order["id"]
    assert (await buyer.rest.post("/v1/orders", {**body, "note": "x"})).refusal == (400, "REQUEST_ID_REUSED")
    long = await buyer.rest.post("/v1/orders", {**body, "requestId": new_id(), "note": "x" * 501})
    assert long.refusal == (400, "INVALID_FIELDS")


async def test_a_repeat_while_the_card_is_charged_finds_the_order(shop: Shop) -> None:
    await shop.sandbox.faults(latency_ms={"fixed": 500, "jitter": 0})
    sale, buyer, request_id = await shop.a_sale(units=5), await shop.a_buyer(), new_id()

    first = (await buyer.buy(sale, request_id=request_id, wait=0)).expect().json
    assert first["state"] == "PENDING"
    second = (await buyer.buy(sale, request_id=request_id)).expect().json

    assert (second["id"], second["state"]) == (first["id"], "PAID")
    assert await shop.counters(sale) == (4, 0, 1)
    assert len(await shop.sandbox.captured(first["id"])) == 1


async def test_a_repeat_after_all_is_sold_still_finds_the_order(shop: Shop) -> None:
    sale, request_id = await shop.a_sale(units=1), new_id()
    winner, loser = await shop.a_buyer(), await shop.a_buyer()

    order = (await winner.buy(sale, request_id=request_id)).expect().json
    assert order["state"] == "PAID"
    assert (await winner.buy(sale, request_id=request_id)).expect().json == order
    assert (await loser.buy(sale)).refusal == (400, "SOLD_OUT")

    assert (await winner.buy(sale, request_id=request_id)).expect().json == order
    assert (await winner.buy(sale, request_id=request_id, wait=0)).expect().json == order
    assert await shop.counters(sale) == (0, 0, 1)
    assert len(await shop.sandbox.captured(order["id"])) == 1


async def test_a_repeat_of_an_order_that_failed_finds_it_and_charges_nothing(shop: Shop) -> None:
    sale, buyer, request_id = await shop.a_sale(units=2), await shop.a_buyer(), new_id()
    order = (await buyer.buy(sale, card=DECLINED, request_id=request_id)).expect().json

    assert (await buyer.buy(sale, card=DECLINED, request_id=request_id)).expect().json == order
    assert order["state"] == "FAILED"
    assert await shop.counters(sale) == (2, 0, 0)


async def test_a_repeat_of_an_order_that_failed_finds_it_after_others_bought_the_rest(shop: Shop) -> None:
    sale, request_id = await shop.a_sale(units=1), new_id()
    poor, rich = await shop.a_buyer(), await shop.a_buyer()
    order = (await poor.buy(sale, card=DECLINED, request_id=request_id)).expect().json
    assert order["state"] == "FAILED"
    assert (await rich.buy_when_back(sale)).expect().json["state"] == "PAID"

    assert (await poor.buy(sale, card=DECLINED, request_id=request_id)).expect().json == order


async def test_a_repeat_after_all_is_sold_finds_the_order_although_valkey_has_forgotten_it(shop: Shop) -> None:
    sale, buyer, request_id = await shop.a_sale(units=1), await shop.a_buyer(), new_id()
    order = (await buyer.buy(sale, request_id=request_id)).expect().json
    assert order["state"] == "PAID"

    await shop.mesh.restart("valkey")
    other = await shop.a_sale(units=1)
    (await buyer.buy(other)).expect()
    for _ in range(3):
        await eventually(lambda: buyer.buy(sale), lambda answer: answer.refusal == (400, "SOLD_OUT"))
        assert (await buyer.buy(sale, request_id=request_id)).expect().json == order


async def test_the_same_request_id_for_something_else_is_refused(shop: Shop) -> None:
    sale, product, buyer, request_id = (
        await shop.a_sale(units=9),
        await shop.a_product(),
        await shop.a_buyer(),
        new_id(),
    )
    order = (await buyer.buy(sale, request_id=request_id)).expect().json

    assert (await buyer.buy(sale, quantity=2, request_id=request_id)).refusal == (400, "REQUEST_ID_REUSED")
    assert (await buyer.buy(product, request_id=request_id)).refusal == (400, "REQUEST_ID_REUSED")
    assert (await buyer.buy(sale, card="pm_card_mastercard", request_id=request_id)).refusal == (
        400, "REQUEST_ID_REUSED",
    )  # fmt: skip
    assert await buyer.order(order["id"]) == order
    assert await shop.counters(sale) == (8, 0, 1)
    await assert_books_add_up(shop, sale, product)


async def test_reused_request_id_is_refused_after_the_sale_has_sold_out(shop: Shop) -> None:
    sale, buyer, request_id = await shop.a_sale(units=1), await shop.a_buyer(), new_id()
    (await buyer.buy(sale, request_id=request_id)).expect()

    assert (await buyer.buy(sale, quantity=2, request_id=request_id)).refusal == (400, "REQUEST_ID_REUSED")


async def test_two_customers_may_use_the_same_request_id(shop: Shop) -> None:
    sale, request_id = await shop.a_sale(units=5), new_id()
    one, other = await shop.a_buyer(), await shop.a_buyer()

    first = (await one.buy(sale, request_id=request_id)).expect().json
    second = (await other.buy(sale, request_id=request_id)).expect().json

    assert first["id"] != second["id"]
    assert await shop.counters(sale) == (3, 0, 2)


@pytest.mark.parametrize("key", [new_id(), new_id().upper(), "cart 17, second try"], ids=["uuid", "UUID", "words"])
async def test_the_header_idempotency_key_serves_as_request_id(shop: Shop, key: str) -> None:
    sale, buyer = await shop.a_sale(units=5), await shop.a_buyer()

    order = (await buyer.buy(sale, key=key)).expect().json

    assert (await buyer.buy(sale, key=key)).expect().json == order
    assert (await buyer.buy(sale, key=key, quantity=2)).refusal == (400, "REQUEST_ID_REUSED")
    assert (await buyer.buy(sale, key=key + "!")).expect().json["id"] != order["id"]
    assert await shop.counters(sale) == (3, 0, 2)


async def test_a_product_made_twice_under_one_request_id_is_one(shop: Shop) -> None:
    body: Json = {"sku": f"SKU-{new_id()}", "name": "Clock", "price": money(100), "requestId": new_id()}

    made = (await shop.staff.post("/v1/products", body)).expect().json

    assert (await shop.staff.post("/v1/products", body)).expect().json == made
    other = await shop.staff.post("/v1/products", {**body, "name": "Watch"})
    assert other.refusal == (400, "REQUEST_ID_REUSED")
    again = await shop.staff.post("/v1/products", {**body, "requestId": new_id()})
    assert again.refusal == (409, "SKU_TAKEN")


async def test_stock_adjusted_twice_under_one_request_id_moves_once(shop: Shop) -> None:
    product = await shop.a_product(stock=10)
    path, body = f"/v1/stock/{product['id']}:adjust", {"delta": 5, "reason": "found", "requestId": new_id()}

    answers = await asyncio.gather(*(shop.staff.post(path, body) for _ in range(4)))

    assert {answer.expect().json["onHand"] for answer in answers} == {15}
    assert (await shop.staff.post(path, {**body, "delta": 6})).refusal == (400, "REQUEST_ID_REUSED")
    assert await shop.stock(product) == (15, 0, 15)


async def test_a_sale_made_twice_under_one_request_id_is_one(shop: Shop) -> None:
    product, request_id = await shop.a_product(stock=20), new_id()
    body = {
        "productId": product["id"], "title": "Once", "salePrice": money(5), "allocation": 4, "perCustomerLimit": 0,
        "startTime": "2026-01-01T00:00:00Z", "endTime": "2099-01-01T00:00:00Z", "requestId": request_id,
    }  # fmt: skip

    made = (await shop.staff.post("/v1/flash-sales", body)).expect().json

    assert (await shop.staff.post("/v1/flash-sales", body)).expect().json["id"] == made["id"]
    assert await shop.stock(product) == (16, 0, 16)
    other = await shop.staff.post("/v1/flash-sales", {**body, "allocation": 5})
    assert other.refusal == (400, "REQUEST_ID_REUSED")


async def test_registering_twice_under_one_request_id_is_one_account(shop: Shop) -> None:
    body = {"email": f"{new_id()}@example.com", "password": "correct horse battery", "requestId": new_id()}

    async def register(**changed: str) -> Answer:
        return await shop.rest.post("/v1/auth/register", {**body, **changed})

    made = (await register()).expect().json
    assert (await register()).expect().json == made
    assert (await register(email=f"{new_id()}@example.com")).refusal == (400, "REQUEST_ID_REUSED")
    assert (await register(requestId=new_id())).refusal == (409, "EMAIL_TAKEN")
    assert (await register(requestId=new_id(), email=body["email"].upper())).refusal == (409, "EMAIL_TAKEN")


async def test_a_refresh_token_works_once_and_a_second_use_ends_the_session(shop: Shop) -> None:
    buyer = await shop.a_buyer()
    account = {"email": buyer.email, "password": "correct horse battery"}
    first = (await shop.rest.post("/v1/auth/login", account)).expect().json["refreshToken"]

    second = (await shop.rest.post("/v1/auth/refresh", {"refreshToken": first})).expect().json
    (await shop.rest.as_(second["accessToken"]).get("/v1/auth/me")).expect()
    assert (await shop.rest.post("/v1/auth/refresh", {"refreshToken": first})).status == 401
    assert (await shop.rest.post("/v1/auth/refresh", {"refreshToken": second["refreshToken"]})).status == 401


async def test_repeat_after_the_hold_expired_returns_the_expired_order(shop: Shop) -> None:
    sale, buyer, request_id = await shop.a_sale(units=2), await shop.a_buyer(), new_id()
    order = (await buyer.buy(sale, card=None, wait=0, request_id=request_id)).expect().json
    await time_passes(shop, order["id"])
    expired = await buyer.until(order["id"], "EXPIRED")

    assert (await buyer.buy(sale, card=None, request_id=request_id)).expect().json == expired
    assert (await buyer.buy(sale, card=VISA, request_id=request_id)).refusal == (400, "REQUEST_ID_REUSED")
    assert await shop.counters(sale) == (2, 0, 0)


async def test_a_repeat_in_capitals_finds_its_order(shop: Shop) -> None:
    product, buyer, request_id = await shop.a_product(stock=5), await shop.a_buyer(), new_id()
    body = {"lines": [{"productId": product["id"], "quantity": 1}], "preferWait": "10s", "paymentMethod": VISA}

    first = (await buyer.rest.post("/v1/orders", {**body, "requestId": request_id})).expect().json
    shouted = {"productId": product["id"].upper(), "quantity": 1}
    again = await buyer.rest.post("/v1/orders", {**body, "requestId": request_id.upper(), "lines": [shouted]})

    assert again.expect().json["id"] == first["id"]
    assert await shop.stock(product) == (4, 0, 4)


async def test_a_stale_if_match_changes_nothing(shop: Shop) -> None:
    product = await shop.a_product()
    path = f"/v1/products/{product['id']}"

    (await shop.staff.patch(path, {"active": False}, **{"if-match": product["etag"]})).expect()

    for body in ({"active": True}, {"name": "Another"}):
        assert (await shop.staff.patch(path, body, **{"if-match": product["etag"]})).refusal == (409, "STALE_ETAG")
    assert not (await shop.staff.get(path)).expect().json["active"]
