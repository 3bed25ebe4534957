"""A customer pays through Razorpay: order, Checkout, callback, capture, and all that can go wrong in between."""

import uuid

import pytest

from services.payments.domain import State
from stampede.payments.v1 import payment_service_pb2 as pb
from tests.integration.payments.conftest import Payments, an_order
from tests.integration.payments.conftest import State as Status
from tests.integration.payments.razorpay.conftest import Razorpay
from tests.support.serving import refusal


async def test_an_order_waits_for_its_customer(razorpay: Razorpay) -> None:
    payment = await razorpay.begun()
    (order,) = await razorpay.orders(payment)
    assert order["id"] == payment.provider_reference
    assert (order["amount"], order["currency"], order["receipt"]) == (1999, "INR", str(payment.id))
    assert payment.client_secret is None
    assert (await razorpay.begun(order_id=str(payment.order_id))).id == payment.id, "a repeat finds it"
    assert len(await razorpay.orders(payment)) == 1


async def test_a_card_of_another_provider_is_not_sent(razorpay: Razorpay) -> None:
    """Razorpay charges no tokens: the order waits for its customer in the browser."""
    payment = await razorpay.begun(method="pm_card_visa")
    assert (payment.payment_method, payment.customer_pays) == (None, True)


async def test_a_callback_makes_the_money_be_captured(razorpay: Razorpay) -> None:
    payment = await razorpay.begun()
    answer = await razorpay.pay(payment)
    verified = await razorpay.verify(answer)
    assert (verified.order_id, verified.state) == (str(payment.order_id), pb.Payment.SUCCEEDED)
    (captured,) = await razorpay.payments(payment)
    assert captured["captured"]
    after = await razorpay.row(payment.id)
    assert (after.state, after.capture_reference) == (State.SUCCEEDED, answer["razorpay_payment_id"])
    assert await razorpay.service.published(str(payment.order_id)) == ["succeeded"]
    assert (await razorpay.verify(answer)).state == pb.Payment.SUCCEEDED, "safe to repeat"


async def test_a_callback_is_a_hint(razorpay: Razorpay) -> None:
    """A right signature of a payment that has failed pays nothing."""
    payment = await razorpay.begun()
    answer = await razorpay.pay(payment, "fail", reason="insufficient_funds")
    assert (await razorpay.verify(answer)).state == pb.Payment.AWAITING_CUSTOMER
    assert (await razorpay.row(payment.id)).failure_reason == "INSUFFICIENT_FUNDS"


@pytest.mark.parametrize("field", ["razorpay_order_id", "razorpay_payment_id", "razorpay_signature"])
async def test_a_callback_with_a_changed_field_is_refused(razorpay: Razorpay, field: str) -> None:
    payment = await razorpay.begun()
    answer = await razorpay.pay(payment)
    other = await razorpay.pay(await razorpay.begun())
    assert (await refusal(razorpay.verify(answer, **{field: other[field]}))).reason == "BAD_SIGNATURE"
    assert (await razorpay.row(payment.id)).state is State.AWAITING_CUSTOMER


async def test_a_callback_about_a_foreign_order_finds_no_payment(razorpay: Razorpay, service: Payments) -> None:
    payment = await razorpay.begun()
    answer = await razorpay.pay(payment)
    await service.rows("UPDATE payments SET provider_reference = 'order_other' WHERE id = :id", id=payment.id)
    assert (await refusal(razorpay.verify(answer))).reason == "PAYMENT_NOT_FOUND"


async def test_a_failed_payment_may_be_followed_by_a_captured_one(razorpay: Razorpay) -> None:
    payment = await razorpay.begun()
    await razorpay.pay(payment, "fail", reason="card_expired")
    await razorpay.reconcile()
    waiting = await razorpay.row(payment.id)
    assert (waiting.state, waiting.failure_reason) == (State.AWAITING_CUSTOMER, "EXPIRED_CARD")
    await razorpay.pay(payment)
    await razorpay.reconcile()
    paid = await razorpay.row(payment.id)
    assert (paid.state, paid.failure_reason) == (State.SUCCEEDED, "")
    assert [one["status"] for one in await razorpay.payments(payment)] == ["captured", "failed"]
    assert await razorpay.service.published(str(payment.order_id)) == ["succeeded"]


