"""Parts die in the middle of a sale. Each row of the design's failure table is a test."""

import asyncio
import signal
from collections import Counter
from collections.abc import AsyncIterator

import pytest

from tests.e2e.clock import leases_are_over
from tests.e2e.shop import ENDS, Buyer, Shop, assert_books_add_up
from tests.support.rest import Answer, Json, new_id
from tests.support.waiting import eventually

BUYERS, PRICE = 12, 700
# A process that dies between the gate and the database takes units from the gate for a second: there are some to spare.
UNITS = 2 * BUYERS
_ENDS_SECONDS = 60


@pytest.fixture(autouse=True)
async def _all_parts_are_up(shop: Shop) -> AsyncIterator[None]:
    """A test that fails must not take those after it down with it."""
    yield
    for part in ("postgres", "nats", "valkey", "sandbox", "orders"):
        try:
            await shop.mesh.ready(part, timeout=5)
        except TimeoutError:  # kept down by a test that did not come to its end
            await shop.mesh.restart(part)
    await shop.all_parts_answer()


async def in_flight(shop: Shop, sale: Json, least: int) -> None:
    """Returns once so many units of the sale are held or sold, and not all are sold."""
    await eventually(lambda: shop.counters(sale), lambda counters: counters[1] + counters[2] >= least)


async def settled(shop: Shop, sale: Json, crowd: list[Buyer], answers: list[Answer]) -> list[Json]:
    """All orders, once each has come to an end; each was placed, and none is double."""
    orders = [answer.expect().json for answer in answers]
    ended = await asyncio.gather(
        *(buyer.until(order["id"], *ENDS, seconds=_ENDS_SECONDS) for buyer, order in zip(crowd, orders, strict=True))
    )
    assert len({order["id"] for order in ended}) == len(crowd)
    await shop.all_parts_answer()
    paid = [order["id"] for order in ended if order["state"] == "PAID"]
    captured = await shop.sandbox.captured(*(order["id"] for order in ended))
    kept = Counter({entry["metadata"]["order_id"]: entry["amount"] - entry["amount_refunded"] for entry in captured})
    assert +kept == Counter(dict.fromkeys(paid, PRICE))
    assert len(captured) <= len(crowd), "charged twice"
    remaining, held, sold = await shop.counters(sale)
    assert (held, sold) == (0, len(paid))
    assert remaining == sale["allocation"] - len(paid)
    await assert_books_add_up(shop, sale)
    return ended


@pytest.mark.parametrize("part", ["orders", "inventory", "payments", "gateway"])
async def test_orders_in_flight_are_paid_although_a_part_is_killed(shop: Shop, part: str) -> None:
    crowd, sale = await shop.a_crowd(BUYERS), await shop.a_sale(units=UNITS, price=PRICE)
    await shop.sandbox.faults(latency_ms={"fixed": 150, "jitter": 150})

    buying = [asyncio.create_task(buyer.insist(sale, wait=2)) for buyer in crowd]
    await in_flight(shop, sale, 3)
    await shop.mesh.kill(part)
    answers = await asyncio.gather(*buying)
    if part == "orders":
        await leases_are_over(shop)  # test_replicas waits for real ones

    ended = await settled(shop, sale, crowd, answers)
    assert Counter(order["state"] for order in ended) == {"PAID": BUYERS}


async def test_orders_go_on_without_nats_and_events_arrive_when_it_is_back(shop: Shop) -> None:
    sale, buyer = await shop.a_sale(units=5, price=PRICE), await shop.a_buyer()
    waiting = await buyer.buy_unpaid(sale)
    shop.mesh.keep_down("nats")
    await shop.mesh.kill("nats")

    assert (await buyer.buy(sale)).expect().json["state"] == "PAID"
    await shop.sandbox.pay_in_browser(waiting["payment"]["clientSecret"])
    query = f"SELECT state FROM payments WHERE order_id = '{waiting['id']}'"
    await eventually(lambda: shop.rows("payments", query), lambda rows: rows == [("SUCCEEDED",)])
    assert await shop.rows("payments", "SELECT count(*) > 0 FROM outbox") == [(True,)]
    await shop.mesh.restart("nats")

    await buyer.until(waiting["id"], "PAID")
    for service in ("orders", "inventory", "payments"):
        await eventually(
            lambda service=service: shop.rows(service, "SELECT count(*) FROM outbox"),
            lambda rows: rows == [(0,)],
        )
    assert await shop.counters(sale) == (3, 0, 2)
    await assert_books_add_up(shop, sale)


