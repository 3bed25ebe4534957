"""Stock that is held while somebody pays: when it comes back, to whom, and when it is held for longer."""

import asyncio
import signal
from collections import Counter
from datetime import datetime, timedelta

import pytest

from tests.e2e.clock import STEP, hold_ends, hold_is_checked, time_passes
from tests.e2e.shop import SECURE, VISA, Buyer, Shop, assert_books_add_up
from tests.support.rest import Answer, Json
from tests.support.waiting import eventually

BANK_TRANSFER = "pm_usBankAccount_processing"
PRICE = 999
TEN_MINUTES = timedelta(minutes=10)
"""How long a hold lasts where its sale says no other time."""


def ends(order: Json) -> datetime:
    return datetime.fromisoformat(order["holdExpireTime"])


async def extended(shop: Shop, buyer: Buyer, order: Json) -> Json:
    """The order, whose saga checked its hold and extended it."""
    await hold_is_checked(shop, order["id"])
    return await eventually(lambda: buyer.order(order["id"]), lambda now: ends(now) > ends(order), seconds=30)


async def money_may_be_moving(shop: Shop, order: Json) -> None:
    """Return once payments has the provider's word that the bank is at work on the order's payment."""
    query = f"SELECT authenticating OR state = 'PROCESSING' FROM payments WHERE order_id = '{order['id']}'"
    await eventually(lambda: shop.rows("payments", query), lambda rows: rows == [(True,)])


async def test_a_hold_lasts_as_long_as_its_sale_says_and_then_all_is_as_before(shop: Shop) -> None:
    """Units, the sale's state and the customer's allowance. Real seconds pass here, and nowhere else in this module."""
    sale = await shop.a_sale(units=1, limit=1, hold="2s")
    slow = await shop.a_buyer()
    order = (await slow.buy(sale, card=None, wait=0)).expect().json
    assert timedelta() < ends(order) - datetime.fromisoformat(order["createTime"]) <= timedelta(seconds=2)

    expired = await slow.until(order["id"], "EXPIRED")

    assert (expired["stateReason"], ends(expired)) == ("HOLD_EXPIRED", ends(order))
    assert ((await shop.sale(sale))["state"], await shop.counters(sale)) == ("LIVE", (1, 0, 0))
    await assert_books_add_up(shop, sale)


async def test_expired_hold_returns_unit_state_and_allowance(shop: Shop) -> None:
    sale, slow, other = await shop.a_sale(units=1, limit=1), await shop.a_buyer(), await shop.a_buyer()
    order = (await slow.buy(sale, card=None, wait=0)).expect().json
    assert ((await shop.sale(sale))["state"], await shop.counters(sale)) == ("SOLD_OUT", (0, 1, 0))
    assert (await other.buy(sale)).refusal == (400, "SOLD_OUT")

    await time_passes(shop, order["id"])
    await slow.until(order["id"], "EXPIRED")

    assert ((await shop.sale(sale))["state"], await shop.counters(sale)) == ("LIVE", (1, 0, 0))
    assert (await slow.buy_when_back(sale)).expect().json["state"] == "PAID"
    assert (await slow.buy(sale)).refusal[1] in ("CUSTOMER_LIMIT", "SOLD_OUT")
    await assert_books_add_up(shop, sale)


async def test_customer_who_paid_in_time_gets_the_unit_without_a_webhook(shop: Shop) -> None:
    """The provider is asked before the unit is given up, and the unit waits for its answer."""
    await shop.sandbox.faults(webhooks={"drop": True}, latency_ms={"fixed": 500, "jitter": 0})
    sale, buyer, other = await shop.a_sale(units=1, price=PRICE), await shop.a_buyer(), await shop.a_buyer()
    order = await buyer.buy_unpaid(sale)
    assert (await shop.sandbox.pay_in_browser(order["payment"]["clientSecret"]))["status"] == "succeeded"

    await hold_ends(shop, order["id"])
    refused = []
    while (await buyer.order(order["id"]))["state"] == "PENDING":
        refused.append((await other.buy(sale, wait=0)).reason)

    assert (await buyer.order(order["id"]))["state"] == "PAID"
    assert set(refused) <= {"SOLD_OUT"}
    assert await shop.counters(sale) == (0, 0, 1)
    await assert_books_add_up(shop, sale)


