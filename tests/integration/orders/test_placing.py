"""Placing over gRPC, with small versions of the other services: prices, refusals, repeats, crashes."""

import asyncio
import uuid
from collections import Counter
from dataclasses import replace
from typing import Any

import pytest
from google.protobuf.duration_pb2 import Duration

from services.chassis import ids
from services.chassis.errors import RequestIdReused
from services.chassis.money import MINOR_UNITS_MAX, Money
from services.orders.actions import Mutation
from services.orders.domain import Actor, DraftOrder, Refund, RequestedLine
from services.orders.domain import State as OrderState
from services.orders.placing import sold_out_cache
from services.orders.saga.slots import Slots
from services.orders.sql import combined, orders, sagas
from stampede.inventory.v1 import reservation_service_pb2 as inventory_pb
from stampede.orders.v1 import order_service_pb2 as pb
from tests.integration.orders.conftest import (
    PRICE,
    Shop,
    an_order,
    counted,
    log_of,
    place,
    published,
    rows_of,
    run_sql,
    the_order,
)
from tests.support import tokens
from tests.support.serving import refusal
from tests.support.waiting import until

SALE_PRICE = Money("USD", 100)
State = pb.Order.State


def wanting(*lines: tuple[uuid.UUID, int, uuid.UUID | None], **fields: Any) -> pb.PlaceOrderRequest:
    known = {"request_id": str(uuid.uuid4()), "payment_method": "pm_card_visa"}
    return pb.PlaceOrderRequest(
        lines=[
            pb.PlaceOrderLine(product_id=str(product), quantity=units, flash_sale_id=str(sale) if sale else "")
            for product, units, sale in lines
        ],
        **{**known, **fields},
    )


def stocked(shop: Shop, units: int = 10, price: Money = PRICE) -> uuid.UUID:
    product = shop.catalog.add(price)
    return shop.inventory.add(units, key=product)


def on_sale(shop: Shop, units: int = 10, price: Money = SALE_PRICE) -> tuple[uuid.UUID, uuid.UUID]:
    return shop.catalog.add(), shop.inventory.add(units, sale=price)


async def orders_written(shop: Shop) -> int:
    return len(await rows_of(shop.db, "SELECT 1 FROM orders"))


async def test_order_is_placed_paid_and_logged(shop: Shop) -> None:
    product = stocked(shop)
    order = await shop.place(wanting((product, 2, None)))
    assert (order.state, order.total.minor_units, order.customer_id) == (State.PENDING, 1998, str(shop.customer))

    order = await shop.ended(order.id)

    assert (order.state, order.payment.state) == (State.PAID, pb.OrderPayment.SUCCEEDED)
    assert shop.inventory.state(order.id) == "CONFIRMED"
    id_ = uuid.UUID(order.id)
    assert [(state, actor) for state, _, actor in await log_of(shop.db, id_)] == [
        ("PENDING", "customer"),
        ("PAID", "saga"),
    ]
    assert await published(shop.db, id_) == [("placed", 1), ("paid", 2)]


async def test_flash_lines_have_the_sale_price_and_others_the_catalogs(shop: Shop) -> None:
    (flash, sale), plain = on_sale(shop), stocked(shop)
    order = await shop.place(wanting((flash, 3, sale), (plain, 2, None)))
    assert [line.unit_price.minor_units for line in order.lines] == [100, 999]
    assert order.total.minor_units == 300 + 1998
    assert order.lines[0].flash_sale_id == str(sale)
    shop.catalog.add(Money("USD", 1), product_id=plain)  # a new price does not reach an order
    assert (await shop.ended(order.id)).total == order.total


async def test_one_product_in_two_spellings_is_refused(shop: Shop) -> None:
    """Otherwise the ordinary line would be sold at the sale price."""
    flash, sale = on_sale(shop)
    shop.inventory.add(100, key=flash)
    request = wanting((flash, 1, sale), (flash, 50, None))
    request.lines[1].product_id = str(flash).upper()

    refused = await refusal(shop.place(request))

    assert (refused.code, refused.fields) == ("INVALID_ARGUMENT", ["no_product_twice"])
    assert await orders_written(shop) == 0


async def test_mixed_currencies_are_refused_without_a_hold(shop: Shop) -> None:
    dollars, yen = stocked(shop), stocked(shop, price=Money("JPY", 500))
    refused = await refusal(shop.place(wanting((dollars, 1, None), (yen, 1, None))))
    assert (refused.code, refused.reason) == ("FAILED_PRECONDITION", "CURRENCY_MISMATCH")
    assert not shop.inventory.held
    assert await orders_written(shop) == 0


