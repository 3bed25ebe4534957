"""Buying, from the first page to the paid order; and orders that are not paid."""

import asyncio

from tests.e2e.clock import time_passes
from tests.e2e.shop import DECLINED, PASSWORD, SECURE, VISA, Shop, assert_books_add_up, money, states
from tests.support.rest import new_id


async def test_a_stranger_becomes_a_customer_who_bought_in_the_flash_sale(shop: Shop) -> None:
    word = f"clock{new_id()[:8]}"
    product = await shop.a_product(name=f"Retro {word}", price=1999, stock=50)
    sale = await shop.a_sale(units=10, price=999, product=product)

    account = {"email": f"{new_id()}@example.com", "password": PASSWORD, "displayName": "Ada"}
    user = (await shop.rest.post("/v1/auth/register", account)).expect().json["user"]
    assert (user["email"], user["displayName"], user["roles"]) == (account["email"], "Ada", ["customer"])
    tokens = (await shop.rest.post("/v1/auth/login", account)).expect().json
    assert tokens["tokenType"] == "Bearer"
    ada = shop.rest.as_(tokens["accessToken"])
    assert (await ada.get("/v1/auth/me")).expect().json == user

    listed = (await ada.get("/v1/products", query=word)).expect().json
    assert [found["id"] for found in listed["products"]] == [product["id"]]
    assert product["id"] in [found["id"] for found in (await ada.get("/v1/products")).expect().json["products"]]
    assert (await ada.get(f"/v1/products/{product['id']}")).expect().json == product
    assert (await ada.get(f"/v1/products/by-slug/{product['slug']}")).expect().json == product
    live = (await ada.get("/v1/flash-sales", state="LIVE", productId=product["id"])).expect().json["flashSales"]
    assert [(found["id"], found["remaining"], found["salePrice"]) for found in live] == [(sale["id"], 10, money(999))]

    line = {"productId": product["id"], "quantity": 2, "flashSaleId": sale["id"]}
    body = {"requestId": new_id(), "lines": [line], "paymentMethod": VISA, "preferWait": "10s"}
    order = (await ada.post("/v1/orders", body)).expect().json
    assert (order["state"], order["stateReason"], order["customerId"]) == ("PAID", "", user["id"])
    assert order["total"] == money(1998)
    assert order["lines"] == [
        {**line, "sku": product["sku"], "name": product["name"], "unitPrice": money(999), "returnedQuantity": 0}
    ]

    assert await shop.counters(sale) == (8, 0, 2)
    assert await shop.stock(product) == (40, 0, 40)
    assert (await ada.get(f"/v1/orders/{order['id']}")).expect().json == order
    assert (await ada.get("/v1/orders")).expect().json["orders"] == [order]
    payment = await shop.payment(order)
    assert (payment["state"], payment["amount"], payment["orderId"]) == ("SUCCEEDED", money(1998), order["id"])
    captured = await shop.sandbox.captured(order["id"])
    assert [(entry["amount"], entry["currency"]) for entry in captured] == [(1998, "usd")]
    await assert_books_add_up(shop, sale)


async def test_one_order_takes_flash_units_and_ordinary_ones(shop: Shop) -> None:
    sale, product = await shop.a_sale(units=5, price=100), await shop.a_product(stock=5, price=250)
    buyer = await shop.a_buyer()

    order = (await buyer.buy(sale, product)).expect().json

    assert (order["state"], order["total"]) == ("PAID", money(350))
    assert await shop.counters(sale) == (4, 0, 1)
    assert await shop.stock(product) == (4, 0, 4)
    await assert_books_add_up(shop, sale, product)


async def test_yen_are_charged_as_yen(shop: Shop) -> None:
    product = await shop.a_product(price=1500, currency="JPY")
    buyer = await shop.a_buyer()

    order = (await buyer.buy(product)).expect().json

    captured = await shop.sandbox.captured(order["id"])
    assert [(entry["amount"], entry["currency"]) for entry in captured] == [(1500, "jpy")]


