"""The provider's list of refunds decides: refunds that fail later, that people make, whose events are lost."""

import dataclasses
import uuid

import pytest

from services.payments.refunds import rules
from services.payments.webhooks import inbox
from stampede.payments.v1 import charge_service_pb2 as pb
from stampede.payments.v1 import payment_service_pb2 as payment_pb
from tests.integration.payments.conftest import Payments, Sandbox, State, an_order
from tests.integration.payments.refunds.test_payments_refunds import a_line, create
from tests.integration.payments.test_payments_charge import always
from tests.support.waiting import until

Paid, Refunded = payment_pb.Payment.SUCCEEDED, payment_pb.Payment.REFUNDED


async def sum_is(service: Payments, payment_id: str, minor: int) -> None:
    async def reached() -> bool:
        return (await service.get(payment_id)).refunded.minor_units == minor

    await until(reached)


async def a_refunded_order(service: Payments, sandbox: Sandbox, minor: int | None) -> tuple[str, str, str, str]:
    """Return the ids of an order, its payment, its intent, and the provider's refund of `minor`."""
    item = an_order()
    payment_id = (await service.charged(item)).payment_id
    await create(service, a_line(item.order_id, minor))
    (intent,) = await sandbox.intents(item.order_id)
    (refund,) = await sandbox.refunds(intent["id"])
    return item.order_id, payment_id, intent["id"], refund["id"]


@pytest.mark.parametrize("minor", [None, 500])
async def test_a_refund_that_fails_later_frees_its_sum(running: Payments, sandbox: Sandbox, minor: int | None) -> None:
    order_id, payment_id, _, refund = await a_refunded_order(running, sandbox, minor)
    assert (await running.get(payment_id)).state == (Paid if minor else Refunded)
    await sandbox.fail_refund(refund)
    await sum_is(running, payment_id, 0)
    assert (await running.get(payment_id)).state == Paid
    assert await running.published(order_id) == ["succeeded", "refunded", "refund_failed"]
    found = await running.rows("SELECT state, failure_reason, problem FROM refunds")
    assert [tuple(row) for row in found] == [("FAILED", "LOST_OR_STOLEN_CARD", rules.FAILED_LATER)]
    (again,) = await create(running, a_line(order_id))  # nothing is left to do but to refund it another time
    assert (again.state, again.refunded.minor_units) == (pb.RefundStatus.SUCCEEDED, 1999)
    assert await running.rows("SELECT count(*) FROM refunds WHERE problem <> ''") == [(0,)]


async def test_a_failed_refund_whose_event_is_lost_is_found(service: Payments, sandbox: Sandbox) -> None:
    order_id, payment_id, _, refund = await a_refunded_order(service, sandbox, None)
    await sandbox.fail_refund(refund)  # its webhooks are dropped
    service.start_loops()
    await service.walk.walk_once()
    await sum_is(service, payment_id, 0)
    assert (await service.published(order_id))[-1] == "refund_failed"


async def test_a_dashboard_refund_whose_event_is_lost_is_found(service: Payments, sandbox: Sandbox) -> None:
    item = an_order()
    payment_id = (await service.charged(item)).payment_id
    (intent,) = await sandbox.intents(item.order_id)
    await sandbox.refund(intent["id"], 999)
    service.start_loops()
    await service.walk.walk_once()
    await sum_is(service, payment_id, 999)
    await service.rows("UPDATE event_walks SET next_time = now()")
    await service.walk.walk_once()  # an event that is listed twice counts once
    found = await service.rows("SELECT amount_minor, state, external FROM refunds")
    assert [tuple(row) for row in found] == [(999, "SUCCEEDED", True)]
    assert await service.published(item.order_id) == ["succeeded", "refunded"]


async def test_one_process_walks_at_a_time(service: Payments, sandbox: Sandbox) -> None:
    await service.walk.walk_once()
    ((first,),) = await service.rows("SELECT done_time FROM event_walks")
    await service.walk.walk_once()
    assert await service.rows("SELECT done_time FROM event_walks") == [(first,)]


