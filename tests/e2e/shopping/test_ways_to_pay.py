"""Paying on a page of the provider, with a saved card, and at another provider; the lists of both for staff."""

from tests.e2e.clock import hold_ends
from tests.e2e.shop import DECLINED, VISA, Buyer, Shop, assert_books_add_up
from tests.support.rest import Answer, Json, new_id
from tests.support.waiting import eventually

BACK = "http://127.0.0.1/orders"


async def unpaid(buyer: Buyer, goods: Json) -> Json:
    """An order whose customer can pay in the browser."""
    return await buyer.until_payable((await buyer.buy(goods, card=None, wait=0)).expect().json["id"])


async def a_page(buyer: Buyer, order: Json) -> Json:
    """The payment of an order, whose customer pays on a page of the provider."""
    payment: Json = (await buyer.pay(order, checkout=True, returnUrl=BACK)).expect().json
    assert (payment["state"], payment.get("clientSecret", "")) == ("AWAITING_CUSTOMER", "")
    assert payment["checkoutUrl"].startswith("http")
    return payment


async def pay_on(shop: Shop, payment: Json, card: str = VISA) -> Answer:
    """Pay on the page as its customer does."""
    session = payment["checkoutUrl"].rpartition("/")[2]
    body = {"payment_method": card, "email": "buyer@example.com"}
    return await shop.sandbox.rest.post(f"/_sandbox/checkout/sessions/{session}/pay", body)


async def charges(shop: Shop, order: Json) -> int:
    return len(await shop.sandbox.captured(order["id"]))


async def methods(buyer: Buyer) -> list[Json]:
    found: list[Json] = (await buyer.rest.get("/v1/payment-methods")).expect().json.get("paymentMethods", [])
    return found


async def saved(buyer: Buyer, goods: Json) -> Json:
    """The saved card of a customer who has agreed to that in an earlier order."""
    order = await unpaid(buyer, goods)
    (await buyer.pay(order, paymentMethod=VISA, saveMethod=True)).expect()
    await buyer.until(order["id"], "PAID")
    (method,) = await methods(buyer)
    return method


# --- on a page of the provider ---


async def test_order_is_paid_on_a_page_of_the_provider(shop: Shop) -> None:
    """Also one whose card was declined. A decline on the page leaves the page to the customer."""
    product, buyer = await shop.a_product(), await shop.a_buyer()
    failed = (await buyer.buy(product, card=DECLINED)).expect().json
    for order in (await unpaid(buyer, product), failed):
        payment = await a_page(buyer, order)
        seen = (await buyer.order(order["id"]))["payment"]
        assert seen["checkoutUrl"] == payment["checkoutUrl"]
        assert (await pay_on(shop, payment, DECLINED)).status == 402

        assert (await pay_on(shop, payment)).status == 200

        paid = await buyer.until(order["id"], "PAID")
        assert paid["payment"].get("checkoutUrl", "") == ""
        assert await charges(shop, order) == 1
    await assert_books_add_up(shop, product)


async def test_page_ends_with_the_hold(shop: Shop) -> None:
    sale, buyer = await shop.a_sale(units=1), await shop.a_buyer()
    order = await unpaid(buyer, sale)
    payment = await a_page(buyer, order)

    await hold_ends(shop, order["id"])

    await buyer.until(order["id"], "EXPIRED")
    assert (await pay_on(shop, payment)).status == 400
    assert (await charges(shop, order), await shop.counters(sale)) == (0, (1, 0, 0))
    await assert_books_add_up(shop, sale)


async def test_page_that_people_end_at_the_provider_leaves_a_secret(shop: Shop) -> None:
    """Its expiry is an event. The units stay held, and the customer may pay in the browser."""
    sale, buyer = await shop.a_sale(units=1), await shop.a_buyer()
    order = await unpaid(buyer, sale)
    payment = await a_page(buyer, order)
    session = payment["checkoutUrl"].rpartition("/")[2]

    (await shop.sandbox.rest.send("POST", f"/v1/checkout/sessions/{session}/expire")).expect()

    where = f"order_id = '{order['id']}' AND state = 'AWAITING_CUSTOMER' AND checkout_reference IS NULL"
    await eventually(lambda: shop.rows("payments", f"SELECT id FROM payments WHERE {where}"), bool, seconds=30)
    secret = (await buyer.pay(order)).expect().json["clientSecret"]
    assert (await shop.sandbox.pay_in_browser(secret))["status"] == "succeeded"
    await buyer.until(order["id"], "PAID")
    assert (await charges(shop, order), await shop.counters(sale)) == (1, (0, 0, 1))
    await assert_books_add_up(shop, sale)


