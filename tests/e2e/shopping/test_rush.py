"""The moment the shop was built for."""

import asyncio
from collections import Counter

from tests.e2e.shop import Buyer, Shop, assert_books_add_up, money
from tests.support.rest import Answer, Json, new_id

BUYERS, UNITS, PRICE = 60, 10, 999


def outcomes(answers: list[Answer]) -> Counter[object]:
    """How many got what: the state of their order, or the refusal."""
    return Counter(answer.json["state"] if answer.status == 200 else answer.refusal for answer in answers)


async def test_ten_of_sixty_get_one_each_and_fifty_are_told_that_it_is_sold_out(shop: Shop) -> None:
    crowd, sale = await shop.a_crowd(BUYERS), await shop.a_sale(units=UNITS, price=PRICE)

    answers = await asyncio.gather(*(buyer.buy(sale, wait=20) for buyer in crowd))

    assert outcomes(answers) == {"PAID": UNITS, (400, "SOLD_OUT"): BUYERS - UNITS}
    assert {answer.domain for answer in answers if answer.status != 200} == {"inventory.stampede"}
    assert await shop.counters(sale) == (0, 0, UNITS)
    assert (await shop.sale(sale))["state"] == "SOLD_OUT"
    paid = [answer.json["id"] for answer in answers if answer.status == 200]
    assert sum(entry["amount"] for entry in await shop.sandbox.captured(*paid)) == UNITS * PRICE
    await assert_books_add_up(shop, sale)


async def test_ordinary_stock_is_not_oversold_either(shop: Shop) -> None:
    crowd, product = await shop.a_crowd(BUYERS), await shop.a_product(stock=UNITS, price=PRICE)

    answers = await asyncio.gather(*(buyer.buy(product, wait=20) for buyer in crowd))

    assert outcomes(answers) == {"PAID": UNITS, (400, "OUT_OF_STOCK"): BUYERS - UNITS}
    assert await shop.stock(product) == (0, 0, 0)
    await assert_books_add_up(shop, product)


async def test_one_customer_on_many_devices_stays_within_the_limit(shop: Shop) -> None:
    buyer, sale = await shop.a_buyer(), await shop.a_sale(units=30, limit=3)

    answers = await asyncio.gather(*(buyer.buy(sale, wait=20) for _ in range(20)))

    assert outcomes(answers) == {"PAID": 3, (400, "CUSTOMER_LIMIT"): 17}
    assert await shop.counters(sale) == (27, 0, 3)
    await assert_books_add_up(shop, sale)


async def test_paying_and_cancelling_at_the_same_moment_ends_as_one_of_the_two(shop: Shop) -> None:
    crowd, sale = await shop.a_crowd(8), await shop.a_sale(units=8, price=PRICE)
    placed = [await buyer.buy_unpaid(sale) for buyer in crowd]

    async def both(buyer: Buyer, order: Json) -> None:
        paying = shop.sandbox.pay_in_browser(order["payment"]["clientSecret"])
        _, cancelled = await asyncio.gather(paying, buyer.cancel(order["id"]))
        assert cancelled.status == 200 or cancelled.refusal == (400, "WRONG_STATE"), cancelled.text

    await asyncio.gather(*map(both, crowd, placed))

    for buyer, order in zip(crowd, placed, strict=True):
        ended = await buyer.until(order["id"], "PAID", "CANCELLED")
        kept = sum(entry["amount"] - entry["amount_refunded"] for entry in await shop.sandbox.captured(order["id"]))
        assert (ended["state"], kept) in (("PAID", PRICE), ("CANCELLED", 0))
    remaining, held, sold = await shop.counters(sale)
    assert (remaining + sold, held) == (8, 0)
    await assert_books_add_up(shop, sale)


async def test_two_refunds_at_the_same_moment_pay_back_no_more_than_was_paid(shop: Shop) -> None:
    product, buyer = await shop.a_product(price=1000), await shop.a_buyer()
    order = (await buyer.buy(product)).expect().json
    refund = f"/v1/payments/{order['payment']['id']}:refund"

    answers = await asyncio.gather(
        *(shop.staff.post(refund, {"amount": money(300), "reason": "dent", "requestId": new_id()}) for _ in range(6))
    )

    refusals = Counter(answer.refusal for answer in answers if answer.status != 200)
    assert refusals == {(400, "REFUND_TOO_LARGE"): 3}
    [entry] = await shop.sandbox.captured(order["id"])
    assert entry["amount_refunded"] == 900
    await buyer.until(order["id"], "PARTIALLY_REFUNDED")
    await assert_books_add_up(shop, product)


async def test_units_of_declined_cards_go_to_those_who_can_pay(shop: Shop) -> None:
    crowd, sale = await shop.a_crowd(BUYERS), await shop.a_sale(units=UNITS, price=PRICE)
    first, second = crowd[:UNITS], crowd[UNITS : 2 * UNITS]

    declined = await asyncio.gather(*(buyer.buy(sale, card="pm_card_chargeDeclined", wait=20) for buyer in first))
    assert outcomes(declined) == {"FAILED": UNITS}
    paid = await asyncio.gather(*(buyer.buy_when_back(sale) for buyer in second))

    assert outcomes(paid) == {"PAID": UNITS}
    assert await shop.counters(sale) == (0, 0, UNITS)
    await assert_books_add_up(shop, sale)