async def test_sale_in_another_currency_is_refused_and_the_hold_released(shop: Shop) -> None:
    flash, sale = on_sale(shop, price=Money("JPY", 999))
    refused = await refusal(shop.place(wanting((flash, 1, sale))))
    assert (refused.code, refused.reason) == ("FAILED_PRECONDITION", "CURRENCY_MISMATCH")
    assert [r.state for r in shop.inventory.held.values()] == [inventory_pb.Reservation.RELEASED]
    assert await orders_written(shop) == 0


async def test_order_above_the_payable_total_is_refused_and_released(shop: Shop) -> None:
    dear = stocked(shop, price=Money("USD", MINOR_UNITS_MAX))
    refused = await refusal(shop.place(wanting((dear, 2, None))))
    assert refused.reason == "ORDER_TOO_LARGE"
    assert [r.state for r in shop.inventory.held.values()] == [inventory_pb.Reservation.RELEASED]
    assert await orders_written(shop) == 0


async def test_unknown_or_inactive_products_cost_no_call_of_inventory(shop: Shop) -> None:
    off = shop.catalog.add(active=False)
    assert (await refusal(shop.place(wanting((off, 1, None))))).reason == "PRODUCT_NOT_ACTIVE"
    unknown = await refusal(shop.place(wanting((ids.new(), 1, None))))
    assert (unknown.code, unknown.reason) == ("NOT_FOUND", "PRODUCT_NOT_FOUND")
    assert shop.inventory.calls == Counter()


async def test_refusals_of_inventory_are_passed_on(shop: Shop) -> None:
    product = stocked(shop, units=1)
    refused = await refusal(shop.place(wanting((product, 2, None))))
    assert (refused.code, refused.reason, refused.domain) == (
        "FAILED_PRECONDITION",
        "OUT_OF_STOCK",
        "inventory.stampede",
    )
    assert refused.metadata == {"productId": str(product)}
    assert await orders_written(shop) == 0


async def test_sold_out_sale_costs_no_second_service_and_no_database(
    shop: Shop, monkeypatch: pytest.MonkeyPatch
) -> None:
    product, sale = on_sale(shop, units=1)
    first = wanting((product, 1, sale))
    order = await shop.place(first)
    await shop.ended(order.id)
    monkeypatch.setattr(sold_out_cache, "_SHORT_SECONDS", 60.0)
    assert (await refusal(shop.place(wanting((product, 1, sale))))).reason == "SOLD_OUT"
    asked = shop.inventory.calls["BatchReserve"]

    with counted(shop.db) as count:
        for _ in range(20):
            refused = await refusal(shop.place(wanting((product, 1, sale))))
            assert (refused.reason, refused.domain) == ("SOLD_OUT", "inventory.stampede")

    assert shop.inventory.calls["BatchReserve"] == asked
    assert count.statements == 0
    assert (await shop.place(first)).id == order.id  # a repeat finds its order


@pytest.mark.parametrize("state", ["SCHEDULED", "ENDED"])
async def test_sale_that_is_not_live_is_asked_for_once(shop: Shop, monkeypatch: pytest.MonkeyPatch, state: str) -> None:
    product, sale = on_sale(shop, units=1)
    shop.inventory.not_live[str(sale)] = state
    monkeypatch.setattr(sold_out_cache, "_SHORT_SECONDS", 60.0)
    for _ in range(3):
        refused = await refusal(shop.place(wanting((product, 1, sale))))
        assert (refused.reason, refused.metadata["state"]) == ("SALE_NOT_LIVE", state)
    assert shop.inventory.calls["BatchReserve"] == 1


async def test_sale_with_units_again_can_be_bought(shop: Shop, monkeypatch: pytest.MonkeyPatch) -> None:
    product, sale = on_sale(shop, units=0)
    monkeypatch.setattr(sold_out_cache, "_SHORT_SECONDS", 0.0)
    assert (await refusal(shop.place(wanting((product, 1, sale))))).reason == "SOLD_OUT"
    shop.inventory.units[str(sale)] = 1
    await shop.place(wanting((product, 1, sale)))


