"""Paying an order once more: after a decline, in another way, in time and too late, and by several at once."""

import asyncio

import pytest

from tests.e2e.clock import hold_ends
from tests.e2e.shop import DECLINED, SECURE, VISA, Buyer, Shop, assert_books_add_up
from tests.e2e.shopping.test_watching import collect
from tests.support.rest import Json, new_id
from tests.support.waiting import eventually

BANK_TRANSFER = "pm_usBankAccount_processing"


async def declined(buyer: Buyer, goods: Json) -> Json:
    """An order whose card was declined; its units went back."""
    order: Json = (await buyer.buy(goods, card=DECLINED)).expect().json
    assert (order["state"], order["stateReason"]) == ("FAILED", "CARD_DECLINED")
    return order


async def unpaid(buyer: Buyer, goods: Json) -> Json:
    """An order whose customer can pay in the browser."""
    return await buyer.buy_unpaid(goods)


async def log_of(shop: Shop, order: Json) -> list[tuple[str, str, str]]:
    """State, actor and cause of each entry, as staff see them."""
    entries = (await shop.staff.get(f"/v1/orders/{order['id']}/log")).expect().json["entries"]
    return [(entry["state"], entry["actor"], entry["cause"]) for entry in entries]


async def states_seen(buyer: Buyer, order: Json) -> list[str]:
    """The states that a watcher of the order sees, until it is settled."""
    async with buyer.rest.watching(f"/v1/orders/{order['id']}:watch") as messages:
        return [seen["state"] for seen in await collect(messages)]


async def charges(shop: Shop, order: Json) -> int:
    return len(await shop.sandbox.captured(order["id"]))


# --- after a decline ---


async def test_declined_order_is_paid_with_another_card(shop: Shop) -> None:
    sale, buyer = await shop.a_sale(units=1, limit=1), await shop.a_buyer()
    order = await declined(buyer, sale)
    assert await shop.counters(sale) == (1, 0, 0)

    payment = (await buyer.pay(order, paymentMethod=VISA)).expect().json

    assert (payment["state"], payment["provider"], payment.get("failureReason", "")) == ("SUCCEEDED", "stripe", "")
    paid = await buyer.until(order["id"], "PAID")
    assert (paid["payment"]["id"], paid.get("stateReason", "")) == (payment["id"], "")
    assert paid["holdExpireTime"] == order["holdExpireTime"], "the time of the order is the one that it was placed with"
    assert (await shop.counters(sale), await charges(shop, order)) == ((0, 0, 1), 1)
    moves = await log_of(shop, order)
    assert [(state, actor) for state, actor, _ in moves] == [
        ("PENDING", "CUSTOMER"), ("FAILED", "SYSTEM"), ("PENDING", "CUSTOMER"), ("PAID", "SYSTEM"),
    ]  # fmt: skip
    assert moves[2][2] == "PayOrder"
    await assert_books_add_up(shop, sale)


async def test_second_decline_leaves_the_order_to_its_customer(shop: Shop) -> None:
    """The units stay held, and the browser or another card may pay."""
    sale, buyer = await shop.a_sale(units=1), await shop.a_buyer()
    order = await declined(buyer, sale)

    payment = (await buyer.pay(order, paymentMethod=DECLINED)).expect().json

    assert (payment["state"], payment["failureReason"]) == ("AWAITING_CUSTOMER", "CARD_DECLINED")
    assert (await buyer.order(order["id"]))["state"] == "PENDING"
    assert await shop.counters(sale) == (0, 1, 0)
    assert (await shop.sandbox.pay_in_browser(payment["clientSecret"]))["status"] == "succeeded"
    await buyer.until(order["id"], "PAID")
    assert await charges(shop, order) == 1
    await assert_books_add_up(shop, sale)


async def test_waiting_order_is_paid_with_the_third_card(shop: Shop) -> None:
    product, buyer = await shop.a_product(), await shop.a_buyer()
    order = await unpaid(buyer, product)
    for _ in range(2):
        payment = (await buyer.pay(order, paymentMethod=DECLINED)).expect().json
        assert (payment["state"], payment["failureReason"]) == ("AWAITING_CUSTOMER", "CARD_DECLINED")
    assert (await buyer.pay(order, paymentMethod=VISA)).expect().json["state"] == "SUCCEEDED"
    await buyer.until(order["id"], "PAID")
    assert await charges(shop, order) == 1
    await assert_books_add_up(shop, product)