async def test_card_takes_over_from_a_page(shop: Shop) -> None:
    product, buyer = await shop.a_product(), await shop.a_buyer()
    order = await unpaid(buyer, product)
    payment = await a_page(buyer, order)

    assert (await buyer.pay(order, paymentMethod=VISA)).expect().json["state"] == "SUCCEEDED"

    assert (await pay_on(shop, payment)).status == 400, "nobody pays twice"
    await buyer.until(order["id"], "PAID")
    assert await charges(shop, order) == 1
    await assert_books_add_up(shop, product)


async def test_page_leads_back_to_the_shop_only(shop: Shop) -> None:
    product, buyer = await shop.a_product(), await shop.a_buyer()
    order = await unpaid(buyer, product)
    refused = await buyer.pay(order, checkout=True, returnUrl="https://elsewhere.example/orders")
    assert (refused.refusal, refused.fields) == ((400, "INVALID_FIELDS"), ["returnUrl"])
    for how in ({"checkout": True}, {"returnUrl": BACK}, {"checkout": True, "returnUrl": BACK, "paymentMethod": VISA}):
        assert (await buyer.pay(order, **how)).refusal == (400, "INVALID_FIELDS")
    (await buyer.cancel(order["id"])).expect()
    await assert_books_add_up(shop, product)


# --- with a saved card ---


async def test_saved_card_pays_in_one_step(shop: Shop) -> None:
    product, buyer = await shop.a_product(), await shop.a_buyer()
    method = await saved(buyer, product)
    assert (method["provider"], method["brand"], method["last4"]) == ("stripe", "visa", "4242")
    order = await unpaid(buyer, product)

    payment = (await buyer.pay(order, savedMethodId=method["id"])).expect().json

    assert payment["state"] == "SUCCEEDED"
    await buyer.until(order["id"], "PAID")
    assert await charges(shop, order) == 1
    await assert_books_add_up(shop, product)


async def test_removed_card_pays_nothing(shop: Shop) -> None:
    product, buyer = await shop.a_product(), await shop.a_buyer()
    method = await saved(buyer, product)
    for _ in range(2):
        (await buyer.rest.send("DELETE", f"/v1/payment-methods/{method['id']}")).expect()
    assert await methods(buyer) == []
    order = await unpaid(buyer, product)
    assert (await buyer.pay(order, savedMethodId=method["id"])).refusal == (404, "PAYMENT_METHOD_NOT_FOUND")
    (await buyer.cancel(order["id"])).expect()
    await assert_books_add_up(shop, product)


async def test_saved_card_is_its_customers_own(shop: Shop) -> None:
    product, buyer, other = await shop.a_product(), await shop.a_buyer(), await shop.a_buyer()
    method = await saved(buyer, product)
    path = f"/v1/payment-methods/{method['id']}"
    assert await methods(other) == []
    assert (await other.rest.send("DELETE", path)).refusal == (404, "PAYMENT_METHOD_NOT_FOUND")
    order = await unpaid(other, product)
    assert (await other.pay(order, savedMethodId=method["id"])).refusal == (404, "PAYMENT_METHOD_NOT_FOUND")
    for verb, address in (("GET", "/v1/payment-methods"), ("DELETE", path), ("POST", f"/v1/orders/{order['id']}:pay")):
        body = {"requestId": new_id(), "paymentMethod": VISA} if verb == "POST" else None
        assert (await shop.rest.send(verb, address, json_body=body)).status == 401
    (await other.cancel(order["id"])).expect()
    assert [one["id"] for one in await methods(buyer)] == [method["id"]]


# --- at another provider ---


async def pay_at_razorpay(shop: Shop, payment: Json) -> None:
    """Pay as a customer does in Razorpay's script, which hands a signed answer to the shop's page."""
    assert (payment["provider"], payment["state"]) == ("razorpay", "AWAITING_CUSTOMER")
    path = f"/_sandbox/razorpay/orders/{payment['providerOrderId']}/pay"
    answer = (await shop.sandbox.rest.post(path, {"outcome": "authorize"})).expect().json
    names = ("razorpay_order_id", "razorpay_payment_id", "razorpay_signature")
    body = {"".join(part.capitalize() if i else part for i, part in enumerate(n.split("_"))): answer[n] for n in names}
    (await shop.rest.post("/v1/payments/razorpay:verify", body)).expect()


