"""A cancellation that was accepted comes to its end, whatever its payment does, and begins no charge."""

import asyncio
import uuid
from typing import Any

import pytest

from services.orders import clients
from services.orders.domain import Actor
from services.orders.domain import State as OrderState
from services.orders.saga import operators
from services.orders.saga.plan import CANCELLED, COMPENSATED, HOLD_EXPIRED
from services.orders.sql import sagas
from stampede.orders.v1 import order_service_pb2 as pb
from tests.integration.orders.conftest import Shop, published, rows_of, run_sql, the_order
from tests.integration.orders.test_placing import a_paid_order, stocked, wanting
from tests.support import tokens
from tests.support.serving import refusal
from tests.support.waiting import until

LANES = 8
"""Batches of charges that payments gets at once."""


async def cancel(shop: Shop, order: pb.Order, *, staff: bool = False, **fields: Any) -> pb.Order:
    """The answer to the customer, or to staff."""
    request = pb.CancelOrderRequest(order_id=order.id, **fields)
    by = tokens.as_staff() if staff else tokens.as_user(shop.customer)
    answer: pb.Order = await shop.orders.CancelOrder(request, metadata=by)
    return answer


async def log_of(shop: Shop, order: pb.Order) -> list[tuple[Any, ...]]:
    """Returns the entries of an order's log: actor, cause, and the state after it."""
    query = "SELECT split_part(actor, ':', 1), cause, state FROM order_log WHERE order_id = :id ORDER BY id"
    return await rows_of(shop.db, query, id=uuid.UUID(order.id))


@pytest.mark.parametrize("staff", [True, False])
async def test_cancellation_after_the_money_has_moved_refunds_it(shop: Shop, staff: bool) -> None:
    order = await shop.place(wanting((stocked(shop), 1, None), payment_method=""))
    await shop.worker.drain(10)
    shop.payments.set_state(order.id, "SUCCEEDED")
    request_id = str(uuid.uuid4())

    for _ in range(2):
        assert (await cancel(shop, order, staff=staff, request_id=request_id)).state == pb.Order.CANCELLED

    assert (shop.payments.state(order.id), shop.inventory.state(order.id)) == ("REFUNDED", "RELEASED")
    who = "staff" if staff else "customer"
    assert await log_of(shop, order) == [
        ("customer", "PlaceOrder", "PENDING"), (who, "CancelOrder begun", "PENDING"), (who, "CancelOrder", "CANCELLED"),
    ]  # fmt: skip
    events = [name for name, _ in await published(shop.db, uuid.UUID(order.id))]
    assert [name for name in events if name != "updated"] == ["placed", "cancelling", "cancelled"]


async def test_cancelled_order_waits_for_a_debit_and_refunds_it(shop: Shop) -> None:
    order = await shop.place(wanting((stocked(shop), 1, None), payment_method="pm_slow"))
    await shop.worker.drain(10)

    answer = await cancel(shop, order)

    assert (answer.state, answer.cancel_requested) == (pb.Order.PENDING, True)
    shop.payments.set_state(order.id, "SUCCEEDED")
    async with shop.db.begin() as tx:
        await sagas.note_payments(tx, [uuid.UUID(order.id)])
    shop.carry_on()
    ended = await shop.ended(order.id)
    assert (ended.state, ended.cancel_requested) == (pb.Order.CANCELLED, False)
    assert (shop.payments.state(order.id), shop.inventory.state(order.id)) == ("REFUNDED", "RELEASED")


async def _lanes_are_full(shop: Shop) -> None:
    """As many charges as payments gets at once are in flight; the next one waits in a batch."""
    shop.payments.charges.clear()
    product = stocked(shop, units=LANES)
    for number in range(LANES):
        await shop.place(wanting((product, 1, None)))

        async def in_flight(wanted: int = number + 1) -> bool:
            return shop.payments.calls["BatchCharge"] == wanted

        await until(in_flight)


async def test_cancelled_order_leaves_the_batch_that_would_charge_it(shop: Shop) -> None:
    await _lanes_are_full(shop)
    order = await shop.place(wanting((stocked(shop), 1, None)))

    assert (await cancel(shop, order)).state == pb.Order.CANCELLED

    shop.payments.charges.set()
    await shop.worker.drain(10)
    assert order.id not in shop.payments.charged
    assert len(shop.payments.charged) == LANES