async def test_secret_is_for_the_asking(shop: Shop) -> None:
    """No new attempt: the charge that waits for its customer is theirs."""
    product, buyer = await shop.a_product(), await shop.a_buyer()
    order = await unpaid(buyer, product)
    for how in ({}, {"provider": "stripe"}):
        payment = (await buyer.pay(order, **how)).expect().json
        assert (payment["state"], payment["clientSecret"]) == ("AWAITING_CUSTOMER", order["payment"]["clientSecret"])
    failed = await declined(buyer, product)
    payment = (await buyer.pay(failed)).expect().json
    assert payment["clientSecret"] not in ("", order["payment"]["clientSecret"])
    for one in (order, failed):
        (await buyer.cancel(one["id"])).expect()
    await assert_books_add_up(shop, product)


async def test_watchers_see_the_order_come_back(shop: Shop) -> None:
    product, buyer = await shop.a_product(), await shop.a_buyer()
    order = await declined(buyer, product)
    assert await states_seen(buyer, order) == ["FAILED"]

    payment = (await buyer.pay(order, paymentMethod=SECURE)).expect().json

    assert payment["state"] == "AWAITING_CUSTOMER"
    watching = asyncio.create_task(states_seen(buyer, order))
    await shop.sandbox.authenticate(payment["clientSecret"])
    seen = await watching
    assert (seen[0], seen[-1]) == ("PENDING", "PAID")
    await assert_books_add_up(shop, product)


# --- by the rules of a new order ---


async def test_unit_that_was_sold_meanwhile_is_not_there(shop: Shop) -> None:
    sale, buyer, faster = await shop.a_sale(units=1), await shop.a_buyer(), await shop.a_buyer()
    order = await declined(buyer, sale)
    (await faster.buy_when_back(sale)).expect()

    assert (await buyer.pay(order, paymentMethod=VISA)).refusal == (400, "SOLD_OUT")

    assert (await buyer.order(order["id"]))["state"] == "FAILED"
    assert (await shop.counters(sale), await charges(shop, order)) == ((0, 0, 1), 0)
    await assert_books_add_up(shop, sale)


async def test_limit_sale_and_product_decide_as_for_a_new_order(shop: Shop) -> None:
    buyer = await shop.a_buyer()
    limited, over, product = await shop.a_sale(limit=1), await shop.a_sale(), await shop.a_product()
    orders = [await declined(buyer, goods) for goods in (limited, over, product)]
    (await buyer.buy_when_back(limited)).expect()
    (await shop.staff.post(f"/v1/flash-sales/{over['id']}:end", {"requestId": new_id()})).expect()
    (await shop.staff.post(f"/v1/products/{product['id']}:deactivate", {"requestId": new_id()})).expect()

    refused = [(await buyer.pay(order, paymentMethod=VISA)).reason for order in orders[:2]]

    assert refused == ["CUSTOMER_LIMIT", "SALE_NOT_LIVE"]
    # Orders keeps a product for a second. A plain request changes nothing while the product is not active.
    await eventually(lambda: buyer.buy(product, card=DECLINED), lambda answer: answer.reason == "PRODUCT_NOT_ACTIVE")
    assert (await buyer.pay(orders[2], paymentMethod=VISA)).refusal == (400, "PRODUCT_NOT_ACTIVE")
    for order in orders:
        assert (await buyer.order(order["id"]))["state"] == "FAILED"
    await assert_books_add_up(shop, limited, over, product)


async def test_time_of_the_order_is_its_own(shop: Shop) -> None:
    product, buyer = await shop.a_product(), await shop.a_buyer()
    failed, waiting = await declined(buyer, product), await unpaid(buyer, product)
    for order in (failed, waiting):
        await hold_ends(shop, order["id"])
    assert (await buyer.pay(failed, paymentMethod=VISA)).refusal == (400, "HOLD_ENDED")
    refused = await buyer.pay(waiting, paymentMethod=VISA)
    assert refused.reason in ("HOLD_ENDED", "WRONG_STATE")
    await buyer.until(waiting["id"], "EXPIRED")
    assert (await buyer.pay(waiting, paymentMethod=VISA)).refusal == (400, "WRONG_STATE")
    assert await charges(shop, failed) + await charges(shop, waiting) == 0
    await assert_books_add_up(shop, product)


