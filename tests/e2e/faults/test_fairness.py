"""A provider that takes its time holds up only those who are being charged."""

import asyncio
from collections.abc import AsyncIterator

import pytest

from deploy.local.parts import service_environment
from tests.e2e.shop import Buyer, Shop, assert_books_add_up
from tests.e2e.shopping.test_webhooks import deliver, event_of
from tests.support.rest import Json
from tests.support.waiting import eventually

PRICE = 900
# Three quarters of them are for those whom the provider may keep waiting.
PLACES = 20
# As many as there are calls of payments at once for charges; each comes in a call of its own.
_ONE_BY_ONE, _AT_ONCE = 8, 12
# Longer than payments waits for an answer, and shorter than it keeps the connection.
_SLOW_MS = 9000
_ROUNDS = 5
# As many unpaid orders as one customer may have, and a latency in which a slow machine places an order.
_UNPAID, _SLOWER_MS = 20, 2800


@pytest.fixture(scope="module")
async def narrow(shop: Shop) -> AsyncIterator[Shop]:
    """The shop, with few places for sagas."""
    usual = service_environment(shop.mesh.site, "orders")
    for environment in (usual | {"SAGAS_AT_ONCE": str(PLACES)}, usual):
        shop.mesh.alter("orders", environment=environment)
        await shop.mesh.restart("orders")
        await shop.all_parts_answer()
        if environment is not usual:
            yield shop


async def test_client_secrets_of_one_customer_delay_no_charge(narrow: Shop) -> None:
    """One customer asks how to pay all of their orders; somebody else pays by card meanwhile."""
    sale = await narrow.a_sale(units=100, price=PRICE)
    many, payer = await narrow.a_buyer(), await narrow.a_buyer()
    unpaid = [(await many.buy(sale, card=None, wait=0)).expect().json["id"] for _ in range(_UNPAID)]
    first = {entry["metadata"]["order_id"] for entry in await intents(narrow)}
    await narrow.sandbox.faults(latency_ms={"fixed": _SLOWER_MS, "jitter": 0})
    asked = [asyncio.create_task(many.order(order_id)) for order_id in unpaid]
    ids = "', '".join(unpaid)
    wanted = f"SELECT count(*) FROM orders WHERE secret_wanted AND id IN ('{ids}')"
    await eventually(lambda: narrow.rows("orders", wanted), lambda rows: rows == [(_UNPAID,)], seconds=60)

    paid = (await payer.buy(sale, wait=0)).expect().json["id"]
    await payer.until(paid, "PAID", seconds=60)

    # In the order in which the provider made them: the charge overtook some of what was asked for before it.
    made = [entry["metadata"]["order_id"] for entry in await intents(narrow)]
    later = set(unpaid) - set(made[: made.index(paid)])
    assert later, f"the charge came after all intents: {len(set(unpaid) - first)}"
    await narrow.sandbox.no_faults()
    await asyncio.gather(*asked)
    for order_id in unpaid:
        await eventually(
            lambda order_id=order_id: many.order(order_id),
            lambda order: bool((order.get("payment") or {}).get("clientSecret")),
            seconds=60,
        )


async def intents(shop: Shop) -> list[Json]:
    """The provider's newest payments, oldest first."""
    return list(reversed((await shop.sandbox.get("/v1/payment_intents?limit=100"))["data"]))


async def waiting(shop: Shop, sale: Json, crowd: list[Buyer]) -> list[Json]:
    """Orders that wait for their customers."""
    return list(await asyncio.gather(*(buyer.buy_unpaid(sale) for buyer in crowd)))


async def paid_without_a_word(shop: Shop, orders: list[Json]) -> list[Json]:
    """Pay in the buyers' browsers, and return the provider's events, which are withheld."""
    await shop.sandbox.faults(webhooks={"drop": True})
    for order in orders:
        assert (await shop.sandbox.pay_in_browser(order["payment"]["clientSecret"]))["http"] == 200
    names = [order["payment"]["clientSecret"].partition("_secret_")[0] for order in orders]
    return [await event_of(shop, name) for name in names]


async def being_charged(shop: Shop, sale: Json, crowd: list[Buyer]) -> list[str]:
    """Orders whose charges the provider is slow to answer, once they have every place that they may have."""
    first = [await buyer.buy(sale, wait=0) for buyer in crowd[:_ONE_BY_ONE]]
    rest = await asyncio.gather(*(buyer.buy(sale, wait=0) for buyer in crowd[_ONE_BY_ONE:]))
    ids = [answer.expect().json["id"] for answer in (*first, *rest)]
    listed = "', '".join(ids)
    query = f"SELECT count(*) FROM payments WHERE order_id IN ('{listed}')"
    await eventually(lambda: shop.rows("payments", query), lambda rows: rows[0][0] >= _ONE_BY_ONE)
    return ids


async def left_alone(shop: Shop, order_ids: list[str]) -> bool:
    """Whether none of these has ended, or given its place to somebody else, for a moment even."""
    ids = "', '".join(order_ids)
    query = f"SELECT count(*) FROM sagas WHERE order_id IN ('{ids}') AND attempts = 0"
    return await shop.rows("orders", query) == [(len(order_ids),)]


async def test_a_slow_provider_holds_up_nobody_who_has_paid_or_cancels(narrow: Shop) -> None:
    crowd = await narrow.a_crowd(_ONE_BY_ONE + _AT_ONCE)

    # A machine that stands still for three seconds, in which the first charges give up their places, proves nothing.
    for _ in range(_ROUNDS):
        if await _goes_on_meanwhile(narrow, crowd):
            return

    pytest.fail("paid orders waited until a charge released its slot")


async def _goes_on_meanwhile(shop: Shop, crowd: list[Buyer]) -> bool:
    """Whether those who have paid are PAID, and who cancels has done so, before any charge gives up its place."""
    sale = await shop.a_sale(units=100, price=PRICE)
    *wait, regrets = await waiting(shop, sale, crowd[:5])
    events = await paid_without_a_word(shop, wait)
    await shop.sandbox.faults(latency_ms={"fixed": _SLOW_MS, "jitter": 0})
    slow = await being_charged(shop, sale, crowd)

    await asyncio.gather(*(deliver(shop, event) for event in events))
    await asyncio.gather(
        *(buyer.until(order["id"], "PAID", seconds=40) for buyer, order in zip(crowd, wait, strict=False))
    )
    alone = await left_alone(shop, slow)
    await shop.sandbox.no_faults()
    assert (await crowd[4].cancel(regrets["id"])).expect().json["state"] == "CANCELLED"
    alone = alone and await left_alone(shop, slow)

    await asyncio.gather(
        *(buyer.until(order_id, "PAID", seconds=60) for buyer, order_id in zip(crowd, slow, strict=True))
    )
    assert await shop.counters(sale) == (100 - len(slow) - len(wait), 0, len(slow) + len(wait))
    await assert_books_add_up(shop, sale)
    return alone
