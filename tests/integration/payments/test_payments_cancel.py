"""Cancelling payments and reversing orders: before, during and after the charge."""

import asyncio
import uuid

import grpc
import pytest

from stampede.payments.v1 import charge_service_pb2 as charge_pb
from stampede.payments.v1 import payment_service_pb2 as pb
from tests.integration.payments.conftest import Payments, Sandbox, State, an_order
from tests.support import tokens
from tests.support.serving import refusal
from tests.support.waiting import until


async def test_a_charge_after_a_cancel_never_reaches_the_provider(service: Payments, sandbox: Sandbox) -> None:
    item = an_order()
    (cancelled,) = await service.cancel(item)
    assert cancelled.state == State.CANCELLED
    assert (await service.charged(item)).state == State.CANCELLED
    assert (await service.cancel(item))[0] == cancelled
    assert await sandbox.intents(item.order_id) == []
    assert await service.published(item.order_id) == ["cancelled"]


async def test_cancelling_an_awaited_payment_cancels_its_intent(service: Payments, sandbox: Sandbox) -> None:
    item = an_order("")
    await service.charged(item)
    (cancelled,) = await service.cancel(item)
    assert (cancelled.state, cancelled.client_secret) == (State.CANCELLED, "")
    assert [i["status"] for i in await sandbox.intents(item.order_id)] == ["canceled"]
    assert await service.published(item.order_id) == ["cancelled"]


async def test_cancelling_a_paid_payment_returns_it_as_succeeded(service: Payments, sandbox: Sandbox) -> None:
    """No webhook has arrived: the provider refuses to cancel, and is asked for the result."""
    item = an_order("pm_card_authenticationRequired")
    await service.charged(item)
    (intent,) = await sandbox.intents(item.order_id)
    await sandbox.control("POST", f"payment_intents/{intent['id']}/authenticate", {"outcome": "succeed"})
    (payment,) = await service.cancel(item)
    assert payment.state == State.SUCCEEDED
    assert await service.published(item.order_id) == ["succeeded"]


async def charging(service: Payments, item: charge_pb.Charge) -> "asyncio.Task[charge_pb.PaymentStatus]":
    """Start a charge; return once it is committed."""
    task = asyncio.create_task(service.charged(item))

    async def committed() -> bool:
        return bool(await service.rows("SELECT 1 FROM payments"))

    await until(committed)
    return task


async def test_cancelling_during_a_charge_returns_processing(service: Payments, sandbox: Sandbox) -> None:
    await sandbox.faults(latency_ms={"fixed": 600, "jitter": 0})
    item = an_order()
    charge = await charging(service, item)
    assert (await service.cancel(item))[0].state == State.PROCESSING
    assert (await charge).state == State.SUCCEEDED
    assert (await service.cancel(item))[0].state == State.SUCCEEDED
    assert await service.published(item.order_id) == ["succeeded"]


async def test_cancelling_during_a_charge_cancels_what_would_wait(service: Payments, sandbox: Sandbox) -> None:
    """The charge ends with 3-D Secure; it is cancelled instead of waiting for the customer."""
    await sandbox.faults(latency_ms={"fixed": 300, "jitter": 0})
    item = an_order("pm_card_authenticationRequired")
    charge = await charging(service, item)
    await service.cancel(item)
    assert (await charge).state == State.CANCELLED
    assert [i["status"] for i in await sandbox.intents(item.order_id)] == ["canceled"]


async def test_concurrent_charges_and_cancels_end_in_one_state(service: Payments, sandbox: Sandbox) -> None:
    items = [an_order() for _ in range(40)]
    await asyncio.gather(*(call(item) for item in items for call in (service.charge, service.cancel)))
    for item in items:
        (payment,) = await service.cancel(item)
        intents = await sandbox.intents(item.order_id)
        if payment.state == State.SUCCEEDED:
            assert [i["status"] for i in intents] == ["succeeded"]
        else:
            assert payment.state == State.CANCELLED
            assert intents == []
        assert len(await service.published(item.order_id)) == 1


async def test_a_cancel_that_fails_at_the_provider_is_repeated(service: Payments, sandbox: Sandbox) -> None:
    item = an_order("")
    payment = await service.charged(item)
    await sandbox.faults(error_500=True)
    (waiting,) = await service.cancel(item)
    assert waiting.state == State.AWAITING_CUSTOMER
    await sandbox.control("DELETE", "faults")
    service.start_loops()
    await service.reaches(payment.payment_id, State.CANCELLED)


async def test_a_repeated_cancel_does_not_put_off_the_next_key(service: Payments, sandbox: Sandbox) -> None:
    """Each check has a key of its own; an order asks again before a long pause has passed."""
    item = an_order("")
    await service.charged(item)
    await sandbox.faults(error_500=True)
    await service.cancel(item)
    await service.rows("UPDATE payments SET checks = 5, next_check_time = now() + interval '32 s'")
    await service.cancel(item)
    assert await service.rows("SELECT checks, next_check_time <= now() FROM payments") == [(5, True)]


