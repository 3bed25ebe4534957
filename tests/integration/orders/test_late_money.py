"""Money that moves after the hold has expired buys by the rules of a new order, else it goes back.

Money that is only set aside pays an order, ships none, and cancels it if it is given back.
"""

import uuid

import pytest

from services.orders import clients, consumers
from services.orders.domain import Actor, Order, PaymentState
from services.orders.domain import State as OrderState
from services.orders.saga.comparer import Comparer
from services.orders.saga.plan import HOLD_EXPIRED
from services.orders.sql import sagas
from stampede.inventory.v1 import reservation_service_pb2 as inventory_pb
from stampede.orders.v1 import order_service_pb2 as pb
from stampede.payments.v1.events_pb2 import PaymentChanged
from tests.integration.orders.conftest import Shop, log_of, rows_of, the_order
from tests.integration.orders.test_placing import stocked, wanting
from tests.support import tokens
from tests.support.serving import refusal
from tests.support.waiting import until

Reservation = inventory_pb.Reservation
STAFF = tokens.as_staff()


@pytest.mark.parametrize("active", [True, False])
async def test_late_money_retakes_units_only_of_products_on_sale(
    shop: Shop, monkeypatch: pytest.MonkeyPatch, active: bool
) -> None:
    monkeypatch.setattr(clients, "_PRODUCT_SECONDS", 0.0)
    product = stocked(shop)
    order = await shop.place(wanting((product, 1, None), payment_method="pm_slow"))
    await shop.worker.drain(10)
    shop.inventory.held[order.id].state = Reservation.EXPIRED
    shop.catalog.products[str(product)].active = active

    shop.payments.set_state(order.id, "SUCCEEDED")
    async with shop.db.begin() as tx:
        await sagas.note_payments(tx, [uuid.UUID(order.id)])
    shop.carry_on()
    ended = await shop.ended(order.id)

    if active:
        assert (ended.state, shop.inventory.retakes) == (pb.Order.PAID, 1)
        return
    assert (ended.state, ended.state_reason) == (pb.Order.EXPIRED, "RESERVATION_LOST")
    assert (shop.payments.state(order.id), shop.inventory.retakes) == ("REFUNDED", 0)


# --- set aside, until staff capture it ---


async def an_uncaptured_order(shop: Shop) -> pb.Order:
    order = await shop.place(wanting((stocked(shop), 1, None), payment_method="pm_manual"))
    ended = await shop.ended(order.id)
    assert (ended.state, ended.payment.state) == (pb.Order.PAID, pb.OrderPayment.AUTHORIZED)
    return ended


async def the_payment_becomes(shop: Shop, order: pb.Order, state: str) -> None:
    """Payments changes the payment and publishes it; requested checks are carried out."""
    shop.payments.set_state(order.id, state)
    message = PaymentChanged(order_id=order.id, state=state)
    async with shop.db.begin() as tx:
        await consumers.note_payments(tx, [message.SerializeToString()])
    await Comparer(shop.db, shop.payments_client, lambda _: None).check_requested()


async def reaches(shop: Shop, order: pb.Order, state: OrderState) -> Order:
    async def there() -> Order | None:
        now = await the_order(shop.db, order.id)
        return now if now.state is state and now.settled else None

    found: Order = await until(there)
    return found


async def ship(shop: Shop, order: pb.Order) -> pb.Order:
    return await shop.orders.ShipOrder(pb.ShipOrderRequest(order_id=order.id), metadata=STAFF)


async def test_order_is_shipped_once_its_payment_is_captured(shop: Shop) -> None:
    """The event of the capture has not arrived: payments is asked."""
    order = await an_uncaptured_order(shop)
    refused = await refusal(ship(shop, order))
    assert (refused.reason, refused.code) == ("PAYMENT_NOT_CAPTURED", "FAILED_PRECONDITION")

    shop.payments.set_state(order.id, "SUCCEEDED")

    assert (await ship(shop, order)).state == pb.Order.SHIPPED


