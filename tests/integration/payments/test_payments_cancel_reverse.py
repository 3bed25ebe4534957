"""Giving up and paying back: before, during and after the charge."""

import asyncio
import uuid

import grpc
import pytest

from stampede.payments.v1 import charge_service_pb2 as charge_pb
from stampede.payments.v1 import payment_service_pb2 as pb
from stampede.type.v1 import money_pb2
from tests.integration.payments.conftest import ORDERS, Payments, Sandbox, State, an_order, until
from tests.support import tokens
from tests.support.serving import refusal


async def test_a_charge_after_a_cancel_never_reaches_the_provider(service: Payments, sandbox: Sandbox) -> None:
    item = an_order()
    (cancelled,) = await service.cancel(item)
    assert cancelled.state == State.CANCELLED
    assert (await service.charged(item)).state == State.CANCELLED
    assert (await service.cancel(item))[0] == cancelled
    assert await sandbox.intents(item.order_id) == []
    assert await service.published(item.order_id) == ["cancelled"]


async def test_cancelling_what_waits_for_the_customer_closes_the_intent(service: Payments, sandbox: Sandbox) -> None:
    item = an_order("")
    await service.charged(item)
    (cancelled,) = await service.cancel(item)
    assert (cancelled.state, cancelled.client_secret) == (State.CANCELLED, "")
    assert [i["status"] for i in await sandbox.intents(item.order_id)] == ["canceled"]
    assert await service.published(item.order_id) == ["cancelled"]


async def test_cancelling_what_was_paid_meanwhile_says_so(service: Payments, sandbox: Sandbox) -> None:
    item = an_order("pm_card_authenticationRequired")
    await service.charged(item)
    (intent,) = await sandbox.intents(item.order_id)
    await sandbox.control("POST", f"payment_intents/{intent['id']}/authenticate", {"outcome": "succeed"})
    (payment,) = await service.cancel(item)  # no webhook was heard: the provider refuses, and is asked
    assert payment.state == State.SUCCEEDED
    assert await service.published(item.order_id) == ["succeeded"]


async def test_cancelling_during_the_charge_answers_processing_and_the_money_is_told(
    service: Payments, sandbox: Sandbox
) -> None:
    await sandbox.faults(latency_ms={"fixed": 600, "jitter": 0})
    item = an_order()
    charging = asyncio.create_task(service.charged(item))

    async def begun() -> bool:
        return bool(await service.rows("SELECT 1 FROM payments"))

    await until(begun)
    assert (await service.cancel(item))[0].state == State.PROCESSING
    assert (await charging).state == State.SUCCEEDED
    assert (await service.cancel(item))[0].state == State.SUCCEEDED
    assert await service.published(item.order_id) == ["succeeded"]


async def test_cancelling_during_a_charge_that_asks_for_the_customer_cancels_it(
    service: Payments, sandbox: Sandbox
) -> None:
    await sandbox.faults(latency_ms={"fixed": 400, "jitter": 0})
    item = an_order("pm_card_authenticationRequired")
    charging = asyncio.create_task(service.charged(item))

    async def begun() -> bool:
        return bool(await service.rows("SELECT 1 FROM payments"))

    await until(begun)
    await service.cancel(item)
    assert (await charging).state == State.CANCELLED
    assert [i["status"] for i in await sandbox.intents(item.order_id)] == ["canceled"]


async def test_a_race_of_charge_and_cancel_leaves_one_truth(service: Payments, sandbox: Sandbox) -> None:
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


async def test_a_provider_away_while_cancelling_is_asked_again(service: Payments, sandbox: Sandbox) -> None:
    item = an_order("")
    payment = await service.charged(item)
    await sandbox.faults(error_500=True)
    (waiting,) = await service.cancel(item)
    assert waiting.state == State.AWAITING_CUSTOMER
    await sandbox.control("DELETE", "faults")
    service.start_loops()
    await service.reaches(payment.payment_id, State.CANCELLED)


async def test_a_refund_pays_back_once(service: Payments, sandbox: Sandbox) -> None:
    item = an_order()
    await service.charged(item)
    (first,) = await service.reverse(item)
    (second,) = await service.reverse(item)
    assert first.state == second.state == State.REFUNDED
    (intent,) = await sandbox.intents(item.order_id)
    assert [r["amount"] for r in await sandbox.refunds(intent["id"])] == [1999]
    assert await service.published(item.order_id) == ["succeeded", "refunded"]


async def test_refunding_what_was_never_paid_cancels_it(service: Payments) -> None:
    never, waiting, paid = an_order(), an_order(""), an_order()
    await service.charge(waiting, paid)
    outcomes = await service.reverse(never, waiting, paid)
    assert [o.state for o in outcomes] == [State.CANCELLED, State.CANCELLED, State.REFUNDED]


async def test_a_refund_whose_answer_is_lost_is_repeated_and_pays_once(service: Payments, sandbox: Sandbox) -> None:
    item = an_order()
    payment = await service.charged(item)
    await sandbox.faults(drop_after_refund={"next": 1})
    refunding = asyncio.create_task(service.reverse(item))
    (intent,) = await sandbox.intents(item.order_id)

    async def dropped() -> bool:
        return bool(await sandbox.refunds(intent["id"]))

    await until(dropped)
    await sandbox.faults(rate_limit_429=True)
    assert (await refunding)[0].state == State.SUCCEEDED
    await sandbox.control("DELETE", "faults")
    service.start_loops()
    await service.reaches(payment.payment_id, State.REFUNDED)
    assert len(await sandbox.refunds(intent["id"])) == 1
    assert await service.published(item.order_id) == ["succeeded", "refunded"]


