"""Sales and stock in the hands of staff, and the effect on buyers."""

import asyncio
import uuid
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from tests.e2e.shop import VISA, Shop, assert_books_add_up, money
from tests.support.rest import Answer, Json, new_id
from tests.support.waiting import eventually

_SECONDS = 10
HOUR = timedelta(hours=1)


def seconds(span: str) -> float:
    return float(span.removesuffix("s"))


async def a_scheduled_sale(shop: Shop, *, stock: int = 50, units: int = 10) -> Json:
    """Opens in an hour, for an hour."""
    product, opens = await shop.a_product(stock=stock), datetime.now(UTC) + HOUR
    body = {
        "productId": product["id"], "title": "Sixty minutes of clocks", "salePrice": money(999), "allocation": units,
        "perCustomerLimit": 0, "startTime": opens.isoformat(), "endTime": (opens + HOUR).isoformat(),
    }  # fmt: skip
    return (await shop.staff.post("/v1/flash-sales", body)).expect().json


async def change(shop: Shop, sale: Json, **body: Any) -> Answer:
    return await shop.staff.patch(f"/v1/flash-sales/{sale['id']}", body)


async def close(shop: Shop, sale: Json, how: str, **body: Any) -> Answer:
    return await shop.staff.post(f"/v1/flash-sales/{sale['id']}:{how}", body)


async def until(messages: AsyncIterator[Json], state: str) -> Json:
    async with asyncio.timeout(_SECONDS):
        async for message in messages:
            if message["state"] == state:
                return message
    raise AssertionError(f"the stream ended without {state}")


async def test_a_scheduled_sale_is_changed_then_opened_and_bought(shop: Shop) -> None:
    sale, buyer = await a_scheduled_sale(shop), await shop.a_buyer()
    body = {"updateMask": "salePrice,allocation,perCustomerLimit", "salePrice": money(500), "allocation": 30,
            "perCustomerLimit": 2}  # fmt: skip

    changed = (await change(shop, sale, etag=sale["etag"], **body)).expect().json

    assert (changed["salePrice"], changed["allocation"], changed["perCustomerLimit"]) == (money(500), 30, 2)
    assert (changed["title"], changed["state"], changed["remaining"]) == (sale["title"], "SCHEDULED", 30)
    assert 3500 < seconds(changed["startsIn"]) <= 3600 < seconds(changed["endsIn"]) <= 7200
    assert await shop.stock({"id": sale["productId"]}) == (20, 0, 20)
    assert (await buyer.buy(changed)).refusal == (400, "SALE_NOT_LIVE")

    async with shop.rest.watching(f"/v1/flash-sales/{sale['id']}:watch") as messages:
        await until(messages, "SCHEDULED")
        opened = (await change(shop, sale, startTime="2020-01-01T00:00:00Z")).expect().json
        assert (opened["state"], "startsIn" in opened, "endsIn" in opened) == ("LIVE", False, True)
        await until(messages, "LIVE")
    order = (await buyer.buy(changed, quantity=2)).expect().json
    assert (order["state"], order["total"]) == ("PAID", money(1000))
    assert (await buyer.buy(changed)).refusal == (400, "CUSTOMER_LIMIT")
    assert (await change(shop, sale, title="Too late")).refusal == (400, "WRONG_STATE")
    await assert_books_add_up(shop, sale)


async def test_what_cannot_be_changed_is_refused_and_leaves_all_as_it_was(shop: Shop) -> None:
    sale = await a_scheduled_sale(shop)
    other = (await change(shop, sale, title="Once")).expect().json
    before = await shop.sale(sale)
    refusals = [
        ({"updateMask": "state", "state": "LIVE"}, (400, "INVALID_FIELDS")),
        ({"updateMask": "title,remaining", "title": "x"}, (400, "INVALID_FIELDS")),
        ({"updateMask": "allocation"}, (400, "INVALID_FIELDS")),
        ({"title": ""}, (400, "INVALID_FIELDS")),
        ({"allocation": 0}, (400, "INVALID_FIELDS")),
        ({"endTime": "2020-01-01T00:00:00Z"}, (400, "INVALID_FIELDS")),
        ({"startTime": other["endTime"]}, (400, "INVALID_FIELDS")),
        ({"allocation": 51}, (400, "OUT_OF_STOCK")),
        ({"etag": sale["etag"], "title": "x"}, (409, "STALE_ETAG")),
    ]
    for body, refusal in refusals:
        assert (await change(shop, sale, **body)).refusal == refusal, body
    missing = await change(shop, {"id": new_id()}, title="x")
    assert missing.refusal == (404, "FLASH_SALE_NOT_FOUND")

    after = await shop.sale(sale)
    for changing in ("serverTime", "startsIn", "endsIn"):
        before.pop(changing), after.pop(changing)
    assert after == before


