"""Attempts that change the provider: one of them takes money, and money of the other one goes back."""

import time
import uuid

import pytest

from services.payments.domain import State
from stampede.payments.v1 import charge_service_pb2 as charge_pb
from tests.integration.payments.conftest import Payments, Sandbox, an_order, another_attempt
from tests.integration.payments.conftest import State as Status
from tests.integration.payments.razorpay.conftest import INR, Razorpay
from tests.support.waiting import until


@pytest.fixture
def razorpay(running: Payments, sandbox: Sandbox) -> Razorpay:
    """With background loops and webhooks; new payments begin at Stripe."""
    razorpay = Razorpay(running, sandbox)
    running.providers.default = running.providers["stripe"]
    return razorpay


async def at_razorpay(service: Payments, item: charge_pb.Charge, number: int) -> charge_pb.PaymentStatus:
    status = await service.charged(another_attempt(item, number, provider="razorpay"))
    assert (status.state, status.provider, status.attempt) == (Status.AWAITING_CUSTOMER, "razorpay", number)
    return status


async def test_customer_of_one_provider_pays_at_the_other(
    running: Payments, sandbox: Sandbox, razorpay: Razorpay
) -> None:
    item = an_order("", currency=INR)
    first = await running.charged(item)
    assert (first.provider, first.provider_order_id) == ("stripe", "")

    waits = await at_razorpay(running, item, 1)

    (intent,) = await sandbox.intents(item.order_id)
    assert intent["status"] == "canceled", "Stripe's charge can take no money any more"
    payment = await razorpay.row(waits.payment_id)
    assert (waits.client_secret, waits.provider_order_id) == ("", payment.provider_reference)
    await razorpay.verify(await razorpay.pay(payment))
    await running.reaches(waits.payment_id, Status.SUCCEEDED)
    (back,) = await running.reverse(item)
    assert (back.provider, back.state) == ("razorpay", Status.REFUNDED)
    (refunded,) = await razorpay.payments(payment)
    assert refunded["amount_refunded"] == 1999


async def test_former_provider_is_paid_too_late(running: Payments, sandbox: Sandbox, razorpay: Razorpay) -> None:
    """Razorpay cannot void: its order may be paid in an old tab. Its event names only that order."""
    item = an_order("", currency=INR)
    former = await razorpay.row((await at_razorpay(running, item, 1)).payment_id)
    paid = await running.charged(another_attempt(item, 2, "pm_card_visa", provider="stripe"))
    assert (paid.state, paid.provider, paid.provider_order_id) == (Status.SUCCEEDED, "stripe", "")

    await razorpay.pay(former)

    async def gone_back() -> bool:
        found = await running.rows("SELECT provider, state, stray FROM refunds")
        return [tuple(row) for row in found] == [("razorpay", "SUCCEEDED", True)]

    await until(gone_back)
    assert [one["amount_refunded"] for one in await razorpay.payments(former)] == [1999]
    kept = await running.payment(uuid.UUID(paid.payment_id))
    assert (kept.state, kept.refunded_minor) == (State.SUCCEEDED, 0)


async def test_second_order_at_razorpay_is_a_new_one(running: Payments, sandbox: Sandbox, razorpay: Razorpay) -> None:
    """Also if the answer about it is lost: both have the payment's id as their receipt."""
    item = an_order("", currency=INR)
    before = await at_razorpay(running, item, 1)
    former = before.provider_order_id
    (order,) = await razorpay.orders(await razorpay.row(before.payment_id))
    declined = await running.charged(another_attempt(item, 2, "pm_card_chargeDeclined", provider="stripe"))
    assert (declined.state, declined.provider) == (Status.AWAITING_CUSTOMER, "stripe")
    await sandbox.faults(drop_after_order={"next": 1})

    async def later() -> bool:
        return time.time() > order["created_at"] + 1  # its times are whole seconds: the former order is the older one

    await until(later)
    await running.charged(another_attempt(item, 3, provider="razorpay"))

    async def begun() -> charge_pb.PaymentStatus | None:
        now = await running.charged(item)
        return now if now.state == Status.AWAITING_CUSTOMER and now.provider == "razorpay" else None

    waits = await until(begun)
    assert waits.provider_order_id not in ("", former)
    assert len(await razorpay.orders(await razorpay.row(waits.payment_id))) == 2