@pytest.mark.parametrize("cancelled", [False, True])
async def test_bank_debit_of_hours_is_neither_stuck_nor_an_audit_finding(shop: Shop, cancelled: bool) -> None:
    """A provider that does not answer is. Both before and after an accepted cancellation."""
    sale, buyer = await shop.a_sale(units=1, price=PRICE), await shop.a_buyer()
    order = (await buyer.buy(sale, card=BANK_TRANSFER, wait=0)).expect().json
    path = f"/v1/admin/sagas/{order['id']}"
    await eventually(lambda: shop.staff.get(path), lambda answer: answer.expect().json.get("waitsForProvider"))
    if cancelled:
        assert (await buyer.cancel(order["id"])).expect().json["cancelRequested"]
        await eventually(
            lambda: shop.staff.get(path),
            lambda answer: answer.json["phase"] == "BACKWARD" and answer.json.get("waitsForProvider"),
        )
    hours = "UPDATE sagas SET progress_time = progress_time - interval '5 hours' WHERE order_id = '{}' RETURNING 1"
    await shop.rows("orders", hours.format(order["id"]))

    saga = (await shop.staff.get(path)).expect().json
    assert (saga.get("stuck", False), saga["cause"]) == (False, "charge: the provider is moving the money")
    assert order["id"] not in await stuck(shop)
    await assert_books_add_up(shop, sale)

    silent = "UPDATE payments SET answer_time = now() - interval '4 minutes' WHERE order_id = '{}' RETURNING 1"
    await shop.sandbox.faults(error_500=True)
    await shop.rows("payments", silent.format(order["id"]))
    await eventually(lambda: stuck(shop), lambda ids: order["id"] in ids, seconds=40)
    with pytest.raises(AssertionError, match="has not answered"):
        await assert_books_add_up(shop, sale, patience_seconds=3)

    await shop.sandbox.faults(error_500=False)
    await shop.sandbox.settle(order["id"])
    end = await buyer.until(order["id"], "CANCELLED" if cancelled else "PAID", seconds=60)
    assert end.get("refunded", {}).get("minorUnits", "0") == (str(PRICE) if cancelled else "0")
    await assert_books_add_up(shop, sale)


async def stuck(shop: Shop) -> set[str]:
    """The orders whose sagas are listed as stuck."""
    return {saga["orderId"] for saga in (await shop.staff.get("/v1/admin/sagas?stuck=true")).expect().json["sagas"]}


async def test_payment_after_unit_was_sold_to_another_is_refunded(shop: Shop) -> None:
    """The customer paid in time, but the webhook was lost and payments did not answer until the hold had ended."""
    await shop.sandbox.faults(webhooks={"drop": True})
    sale, paying, faster = await shop.a_sale(units=1, price=PRICE), await shop.a_buyer(), await shop.a_buyer()
    order = await paying.buy_unpaid(sale)
    assert (await shop.sandbox.pay_in_browser(order["payment"]["clientSecret"]))["status"] == "succeeded"
    await shop.mesh.kill("payments", signal.SIGSTOP)
    try:
        await time_passes(shop, order["id"])
        await eventually(lambda: shop.counters(sale), lambda counters: counters == (1, 0, 0))
        answer = await eventually(lambda: faster.buy(sale, wait=0), lambda answer: answer.reason != "SOLD_OUT")
        taken = answer.expect().json
        assert (taken["state"], await shop.counters(sale)) == ("PENDING", (0, 1, 0))
    finally:
        await shop.mesh.kill("payments", signal.SIGCONT)

    lost = await paying.until(order["id"], "EXPIRED", "PAID", seconds=40)
    await faster.until(taken["id"], "PAID", seconds=40)
    assert (lost["state"], lost["stateReason"]) == ("EXPIRED", "RESERVATION_LOST")
    [entry] = await shop.sandbox.captured(order["id"])
    assert (entry["amount"], entry["amount_refunded"]) == (PRICE, PRICE)
    assert await shop.counters(sale) == (0, 0, 1)
    await shop.all_parts_answer()
    await assert_books_add_up(shop, sale)