@pytest.mark.parametrize(
    "asks", ["an unknown product", "over the limit", "inventory unavailable", "another sold out", "too many"]
)
async def test_request_without_an_answer_about_the_sale_keeps_no_unit_from_others(shop: Shop, asks: str) -> None:
    """One request asks for all once an entry is too old. If its answer does not concern the sale, the next one asks.

    Otherwise invalid requests, sent all the time, would keep a returned unit from everybody.
    """
    now = 100.0
    shop.sold_out._clock = lambda: now
    (product, sale), (other, gone) = on_sale(shop, units=0), on_sale(shop, units=0)
    limited = ids.new()
    shop.inventory.at_limit.add(str(limited))
    for line in ((product, 1, sale), (other, 1, gone)):
        assert (await refusal(shop.place(wanting(line)))).reason == "SOLD_OUT"
    now += 0.04
    assert (await refusal(shop.place(wanting((other, 1, gone))))).reason == "SOLD_OUT"
    now += 0.02
    shop.inventory.units[str(sale)] = 2

    if asks == "an unknown product":
        assert (await refusal(shop.place(wanting((ids.new(), 1, sale))))).reason == "PRODUCT_NOT_FOUND"
    elif asks == "over the limit":
        assert (await refusal(shop.place(wanting((product, 1, sale)), customer=limited))).reason == "CUSTOMER_LIMIT"
    elif asks == "inventory unavailable":
        shop.inventory.unavailable = True
        assert (await refusal(shop.place(wanting((product, 1, sale))))).code == "UNAVAILABLE"
        shop.inventory.unavailable = False
    elif asks == "another sold out":
        refused = await refusal(shop.place(wanting((product, 1, sale), (other, 1, gone))))
        assert (refused.reason, refused.metadata["flashSaleId"]) == ("SOLD_OUT", str(gone))
    else:
        plain = stocked(shop, units=1)
        refused = await refusal(shop.place(wanting((product, 1, sale), (plain, 2, None))))
        assert refused.reason == "OUT_OF_STOCK"

    if asks == "over the limit":  # that answer shows that there are units
        await asyncio.gather(*(shop.place(wanting((product, 1, sale))) for _ in range(2)))
    else:
        for _ in range(2):
            await shop.place(wanting((product, 1, sale)))


async def test_request_for_another_products_sale_opens_nothing(shop: Shop) -> None:
    """Otherwise invalid requests, sent again and again, would let everybody through to inventory."""
    now = 100.0
    shop.sold_out._clock = lambda: now
    (product, sale), other = on_sale(shop, units=0), stocked(shop)
    shop.inventory.product_of[str(sale)] = str(product)
    assert (await refusal(shop.place(wanting((product, 1, sale))))).reason == "SOLD_OUT"
    now += 0.06

    assert (await refusal(shop.place(wanting((other, 1, sale))))).reason == "FLASH_SALE_NOT_FOUND"

    with shop.sold_out.asking([sale]):
        assert shop.sold_out.refusal([sale])


async def test_repeat_finds_the_hold_whose_answer_was_lost_in_a_sold_out_sale(shop: Shop) -> None:
    """Inventory held the last unit and died; others closed the sale before the customer came again."""
    shop.sold_out._clock = lambda: 100.0
    product, sale = on_sale(shop, units=1)
    request = wanting((product, 1, sale))
    shop.inventory.loses_answers = True
    assert (await refusal(shop.place(request))).code == "UNAVAILABLE"
    shop.inventory.loses_answers = False
    assert (await refusal(shop.place(wanting((product, 1, sale))))).reason == "SOLD_OUT"
    assert shop.sold_out.refusal([sale])
    assert (await shop.place(request)).id


