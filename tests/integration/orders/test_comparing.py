"""Orders and payments agree about refunds, wherever these begin, and whatever becomes of the events."""

import uuid
from collections.abc import Sequence

import pytest

from services.chassis import ids
from services.orders import consumers
from services.orders.domain import Actor, Payment, Refund
from services.orders.domain import State as OrderState
from services.orders.saga.comparer import Comparer
from services.orders.sql import combined, orders, sagas
from stampede.orders.v1 import order_service_pb2 as pb
from stampede.payments.v1.events_pb2 import PaymentChanged, PaymentDisputed
from tests.integration.orders.conftest import Shop, log_of, published, rows_of, the_order
from tests.integration.orders.test_placing import a_paid_order
from tests.support import tokens
from tests.support.serving import refusal


def comparing(shop: Shop) -> Comparer:
    return Comparer(shop.db, shop.payments_client, lambda _: None)


async def event(shop: Shop, order: pb.Order, units: int) -> None:
    """An event of payments about refunds arrives; the sum in it may be wrong."""
    message = PaymentChanged(order_id=order.id, state="SUCCEEDED", refunded_minor_units=units)
    async with shop.db.begin() as tx:
        await consumers.note_payments(tx, [message.SerializeToString()])


@pytest.mark.parametrize("claimed", [1, 300, 999])
async def test_refund_at_payments_reaches_the_order_with_the_sum_that_payments_has(shop: Shop, claimed: int) -> None:
    order = await a_paid_order(shop)
    shop.payments.refund_there(order.id, 300)

    await event(shop, order, claimed)
    await comparing(shop).check_requested()

    now = await the_order(shop.db, order.id)
    assert (now.state, now.refunded_minor) == (OrderState.PARTIALLY_REFUNDED, 300)
    assert (await log_of(shop.db, now.id))[-1] == ("PARTIALLY_REFUNDED", "", "payments")
    versions = [version for _, version in await published(shop.db, now.id)]
    assert versions == list(range(1, len(versions) + 1))
    assert await rows_of(shop.db, "SELECT FROM payment_checks") == []


async def test_forged_event_about_a_refund_moves_no_order(shop: Shop) -> None:
    order = await a_paid_order(shop)
    unknown = pb.Order(id=str(ids.new()))

    for forged in (order, unknown):
        await event(shop, forged, 999)
    await comparing(shop).check_requested()

    assert (await the_order(shop.db, order.id)).state is OrderState.PAID
    assert await rows_of(shop.db, "SELECT FROM payment_checks") == []


@pytest.mark.parametrize(("left", "state"), [(0, OrderState.PAID), (300, OrderState.PARTIALLY_REFUNDED)])
async def test_refund_that_fails_after_it_succeeded_moves_the_order_back(
    shop: Shop, left: int, state: OrderState
) -> None:
    order = await a_paid_order(shop)
    shop.payments.refund_there(order.id, order.total.minor_units)
    await event(shop, order, order.total.minor_units)
    await comparing(shop).check_requested()
    assert (await the_order(shop.db, order.id)).state is OrderState.REFUNDED

    shop.payments.refund_there(order.id, left - order.total.minor_units)
    await event(shop, order, left)
    await comparing(shop).check_requested()

    now = await the_order(shop.db, order.id)
    assert (now.state, now.refunded_minor) == (state, left)
    assert (await rows_of(shop.db, "SELECT cause FROM order_log ORDER BY id DESC LIMIT 1")) == [("refund failed",)]


async def test_refund_that_finds_the_money_refunded_at_payments_applies_that(shop: Shop) -> None:
    """No event tells orders of it: the refusal makes the saga read what was refunded."""
    order = await a_paid_order(shop)
    shop.payments.refund_there(order.id, order.total.minor_units)
    request = pb.RefundOrderRequest(order_id=order.id, amount=order.total)
    request.amount.minor_units = 1

    refused = await refusal(shop.orders.RefundOrder(request, metadata=tokens.as_staff()))

    assert refused.reason == "REFUND_REFUSED"
    now = await the_order(shop.db, order.id)
    assert (now.state, now.refunding, now.refunded_minor) == (OrderState.REFUNDED, False, order.total.minor_units)