@pytest.mark.parametrize("killed", [False, True], ids=["", "orders killed"])
async def test_hold_is_extended_while_customer_answers_their_bank(shop: Shop, killed: bool) -> None:
    sale, buyer, other = await shop.a_sale(units=1), await shop.a_buyer(), await shop.a_buyer()
    order = await buyer.buy_unpaid(sale)
    paying = await shop.sandbox.pay_in_browser(order["payment"]["clientSecret"], SECURE)
    assert paying["status"] == "requires_action"
    await money_may_be_moving(shop, order)
    if killed:
        await shop.mesh.kill("orders")
        await shop.all_parts_answer()

    longer = await extended(shop, buyer, order)

    assert ends(longer) - ends(order) == TEN_MINUTES
    await time_passes(shop, order["id"])
    assert await shop.counters(sale) == (0, 1, 0)
    assert (await other.buy(sale)).refusal == (400, "SOLD_OUT")
    await shop.sandbox.authenticate(order["payment"]["clientSecret"])
    paid = await buyer.until(order["id"], "PAID", "EXPIRED")
    assert (paid["state"], ends(paid)) == ("PAID", ends(longer) - STEP)
    assert await shop.counters(sale) == (0, 0, 1)
    assert len(await shop.sandbox.captured(order["id"])) == 1
    await assert_books_add_up(shop, sale)


async def test_hold_is_extended_while_provider_is_at_work(shop: Shop) -> None:
    sale, buyer = await shop.a_sale(units=1), await shop.a_buyer()
    order = (await buyer.buy(sale, card=BANK_TRANSFER, wait=0)).expect().json
    await money_may_be_moving(shop, order)

    longer = await extended(shop, buyer, order)

    assert (longer["state"], longer["payment"]["state"]) == ("PENDING", "PROCESSING")
    await time_passes(shop, order["id"])
    assert await shop.counters(sale) == (0, 1, 0)
    await shop.sandbox.settle(order["id"])
    assert (await buyer.until(order["id"], "PAID", "EXPIRED"))["state"] == "PAID"
    assert await shop.counters(sale) == (0, 0, 1)
    await assert_books_add_up(shop, sale)


async def test_hold_is_extended_once(shop: Shop) -> None:
    """A customer who never answers their bank keeps the unit for twice the hold at most."""
    sale, buyer, next_ = await shop.a_sale(units=1), await shop.a_buyer(), await shop.a_buyer()
    order = await buyer.until_payable((await buyer.buy(sale, card=SECURE, wait=0)).expect().json["id"])
    await money_may_be_moving(shop, order)

    longer = await extended(shop, buyer, order)
    await time_passes(shop, order["id"])
    assert await shop.counters(sale) == (0, 1, 0)
    await time_passes(shop, order["id"])
    expired = await buyer.until(order["id"], "EXPIRED")

    assert ends(longer) == ends(order) + TEN_MINUTES
    assert ends(expired) == ends(longer) - 2 * STEP
    assert await shop.counters(sale) == (1, 0, 0)
    assert (await next_.buy_when_back(sale)).expect().json["state"] == "PAID"
    await assert_books_add_up(shop, sale)


def outcomes(answers: list[Answer]) -> Counter[object]:
    return Counter(answer.json["state"] if answer.status == 200 else answer.refusal for answer in answers)