@pytest.mark.parametrize(("how", "state"), [("cancel", "CANCELLED"), ("end", "ENDED")])
async def test_a_sale_is_closed_while_people_buy(shop: Shop, how: str, state: str) -> None:
    """A customer who holds a unit may still pay for it; no other unit is sold, and the rest returns to stock."""
    product = await shop.a_product(stock=20)
    sale, (one, two, late) = await shop.a_sale(units=10, product=product), await shop.a_crowd(3)
    (await one.buy(sale)).expect()
    held = (await two.buy(sale, card=None, wait=0)).expect().json
    await two.until_payable(held["id"])

    async with shop.rest.watching(f"/v1/flash-sales/{sale['id']}:watch") as messages:
        await until(messages, "LIVE")
        key = new_id()
        closed = (await close(shop, sale, how, requestId=key)).expect().json
        seen = await until(messages, state)

    assert (closed["state"], closed["remaining"], closed["held"], closed["sold"]) == (state, 0, 1, 1)
    assert (seen["remaining"], seen["held"], seen["sold"]) == (0, 1, 1)
    assert not {"startsIn", "endsIn"} & closed.keys()
    assert "nextHoldExpireTime" in closed
    assert await shop.stock(product) == (18, 0, 18)
    assert (await close(shop, sale, how, requestId=key)).expect().json["etag"] == closed["etag"]
    assert (await close(shop, sale, how)).refusal == (400, "WRONG_STATE")

    async def refused() -> tuple[int, str]:
        return (await late.buy(sale)).refusal

    await eventually(refused, lambda refusal: refusal == (400, "SALE_NOT_LIVE"))
    payable = await two.until_payable(held["id"])
    await shop.sandbox.pay_in_browser(payable["payment"]["clientSecret"], VISA)
    await two.until(held["id"], "PAID")
    assert await shop.counters(sale) == (0, 0, 2)
    assert (await shop.sale(sale)).get("nextHoldExpireTime") is None
    await assert_books_add_up(shop, sale)


async def test_the_stock_of_a_thousand_products_is_counted_in_one_call(shop: Shop) -> None:
    known, sold = await shop.a_product(stock=5), await shop.a_product(stock=5)
    buyer = await shop.a_buyer()
    (await buyer.buy(sold, quantity=3, card=None, wait=0)).expect()
    body = {
        "reason": "inventory night", "requestId": new_id(),
        "updates": [{"productId": str(uuid.uuid4()), "onHand": n} for n in range(998)]
        + [{"productId": known["id"], "onHand": 0}, {"productId": sold["id"], "onHand": 3}],
    }  # fmt: skip

    for _ in range(2):
        stocks = (await shop.staff.post("/v1/stock:batchUpdate", body)).expect().json["stocks"]
        assert [stock["productId"] for stock in stocks] == [item["productId"] for item in body["updates"]]
        assert [stock["onHand"] for stock in stocks[:998]] == list(range(998))
    assert await shop.stock(known) == (0, 0, 0)
    assert await shop.stock(sold) == (3, 3, 0)

    def counted(*items: Json) -> Json:
        return {"reason": "again", "updates": [{"productId": known["id"], "onHand": 9}, *items]}

    short = await shop.staff.post("/v1/stock:batchUpdate", counted({"productId": sold["id"], "onHand": 2}))
    assert short.refusal == (400, "OUT_OF_STOCK")
    twice = await shop.staff.post("/v1/stock:batchUpdate", counted({"productId": known["id"], "onHand": 1}))
    assert (twice.refusal, twice.fields) == ((400, "INVALID_FIELDS"), ["updates[1].productId"])
    wrong = await shop.staff.post("/v1/stock:batchUpdate", counted({"productId": sold["id"], "onHand": -1}))
    assert wrong.fields == ["updates[1].onHand"]
    assert await shop.stock(known) == (0, 0, 0)
    await assert_books_add_up(shop, known, sold)
