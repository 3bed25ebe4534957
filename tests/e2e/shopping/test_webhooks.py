"""Webhooks: twice, late, never, out of order, or forged."""

import hashlib
import hmac
import json
import time

import pytest

from tests.e2e.clock import time_passes
from tests.e2e.shop import VISA, Shop, assert_books_add_up
from tests.support.rest import Answer, Json, new_id
from tests.support.waiting import eventually

_PATH = "/v1/webhooks/stripe"


async def deliver(shop: Shop, event: Json, *, secret: str | None = None, seconds_ago: int = 0) -> Answer:
    """Sends an event as the provider would, signed with its secret unless another is given."""
    body, when = json.dumps(event).encode(), int(time.time()) - seconds_ago
    secret = secret or shop.mesh.site.secrets["stripe/webhook"]
    mac = hmac.new(secret.encode(), b"%d." % when + body, hashlib.sha256).hexdigest()
    return await shop.rest.send("POST", _PATH, body=body, headers={"stripe-signature": f"t={when},v1={mac}"})


async def event_of(shop: Shop, intent: str) -> Json:
    """The provider's event of an intent's success."""
    events = (await shop.sandbox.get("/v1/events?limit=100"))["data"]
    return next(
        event
        for event in events
        if event["type"] == "payment_intent.succeeded" and event["data"]["object"]["id"] == intent
    )


async def test_an_event_told_twice_has_one_effect(shop: Shop) -> None:
    product, buyer = await shop.a_product(), await shop.a_buyer()
    order = await buyer.buy_unpaid(product)
    secret = order["payment"]["clientSecret"]
    await shop.sandbox.pay_in_browser(secret, VISA)
    paid = await buyer.until(order["id"], "PAID")
    event = await event_of(shop, secret.partition("_secret_")[0])
    before = await eventually(
        shop.counts, lambda found: found["payments"][0][3] > 0
    )  # the provider's own telling has arrived

    for _ in range(2):
        assert (await deliver(shop, event)).expect().json == {"received": True}

    assert await shop.counts() == before
    assert await buyer.order(order["id"]) == paid
    assert len(await shop.sandbox.captured(order["id"])) == 1
    await assert_books_add_up(shop, product)


async def test_the_same_news_under_another_event_id_has_no_second_effect(shop: Shop) -> None:
    product, buyer = await shop.a_product(stock=5), await shop.a_buyer()
    order = await buyer.buy_unpaid(product)
    secret = order["payment"]["clientSecret"]
    await shop.sandbox.pay_in_browser(secret, VISA)
    paid = await buyer.until(order["id"], "PAID")
    event = await event_of(shop, secret.partition("_secret_")[0])
    name = f"evt_{new_id()}"

    (await deliver(shop, {**event, "id": name})).expect()

    query = f"SELECT processed_time IS NOT NULL FROM provider_events WHERE event_id = '{name}'"
    await eventually(lambda: shop.rows("payments", query), lambda rows: rows == [(True,)])
    assert await buyer.order(order["id"]) == paid
    assert await shop.stock(product) == (4, 0, 4)
    await assert_books_add_up(shop, product)


async def test_an_event_that_speaks_of_another_sum_pays_for_nothing(shop: Shop) -> None:
    product, buyer = await shop.a_product(stock=5), await shop.a_buyer()
    order = await buyer.buy_unpaid(product)
    intent = await shop.sandbox.intent(order["payment"]["clientSecret"].partition("_secret_")[0])
    del intent["http"]
    paid = {**intent, "status": "succeeded", "amount": 1, "amount_received": 1}
    name = f"evt_{new_id()}"
    event = {"id": name, "object": "event", "type": "payment_intent.succeeded", "data": {"object": paid}}

    (await deliver(shop, event)).expect()

    query = f"SELECT processed_time IS NOT NULL FROM provider_events WHERE event_id = '{name}'"
    await eventually(lambda: shop.rows("payments", query), lambda rows: rows == [(True,)])
    assert (await buyer.order(order["id"]))["state"] == "PENDING"
    (await buyer.cancel(order["id"])).expect()