async def test_one_customer_cannot_hold_all_units_unpaid(shop: Shop) -> None:
    """At most 20 open orders, each for five minutes instead of ten, because no card is charged."""
    product, greedy, other = await shop.a_product(stock=40), await shop.a_buyer(), await shop.a_buyer()

    answers = await asyncio.gather(*(greedy.buy(product, card=None, wait=0) for _ in range(40)))

    placed = [answer.json for answer in answers if answer.status == 200]
    assert len(placed) == 20
    assert {answer.refusal for answer in answers if answer.status != 200} == {(400, "OPEN_ORDERS_LIMIT")}
    assert ends(placed[0]) - datetime.fromisoformat(placed[0]["createTime"]) <= TEN_MINUTES / 2
    assert (await other.buy(product)).expect().json["state"] == "PAID"
    assert (await greedy.cancel(placed[0]["id"])).expect().json["state"] == "CANCELLED"
    assert (await greedy.buy(product)).expect().json["state"] == "PAID"
    await assert_books_add_up(shop, product)


async def test_what_is_cancelled_or_expires_gives_a_customers_allowance_back(shop: Shop) -> None:
    """Many concurrent orders of one customer, each time: they get exactly the units that are free again."""
    long, short = await shop.a_sale(units=20, limit=2), await shop.a_sale(units=20, limit=2)
    buyer = await shop.a_buyer()

    async def at_once(sale: Json, count: int, card: str | None = None) -> list[Answer]:
        return list(await asyncio.gather(*(buyer.buy(sale, card=card, wait=10 if card else 0) for _ in range(count))))

    limit = (400, "CUSTOMER_LIMIT")
    first = await at_once(long, 12)
    assert outcomes(first) == {"PENDING": 2, limit: 10}
    pending = [answer.json["id"] for answer in first if answer.status == 200]
    (await buyer.cancel(pending[0])).expect()
    assert outcomes(await at_once(long, 6, VISA)) == {"PAID": 1, limit: 5}
    assert await shop.counters(long) == (18, 1, 1)

    held = [answer.json["id"] for answer in await at_once(short, 12) if answer.status == 200]
    assert len(held) == 2
    for order_id in held:
        await time_passes(shop, order_id)
        await buyer.until(order_id, "EXPIRED")
    assert outcomes(await at_once(short, 6, VISA)) == {"PAID": 2, limit: 4}
    assert outcomes(await at_once(short, 3)) == {limit: 3}
    assert await shop.counters(short) == (18, 0, 2)
    (await buyer.cancel(pending[1])).expect()
    await assert_books_add_up(shop, long, short)


@pytest.mark.parametrize("end", ["cancelled", "expired"])
async def test_a_unit_that_comes_back_goes_to_one_who_keeps_asking(shop: Shop, end: str) -> None:
    sale, holder = await shop.a_sale(units=1, limit=1), await shop.a_buyer()
    order = (await holder.buy(sale, card=None, wait=0)).expect().json
    waiting = await shop.a_crowd(4)
    sold = asyncio.Event()

    async def keep_asking(buyer: Buyer) -> Answer:
        def done(answer: Answer) -> bool:
            return answer.status == 200 or sold.is_set()

        answer = await eventually(lambda: buyer.buy(sale, wait=0), done, seconds=30)
        sold.set()
        return answer

    asking = [asyncio.create_task(keep_asking(buyer)) for buyer in waiting]
    if end == "cancelled":
        (await holder.cancel(order["id"])).expect()
    else:
        await time_passes(shop, order["id"])
    answers = await asyncio.gather(*asking)

    winners = [
        (buyer, answer.json["id"]) for buyer, answer in zip(waiting, answers, strict=True) if answer.status == 200
    ]
    assert len(winners) == 1
    assert {answer.refusal for answer in answers if answer.status != 200} <= {(400, "SOLD_OUT")}
    ((winner, order_id),) = winners
    await winner.until(order_id, "PAID")
    assert await shop.counters(sale) == (0, 0, 1)
    await assert_books_add_up(shop, sale)