async def test_a_dashboard_refund_ends_a_refund_that_waits(running: Payments, sandbox: Sandbox) -> None:
    """The provider loses each call of ours; people refund it all meanwhile, so ours can never succeed."""
    item = an_order()
    payment_id = (await running.charged(item)).payment_id
    (intent,) = await sandbox.intents(item.order_id)
    await sandbox.faults(error_500=True, error_500_on="POST refunds")
    line = a_line(item.order_id)
    (waiting,) = await create(running, line)
    assert waiting.state == pb.RefundStatus.PENDING
    await sandbox.control("DELETE", "faults")
    await running.rows("UPDATE refunds SET next_check_time = now() + interval '1 hour'")
    await sandbox.refund(intent["id"], 1999)
    await sum_is(running, payment_id, 1999)
    (ended,) = await create(running, line)
    assert (ended.state, ended.failure_reason, ended.whole) == (pb.RefundStatus.FAILED, rules.DISPLACED, True)
    assert await running.published_refunds(item.order_id) == [1999]


async def test_a_refund_of_a_stray_charge_is_not_the_orders(running: Payments, sandbox: Sandbox) -> None:
    """Both charges have the payment's id in their metadata; only the reference tells them apart."""
    item = an_order()
    payment_id = (await running.charged(item)).payment_id
    payment = await running.payment(uuid.UUID(payment_id))
    second = dataclasses.replace(payment, attempt=9, payment_method="pm_card_visa")  # as by a key that was lost
    stray = (await running.provider.create(second, always)).reference
    assert stray

    async def back_and_reported() -> bool:
        found = await running.rows(
            "SELECT count(*) FILTER (WHERE processed_time IS NOT NULL AND error IS NULL),"
            " (SELECT count(*) FROM refunds WHERE stray AND state = 'SUCCEEDED') FROM provider_events"
            " WHERE payload->>'reference' = :stray AND payload->>'type' IN ('charge.refunded', 'refund.created')",
            stray=stray,
        )
        return bool(found == [(2, 1)])

    await until(back_and_reported)
    await running.reconciler.reconcile_once()
    await running.dispatcher.drain(seconds=10)
    now = await running.get(payment_id)
    assert (now.state, now.refunded.minor_units) == (Paid, 0)
    assert [refund["amount"] for refund in await sandbox.refunds(stray)] == [1999]
    assert await running.published(item.order_id) == ["succeeded"]


async def test_a_parked_event_is_applied_once_its_payment_is_known(service: Payments, sandbox: Sandbox) -> None:
    """A refund that people make has no metadata of ours, so it is known by the reference of its charge alone."""
    item = an_order()
    payment_id = (await service.charged(item)).payment_id
    (intent,) = await sandbox.intents(item.order_id)
    await service.rows("UPDATE payments SET provider_reference = NULL")
    await sandbox.refund(intent["id"], 999)
    (refund,) = await sandbox.refunds(intent["id"])
    await service.send_event({"id": "evt_early", "type": "refund.created", "data": {"object": refund}})
    await service.rows("UPDATE provider_events SET attempts = 11")
    await inbox.apply_events(service.db, service.dispatcher)
    parked = await service.rows("SELECT error FROM provider_events WHERE processed_time IS NOT NULL")
    assert parked == [("UNKNOWN_PAYMENT",)]
    assert await inbox.watch_events(service.db) == 0
    await service.rows(
        "UPDATE payments SET provider_reference = :reference, update_time = clock_timestamp()", reference=intent["id"]
    )
    assert await inbox.watch_events(service.db) == 1
    service.start_loops()
    await sum_is(service, payment_id, 999)


async def test_a_cancelled_order_sees_its_refund_fail(running: Payments, sandbox: Sandbox) -> None:
    """After a reversal no saga asks any more: the payment keeps money again, and says so."""
    item = an_order()
    payment_id = (await running.charged(item)).payment_id
    (back,) = await running.reverse(item)
    assert back.state == State.REFUNDED
    (intent,) = await sandbox.intents(item.order_id)
    (refund,) = await sandbox.refunds(intent["id"])
    await sandbox.fail_refund(refund["id"])
    await running.reaches(payment_id, Paid)
    assert (await running.published(item.order_id))[-1] == "refund_failed"