async def test_time_of_the_order_is_over_where_its_units_are(shop: Shop) -> None:
    """The clocks of orders and inventory differ, or the hold ends between their answers."""
    product, buyer = await shop.a_product(), await shop.a_buyer()
    order = await declined(buyer, product)
    await shop.rows(
        "inventory",
        "UPDATE reservations SET create_time = create_time - (expire_time - clock_timestamp()),"
        f" expire_time = clock_timestamp() WHERE id = '{order['id']}' RETURNING id",
    )
    assert (await buyer.pay(order, paymentMethod=VISA)).refusal == (400, "HOLD_ENDED")
    assert (await buyer.order(order["id"]))["state"] == "FAILED"
    assert await charges(shop, order) == 0
    await assert_books_add_up(shop, product)


async def test_orders_that_ended_otherwise_are_not_paid(shop: Shop) -> None:
    product, buyer, other = await shop.a_product(), await shop.a_buyer(), await shop.a_buyer()
    paid, cancelled = (await buyer.buy(product)).expect().json, await unpaid(buyer, product)
    (await buyer.cancel(cancelled["id"])).expect()
    for order in (paid, cancelled):
        assert (await buyer.pay(order, paymentMethod=VISA)).refusal == (400, "WRONG_STATE")
    for rest in (other.rest, shop.staff):
        answer = await rest.post(f"/v1/orders/{cancelled['id']}:pay", {"requestId": new_id(), "paymentMethod": VISA})
        assert answer.refusal == (404, "ORDER_NOT_FOUND")
    assert await charges(shop, paid) == 1
    await assert_books_add_up(shop, product)


async def test_attempts_have_a_limit(shop: Shop) -> None:
    product, buyer = await shop.a_product(), await shop.a_buyer()
    order = await unpaid(buyer, product)
    for _ in range(5):
        (await buyer.pay(order, paymentMethod=DECLINED)).expect()
    assert (await buyer.pay(order, paymentMethod=VISA)).refusal == (400, "ATTEMPTS_LIMIT")
    assert (await buyer.pay(order)).expect().json["clientSecret"], "the browser may still pay"
    (await buyer.cancel(order["id"])).expect()
    await assert_books_add_up(shop, product)


async def test_terms_that_nobody_offers_are_refused(shop: Shop) -> None:
    product, buyer = await shop.a_product(), await shop.a_buyer()
    order = await unpaid(buyer, product)
    refused = await buyer.pay(order, provider="nobody")
    assert (refused.refusal, refused.fields) == ((400, "INVALID_FIELDS"), ["provider"])
    (await buyer.cancel(order["id"])).expect()


# --- repeats, and several at once ---


async def test_repeat_of_a_payment_charges_once(shop: Shop) -> None:
    product, buyer, key = await shop.a_product(), await shop.a_buyer(), new_id()
    order = await declined(buyer, product)
    answers = await asyncio.gather(*(buyer.pay(order, key=key, paymentMethod=VISA) for _ in range(4)))
    assert {answer.status for answer in answers} <= {200, 400}
    await buyer.until(order["id"], "PAID")
    again = (await buyer.pay(order, key=key, paymentMethod=VISA)).expect().json
    assert again["state"] == "SUCCEEDED"
    assert (await buyer.pay(order, key=key, paymentMethod=DECLINED)).refusal == (400, "REQUEST_ID_REUSED")
    assert await charges(shop, order) == 1
    await assert_books_add_up(shop, product)


async def test_lost_answer_of_the_provider_charges_once(shop: Shop) -> None:
    product, buyer, key = await shop.a_product(), await shop.a_buyer(), new_id()
    order = await declined(buyer, product)
    await shop.sandbox.faults(drop_after_charge={"next": 1})
    for _ in range(2):
        (await buyer.pay(order, key=key, paymentMethod=VISA)).expect()
    await buyer.until(order["id"], "PAID")
    assert await charges(shop, order) == 1
    await assert_books_add_up(shop, product)


@pytest.mark.parametrize("first", [DECLINED, None])
async def test_two_payments_at_once_charge_once(shop: Shop, first: str | None) -> None:
    product, buyer = await shop.a_product(), await shop.a_buyer()
    await shop.sandbox.faults(latency_ms={"fixed": 100, "jitter": 100})
    order = await declined(buyer, product) if first else await unpaid(buyer, product)

    answers = await asyncio.gather(*(buyer.pay(order, paymentMethod=VISA) for _ in range(5)))

    assert {answer.reason for answer in answers} <= {"", "PAYMENT_IN_PROGRESS", "WRONG_STATE"}
    assert any(answer.status == 200 for answer in answers)
    await buyer.until(order["id"], "PAID")
    assert await charges(shop, order) == 1
    await assert_books_add_up(shop, product)