async def test_a_customer_who_has_begun_to_pay_is_authenticating(razorpay: Razorpay) -> None:
    payment = await razorpay.begun()
    await razorpay.pay(payment, "begin")
    await razorpay.reconcile()
    assert (await razorpay.row(payment.id)).authenticating


async def test_two_captured_payments_of_one_order_keep_the_first(razorpay: Razorpay) -> None:
    """Razorpay may capture by itself. The second payment is a stray charge, and goes back."""
    payment = await razorpay.begun()
    first, second = [await razorpay.pay(payment, "begin") for _ in range(2)]
    await razorpay.act(f"payments/{first['razorpay_payment_id']}/authorize", capture=True)
    await razorpay.reconcile()
    await razorpay.act(f"payments/{second['razorpay_payment_id']}/authorize", capture=True)
    await razorpay.service.walk_of("razorpay").walk_once(pause=0)
    await razorpay.apply_events()
    await razorpay.reconcile()
    assert (await razorpay.row(payment.id)).capture_reference == first["razorpay_payment_id"]
    refunds = [tuple(row) for row in await razorpay.refunds(payment)]
    assert refunds == [("SUCCEEDED", 1999, True, False, second["razorpay_payment_id"])]
    assert {p["id"]: p["status"] for p in await razorpay.payments(payment)} == {
        first["razorpay_payment_id"]: "captured", second["razorpay_payment_id"]: "refunded"
    }  # fmt: skip


async def test_a_late_authorisation_of_a_cancelled_payment_goes_back(razorpay: Razorpay) -> None:
    """The hold has ended, and the bank agrees a minute later: captured, because only that can be refunded."""
    payment = await razorpay.begun()
    late = await razorpay.pay(payment, "begin")
    (cancelled,) = await razorpay.service.cancel(an_order("", currency="INR", order_id=str(payment.order_id)))
    assert cancelled.state == Status.CANCELLED
    await razorpay.act(f"payments/{late['razorpay_payment_id']}/authorize")
    await razorpay.service.walk_of("razorpay").walk_once(pause=0)
    await razorpay.apply_events()
    await razorpay.reconcile()
    (gone,) = await razorpay.payments(payment)
    assert (gone["status"], gone["captured"]) == ("refunded", True)
    assert [tuple(row)[:3] for row in await razorpay.refunds(payment)] == [("SUCCEEDED", 1999, True)]
    assert (await razorpay.row(payment.id)).state is State.CANCELLED
    assert await razorpay.service.published(str(payment.order_id)) == ["cancelled"]


async def test_an_authorisation_that_goes_back_by_itself_leaves_nothing_to_do(razorpay: Razorpay) -> None:
    payment = await razorpay.begun()
    late = await razorpay.pay(payment, "begin")
    await razorpay.service.cancel(an_order("", currency="INR", order_id=str(payment.order_id)))
    for action in ("authorize", "expire"):
        await razorpay.act(f"payments/{late['razorpay_payment_id']}/{action}")
    await razorpay.service.walk_of("razorpay").walk_once(pause=0)
    await razorpay.apply_events()
    await razorpay.reconcile()
    assert not [row for row in await razorpay.refunds(payment) if row.state != "SUCCEEDED"]
    assert (await razorpay.row(payment.id)).state is State.CANCELLED


async def test_a_cancel_that_meets_authorised_money_captures_it(razorpay: Razorpay) -> None:
    """Paid in time, and the hold ended before anybody knew: the saga keeps or reverses money that is there."""
    payment = await razorpay.begun()
    await razorpay.pay(payment)
    (status,) = await razorpay.service.cancel(an_order("", currency="INR", order_id=str(payment.order_id)))
    assert status.state == Status.SUCCEEDED
    (reversed_,) = await razorpay.service.reverse(an_order("", currency="INR", order_id=str(payment.order_id)))
    assert reversed_.state == Status.REFUNDED
    (refunded,) = await razorpay.payments(payment)
    assert (refunded["captured"], refunded["amount_refunded"]) == (True, 1999)


