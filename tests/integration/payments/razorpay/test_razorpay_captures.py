"""Manual capture at Razorpay: authorised money waits for staff there too, and it cannot be voided."""

import pytest

from services.payments.domain import Capture, State
from stampede.payments.v1 import payment_service_pb2 as pb
from tests.integration.payments.attempts.test_payments_captures import capture, refused, void
from tests.integration.payments.conftest import Payments, Sandbox, an_order
from tests.integration.payments.razorpay.conftest import Razorpay


@pytest.fixture
def razorpay(service: Payments, sandbox: Sandbox) -> Razorpay:
    service.charging.capture_of_new = Capture.MANUAL
    return Razorpay(service, sandbox)


async def paid(razorpay: Razorpay) -> tuple[str, str]:
    """Return the ids of a payment whose money is set aside, here and at Razorpay."""
    payment = await razorpay.begun()
    answer = await razorpay.pay(payment)
    assert (await razorpay.verify(answer)).state == pb.Payment.AUTHORIZED
    return str(payment.id), answer["razorpay_payment_id"]


async def status_there(razorpay: Razorpay, payment_id: str) -> str:
    (made,) = await razorpay.payments(await razorpay.row(payment_id))
    return str(made["status"])


async def test_money_waits_for_staff(razorpay: Razorpay) -> None:
    payment_id, _ = await paid(razorpay)
    await razorpay.reconcile()
    assert await status_there(razorpay, payment_id) == "authorized"
    assert (await capture(razorpay.service, payment_id)).state == pb.Payment.SUCCEEDED
    assert await status_there(razorpay, payment_id) == "captured"


async def test_void_is_refused_and_changes_nothing(razorpay: Razorpay) -> None:
    payment_id, _ = await paid(razorpay)
    assert await refused(void(razorpay.service, payment_id)) == "VOID_NOT_SUPPORTED"
    assert (await capture(razorpay.service, payment_id)).state == pb.Payment.SUCCEEDED


async def test_reversal_captures_and_refunds(razorpay: Razorpay) -> None:
    payment_id, _ = await paid(razorpay)
    order_id = str((await razorpay.row(payment_id)).order_id)
    item = an_order("", currency="INR", order_id=order_id)
    for _ in range(3):
        await razorpay.service.reverse(item)
        await razorpay.reconcile()
    row = await razorpay.row(payment_id)
    assert (row.state, row.refunded_minor) == (State.REFUNDED, 1999)


async def test_authorisation_that_lapses_ends_the_payment(razorpay: Razorpay) -> None:
    payment_id, reference = await paid(razorpay)
    await razorpay.act(f"payments/{reference}/expire")
    await razorpay.reconcile()
    row = await razorpay.row(payment_id)
    assert (row.state, row.failure_reason, row.refunded_minor) == (State.CANCELLED, "AUTHORIZATION_ENDED", 0)
    assert await refused(capture(razorpay.service, payment_id)) == "AUTHORIZATION_ENDED"