async def test_payment_that_may_be_moving_is_waited_for(shop: Shop) -> None:
    product, buyer = await shop.a_product(), await shop.a_buyer()
    order = (await buyer.buy(product, card=BANK_TRANSFER, wait=0)).expect().json
    assert (await buyer.pay(order, paymentMethod=VISA)).refusal == (400, "PAYMENT_IN_PROGRESS")
    await shop.sandbox.settle(order["id"])
    await buyer.until(order["id"], "PAID")
    assert await charges(shop, order) == 1
    await assert_books_add_up(shop, product)


@pytest.mark.parametrize("first", [DECLINED, None])
async def test_payment_that_meets_a_cancellation_ends_as_one(shop: Shop, first: str | None) -> None:
    """An accepted cancellation is kept, and its money goes back; otherwise the order is paid once."""
    sale, buyers = await shop.a_sale(units=12), await shop.a_crowd(6)
    await shop.sandbox.faults(latency_ms={"fixed": 20, "jitter": 40})

    async def meet(buyer: Buyer, pause: float) -> tuple[Json, bool]:
        order = await declined(buyer, sale) if first else await unpaid(buyer, sale)
        paying = asyncio.create_task(buyer.pay(order, paymentMethod=VISA))
        await asyncio.wait({paying}, timeout=pause)
        cancelled = await buyer.cancel(order["id"])
        paid = await paying
        assert paid.reason in ("", "WRONG_STATE", "PAYMENT_IN_PROGRESS"), paid.text
        assert cancelled.reason in ("", "WRONG_STATE"), cancelled.text
        return order, cancelled.status == 200

    met = await asyncio.gather(*(meet(buyer, n * 0.03) for n, buyer in enumerate(buyers)))
    for buyer, (order, was_cancelled) in zip(buyers, met, strict=True):
        ends = ("CANCELLED",) if was_cancelled else ("PAID", "FAILED")
        state = (await buyer.until(order["id"], *ends))["state"]
        kept = sum(one["amount"] - one["amount_refunded"] for one in await shop.sandbox.captured(order["id"]))
        assert kept == (999 if state == "PAID" else 0)
        assert await charges(shop, order) <= 1
    await assert_books_add_up(shop, sale)


@pytest.mark.parametrize("first", [DECLINED, None])
async def test_payment_that_meets_the_end_of_the_hold_ends_as_one(shop: Shop, first: str | None) -> None:
    sale, buyers = await shop.a_sale(units=12), await shop.a_crowd(6)
    await shop.sandbox.faults(latency_ms={"fixed": 20, "jitter": 40})

    async def meet(buyer: Buyer, pause: float) -> Json:
        order = await declined(buyer, sale) if first else await unpaid(buyer, sale)
        paying = asyncio.create_task(buyer.pay(order, paymentMethod=VISA))
        await asyncio.wait({paying}, timeout=pause)
        await hold_ends(shop, order["id"])
        paid = await paying
        assert paid.reason in ("", "HOLD_ENDED", "WRONG_STATE", "PAYMENT_IN_PROGRESS"), paid.text
        return order

    met = await asyncio.gather(*(meet(buyer, n * 0.03) for n, buyer in enumerate(buyers)))
    for buyer, order in zip(buyers, met, strict=True):
        state = (await buyer.until(order["id"], "PAID", "EXPIRED", "FAILED"))["state"]
        kept = sum(one["amount"] - one["amount_refunded"] for one in await shop.sandbox.captured(order["id"]))
        assert kept == (999 if state == "PAID" else 0)
    await assert_books_add_up(shop, sale)


async def test_authentication_after_the_hold_takes_no_money(shop: Shop) -> None:
    """The customer's bank answers when the order has expired: its charge is void."""
    sale, buyer = await shop.a_sale(units=1), await shop.a_buyer()
    order = await declined(buyer, sale)
    payment = (await buyer.pay(order, paymentMethod=SECURE)).expect().json
    assert payment["state"] == "AWAITING_CUSTOMER"
    await hold_ends(shop, order["id"])
    await buyer.until(order["id"], "EXPIRED")

    with pytest.raises(Exception, match="400"):
        await shop.sandbox.authenticate(payment["clientSecret"])

    assert (await charges(shop, order), await shop.counters(sale)) == (0, (1, 0, 0))
    await assert_books_add_up(shop, sale)