@pytest.mark.parametrize(
    "how", [{"secret": "whsec_of_somebody_else"}, {"seconds_ago": 301}], ids=["forged", "replayed later"]
)
async def test_an_event_with_a_bad_signature_changes_nothing(shop: Shop, how: Json) -> None:
    product, buyer = await shop.a_product(), await shop.a_buyer()
    order = await buyer.buy_unpaid(product)
    intent = order["payment"]["clientSecret"].partition("_secret_")[0]
    subject = {"id": intent, "amount": 1999, "currency": "usd", "status": "succeeded", "metadata": {}}
    event = {"id": f"evt_{new_id()}", "type": "payment_intent.succeeded", "data": {"object": subject}}
    before = await shop.counts()

    assert (await deliver(shop, event, **how)).refusal == (400, "BAD_SIGNATURE")

    assert await shop.counts() == before
    assert (await buyer.order(order["id"]))["state"] == "PENDING"
    (await buyer.cancel(order["id"])).expect()


@pytest.mark.parametrize(
    "signature",
    ["", "nonsense", "t=,v1=", "t=99999999999999999999999,v1=00", "t=-1,v1=é", "t=now,v1=" + "0" * 64],
)
async def test_a_signature_that_is_none_is_refused(shop: Shop, signature: str) -> None:
    signature = signature.replace("now", str(int(time.time())))
    before = await shop.counts()

    answer = await shop.rest.send("POST", _PATH, body=b"{}", headers={"stripe-signature": signature})

    assert answer.refusal == (400, "BAD_SIGNATURE")
    assert await shop.counts() == before


@pytest.mark.parametrize(
    "event",
    [{}, [], "", None, {"type": "customer.created"}, {"id": "evt_1", "type": "payment_intent.succeeded", "data": {}}],
)
async def test_a_signed_event_that_is_none_is_refused(shop: Shop, event: Json) -> None:
    before = await shop.counts()

    answer = await deliver(shop, event)

    assert answer.status == 400, answer.text
    assert await shop.counts() == before


async def test_a_signed_event_that_nobody_needs_is_taken(shop: Shop) -> None:
    event = {"id": f"evt_{new_id()}", "type": "customer.created", "data": {"object": {"id": "cus_1"}}}

    assert (await deliver(shop, event)).expect().json == {"received": True}


async def test_events_that_come_twice_and_out_of_order_lead_to_the_same_end(shop: Shop) -> None:
    await shop.sandbox.faults(webhooks={"duplicate": True, "reorder": True})
    product, buyer = await shop.a_product(stock=5), await shop.a_buyer()

    for _ in range(3):
        order = await buyer.buy_unpaid(product)
        await shop.sandbox.pay_in_browser(order["payment"]["clientSecret"], "pm_card_chargeDeclined")
        await shop.sandbox.pay_in_browser(order["payment"]["clientSecret"], VISA)
        await buyer.until(order["id"], "PAID")

    assert await shop.stock(product) == (2, 0, 2)
    await assert_books_add_up(shop, product)


async def test_an_event_that_never_comes_is_asked_for_when_the_hold_ends(shop: Shop) -> None:
    await shop.sandbox.faults(webhooks={"drop": True})
    sale, buyer = await shop.a_sale(units=1), await shop.a_buyer()
    order = await buyer.buy_unpaid(sale)

    assert (await shop.sandbox.pay_in_browser(order["payment"]["clientSecret"], VISA))["status"] == "succeeded"
    await time_passes(shop, order["id"])

    order = await buyer.until(order["id"], "PAID", "EXPIRED")
    assert order["state"] == "PAID"
    assert await shop.counters(sale) == (0, 0, 1)
    await assert_books_add_up(shop, sale)