async def test_customer_changes_to_another_provider(shop: Shop) -> None:
    product, buyer = await shop.a_product(currency="INR"), await shop.a_buyer()
    order = await unpaid(buyer, product)

    payment = (await buyer.pay(order, provider="razorpay")).expect().json

    assert payment.get("clientSecret", "") == ""
    assert (await buyer.order(order["id"]))["payment"]["providerOrderId"] == payment["providerOrderId"]
    await pay_at_razorpay(shop, payment)
    paid = await buyer.until(order["id"], "PAID")
    assert (paid["payment"]["provider"], paid["payment"].get("providerOrderId", "")) == ("razorpay", "")
    assert await charges(shop, order) == 0, "Stripe's charge is void"
    for how in ({"checkout": True, "returnUrl": BACK}, {"paymentMethod": VISA}):
        other = await unpaid(buyer, product)
        refused = await buyer.pay(other, provider="razorpay", **how)
        assert refused.refusal == (400, "INVALID_FIELDS"), "Razorpay has no pages and takes no tokens"
        (await buyer.cancel(other["id"])).expect()


async def test_new_payments_move_to_the_other_provider_in_the_middle_of_a_sale(shop: Shop) -> None:
    """Payments that began at Stripe are paid, voided and refunded there. New ones are Razorpay's."""
    product, buyer = await shop.a_product(currency="INR"), await shop.a_buyer()
    paid = (await buyer.buy(product)).expect().json
    waiting, given_up = [await unpaid(buyer, product) for _ in range(2)]
    before = shop.mesh.alter("payments")
    shop.mesh.alter("payments", environment={**before.environment, "PAYMENT_PROVIDER": "razorpay"})
    try:
        await shop.mesh.restart("payments", timeout=120)
        await shop.all_parts_answer()
        new = (await buyer.insist(product, card=None, wait=0)).expect().json
        begun = await eventually(
            lambda: buyer.order(new["id"]), lambda order: bool((order.get("payment") or {}).get("providerOrderId"))
        )
        await pay_at_razorpay(shop, begun["payment"])
        assert (await buyer.until(new["id"], "PAID"))["payment"]["provider"] == "razorpay"
        (await buyer.pay(waiting, paymentMethod=VISA)).expect()
        assert (await buyer.until(waiting["id"], "PAID"))["payment"]["provider"] == "stripe"
        (await buyer.cancel(given_up["id"])).expect()
        for order in (paid, new):
            refund = {"requestId": new_id(), "full": True, "reason": "returned"}
            (await shop.staff.post(f"/v1/orders/{order['id']}:refund", refund)).expect()
            await buyer.until(order["id"], "REFUNDED")
    finally:
        shop.mesh.alter("payments", environment=before.environment)
        await shop.mesh.restart("payments", timeout=120)
        await shop.all_parts_answer()
    assert (await charges(shop, waiting), await charges(shop, given_up), await charges(shop, new)) == (1, 0, 0)
    (refunded,) = await shop.sandbox.captured(paid["id"])
    assert refunded["amount_refunded"] == refunded["amount"]
    await assert_books_add_up(shop, product)


# --- for staff ---


async def test_staff_list_payments_by_state(shop: Shop) -> None:
    product, buyer = await shop.a_product(), await shop.a_buyer()
    paid, waits = (await buyer.buy(product)).expect().json, await unpaid(buyer, product)
    for order, state in ((paid, "SUCCEEDED"), (waits, "AWAITING_CUSTOMER")):
        page = (await shop.staff.get("/v1/admin/payments", state=state, pageSize="50")).expect().json
        assert order["id"] in [one["orderId"] for one in page["payments"]]
        assert {one["state"] for one in page["payments"]} == {state}
    assert (await buyer.rest.get("/v1/admin/payments")).status == 403
    assert (await shop.rest.get("/v1/admin/payments")).status == 401
    (await buyer.cancel(waits["id"])).expect()
    await assert_books_add_up(shop, product)