async def test_a_repeated_reversal_does_not_put_off_its_refund(service: Payments, sandbox: Sandbox) -> None:
    item = an_order()
    await service.charged(item)
    await sandbox.faults(error_500=True)
    await service.reverse(item)
    await service.rows("UPDATE refunds SET checks = 5, next_check_time = now() + interval '32 s'")
    assert (await service.reverse(item))[0].state == State.SUCCEEDED
    assert await service.rows("SELECT checks, next_check_time <= now() FROM refunds") == [(5, True)]


async def test_a_reversal_refunds_once(service: Payments, sandbox: Sandbox) -> None:
    item = an_order()
    await service.charged(item)
    (first,) = await service.reverse(item)
    (second,) = await service.reverse(item)
    assert first.state == second.state == State.REFUNDED
    (intent,) = await sandbox.intents(item.order_id)
    assert [r["amount"] for r in await sandbox.refunds(intent["id"])] == [1999]
    assert await service.published(item.order_id) == ["succeeded", "refunded"]


async def test_a_reversal_cancels_what_was_never_paid(service: Payments) -> None:
    never, waiting, paid = an_order(), an_order(""), an_order()
    await service.charge(waiting, paid)
    outcomes = await service.reverse(never, waiting, paid)
    assert [o.state for o in outcomes] == [State.CANCELLED, State.CANCELLED, State.REFUNDED]


async def test_a_reversal_whose_answer_is_lost_refunds_once(service: Payments, sandbox: Sandbox) -> None:
    item = an_order()
    payment = await service.charged(item)
    await sandbox.faults(drop_after_refund={"next": 1})
    reversing = asyncio.create_task(service.reverse(item))
    (intent,) = await sandbox.intents(item.order_id)

    async def refunded() -> bool:
        return bool(await sandbox.refunds(intent["id"]))

    await until(refunded)
    await sandbox.faults(rate_limit_429=True)
    assert (await reversing)[0].state == State.SUCCEEDED
    await sandbox.control("DELETE", "faults")
    service.start_loops()
    await service.reaches(payment.payment_id, State.REFUNDED)
    assert len(await sandbox.refunds(intent["id"])) == 1
    assert await service.published(item.order_id) == ["succeeded", "refunded"]


async def test_a_refund_with_an_expired_key_is_looked_up_first(service: Payments, sandbox: Sandbox) -> None:
    """As after an outage of two days: the provider has refunded, and has forgotten the key."""
    item = an_order()
    payment = await service.charged(item)
    await service.reverse(item)
    await service.rows("UPDATE payments SET state = 'SUCCEEDED', refunded_minor = 0, refunding_minor = 1999")
    await service.rows(
        "UPDATE refunds SET state = 'PENDING', provider_reference = NULL, next_check_time = now(),"
        " attempt_time = now() - interval '2 days'"
    )
    service.start_loops()
    await service.reaches(payment.payment_id, State.REFUNDED)
    (intent,) = await sandbox.intents(item.order_id)
    assert len(await sandbox.refunds(intent["id"])) == 1


async def test_only_orders_may_call_the_charge_service(service: Payments) -> None:
    charges, refunds = [an_order()], [charge_pb.Refund(refund_id=str(uuid.uuid4()), order_id=str(uuid.uuid4()))]
    for method, request in (
        (service.charges.BatchCharge, charge_pb.BatchChargeRequest(charges=charges)),
        (service.charges.BatchCancel, charge_pb.BatchCancelRequest(charges=charges)),
        (service.charges.BatchReverse, charge_pb.BatchReverseRequest(charges=charges)),
        (service.charges.BatchCreateRefunds, charge_pb.BatchCreateRefundsRequest(refunds=refunds)),
    ):
        for metadata, code in (
            (tokens.as_service("catalog"), "PERMISSION_DENIED"),
            (tokens.as_service("gateway"), "PERMISSION_DENIED"),
            (tokens.as_staff(), "UNAUTHENTICATED"),
            ((), "UNAUTHENTICATED"),
        ):
            assert (await refusal(method(request, metadata=metadata))).code == code


async def test_customers_may_not_see_or_refund_payments(service: Payments) -> None:
    payment_id, customer = str(uuid.uuid4()), tokens.as_user(uuid.uuid4())
    for call in (
        service.payments.GetPayment(pb.GetPaymentRequest(payment_id=payment_id), metadata=customer),
        service.payments.RefundPayment(
            pb.RefundPaymentRequest(payment_id=payment_id, reason="damaged", request_id=payment_id), metadata=customer
        ),
    ):
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            await call
        assert refused.value.code() is grpc.StatusCode.PERMISSION_DENIED