async def test_refund_waits_for_one_that_is_pending_at_payments(shop: Shop) -> None:
    """Until then the order cannot be shipped: the money may be gone."""
    order = await a_paid_order(shop)
    shop.payments.refunding[order.id] = order.total.minor_units
    request = pb.RefundOrderRequest(order_id=order.id, amount=order.total)

    answer = await shop.orders.RefundOrder(request, metadata=tokens.as_staff())
    assert answer.refunding

    del shop.payments.refunding[order.id]
    shop.payments.refund_there(order.id, order.total.minor_units)
    async with shop.db.begin() as tx:
        saga = await sagas.claim_one(tx, uuid.UUID(order.id))
    assert saga
    await shop.worker.carry(saga)
    now = await the_order(shop.db, order.id)
    assert (now.state, now.refunding) == (OrderState.REFUNDED, False)


async def test_check_waits_until_the_refund_of_the_order_is_settled(shop: Shop) -> None:
    order = await a_paid_order(shop)
    async with shop.db.begin() as tx:
        known = await orders.read(tx, uuid.UUID(order.id), lock=True)
        await combined.begin_refund(tx, known, Refund(ids.new(), None, OrderState.REFUNDED), Actor("staff:somebody"))
    shop.payments.refund_there(order.id, 300)

    await event(shop, order, 300)
    await comparing(shop).check_requested()

    assert (await the_order(shop.db, order.id)).refunded_minor == 0
    assert len(await rows_of(shop.db, "SELECT FROM payment_checks")) == 1


async def test_order_that_changes_while_payments_is_asked_is_compared_again(
    shop: Shop, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A refund at orders ends in between; the older sum must not take it back."""
    order = await a_paid_order(shop)
    shop.payments.refund_there(order.id, 100)
    await event(shop, order, 100)
    read = shop.payments_client.read

    async def slow(order_ids: Sequence[uuid.UUID]) -> dict[uuid.UUID, Payment]:
        older = await read(order_ids)
        request = pb.RefundOrderRequest(order_id=order.id, amount=order.total)
        request.amount.minor_units = 300
        await shop.orders.RefundOrder(request, metadata=tokens.as_staff())
        return older

    monkeypatch.setattr(shop.payments_client, "read", slow)
    await comparing(shop).check_requested()

    now = await the_order(shop.db, order.id)
    assert (now.state, now.refunded_minor) == (OrderState.PARTIALLY_REFUNDED, 400)
    assert len(await rows_of(shop.db, "SELECT FROM payment_checks")) == 1


async def test_walk_finds_a_refund_that_no_event_reported(shop: Shop) -> None:
    order, untouched = await a_paid_order(shop), await a_paid_order(shop)
    shop.payments.refund_there(order.id, 300)

    done = await comparing(shop).compare([uuid.UUID(order.id), uuid.UUID(untouched.id)])

    assert done == {uuid.UUID(order.id), uuid.UUID(untouched.id)}
    assert (await the_order(shop.db, order.id)).refunded_minor == 300
    assert (await the_order(shop.db, untouched.id)).state is OrderState.PAID


async def test_disputed_order_is_flagged_and_not_shipped_until_the_dispute_ends(shop: Shop) -> None:
    """The event is a hint: payments says whether the order is disputed."""
    order = await a_paid_order(shop)
    ship = pb.ShipOrderRequest(order_id=order.id, carrier="DHL", tracking_number="1")

    async def hint() -> None:
        message = PaymentDisputed(order_id=order.id, state="LOST")
        async with shop.db.begin() as tx:
            await consumers.note_disputes(tx, [message.SerializeToString()])
        await comparing(shop).check_requested()

    await hint()
    assert not (await the_order(shop.db, order.id)).disputed, "payments knows of no dispute"
    shop.payments.payments[order.id].disputed = True
    await hint()
    flagged = await the_order(shop.db, order.id)
    assert (flagged.disputed, flagged.state) == (True, OrderState.PAID)
    refused = await refusal(shop.orders.ShipOrder(ship, metadata=tokens.as_staff()))
    assert (refused.code, refused.reason) == ("FAILED_PRECONDITION", "ORDER_DISPUTED")
    shop.payments.payments[order.id].disputed = False
    await hint()
    assert (await shop.orders.ShipOrder(ship, metadata=tokens.as_staff())).state == pb.Order.SHIPPED
    causes = await rows_of(shop.db, "SELECT cause FROM order_log ORDER BY id DESC LIMIT 3")
    assert causes == [("ShipOrder",), ("dispute ended",), ("payment disputed",)]