async def test_a_declined_card_fails_the_order_and_gives_the_stock_back(shop: Shop) -> None:
    sale = await shop.a_sale(units=3)
    buyer = await shop.a_buyer()

    order = (await buyer.buy(sale, card=DECLINED)).expect().json

    assert (order["state"], order["stateReason"]) == ("FAILED", "CARD_DECLINED")
    assert order["payment"]["state"] == "FAILED"
    assert await shop.counters(sale) == (3, 0, 0)
    assert await shop.sandbox.captured(order["id"]) == []
    assert (await buyer.buy(sale)).expect().json["state"] == "PAID"
    await assert_books_add_up(shop, sale)


async def test_a_3d_secure_card_waits_for_the_bank_and_is_paid_by_its_word(shop: Shop) -> None:
    sale = await shop.a_sale(units=3)
    buyer = await shop.a_buyer()
    placed = (await buyer.buy(sale, card=SECURE, wait=0)).expect().json

    order = await buyer.until_payable(placed["id"])
    assert order["state"] == "PENDING"
    assert await shop.counters(sale) == (2, 1, 0)
    await shop.sandbox.authenticate(order["payment"]["clientSecret"])

    paid = await buyer.until(order["id"], "PAID")
    assert "clientSecret" not in paid["payment"] or not paid["payment"]["clientSecret"]
    assert await shop.counters(sale) == (2, 0, 1)
    assert len(await shop.sandbox.captured(order["id"])) == 1
    await assert_books_add_up(shop, sale)


async def test_after_the_bank_has_refused_another_card_can_pay(shop: Shop) -> None:
    sale = await shop.a_sale(units=3)
    buyer = await shop.a_buyer()
    order = await buyer.until_payable((await buyer.buy(sale, card=SECURE, wait=0)).expect().json["id"])

    await shop.sandbox.authenticate(order["payment"]["clientSecret"], succeed=False)
    assert await shop.sandbox.captured(order["id"]) == []
    assert (await shop.sandbox.pay_in_browser(order["payment"]["clientSecret"], VISA))["status"] == "succeeded"

    await buyer.until(order["id"], "PAID")
    assert await shop.counters(sale) == (2, 0, 1)
    assert len(await shop.sandbox.captured(order["id"])) == 1
    await assert_books_add_up(shop, sale)


async def test_without_a_card_the_browser_pays_with_the_client_secret(shop: Shop) -> None:
    product = await shop.a_product(stock=3, price=4200)
    buyer = await shop.a_buyer()

    order = await buyer.buy_unpaid(product)
    assert (order["state"], order["payment"]["state"]) == ("PENDING", "AWAITING_CUSTOMER")
    assert await shop.stock(product) == (3, 1, 2)
    refused = await shop.sandbox.pay_in_browser(order["payment"]["clientSecret"], DECLINED)
    assert refused["http"] == 402
    confirmed = await shop.sandbox.pay_in_browser(order["payment"]["clientSecret"], VISA)
    assert confirmed["status"] == "succeeded", confirmed

    assert (await buyer.until(order["id"], "PAID", "FAILED"))["state"] == "PAID"
    assert await shop.stock(product) == (2, 0, 2)
    assert [entry["amount"] for entry in await shop.sandbox.captured(order["id"])] == [4200]
    await assert_books_add_up(shop, product)


async def test_paying_for_an_expired_order_is_refused_by_the_provider(shop: Shop) -> None:
    sale = await shop.a_sale(units=1)
    buyer = await shop.a_buyer()
    order = await buyer.buy_unpaid(sale)
    await time_passes(shop, order["id"])
    await buyer.until(order["id"], "EXPIRED")

    late = await shop.sandbox.pay_in_browser(order["payment"]["clientSecret"])

    assert late["http"] == 400, late
    assert await shop.sandbox.captured(order["id"]) == []
    await assert_books_add_up(shop, sale)