async def test_a_sale_goes_on_without_valkey_and_is_not_oversold(shop: Shop) -> None:
    crowd, sale = await shop.a_crowd(3 * BUYERS), await shop.a_sale(units=BUYERS, price=PRICE)

    early = [asyncio.create_task(buyer.insist(sale, wait=20)) for buyer in crowd[:BUYERS]]
    await in_flight(shop, sale, 3)
    shop.mesh.keep_down("valkey")
    await shop.mesh.kill("valkey")
    without = [asyncio.create_task(buyer.insist(sale, wait=20)) for buyer in crowd[BUYERS : 2 * BUYERS]]
    answers = await asyncio.gather(*early, *without)
    await shop.mesh.restart("valkey")
    late = await asyncio.gather(*(buyer.insist(sale, wait=20) for buyer in crowd[2 * BUYERS :]))

    got = Counter(answer.json["state"] if answer.status == 200 else answer.refusal for answer in (*answers, *late))
    assert got == {"PAID": BUYERS, (400, "SOLD_OUT"): 2 * BUYERS}
    assert await shop.counters(sale) == (0, 0, BUYERS)
    await assert_books_add_up(shop, sale)


async def test_valkey_that_comes_back_empty_strands_no_unit(shop: Shop) -> None:
    crowd, sale = await shop.a_crowd(10), await shop.a_sale(units=10, price=PRICE)
    for buyer in crowd[:5]:
        (await buyer.buy(sale)).expect()

    await shop.mesh.restart("valkey")

    answers = [await buyer.insist(sale) for buyer in crowd[5:]]
    assert Counter(answer.expect().json["state"] for answer in answers) == {"PAID": 5}
    assert (await crowd[0].buy(sale)).refusal == (400, "SOLD_OUT")
    await assert_books_add_up(shop, sale)


async def test_while_postgres_restarts_the_answer_is_503_and_then_all_goes_on(shop: Shop) -> None:
    crowd, sale = await shop.a_crowd(BUYERS), await shop.a_sale(units=UNITS, price=PRICE)
    await shop.sandbox.faults(latency_ms={"fixed": 300, "jitter": 0})

    buying = [asyncio.create_task(buyer.insist(sale, wait=2)) for buyer in crowd[1:]]
    await in_flight(shop, sale, 3)
    shop.mesh.keep_down("postgres")
    await shop.mesh.kill("postgres", signal.SIGINT)
    for look in (
        lambda: shop.rest.get("/v1/products"),
        lambda: shop.rest.get(f"/v1/flash-sales/{sale['id']}"),
        lambda: crowd[0].rest.get("/v1/orders"),
        lambda: crowd[0].buy(sale),
    ):
        refused = await eventually(look, lambda answer: answer.status != 200)
        assert refused.refusal == (503, "UNAVAILABLE")
    (await shop.rest.get("/healthz")).expect()
    await eventually(lambda: shop.rest.get("/readyz"), lambda answer: answer.status == 503)
    await shop.mesh.restart("postgres")
    await leases_are_over(shop)

    answers = await asyncio.gather(crowd[0].insist(sale, wait=2), *buying)
    ended = await settled(shop, sale, crowd, answers)
    assert Counter(order["state"] for order in ended) == {"PAID": BUYERS}


@pytest.mark.parametrize("fault", ["drop_after_charge", "error_500", "rate_limit_429"])
async def test_an_answer_of_the_provider_that_is_lost_charges_once(shop: Shop, fault: str) -> None:
    sale, buyer = await shop.a_sale(units=2, price=PRICE), await shop.a_buyer()
    await shop.sandbox.faults(**{fault: {"next": 1}})

    order = (await buyer.buy(sale, wait=20)).expect().json

    assert order["state"] == "PAID"
    assert [entry["amount"] for entry in await shop.sandbox.captured(order["id"])] == [PRICE]
    assert await shop.counters(sale) == (1, 0, 1)
    await assert_books_add_up(shop, sale)


