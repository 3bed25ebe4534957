"""Refunds at Razorpay: once, whatever is lost; found when people made them; and those that fail later."""

import pytest

from services.payments.domain import Payment, State
from stampede.payments.v1 import payment_service_pb2 as pb
from stampede.type.v1 import money_pb2
from tests.integration.payments.conftest import State as Status
from tests.integration.payments.conftest import an_order
from tests.integration.payments.razorpay.conftest import Razorpay
from tests.support import tokens
from tests.support.serving import refusal


async def _paid(razorpay: Razorpay) -> Payment:
    payment = await razorpay.begun()
    await razorpay.verify(await razorpay.pay(payment))
    paid = await razorpay.row(payment.id)
    assert paid.state is State.SUCCEEDED
    return paid


async def _refund(razorpay: Razorpay, payment: Payment, minor: int | None, request_id: str) -> pb.Payment:
    amount = money_pb2.Money(currency_code="INR", minor_units=minor) if minor else None
    request = pb.RefundPaymentRequest(
        payment_id=str(payment.id), amount=amount, full=minor is None, reason="broken", request_id=request_id
    )
    return await razorpay.service.payments.RefundPayment(request, metadata=_STAFF)


_STAFF = tokens.as_staff()
_FIRST, _SECOND = "018f0000-0000-7000-8000-00000000000a", "018f0000-0000-7000-8000-00000000000b"


async def test_parts_and_the_rest_are_refunded_once(razorpay: Razorpay) -> None:
    payment = await _paid(razorpay)
    for _ in range(2):
        refunded = await _refund(razorpay, payment, 500, _FIRST)
        assert (refunded.refunded.minor_units, refunded.state) == (500, pb.Payment.SUCCEEDED)
    assert (await _refund(razorpay, payment, None, _SECOND)).state == pb.Payment.REFUNDED
    listed = (await razorpay.get(f"payments/{payment.capture_reference}/refunds"))["items"]
    assert sorted(one["amount"] for one in listed) == [500, 1499]
    assert all(one["notes"]["payment_id"] == str(payment.id) for one in listed)


async def test_a_refund_whose_answer_is_lost_keeps_its_key(razorpay: Razorpay) -> None:
    payment = await _paid(razorpay)
    await razorpay.sandbox.faults(drop_after_refund={"next": 2})
    await _refund(razorpay, payment, 500, _FIRST)
    await razorpay.reconcile()
    assert (await razorpay.row(payment.id)).refunded_minor == 500
    assert len((await razorpay.get(f"payments/{payment.capture_reference}/refunds"))["items"]) == 1


async def test_a_refund_whose_key_answers_500_is_looked_up(razorpay: Razorpay) -> None:
    """The key answers 500 for ever; Razorpay has no such refund; a new key makes it once."""
    payment = await _paid(razorpay)
    await razorpay.sandbox.faults(error_500={"next": 1, "saved": True}, error_500_on="POST refund")
    await _refund(razorpay, payment, 500, _FIRST)
    await razorpay.service.rows(
        "UPDATE refunds SET attempt_time = now() - interval '1 hour', checks = 5, unanswered_time = NULL"
    )
    for _ in range(3):
        await razorpay.reconcile()
    assert (await razorpay.row(payment.id)).refunded_minor == 500
    assert len((await razorpay.get(f"payments/{payment.capture_reference}/refunds"))["items"]) == 1


async def test_a_refund_that_waits_ends_later(razorpay: Razorpay) -> None:
    payment = await _paid(razorpay)
    await razorpay.sandbox.faults(pending_refunds={"next": 1})
    await _refund(razorpay, payment, 500, _FIRST)
    assert (await razorpay.row(payment.id)).refunding_minor == 500
    (made,) = (await razorpay.get(f"payments/{payment.capture_reference}/refunds"))["items"]
    await razorpay.act(f"refunds/{made['id']}/process")
    await razorpay.reconcile()
    after = await razorpay.row(payment.id)
    assert (after.refunded_minor, after.refunding_minor) == (500, 0)


@pytest.mark.parametrize("by", ["people", "bank"])
async def test_refunds_that_no_call_of_ours_changed_are_found(razorpay: Razorpay, by: str) -> None:
    """Razorpay lists no events, so its refunds are listed: one that people made, and one that failed afterwards."""
    payment = await _paid(razorpay)
    if by == "people":
        await razorpay.act(f"payments/{payment.capture_reference}/refund", amount=700)
    else:
        await _refund(razorpay, payment, 700, _FIRST)
        (made,) = (await razorpay.get(f"payments/{payment.capture_reference}/refunds"))["items"]
        await razorpay.act(f"refunds/{made['id']}/fail")
    await razorpay.service.walk_of("razorpay").walk_once(pause=0)
    await razorpay.apply_events()
    await razorpay.reconcile()
    (row,) = await razorpay.refunds(payment)
    assert (row.state, row.external) == (("SUCCEEDED", True) if by == "people" else ("FAILED", False))
    assert (await razorpay.row(payment.id)).refunded_minor == (700 if by == "people" else 0)
    published = await razorpay.service.published(str(payment.order_id))
    assert published[-1] == ("refunded" if by == "people" else "refund_failed")


async def test_a_refund_that_razorpay_refuses_is_an_error(razorpay: Razorpay) -> None:
    """People have refunded it at the dashboard, and no event has said so yet."""
    payment = await _paid(razorpay)
    await razorpay.act(f"payments/{payment.capture_reference}/refund")
    refused = await refusal(_refund(razorpay, payment, 500, _FIRST))
    assert refused.reason == "REFUND_REFUSED"
    await razorpay.reconcile()
    assert (await razorpay.row(payment.id)).state is State.REFUNDED, "the list of refunds was read"


async def test_a_reversal_gives_all_back(razorpay: Razorpay) -> None:
    payment = await _paid(razorpay)
    item = an_order("", currency="INR", order_id=str(payment.order_id))
    (reversed_,) = await razorpay.service.reverse(item)
    assert reversed_.state == Status.REFUNDED
    assert (await razorpay.service.reverse(item))[0].state == Status.REFUNDED, "safe to repeat"


async def test_a_dispute_is_recorded(razorpay: Razorpay) -> None:
    payment = await _paid(razorpay)
    opened = await razorpay.act(f"payments/{payment.capture_reference}/dispute")
    for status in ("open", "lost"):
        if status == "lost":
            await razorpay.act(f"disputes/{opened['id']}/decide", outcome="lost")
        await razorpay.service.walk_of("razorpay").walk_once(pause=0)
        await razorpay.apply_events()
        await razorpay.reconcile()
        (row,) = await razorpay.service.rows(
            "SELECT provider, reference, payment_id, status, state, amount_minor, withdrawn_minor FROM disputes"
        )
        state, taken = ("NEEDS_RESPONSE", 0) if status == "open" else ("LOST", 1999)
        assert tuple(row) == ("razorpay", opened["id"], payment.id, status.upper(), state, 1999, taken)
    moved = await razorpay.service.rows("SELECT kind, debit, credit, amount_minor FROM journal_entries ORDER BY id")
    assert [tuple(row) for row in moved][1:] == [
        ("DISPUTED", "disputes", "provider:razorpay", 1999),
        ("DISPUTE_LOST", "disputes_lost", "disputes", 1999),
    ]