async def test_refund_is_refused_before_the_capture(shop: Shop) -> None:
    order = await an_uncaptured_order(shop)
    request = pb.RefundOrderRequest(order_id=order.id, amount=order.total)
    assert (await refusal(shop.orders.RefundOrder(request, metadata=STAFF))).reason == "PAYMENT_NOT_CAPTURED"
    shop.payments.set_state(order.id, "SUCCEEDED")
    assert (await shop.orders.RefundOrder(request, metadata=STAFF)).state == pb.Order.REFUNDED


async def test_captured_payment_reaches_the_order(shop: Shop) -> None:
    order = await an_uncaptured_order(shop)
    await the_payment_becomes(shop, order, "SUCCEEDED")
    now = await the_order(shop.db, order.id)
    assert now.payment
    assert (now.state, now.payment.state) == (OrderState.PAID, PaymentState.SUCCEEDED)
    assert (await rows_of(shop.db, "SELECT cause FROM order_log ORDER BY id DESC LIMIT 1")) == [("payment captured",)]
    assert await rows_of(shop.db, "SELECT FROM payment_checks") == []


async def test_voided_payment_cancels_the_order_and_returns_its_units(shop: Shop) -> None:
    shop.carry_on()
    order = await an_uncaptured_order(shop)

    await the_payment_becomes(shop, order, "CANCELLED")

    now = await reaches(shop, order, OrderState.CANCELLED)
    assert now.payment
    assert now.payment.state is PaymentState.CANCELLED
    assert (now.refunded_minor, dict(now.returned)) == (0, {now.lines[0].product_id: now.lines[0].quantity})
    assert (await log_of(shop.db, uuid.UUID(order.id)))[-1] == ("CANCELLED", "", "payments")
    assert shop.inventory.calls["BatchCreateReturns"] == 1


@pytest.mark.parametrize("captured_meanwhile", [False, True])
async def test_staff_cancel_reverses_the_payment(shop: Shop, captured_meanwhile: bool) -> None:
    """It is voided, or refunded if it was captured and nobody has told orders."""
    order = await an_uncaptured_order(shop)
    if captured_meanwhile:
        shop.payments.set_state(order.id, "SUCCEEDED")

    cancelled = await shop.orders.CancelOrder(pb.CancelOrderRequest(order_id=order.id), metadata=STAFF)

    assert cancelled.state == pb.Order.CANCELLED
    assert cancelled.refunded.minor_units == (order.total.minor_units if captured_meanwhile else 0)
    if not captured_meanwhile:
        assert shop.payments.state(order.id) == "CANCELLED"
    await Comparer(shop.db, shop.payments_client, lambda _: None).compare([uuid.UUID(order.id)])
    now = await the_order(shop.db, order.id)
    assert now.state is OrderState.CANCELLED


async def test_staff_cancel_of_reversed_money_ends_cancelled(shop: Shop) -> None:
    """All of it went back by another call before the saga asked for its refund; its units come back all the same."""
    order = await shop.place(wanting((stocked(shop), 1, None)))
    await shop.ended(order.id)
    shop.payments.refund_there(order.id, order.total.minor_units)

    cancelled = await shop.orders.CancelOrder(pb.CancelOrderRequest(order_id=order.id), metadata=STAFF)

    assert (cancelled.state, cancelled.refunded) == (pb.Order.CANCELLED, order.total)
    assert shop.inventory.calls["BatchCreateReturns"] == 1


async def test_end_of_the_hold_keeps_an_authorised_payment(shop: Shop) -> None:
    """Payments answers the cancellation that the money was set aside in time."""
    order = await shop.place(wanting((stocked(shop), 1, None), payment_method="pm_slow"))
    await shop.worker.drain(10)
    shop.payments.set_state(order.id, "AUTHORIZED")
    async with shop.db.begin() as tx:
        await sagas.request_cancel(tx, [uuid.UUID(order.id)], HOLD_EXPIRED, Actor("inventory"))
    shop.carry_on()
    assert (await shop.ended(order.id)).state == pb.Order.PAID
    assert shop.payments.calls["BatchCancel"] == 1