async def test_a_refund_whose_answer_is_lost_is_paid_back_once(shop: Shop) -> None:
    product, buyer = await shop.a_product(price=PRICE), await shop.a_buyer()
    order = (await buyer.buy(product)).expect().json
    await shop.sandbox.faults(drop_after_refund={"next": 1})

    body = {"full": True, "reason": "broken", "requestId": order["id"]}
    (await shop.staff.post(f"/v1/payments/{order['payment']['id']}:refund", body)).expect()

    await buyer.until(order["id"], "REFUNDED")
    [entry] = await shop.sandbox.captured(order["id"])
    assert (entry["amount"], entry["amount_refunded"]) == (PRICE, PRICE)
    await assert_books_add_up(shop, product)


async def test_an_order_waits_for_a_provider_that_is_away(shop: Shop) -> None:
    sale, buyer = await shop.a_sale(units=2, price=PRICE), await shop.a_buyer()
    shop.mesh.keep_down("sandbox")
    await shop.mesh.kill("sandbox")

    order = (await buyer.buy(sale, wait=1)).expect().json
    assert order["state"] == "PENDING"
    await shop.mesh.restart("sandbox")

    await buyer.until(order["id"], "PAID", seconds=30)
    assert len(await shop.sandbox.captured(order["id"])) == 1
    assert await shop.counters(sale) == (1, 0, 1)
    await assert_books_add_up(shop, sale)


async def test_an_order_waits_for_payments_that_hang(shop: Shop) -> None:
    sale, buyer = await shop.a_sale(units=2, price=PRICE), await shop.a_buyer()
    await shop.mesh.kill("payments", signal.SIGSTOP)
    try:
        order = (await buyer.buy(sale, wait=1)).expect().json
        assert order["state"] == "PENDING"
    finally:
        await shop.mesh.kill("payments", signal.SIGCONT)

    await buyer.until(order["id"], "PAID", seconds=30)
    assert len(await shop.sandbox.captured(order["id"])) == 1
    await assert_books_add_up(shop, sale)


async def test_while_inventory_hangs_an_order_is_503_and_then_goes_on(shop: Shop) -> None:
    sale, buyer = await shop.a_sale(units=1, price=PRICE), await shop.a_buyer()
    request_id = new_id()
    await shop.mesh.kill("inventory", signal.SIGSTOP)
    try:
        assert (await buyer.buy(sale, request_id=request_id)).refusal == (503, "UNAVAILABLE")
    finally:
        await shop.mesh.kill("inventory", signal.SIGCONT)
    await shop.all_parts_answer()

    retry = (await buyer.buy(sale, request_id=request_id, wait=20)).expect().json
    assert retry["state"] == "PAID"
    assert await shop.counters(sale) == (0, 0, 1)
    await assert_books_add_up(shop, sale)


async def test_browsing_goes_on_while_orders_is_away(shop: Shop) -> None:
    product, buyer = await shop.a_product(), await shop.a_buyer()
    shop.mesh.keep_down("orders")
    await shop.mesh.kill("orders")

    (await shop.rest.get(f"/v1/products/{product['id']}")).expect()
    (await buyer.rest.get("/v1/auth/me")).expect()
    assert (await buyer.buy(product)).refusal == (503, "UNAVAILABLE")
    await shop.mesh.restart("orders")

    answer = await buyer.insist(product)
    assert answer.expect().json["state"] == "PAID"


async def test_a_hold_taken_just_before_orders_died_is_used_by_the_retry(shop: Shop) -> None:
    """The last unit: were the hold lost or taken twice, the retry would find it sold out."""
    sale, buyer = await shop.a_sale(units=1, price=PRICE), await shop.a_buyer()
    buying = asyncio.create_task(buyer.insist(sale, wait=2))
    await in_flight(shop, sale, 1)
    await shop.mesh.kill("orders")

    order = (await buying).expect().json
    await leases_are_over(shop)
    await buyer.until(order["id"], "PAID", seconds=_ENDS_SECONDS)
    await shop.all_parts_answer()
    assert await shop.counters(sale) == (0, 0, 1)
    await assert_books_add_up(shop, sale)
