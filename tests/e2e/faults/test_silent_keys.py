"""A charge whose idempotency key the provider answers with 500 for ever, while it answers all others."""

from collections.abc import Awaitable, Callable
from urllib.parse import urlencode

import pytest

from tests.e2e.shop import VISA, Buyer, Shop, assert_books_add_up
from tests.support.rest import Json
from tests.support.waiting import eventually

PRICE = 1300
_DUE = "UPDATE payments SET next_check_time = now() WHERE order_id = '{}' AND next_check_time > now() RETURNING 1"


async def order_with_a_silent_key(shop: Shop, buyer: Buyer, sale: Json) -> Json:
    """An order whose first key is answered with 500 from now on. No money has moved under it."""
    await shop.sandbox.faults(error_500={"next": 1, "saved": True}, error_500_on="POST payment_intents")
    order = (await buyer.buy(sale, card=VISA, wait=0)).expect().json
    await eventually(lambda: payment_of(shop, order), lambda row: row[2] >= 1)
    return order


async def payment_of(shop: Shop, order: Json) -> tuple[str, int, int, str]:
    """Id, attempt, checks and state of an order's payment."""
    query = f"SELECT id::text, attempt, checks, state FROM payments WHERE order_id = '{order['id']}'"
    rows = await shop.rows("payments", query)
    return rows[0] if rows else ("", 0, 0, "")


async def pauses_end(shop: Shop, order: Json, until: Callable[[], Awaitable[bool]]) -> None:
    """End each pause before the next check of an order's payment, as time would."""

    async def look() -> bool:
        await shop.rows("payments", _DUE.format(order["id"]))
        return await until()

    await eventually(look, bool, seconds=60)


async def minutes_pass(shop: Shop, order: Json) -> None:
    """Age the key of an order's payment by eleven minutes."""
    moved = "UPDATE payments SET attempt_time = attempt_time - interval '11 minutes' WHERE order_id = '{}' RETURNING 1"
    assert await shop.rows("payments", moved.format(order["id"])) == [(1,)]


async def late_twin(shop: Shop, order: Json, payment_id: str) -> None:
    """The first request arrives at the provider at last: delayed by a network, under its old key."""
    form = {
        "amount": PRICE, "currency": "usd", "confirm": "true", "payment_method": VISA,
        "automatic_payment_methods[enabled]": "true", "automatic_payment_methods[allow_redirects]": "never",
        "metadata[order_id]": order["id"], "metadata[payment_id]": payment_id,
    }  # fmt: skip
    headers = {"content-type": "application/x-www-form-urlencoded", "idempotency-key": f"{payment_id}/1/late"}
    sent = await shop.sandbox.rest.send(
        "POST", "/v1/payment_intents", body=urlencode(form).encode(), headers=headers
    )  # fmt: skip
    assert sent.expect().json["status"] == "succeeded"


@pytest.mark.parametrize("twin", [False, True], ids=["", "and the first request arrives late"])
async def test_charge_whose_key_answers_500_for_ever_gets_a_new_one(shop: Shop, twin: bool) -> None:
    """Not within ten minutes. Other payments are answered meanwhile, which must not begin its checks anew."""
    sale, buyer, other = await shop.a_sale(units=20, price=PRICE), await shop.a_buyer(), await shop.a_buyer()
    order, seen = await order_with_a_silent_key(shop, buyer, sale), list[int]()

    async def is_searched() -> bool:
        _, attempt, checks, _ = await payment_of(shop, order)
        assert attempt == 1, "the key is younger than ten minutes"
        seen.append(checks)
        if checks > max(seen[:-1], default=0):
            assert (await other.buy(sale)).expect().json["state"] == "PAID"
        return checks >= 8

    await pauses_end(shop, order, is_searched)
    assert (await buyer.order(order["id"]))["state"] == "PENDING"
    assert await shop.sandbox.captured(order["id"]) == []

    await minutes_pass(shop, order)

    async def is_paid() -> bool:
        return (await buyer.order(order["id"]))["state"] == "PAID"

    await pauses_end(shop, order, is_paid)
    payment_id, attempt, _, state = await payment_of(shop, order)
    assert (attempt, state) == (2, "SUCCEEDED")
    if twin:
        await late_twin(shop, order, payment_id)
        await eventually(lambda: kept(shop, order), lambda sums: len(sums) == 2 and sum(sums) == PRICE, seconds=30)
    assert sum(await kept(shop, order)) == PRICE
    assert (await buyer.order(order["id"]))["state"] == "PAID"
    await assert_books_add_up(shop, sale)


async def test_charge_that_moved_money_under_a_silent_key_is_found_and_not_repeated(shop: Shop) -> None:
    """Its answer was lost, and every repeat is answered with 500: the search finds it before a new key is allowed."""
    sale, buyer = await shop.a_sale(units=2, price=PRICE), await shop.a_buyer()
    await shop.sandbox.faults(drop_after_charge=True, webhooks={"drop": True})
    order = (await buyer.buy(sale, card=VISA, wait=0)).expect().json
    await eventually(lambda: shop.sandbox.captured(order["id"]), bool)
    await shop.sandbox.faults(drop_after_charge=False, error_500=True, error_500_on="POST payment_intents")

    async def is_paid() -> bool:
        return (await buyer.order(order["id"]))["state"] == "PAID"

    await pauses_end(shop, order, is_paid)
    assert (await payment_of(shop, order))[1] == 1
    assert await kept(shop, order) == [PRICE]
    await shop.sandbox.no_faults()
    await assert_books_add_up(shop, sale)


async def kept(shop: Shop, order: Json) -> list[int]:
    """The money that the provider has kept of each charge of an order."""
    charges = await shop.sandbox.captured(order["id"])
    return [charge["amount"] - charge["amount_refunded"] for charge in charges]


async def test_cancelled_order_with_a_silent_key_ends_without_a_charge(shop: Shop) -> None:
    sale, buyer = await shop.a_sale(units=2, price=PRICE), await shop.a_buyer()
    order = await order_with_a_silent_key(shop, buyer, sale)
    (await buyer.cancel(order["id"])).expect()

    async def is_cancelled() -> bool:
        return (await buyer.order(order["id"]))["state"] == "CANCELLED"

    await pauses_end(shop, order, is_cancelled)
    assert await shop.sandbox.captured(order["id"]) == []
    await assert_books_add_up(shop, sale)