async def test_paying_as_the_hold_expires_never_charges_without_goods(shop: Shop) -> None:
    """No webhook comes, so the money moves while orders believes that nobody has paid."""
    await shop.sandbox.faults(webhooks={"drop": True})
    sale = await shop.a_sale(units=1)
    buyer = await shop.a_buyer()
    order = await buyer.buy_unpaid(sale)

    paying = shop.sandbox.pay_in_browser(order["payment"]["clientSecret"])
    paid, _ = await asyncio.gather(paying, time_passes(shop, order["id"]))
    assert paid["http"] in (200, 400)
    order = await buyer.until(order["id"], "PAID", "EXPIRED")

    kept = sum(entry["amount"] - entry["amount_refunded"] for entry in await shop.sandbox.captured(order["id"]))
    assert (order["state"], kept) in (("PAID", 999), ("EXPIRED", 0))
    await assert_books_add_up(shop, sale)


async def test_a_pending_order_can_be_cancelled(shop: Shop) -> None:
    sale = await shop.a_sale(units=2, limit=1)
    buyer = await shop.a_buyer()
    order = await buyer.buy_unpaid(sale)

    cancelled = (await buyer.cancel(order["id"])).expect().json

    assert cancelled["state"] == "CANCELLED"
    assert await shop.counters(sale) == (2, 0, 0)
    intent = await shop.sandbox.intent(order["payment"]["clientSecret"].partition("_secret_")[0])
    assert intent["status"] == "canceled"
    again = (await buyer.cancel(order["id"])).expect().json
    assert again == cancelled
    assert (await buyer.buy(sale)).expect().json["state"] == "PAID", "the limit counts only what was kept"
    await assert_books_add_up(shop, sale)


async def test_a_paid_order_cannot_be_cancelled(shop: Shop) -> None:
    product, buyer = await shop.a_product(), await shop.a_buyer()
    order = (await buyer.buy(product)).expect().json

    assert (await buyer.cancel(order["id"])).refusal == (400, "WRONG_STATE")
    assert await buyer.order(order["id"]) == order


async def test_somebody_elses_order_is_not_there(shop: Shop) -> None:
    product, buyer, other = await shop.a_product(), await shop.a_buyer(), await shop.a_buyer()
    order = (await buyer.buy(product, card=None, wait=0)).expect().json

    assert (await other.cancel(order["id"])).refusal == (404, "ORDER_NOT_FOUND")
    assert (await other.rest.get(f"/v1/orders/{order['id']}")).refusal == (404, "ORDER_NOT_FOUND")
    assert (await other.rest.get(f"/v1/orders/{order['id']}:watch")).refusal == (404, "ORDER_NOT_FOUND")
    assert (await other.rest.get("/v1/orders")).expect().json["orders"] == []
    assert (await shop.staff.get(f"/v1/orders/{order['id']}")).expect().json["id"] == order["id"]
    (await buyer.cancel(order["id"])).expect()


async def test_a_stale_etag_cancels_nothing(shop: Shop) -> None:
    product, buyer = await shop.a_product(), await shop.a_buyer()
    order = (await buyer.buy(product, card=None, wait=0)).expect().json

    stale = await buyer.rest.post(f"/v1/orders/{order['id']}:cancel", {"etag": "of another day"})

    assert stale.refusal == (409, "STALE_ETAG")
    assert (await buyer.order(order["id"]))["state"] == "PENDING"
    (await buyer.rest.post(f"/v1/orders/{order['id']}:cancel", {"etag": order["etag"]})).expect()


async def test_a_full_refund_by_staff_makes_the_order_refunded(shop: Shop) -> None:
    product, buyer = await shop.a_product(price=1000), await shop.a_buyer()
    order = (await buyer.buy(product)).expect().json

    body = {"full": True, "reason": "broken clock", "requestId": new_id()}
    refunded = (await shop.staff.post(f"/v1/payments/{order['payment']['id']}:refund", body)).expect().json

    assert (refunded["state"], refunded["refunded"]) == ("REFUNDED", money(1000))
    await buyer.until(order["id"], "REFUNDED")
    again = (await shop.staff.post(f"/v1/payments/{order['payment']['id']}:refund", body)).expect().json
    assert again["refunded"] == money(1000)
    [entry] = await shop.sandbox.captured(order["id"])
    assert entry["amount_refunded"] == 1000
    await assert_books_add_up(shop, product)