async def test_a_lost_answer_about_the_order_makes_no_second_one(razorpay: Razorpay) -> None:
    await razorpay.sandbox.faults(drop_after_order={"next": 1})
    status = await razorpay.service.charged(an_order("", currency="INR"))
    assert status.state == Status.PROCESSING
    payment = await razorpay.row(status.payment_id)
    assert payment.provider_reference is None
    await razorpay.reconcile()
    after = await razorpay.row(payment.id)
    (order,) = await razorpay.orders(payment)
    assert (after.state, after.provider_reference) == (State.AWAITING_CUSTOMER, order["id"])


async def test_a_lost_answer_about_the_capture_captures_once(razorpay: Razorpay) -> None:
    payment = await razorpay.begun()
    answer = await razorpay.pay(payment)
    await razorpay.sandbox.faults(drop_after_charge={"next": 2})
    await razorpay.verify(answer)
    await razorpay.reconcile()
    assert (await razorpay.row(payment.id)).state is State.SUCCEEDED
    assert await razorpay.service.published(str(payment.order_id)) == ["succeeded"]


@pytest.mark.parametrize("fault", ["error_500", "rate_limit_429"])
async def test_a_failing_razorpay_is_asked_again(razorpay: Razorpay, fault: str) -> None:
    payment = await razorpay.begun()
    await razorpay.pay(payment)
    await razorpay.sandbox.faults(**{fault: True})
    await razorpay.reconcile()
    assert (await razorpay.row(payment.id)).state is State.AWAITING_CUSTOMER
    await razorpay.sandbox.faults(**{fault: False})
    await razorpay.reconcile()
    assert (await razorpay.row(payment.id)).state is State.SUCCEEDED


async def test_many_unknown_payments_are_found_in_one_walk(razorpay: Razorpay) -> None:
    await razorpay.sandbox.faults(drop_after_order=True)
    items = [an_order("", currency="INR") for _ in range(8)]
    outcomes = await razorpay.service.charge(*items)
    await razorpay.sandbox.faults(drop_after_order=False)
    assert {outcome.payment.state for outcome in outcomes} == {Status.PROCESSING}
    rows = [await razorpay.row(outcome.payment.payment_id) for outcome in outcomes]
    found = await razorpay.service.razorpay.find(rows)
    assert isinstance(found, dict)
    assert {key: result.reference for key, result in found.items()} == {
        row.id: (await razorpay.orders(row))[0]["id"] for row in rows
    }
    assert await razorpay.service.razorpay.find([]) == {}


async def test_an_order_that_razorpay_refuses_fails(razorpay: Razorpay) -> None:
    status = await razorpay.service.charged(an_order("", minor=0, currency="INR"))
    assert (status.state, status.failure_reason) == (Status.FAILED, "REFUSED_BY_PROVIDER")


async def test_an_order_that_razorpay_does_not_have_is_a_problem(razorpay: Razorpay) -> None:
    payment = await razorpay.begun()
    await razorpay.service.rows("UPDATE payments SET provider_reference = 'order_gone' WHERE id = :id", id=payment.id)
    await razorpay.reconcile()
    assert (await razorpay.row(payment.id)).problem == "MISSING_AT_PROVIDER"


async def test_a_new_process_goes_on_after_the_row_was_committed(razorpay: Razorpay) -> None:
    """Killed between the commit and the call, or between the answer and its use: another process does the rest."""
    for fault in (None, "drop_after_order"):
        if fault:
            await razorpay.sandbox.faults(**{fault: {"next": 1}})
        item = an_order("", currency="INR")
        row = (await razorpay.service.charge(item))[0].payment if fault else None
        if row is None:
            await razorpay.insert(item)
        (found,) = await razorpay.service.rows(
            "SELECT id FROM payments WHERE order_id = :id", id=uuid.UUID(item.order_id)
        )
        await razorpay.reconcile()
        after = await razorpay.row(found.id)
        assert after.state is State.AWAITING_CUSTOMER
        assert len(await razorpay.orders(after)) == 1