async def test_an_old_refund_is_looked_up_before_it_is_repeated(service: Payments, sandbox: Sandbox) -> None:
    item = an_order()
    payment = await service.charged(item)
    await service.reverse(item)
    # As after an outage of two days: done at the provider, under a key that it has forgotten.
    await service.rows("UPDATE payments SET state = 'SUCCEEDED', refunded_minor = 0, refunding_minor = 1999")
    await service.rows(
        "UPDATE refunds SET state = 'PENDING', provider_reference = NULL, next_check_time = now(),"
        " create_time = now() - interval '2 days'"
    )
    service.start_loops()
    await service.reaches(payment.payment_id, State.REFUNDED)
    (intent,) = await sandbox.intents(item.order_id)
    assert len(await sandbox.refunds(intent["id"])) == 1


def _part(payment_id: str, minor: int | None, request_id: str = "", currency: str = "USD") -> pb.RefundPaymentRequest:
    amount = None if minor is None else money_pb2.Money(currency_code=currency, minor_units=minor)
    return pb.RefundPaymentRequest(
        payment_id=payment_id, amount=amount, reason="damaged", request_id=request_id or str(uuid.uuid4())
    )


async def test_staff_refund_parts_and_a_repeat_pays_back_once(service: Payments, sandbox: Sandbox) -> None:
    item, staff = an_order(), tokens.as_staff()
    payment_id = (await service.charged(item)).payment_id
    request = _part(payment_id, 500)
    for _ in range(2):
        payment = await service.payments.RefundPayment(request, metadata=staff)
        assert (payment.state, payment.refunded.minor_units) == (pb.Payment.SUCCEEDED, 500)
    request.amount.minor_units = 600
    assert (await refusal(service.payments.RefundPayment(request, metadata=staff))).reason == "REQUEST_ID_REUSED"
    rest = await service.payments.RefundPayment(_part(payment_id, None), metadata=staff)
    assert (rest.state, rest.refunded.minor_units) == (pb.Payment.REFUNDED, 1999)
    too_much = await refusal(service.payments.RefundPayment(_part(payment_id, None), metadata=staff))
    assert (too_much.code, too_much.reason) == ("FAILED_PRECONDITION", "REFUND_TOO_LARGE")
    assert await service.published(item.order_id) == ["succeeded", "refunded", "refunded"]
    (intent,) = await sandbox.intents(item.order_id)
    assert sorted(r["amount"] for r in await sandbox.refunds(intent["id"])) == [500, 1499]


async def test_concurrent_refunds_never_exceed_the_payment(service: Payments, sandbox: Sandbox) -> None:
    item, staff = an_order(minor=1000), tokens.as_staff()
    payment_id = (await service.charged(item)).payment_id
    outcomes = await asyncio.gather(
        *(service.payments.RefundPayment(_part(payment_id, 300), metadata=staff) for _ in range(10)),
        return_exceptions=True,
    )
    assert sum(isinstance(o, pb.Payment) for o in outcomes) == 3
    assert (await service.get(payment_id)).refunded.minor_units == 900
    (intent,) = await sandbox.intents(item.order_id)
    assert sum(r["amount"] for r in await sandbox.refunds(intent["id"])) == 900


async def test_what_cannot_be_refunded_is_refused(service: Payments) -> None:
    staff = tokens.as_staff()
    waiting = (await service.charged(an_order(""))).payment_id
    paid = (await service.charged(an_order())).payment_id
    refund = service.payments.RefundPayment
    for request, reason in (
        (_part(waiting, None), "WRONG_STATE"),
        (_part(str(uuid.uuid4()), None), "PAYMENT_NOT_FOUND"),
        (_part(paid, 2000), "REFUND_TOO_LARGE"),
        (_part(paid, 0), "INVALID_FIELDS"),
        (_part(paid, 5, currency="EUR"), "INVALID_FIELDS"),
    ):
        assert (await refusal(refund(request, metadata=staff))).reason == reason


@pytest.mark.parametrize("method", ["GetPayment", "RefundPayment"])
async def test_customers_see_and_refund_nothing(service: Payments, method: str) -> None:
    request = (
        pb.GetPaymentRequest(payment_id=str(uuid.uuid4())) if method == "GetPayment" else _part(str(uuid.uuid4()), None)
    )
    refused = await refusal(getattr(service.payments, method)(request, metadata=tokens.as_user(uuid.uuid4())))
    assert refused.code == "PERMISSION_DENIED"


async def test_only_orders_may_cancel_and_refund(service: Payments) -> None:
    for method, request in (
        (service.charges.BatchCancel, charge_pb.BatchCancelRequest(charges=[an_order()])),
        (service.charges.BatchReverse, charge_pb.BatchReverseRequest(charges=[an_order()])),
    ):
        for metadata in (tokens.as_service("gateway"), tokens.as_user(uuid.uuid4())):
            with pytest.raises(grpc.aio.AioRpcError):
                await method(request, metadata=metadata)
    assert ORDERS