async def test_a_partial_refund_by_staff_leaves_the_rest_to_refund(shop: Shop) -> None:
    product, buyer = await shop.a_product(price=1000), await shop.a_buyer()
    order = (await buyer.buy(product)).expect().json
    refund = f"/v1/payments/{order['payment']['id']}:refund"

    body = {"amount": money(300), "reason": "scratched", "requestId": new_id()}
    part = (await shop.staff.post(refund, body)).expect().json
    assert (part["state"], part["refunded"]) == ("SUCCEEDED", money(300))
    await buyer.until(order["id"], "PARTIALLY_REFUNDED")
    too_much = await shop.staff.post(refund, {"amount": money(701), "reason": "all", "requestId": new_id()})
    assert too_much.refusal == (400, "REFUND_TOO_LARGE")
    other = await shop.staff.post(refund, {**body, "amount": money(301)})
    assert other.refusal == (400, "REQUEST_ID_REUSED")

    (await shop.staff.post(refund, {"full": True, "reason": "the rest", "requestId": new_id()})).expect()
    await buyer.until(order["id"], "REFUNDED")
    [entry] = await shop.sandbox.captured(order["id"])
    assert entry["amount_refunded"] == 1000
    await assert_books_add_up(shop, product)


async def test_nothing_can_be_refunded_that_was_not_paid(shop: Shop) -> None:
    product, buyer = await shop.a_product(), await shop.a_buyer()
    order = (await buyer.buy(product, card=DECLINED)).expect().json

    body = {"full": True, "reason": "why not", "requestId": new_id()}
    refund = await shop.staff.post(f"/v1/payments/{order['payment']['id']}:refund", body)

    assert refund.refusal == (400, "WRONG_STATE")


async def test_a_customer_buys_no_more_than_the_limit_over_all_orders(shop: Shop) -> None:
    sale, buyer = await shop.a_sale(units=10, limit=2), await shop.a_buyer()

    assert (await buyer.buy(sale, quantity=3)).refusal == (400, "CUSTOMER_LIMIT")
    assert (await buyer.buy(sale, quantity=2)).expect().json["state"] == "PAID"
    assert (await buyer.buy(sale)).refusal == (400, "CUSTOMER_LIMIT")
    assert await shop.counters(sale) == (8, 0, 2)


async def test_more_than_there_is_cannot_be_bought(shop: Shop) -> None:
    sale, product, buyer = await shop.a_sale(units=2), await shop.a_product(stock=2), await shop.a_buyer()

    assert (await buyer.buy(sale, quantity=3)).refusal == (400, "SOLD_OUT")
    assert (await buyer.buy(product, quantity=3)).refusal == (400, "OUT_OF_STOCK")
    assert await shop.counters(sale) == (2, 0, 0)
    assert await shop.stock(product) == (2, 0, 2)


async def test_one_who_wants_too_many_does_not_shut_the_sale_for_others(shop: Shop) -> None:
    sale, greedy, modest = await shop.a_sale(units=2), await shop.a_buyer(), await shop.a_buyer()

    assert (await greedy.buy(sale, quantity=3)).refusal == (400, "SOLD_OUT")
    assert (await modest.buy(sale)).expect().json["state"] == "PAID"


async def test_orders_are_listed_page_by_page(shop: Shop) -> None:
    product, buyer = await shop.a_product(), await shop.a_buyer()
    placed = [(await buyer.buy(product)).expect().json["id"] for _ in range(3)]

    first = (await buyer.rest.get("/v1/orders", pageSize=2)).expect().json
    second = (await buyer.rest.get("/v1/orders", pageSize=2, pageToken=first["nextPageToken"])).expect().json

    assert [order["id"] for order in first["orders"] + second["orders"]] == placed[::-1]
    assert not second.get("nextPageToken")
    assert states(first["orders"]) == ["PAID", "PAID"]
    other_query = await buyer.rest.get("/v1/orders", state="PAID", pageToken=first["nextPageToken"])
    assert other_query.refusal == (400, "INVALID_FIELDS")