@pytest.mark.parametrize("why", ["it waited for a second", "no events arrive"])
async def test_charge_is_not_begun_after_another_process_cancelled_it(
    shop: Shop, monkeypatch: pytest.MonkeyPatch, why: str
) -> None:
    """No event has told this process, so it reads before the charge whether the order is still wanted."""
    if why == "no events arrive":
        monkeypatch.setattr(clients, "_READ_AGAIN_SECONDS", 60.0)
        shop.hears_of_cancellations = False
    else:
        monkeypatch.setattr(clients, "_READ_AGAIN_SECONDS", 0.0)
    await _lanes_are_full(shop)
    wanted, cancelled = [await shop.place(wanting((stocked(shop), 1, None))) for _ in range(2)]
    monkeypatch.setattr(shop.worker, "withdraw", lambda _: None)
    async with shop.db.begin() as tx:
        await sagas.request_cancel(tx, [uuid.UUID(cancelled.id)], CANCELLED, Actor("customer"))
        assert await sagas.claim_one(tx, uuid.UUID(cancelled.id))

    shop.payments.charges.set()
    await shop.worker.drain(10)

    assert cancelled.id not in shop.payments.charged
    assert (await the_order(shop.db, wanted.id)).state is OrderState.PAID


async def test_cancelled_saga_of_a_done_purchase_is_reversed(shop: Shop) -> None:
    """Its end could not be written: the money has moved and the units are sold, and the order is still pending."""
    order = await shop.place(wanting((stocked(shop), 1, None), payment_method=""))
    await shop.worker.drain(10)
    shop.payments.set_state(order.id, "SUCCEEDED")
    await run_sql(shop.db, "UPDATE sagas SET phase = 'DONE', steps_done = 3")

    assert (await cancel(shop, order)).state == pb.Order.CANCELLED

    assert shop.payments.state(order.id) == "REFUNDED"


async def test_end_of_the_hold_does_not_weaken_a_cancellation(shop: Shop) -> None:
    """Nor does it come before one: the stronger reason decides, in any order."""
    order = await shop.place(wanting((stocked(shop), 1, None), payment_method=""))
    await shop.worker.drain(10)
    order_id, reasons = uuid.UUID(order.id), []

    for reason in (HOLD_EXPIRED, CANCELLED, HOLD_EXPIRED, COMPENSATED, CANCELLED, HOLD_EXPIRED):
        async with shop.db.begin() as tx:
            await sagas.request_cancel(tx, [order_id], reason, Actor("customer"))
        reasons += [row[0] for row in await rows_of(shop.db, "SELECT cancel_reason FROM sagas")]

    assert reasons == [HOLD_EXPIRED, CANCELLED, CANCELLED, COMPENSATED, COMPENSATED, COMPENSATED]


async def test_second_cancellation_does_not_take_over_the_first(shop: Shop) -> None:
    """A customer who asks again and again would keep the saga from its end."""
    order = await shop.place(wanting((stocked(shop), 1, None), payment_method="pm_slow"))
    await shop.worker.drain(10)
    await cancel(shop, order)
    before = await rows_of(shop.db, "SELECT fencing_token FROM sagas")

    again = asyncio.create_task(cancel(shop, order))
    shop.payments.set_state(order.id, "SUCCEEDED")
    async with shop.db.begin() as tx:
        await sagas.note_payments(tx, [uuid.UUID(order.id)])
    assert await rows_of(shop.db, "SELECT fencing_token FROM sagas") == before
    shop.carry_on()

    assert (await again).state == pb.Order.CANCELLED
    assert [cause for _, cause, _ in await log_of(shop, order)].count("CancelOrder begun") == 1


async def test_refused_cancellation_of_a_paid_order_is_tried_again_by_its_repeat(shop: Shop) -> None:
    """The provider refuses the refund, then allows it: the request id names no refusal for ever."""
    order, request_id = await a_paid_order(shop), str(uuid.uuid4())
    shop.payments.refuses_refunds = True

    refused = await refusal(cancel(shop, order, staff=True, request_id=request_id))
    shop.payments.refuses_refunds = False

    assert (refused.code, refused.reason) == ("FAILED_PRECONDITION", "REFUND_REFUSED")
    assert (await cancel(shop, order, staff=True, request_id=request_id)).state == pb.Order.CANCELLED


async def test_compensation_is_shown_until_it_is_carried_out(shop: Shop) -> None:
    order = await shop.place(wanting((stocked(shop), 1, None), payment_method="pm_slow"))
    await shop.worker.drain(10)

    await operators.compensate(shop.db, uuid.UUID(order.id), Actor("operator:me"), withdraw=shop.worker.withdraw)

    assert (await the_order(shop.db, order.id)).cancel_requested
    assert (await log_of(shop, order))[-1] == ("operator", "CompensateSaga begun", "PENDING")


async def test_refund_that_is_refused_at_once_is_an_error_and_its_repeat_tries_again(shop: Shop) -> None:
    order = await a_paid_order(shop)
    request = pb.RefundOrderRequest(order_id=order.id, request_id=str(uuid.uuid4()), full=True)
    shop.payments.refuses_refunds = True

    refused = await refusal(shop.orders.RefundOrder(request, metadata=tokens.as_staff()))
    shop.payments.refuses_refunds = False

    assert (refused.code, refused.reason) == ("FAILED_PRECONDITION", "REFUND_REFUSED")
    again = await shop.orders.RefundOrder(request, metadata=tokens.as_staff())
    assert (again.state, again.refunded.minor_units) == (pb.Order.REFUNDED, order.total.minor_units)