async def test_repeat_of_an_order_that_is_being_written_finds_it_in_a_sold_out_sale(
    shop: Shop, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It comes after the last unit was held and before the order is written, and others have closed the sale."""
    shop.sold_out._clock = lambda: 100.0
    product, sale = on_sale(shop, units=1)
    request, write = wanting((product, 1, sale)), shop.placer._write
    held, resume = asyncio.Event(), asyncio.Event()

    async def write_later(item: Any) -> Any:
        held.set()
        await resume.wait()
        return await write(item)

    monkeypatch.setattr(shop.placer, "_write", write_later)
    first = asyncio.create_task(shop.place(request))
    await held.wait()
    assert (await refusal(shop.place(wanting((product, 1, sale))))).reason == "SOLD_OUT"
    asked = shop.inventory.calls["BatchReserve"]
    repeat = asyncio.create_task(shop.place(request))

    async def repeat_has_come() -> bool:
        return repeat.done() or shop.inventory.calls["BatchReserve"] > asked

    await until(repeat_has_come)
    resume.set()
    assert (await repeat).id == (await first).id


async def test_repeat_that_is_overtaken_by_its_first_try_finds_the_order(
    shop: Shop, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It had passed the check for recent orders; then the first try ended, and others closed the sale."""
    shop.sold_out._clock = lambda: 100.0
    product, sale = on_sale(shop, units=1)
    request, write, products = wanting((product, 1, sale)), shop.placer._write, shop.placer._catalog.products
    held, write_on, waits, ask_on = asyncio.Event(), asyncio.Event(), asyncio.Event(), asyncio.Event()

    async def write_later(item: Any) -> Any:
        held.set()
        await write_on.wait()
        return await write(item)

    async def ask_later(product_ids: Any) -> Any:
        waits.set()
        await ask_on.wait()
        return await products(product_ids)

    monkeypatch.setattr(shop.placer, "_write", write_later)
    first = asyncio.create_task(shop.place(request))
    await held.wait()
    assert (await refusal(shop.place(wanting((product, 1, sale))))).reason == "SOLD_OUT"
    monkeypatch.setattr(shop.placer._catalog, "products", ask_later)
    repeat = asyncio.create_task(shop.place(request))
    await waits.wait()
    write_on.set()
    order = await first
    ask_on.set()
    assert (await repeat).id == order.id


async def test_unavailable_inventory_writes_nothing(shop: Shop) -> None:
    product = stocked(shop)
    shop.inventory.unavailable = True
    refused = await refusal(shop.place(wanting((product, 1, None))))
    assert (refused.code, refused.retry_seconds) == ("UNAVAILABLE", 1)
    assert await rows_of(shop.db, "SELECT 1 FROM orders UNION ALL SELECT 1 FROM outbox") == []


async def test_unavailable_payments_let_an_order_finish_later(shop: Shop) -> None:
    product = stocked(shop)
    shop.payments.unavailable = True
    order = await shop.place(wanting((product, 1, None)))
    assert order.state == State.PENDING
    await shop.worker.drain(10)
    shop.payments.unavailable = False
    await run_sql(shop.db, "UPDATE sagas SET next_time = now()")
    shop.carry_on()
    assert (await shop.ended(order.id)).state == State.PAID


async def test_full_backlog_refuses_new_orders_and_finds_repeats(shop: Shop, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is held for a refused order. The repeat may come to a process that did not place the order."""
    product = stocked(shop)
    first = wanting((product, 1, None))
    shop.payments.answers.clear()
    monkeypatch.setattr(shop.worker, "slots", Slots(2))
    monkeypatch.setattr(shop.placer, "_backlog_max", 3)
    order = await shop.place(first)
    others = [an_order() for _ in range(3)]
    for other in others:
        held = inventory_pb.Reservation(id=str(other.id), state=inventory_pb.Reservation.HELD)
        shop.inventory.held[str(other.id)] = held
    await place(shop.db, *others, lease_seconds=0.0)
    shop.carry_on()

    async def is_full() -> bool:
        return shop.worker.backlog >= 3

    await until(is_full)
    shop.recent._ids.clear()
    reserved = shop.inventory.calls["BatchReserve"]
    refused = await refusal(shop.place(wanting((product, 1, None))))

    assert (refused.code, refused.reason, refused.retry_seconds) == ("RESOURCE_EXHAUSTED", "RATE_LIMITED", 1)
    assert shop.inventory.calls["BatchReserve"] == reserved
    assert (await shop.place(first)).id == order.id

    shop.payments.answers.set()

    async def is_empty() -> bool:
        return shop.worker.backlog == 0

    await until(is_empty)
    assert (await shop.place(wanting((product, 1, None)))).state == State.PENDING


async def test_repeat_finds_a_hold_whose_answer_was_lost(shop: Shop) -> None:
    product, request = stocked(shop), None
    request = wanting((product, 1, None))
    shop.inventory.loses_answers = True
    assert (await refusal(shop.place(request))).code == "UNAVAILABLE"
    assert (len(shop.inventory.held), await orders_written(shop)) == (1, 0)
    shop.inventory.loses_answers = False

    order = await shop.place(request)

    assert list(shop.inventory.held) == [order.id]
    assert shop.inventory.units[str(product)] == 9


async def test_repeat_finds_a_hold_of_a_process_that_died(shop: Shop, monkeypatch: pytest.MonkeyPatch) -> None:
    product = stocked(shop)
    request, written = wanting((product, 1, None)), combined.place

    async def dies(*_: Any) -> Any:
        raise RuntimeError("the process died here")

    monkeypatch.setattr(combined, "place", dies)
    assert (await refusal(shop.place(request))).code == "INTERNAL"
    monkeypatch.setattr(combined, "place", written)

    order = await shop.place(request)

    assert list(shop.inventory.held) == [order.id]
    assert shop.inventory.calls["BatchRelease"] == 0
    assert (await shop.ended(order.id)).state == State.PAID


@pytest.mark.parametrize("state", ["RELEASED", "EXPIRED"])
async def test_repeat_after_the_hold_ended_is_refused(shop: Shop, state: str) -> None:
    product = stocked(shop)
    request = wanting((product, 1, None))
    shop.inventory.loses_answers = True
    await refusal(shop.place(request))
    shop.inventory.loses_answers = False
    (reservation,) = shop.inventory.held.values()
    reservation.state = inventory_pb.Reservation.State.Value(state)

    refused = await refusal(shop.place(request))

    assert (refused.code, refused.reason) == ("FAILED_PRECONDITION", "HOLD_ENDED")
    assert await orders_written(shop) == 0


async def test_repeat_finds_an_ended_order_as_it_is_now(shop: Shop) -> None:
    product, sale = on_sale(shop, units=1)
    request = wanting((product, 1, sale), payment_method="pm_declined")
    order = await shop.place(request)
    assert (await shop.ended(order.id)).state_reason == "CARD_DECLINED"
    assert shop.inventory.state(order.id) == "RELEASED"

    again = await shop.place(request)

    assert (again.id, again.state) == (order.id, State.FAILED)


@pytest.mark.parametrize("known", [True, False], ids=["by this process", "by another"])
async def test_repeat_finds_its_order_although_the_price_has_risen(shop: Shop, known: bool) -> None:
    """It must not release the hold of the order that was placed at the old price."""
    product = stocked(shop)
    request = wanting((product, 2, None), payment_method="")
    order = await shop.place(request)
    shop.catalog.add(Money("USD", MINOR_UNITS_MAX), product_id=product)
    shop.placer._catalog._cache.clear()
    if not known:
        shop.recent._ids.clear()

    again = await shop.place(request)

    assert (again.id, again.total) == (order.id, order.total)
    assert shop.inventory.state(order.id) == "HELD"


async def test_repeat_finds_its_order_although_the_product_is_inactive(shop: Shop) -> None:
    product = stocked(shop)
    request = wanting((product, 2, None))
    order = await shop.place(request)
    shop.catalog.add(active=False, product_id=product)
    shop.placer._catalog._cache.clear()
    assert (await shop.place(request)).id == order.id


async def test_request_id_names_one_order(shop: Shop) -> None:
    product = stocked(shop)
    request = wanting((product, 1, None))
    await shop.place(request)
    for change in ({"payment_method": "pm_other"}, {"lines": wanting((product, 2, None)).lines}):
        other = wanting((product, 1, None), request_id=request.request_id)
        other.MergeFrom(pb.PlaceOrderRequest())
        if "lines" in change:
            del other.lines[:]
            other.lines.extend(change["lines"])  # type: ignore[arg-type]
        else:
            other.payment_method = "pm_other"
        refused = await refusal(shop.place(other))
        assert (refused.code, refused.reason) == ("INVALID_ARGUMENT", "REQUEST_ID_REUSED")
    # Another customer's request may have the same id.
    assert (await shop.place(request, customer=ids.new())).state == State.PENDING
    assert await orders_written(shop) == 2


async def test_eight_concurrent_repeats_are_one_order_and_one_hold(shop: Shop) -> None:
    product = stocked(shop)
    request = wanting((product, 1, None))
    answers = await asyncio.gather(*(shop.place(request) for _ in range(8)))
    assert len({order.id for order in answers}) == 1
    assert (await shop.ended(answers[0].id)).state == State.PAID
    assert shop.inventory.units[str(product)] == 9
    assert await orders_written(shop) == 1


async def test_concurrent_orders_under_one_request_id_share_no_hold(shop: Shop) -> None:
    """Otherwise a customer could get a sold-out product on the hold of another."""
    scarce, plenty = stocked(shop, units=0), stocked(shop)
    for _ in range(5):
        id_ = str(uuid.uuid4())
        requests = [wanting((plenty, 1, None), request_id=id_), wanting((scarce, 1, None), request_id=id_)]
        await asyncio.gather(*(shop.place(r) for r in (*requests, *requests)), return_exceptions=True)
    for (lines,) in await rows_of(shop.db, "SELECT lines FROM orders"):
        assert [line["product_id"] for line in lines] == [str(plenty)]


async def test_without_a_payment_method_the_answer_carries_the_client_secret(shop: Shop) -> None:
    product = stocked(shop)
    order = await shop.place(wanting((product, 1, None), payment_method=""))
    assert (order.state, order.payment.state) == (State.PENDING, pb.OrderPayment.AWAITING_CUSTOMER)
    assert order.payment.client_secret == "a secret"

    shop.payments.set_state(order.id, "SUCCEEDED")
    async with shop.db.begin() as tx:
        await sagas.note_payments(tx, [uuid.UUID(order.id)])
    shop.carry_on()
    order = await shop.ended(order.id)
    assert (order.state, order.payment.client_secret) == (State.PAID, "")


async def test_prefer_wait_returns_the_end(shop: Shop) -> None:
    product = stocked(shop)
    order = await shop.place(wanting((product, 1, None), prefer_wait=Duration(seconds=10)))
    assert order.state == State.PAID
    declined = await shop.place(
        wanting((product, 1, None), prefer_wait=Duration(seconds=10), payment_method="pm_declined")
    )
    assert (declined.state, declined.state_reason) == (State.FAILED, "CARD_DECLINED")
    assert shop.inventory.state(declined.id) == "RELEASED"
    assert not shop.inventory.abandoned, "the customer tried to pay"


async def test_prefer_wait_returns_the_order_when_its_time_is_over(shop: Shop) -> None:
    product = stocked(shop)
    wait = Duration(nanos=50_000_000)
    order = await shop.place(wanting((product, 1, None), payment_method="", prefer_wait=wait))
    assert order.state == State.PENDING


async def test_prefer_wait_returns_at_once_if_too_many_watch(shop: Shop, monkeypatch: pytest.MonkeyPatch) -> None:
    """The order is placed and will be paid, so the call must not be refused."""
    monkeypatch.setattr(shop.watch, "_watchers_max", 0)
    order = await shop.place(wanting((stocked(shop), 1, None), payment_method="", prefer_wait=Duration(seconds=10)))
    assert order.state == State.PENDING


async def test_customer_who_waits_for_too_many_orders_gets_the_oldest(
    shop: Shop, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As it is now: the order is placed in any case."""
    monkeypatch.setattr(shop.watch, "_each_max", 1)
    product, wait = stocked(shop), Duration(seconds=15)
    waits = []
    for _ in range(2):
        waits.append(asyncio.create_task(shop.place(wanting((product, 1, None), payment_method="", prefer_wait=wait))))
        async with asyncio.timeout(10):
            await shop.watch.watched.wait()
    async with asyncio.timeout(10):
        assert (await waits[0]).state == State.PENDING
    assert not waits[1].done()
    waits[1].cancel()


async def test_cancelled_pending_order_stays_cancelled(shop: Shop) -> None:
    product = stocked(shop)
    order = await shop.place(wanting((product, 1, None), payment_method=""))
    me = tokens.as_user(shop.customer)
    stranger = await refusal(
        shop.orders.CancelOrder(pb.CancelOrderRequest(order_id=order.id), metadata=tokens.as_user(ids.new()))
    )
    assert (stranger.code, stranger.reason) == ("NOT_FOUND", "ORDER_NOT_FOUND")
    stale = await refusal(shop.orders.CancelOrder(pb.CancelOrderRequest(order_id=order.id, etag='"99"'), metadata=me))
    assert (stale.code, stale.reason) == ("ABORTED", "STALE_ETAG")

    for _ in range(2):
        order = await shop.orders.CancelOrder(pb.CancelOrderRequest(order_id=order.id), metadata=me)
        assert order.state == State.CANCELLED

    assert (shop.inventory.state(order.id), shop.payments.state(order.id)) == ("RELEASED", "CANCELLED")
    assert shop.inventory.abandoned == {order.id}


async def test_paid_order_cannot_be_cancelled_by_its_customer(shop: Shop) -> None:
    order = await shop.place(wanting((stocked(shop), 1, None), prefer_wait=Duration(seconds=10)))
    refused = await refusal(
        shop.orders.CancelOrder(pb.CancelOrderRequest(order_id=order.id), metadata=tokens.as_user(shop.customer))
    )
    assert (refused.code, refused.reason) == ("FAILED_PRECONDITION", "WRONG_STATE")


async def a_paid_order(shop: Shop) -> pb.Order:
    order = await shop.place(wanting((stocked(shop), 1, None), prefer_wait=Duration(seconds=10)))
    assert order.state == State.PAID
    return order


async def test_late_cancellation_does_not_claim_a_running_refund(shop: Shop) -> None:
    order = await a_paid_order(shop)
    async with shop.db.begin() as tx:
        known = await orders.read(tx, uuid.UUID(order.id), lock=True)
        await combined.begin_refund(tx, known, Refund(ids.new(), None, OrderState.REFUNDED), Actor("staff:somebody"))
        saga = await sagas.claim_one(tx, known.id)
    assert saga

    refused = await refusal(
        shop.orders.CancelOrder(pb.CancelOrderRequest(order_id=order.id), metadata=tokens.as_user(shop.customer))
    )
    assert (refused.code, refused.reason) == ("FAILED_PRECONDITION", "WRONG_STATE")
    assert await rows_of(shop.db, "SELECT fencing_token FROM sagas") == [(saga.fencing_token,)]


@pytest.mark.parametrize("staff", [True, False])
async def test_order_that_is_paid_during_its_cancellation_counts_as_paid(
    shop: Shop, monkeypatch: pytest.MonkeyPatch, staff: bool
) -> None:
    """Read as pending, but its saga has finished: the request id must not name a cancellation that never happens."""
    order = await a_paid_order(shop)
    known = await the_order(shop.db, order.id)

    get = shop.placed_orders.get

    async def as_it_was(*_: Any, **__: Any) -> Any:
        monkeypatch.setattr(shop.placed_orders, "get", get)
        return replace(known, state=OrderState.PENDING, version=1)

    monkeypatch.setattr(shop.placed_orders, "get", as_it_was)
    request = pb.CancelOrderRequest(order_id=order.id, request_id=str(uuid.uuid4()))
    cancelled = shop.orders.CancelOrder(request, metadata=tokens.as_staff() if staff else tokens.as_user(shop.customer))
    if staff:
        assert (await cancelled).state == State.CANCELLED
        return
    assert (await refusal(cancelled)).reason == "WRONG_STATE"
    assert not await rows_of(shop.db, "SELECT FROM requests")


async def test_watch_ends_when_the_order_is_settled(shop: Shop) -> None:
    order = await shop.place(wanting((stocked(shop), 1, None), payment_method=""))
    async with asyncio.timeout(10):
        stream = shop.orders.WatchOrder(pb.WatchOrderRequest(order_id=order.id), metadata=tokens.as_user(shop.customer))
        assert (await stream.read()).state == State.PENDING
        await shop.placed_orders.cancel(
            Mutation(order_id=uuid.UUID(order.id), customer_id=shop.customer, by=Actor("customer"))
        )
        seen = [(latest.state, latest.cancel_requested) async for latest in _rest(stream)]
        assert seen in ([(State.PENDING, True), (State.CANCELLED, False)], [(State.CANCELLED, False)])


async def _rest(stream: Any) -> Any:
    import grpc

    while (message := await stream.read()) is not grpc.aio.EOF:
        yield message


async def test_list_has_own_orders_newest_first_in_pages(shop: Shop) -> None:
    product, me = stocked(shop, units=100), tokens.as_user(shop.customer)
    placed = [(await shop.place(wanting((product, 1, None), payment_method=""))).id for _ in range(5)]
    await shop.place(wanting((product, 1, None)), customer=ids.new())
    found, token = [], ""
    while True:
        page = await shop.orders.ListOrders(pb.ListOrdersRequest(page_size=2, page_token=token), metadata=me)
        found += [order.id for order in page.orders]
        if not (token := page.next_page_token):
            break
        last = token
    assert found == placed[::-1]
    request = pb.ListOrdersRequest(page_token=last)
    stolen = await refusal(shop.orders.ListOrders(request, metadata=tokens.as_user(ids.new())))
    assert stolen.fields == ["pageToken"]
    page = await shop.orders.ListOrders(pb.ListOrdersRequest(state=State.PAID), metadata=me)
    assert list(page.orders) == []


async def test_staff_see_every_order_and_strangers_none(shop: Shop) -> None:
    order = await shop.place(wanting((stocked(shop), 1, None)))
    request = pb.GetOrderRequest(order_id=order.id)
    assert (await shop.orders.GetOrder(request, metadata=tokens.as_staff())).id == order.id
    assert (await refusal(shop.orders.GetOrder(request, metadata=tokens.as_user(ids.new())))).code == "NOT_FOUND"
    assert (await refusal(shop.orders.GetOrder(request))).code == "UNAUTHENTICATED"


async def a_hold_about_to_end(shop: Shop, order_id: str) -> None:
    """As if the order had been placed ten minutes ago."""
    id_ = uuid.UUID(order_id)
    await run_sql(shop.db, "UPDATE orders SET hold_expire_time = now() + interval '29 seconds' WHERE id = :id", id=id_)
    await run_sql(shop.db, "UPDATE sagas SET hold_check_time = now(), next_time = now() WHERE order_id = :id", id=id_)


async def seen_by_its_customer(shop: Shop, order_id: str) -> pb.Order:
    request = pb.GetOrderRequest(order_id=order_id)
    order: pb.Order = await shop.orders.GetOrder(request, metadata=tokens.as_user(shop.customer))
    return order


@pytest.mark.parametrize("how", ["pm_slow", ""], ids=["the provider", "the bank"])
async def test_hold_is_extended_once_while_the_payment_is_in_progress(shop: Shop, how: str) -> None:
    order = await shop.place(wanting((stocked(shop), 1, None), payment_method=how))
    await shop.worker.drain(10)
    if not how:
        shop.payments.payments[order.id].authenticating = True
    await a_hold_about_to_end(shop, order.id)
    shop.carry_on()

    async def longer() -> bool:
        now = await seen_by_its_customer(shop, order.id)
        return bool(now.hold_expire_time.seconds == order.hold_expire_time.seconds + 600)

    await until(longer)
    await a_hold_about_to_end(shop, order.id)
    shop.payments.set_state(order.id, "SUCCEEDED")
    async with shop.db.begin() as tx:
        await sagas.note_payments(tx, [uuid.UUID(order.id)])
    assert (await shop.ended(order.id)).state == State.PAID
    assert shop.inventory.calls["BatchExtend"] == 1


@pytest.mark.parametrize(("method", "waits"), [("pm_debit", True), ("pm_slow", False)])
async def test_a_saga_notes_whether_the_provider_moves_its_money(shop: Shop, method: str, waits: bool) -> None:
    """Such a saga may wait for days; one whose provider is silent is stuck soon."""
    await shop.place(wanting((stocked(shop), 1, None), payment_method=method))
    await shop.worker.drain(10)

    assert await rows_of(shop.db, "SELECT waits_for_provider FROM sagas") == [(waits,)]


async def test_hold_is_not_extended_for_a_customer_who_has_not_begun_to_pay(shop: Shop) -> None:
    order = await shop.place(wanting((stocked(shop), 1, None), payment_method=""))
    await shop.worker.drain(10)
    charged = shop.payments.calls["BatchCharge"]
    await a_hold_about_to_end(shop, order.id)
    shop.carry_on()

    async def looked_and_waits() -> bool:
        waits = "SELECT paused AND next_time > now() + interval '5 seconds' FROM sagas"
        return shop.payments.calls["BatchCharge"] > charged and await rows_of(shop.db, waits) == [(True,)]

    await until(looked_and_waits)
    assert shop.inventory.calls["BatchExtend"] == 0
    now = await seen_by_its_customer(shop, order.id)
    assert (now.state, now.etag) == (State.PENDING, order.etag)


async def test_single_paid_order_takes_at_most_three_transactions(shop: Shop) -> None:
    product = stocked(shop)
    request = wanting((product, 1, None))
    with counted(shop.db) as count:
        order = await shop.place(request)
        await shop.worker.drain(10)
    assert count.transactions <= 3
    assert count.statements <= 4
    assert shop.inventory.calls == {"BatchReserve": 1, "BatchConfirm": 1}
    assert shop.payments.calls == {"BatchCharge": 1}
    assert (await shop.ended(order.id)).state == State.PAID


def a_draft(*lines: RequestedLine, **fields: Any) -> DraftOrder:
    known: dict[str, Any] = {
        "id": ids.new(), "customer_id": ids.new(), "request_id": uuid.uuid4(), "digest": b"d" * 32, "lines": lines,
        "payment_method": "pm_card_visa", "shipping_address": None,
    }  # fmt: skip
    return DraftOrder(**{**known, **fields})


async def fifty_at_once(shop: Shop, product: uuid.UUID) -> None:
    """Without the guard, so that they are concurrent however slow the machine is."""
    await asyncio.gather(*(shop.placer.place(a_draft(RequestedLine(product, 1, None))) for _ in range(50)))


async def test_fifty_concurrent_orders_cost_less_each_than_one(shop: Shop) -> None:
    product = stocked(shop, units=1000)
    await shop.place(wanting((product, 1, None)))  # channels, pools and caches are warm
    await shop.worker.drain(10)
    shop.inventory.calls.clear()
    shop.payments.calls.clear()

    with counted(shop.db) as count:
        await fifty_at_once(shop, product)
        await shop.worker.drain(10)

    # To place and to pay; a single order takes two.
    assert count.transactions / 50 <= 0.5
    assert sum(shop.inventory.calls.values()) / 50 <= 0.5
    assert shop.payments.calls["BatchCharge"] / 50 <= 0.5
    assert await orders_written(shop) == 51
    assert await rows_of(shop.db, "SELECT 1 FROM sagas") == []


async def test_fifty_concurrent_orders_take_half_a_transaction_each_to_place(
    shop: Shop, monkeypatch: pytest.MonkeyPatch
) -> None:
    product = stocked(shop, units=1000)
    monkeypatch.setattr(shop.worker, "slots", Slots(0))  # their sagas are left to others

    with counted(shop.db) as count:
        await fifty_at_once(shop, product)

    assert count.transactions / 50 <= 0.5
    assert shop.payments.calls == {}
    assert await rows_of(shop.db, "SELECT count(*) FROM sagas WHERE next_time <= clock_timestamp()") == [(50,)]


async def test_another_request_under_one_id_shares_no_hold_within_a_batch(shop: Shop) -> None:
    scarce, plenty, id_ = stocked(shop, units=0), stocked(shop), ids.new()
    first, again = (a_draft(RequestedLine(plenty, 1, None), id=id_, customer_id=shop.customer) for _ in range(2))
    other = a_draft(RequestedLine(scarce, 1, None), id=id_, customer_id=shop.customer, digest=b"other" * 6)

    held, refused, repeated = await shop.inventory_client._reserve([first, other, again])

    assert isinstance(refused, RequestIdReused)
    assert held == repeated
    assert isinstance(held, inventory_pb.Reservation)
    assert held.lines[0].product_id == str(plenty)


async def test_products_of_an_order_are_fetched_in_one_call(shop: Shop) -> None:
    products = [stocked(shop) for _ in range(5)]
    order = await shop.place(wanting(*((product, 1, None) for product in products)))
    assert [line.product_id for line in order.lines] == list(map(str, products))
    assert shop.catalog.calls == {"GetSnapshots": 1}
