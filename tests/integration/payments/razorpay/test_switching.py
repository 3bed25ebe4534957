"""A second provider takes over new payments in the middle of a sale. Each payment stays at its own."""

import uuid

from services.payments.dispatch import settle
from services.payments.dispatch.parked import list_parked
from services.payments.domain import Calls, State
from services.payments.providers.results import ChargeResult, ChargeStatus
from stampede.payments.v1 import charge_service_pb2 as charge_pb
from tests.integration.payments.conftest import Payments, Sandbox, an_order, another_attempt
from tests.integration.payments.conftest import State as Status
from tests.integration.payments.razorpay.conftest import Razorpay


async def _at_stripe(service: Payments, method: str) -> charge_pb.PaymentStatus:
    service.providers.default = service.providers["stripe"]
    return await service.charged(an_order(method))


async def test_each_payment_stays_at_its_provider(service: Payments, sandbox: Sandbox) -> None:
    paid, waiting = [await _at_stripe(service, method) for method in ("pm_card_visa", "")]
    assert (paid.provider, waiting.provider) == ("stripe", "stripe")

    razorpay = Razorpay(service, sandbox)
    new = await razorpay.begun(method="pm_card_visa")
    assert new.provider == "razorpay"
    await razorpay.verify(await razorpay.pay(new))

    # A payment that began at Stripe ends there: another card, a reversal, and a cancellation.
    another = another_attempt(an_order("", order_id=waiting.order_id), 1, "pm_card_visa")
    again = await service.charged(another)
    assert (again.provider, again.state, again.payment_id) == ("stripe", Status.SUCCEEDED, waiting.payment_id)
    for status in (paid, again):
        (reversed_,) = await service.reverse(an_order(order_id=status.order_id))
        assert (reversed_.provider, reversed_.state) == ("stripe", Status.REFUNDED)

    service.providers.default = service.providers["stripe"]
    (back,) = await service.reverse(an_order("", currency="INR", order_id=str(new.order_id)))
    assert (back.provider, back.state) == ("razorpay", Status.REFUNDED)
    (refunded,) = await razorpay.payments(new)
    assert refunded["amount_refunded"] == 1999


async def test_a_switch_while_the_first_provider_is_down_charges_nobody_twice(
    service: Payments, sandbox: Sandbox
) -> None:
    """An order whose charge got no answer waits for Stripe. A repeat after the switch does not go to Razorpay."""
    service.providers.default = service.providers["stripe"]
    await sandbox.faults(error_500=True)
    item = an_order("pm_card_visa")
    lost = await service.charged(item)
    assert lost.state == Status.PROCESSING
    razorpay = Razorpay(service, sandbox)
    assert service.providers.default is service.providers["razorpay"]
    repeated = await service.charged(item)
    assert (repeated.provider, repeated.payment_id) == ("stripe", lost.payment_id)
    await sandbox.faults(error_500=False)
    await razorpay.reconcile()
    assert (await service.payment(uuid.UUID(lost.payment_id))).state is State.SUCCEEDED
    assert len(await sandbox.intents(item.order_id)) == 1
    assert not (await razorpay.get(f"orders?receipt={lost.payment_id}"))["items"]


async def test_money_of_a_provider_that_is_not_set_up_is_parked(razorpay: Razorpay, service: Payments) -> None:
    """Somebody took Razorpay's key away too early. Operators see what waits for it; it goes on with the key."""
    paid, waits = await razorpay.begun(), await razorpay.begun()
    await razorpay.verify(await razorpay.pay(paid))
    service.providers.default = service.providers["stripe"]
    accounts = service.providers._by_name
    account = accounts.pop("razorpay")
    (reversing,) = await service.reverse(an_order("", currency="INR", order_id=str(paid.order_id)))
    assert (reversing.state, reversing.refunding.minor_units) == (Status.SUCCEEDED, 1999)
    (cancelling,) = await service.cancel(an_order("", currency="INR", order_id=str(waits.order_id)))
    assert cancelling.state == Status.AWAITING_CUSTOMER, "its customer may still pay it"
    new = await _at_stripe(service, "pm_card_visa")
    assert new.state == Status.SUCCEEDED, "the other provider goes on"
    await razorpay.reconcile()
    parked = await list_parked(service.db, most=10)
    assert {(one.kind, one.order_id, one.problem) for one in parked} == {
        ("refund", paid.order_id, "PROVIDER_NOT_SET_UP"), ("payment", waits.order_id, "PROVIDER_NOT_SET_UP"),
    }  # fmt: skip

    accounts["razorpay"] = account
    await razorpay.reconcile()

    assert await list_parked(service.db, most=10) == []
    assert (await razorpay.row(paid.id)).state is State.REFUNDED
    assert (await razorpay.row(waits.id)).state is State.CANCELLED


async def test_one_silent_provider_does_not_stop_the_other(service: Payments, sandbox: Sandbox) -> None:
    breaker = service.provider.limits.breaker
    while not breaker.is_open:
        breaker.note_failure()
    assert service.dispatcher.silent_providers == ["stripe"]
    silent = await _at_stripe(service, "pm_card_visa")
    assert silent.state == Status.PROCESSING, "it is not sent, and waits"
    assert not await sandbox.intents(silent.order_id)
    razorpay = Razorpay(service, sandbox)
    payment = await razorpay.begun()
    await razorpay.verify(await razorpay.pay(payment))
    assert (await razorpay.row(payment.id)).state is State.SUCCEEDED
    assert breaker.is_open
    breaker.note_answer()
    await razorpay.reconcile()
    assert (await service.payment(uuid.UUID(silent.payment_id))).state is State.SUCCEEDED


async def test_a_payment_at_a_silent_provider_can_be_cancelled(service: Payments, sandbox: Sandbox) -> None:
    """Nothing was sent, so no money can move: the units need not wait for the provider."""
    breaker = service.provider.limits.breaker
    while not breaker.is_open:
        breaker.note_failure()
    item = an_order("pm_card_visa")
    service.providers.default = service.providers["stripe"]
    assert (await service.charged(item)).state == Status.PROCESSING
    await sandbox.faults(error_500={"next": 100})  # its lists fail too
    (status,) = await service.cancel(item)
    razorpay = Razorpay(service, sandbox)
    await razorpay.reconcile()
    row = await service.payment(uuid.UUID(status.payment_id))
    assert row.state is State.CANCELLED
    await sandbox.control("DELETE", "faults")
    breaker.note_answer()
    await razorpay.reconcile()
    assert not await sandbox.intents(item.order_id)


async def test_a_payment_that_another_process_has_sent_is_not_called_unsent(service: Payments) -> None:
    """A process that stood still says that its call was not sent; meanwhile another one has claimed the payment."""
    breaker = service.provider.limits.breaker
    while not breaker.is_open:
        breaker.note_failure()
    service.providers.default = service.providers["stripe"]
    status = await service.charged(an_order("pm_card_visa"))
    key = uuid.UUID(status.payment_id)
    assert await service.rows("SELECT sent FROM payments WHERE id = :id", id=key) == [(False,)]
    read = await service.payment(key)
    await service.rows("UPDATE payments SET sent = true, checks = checks + 1 WHERE id = :id", id=key)
    unsent = ChargeResult(payment_id=key, status=ChargeStatus.UNKNOWN, has_ended=True, was_sent=False, calls=Calls())
    await settle.settle_charges(service.db, [(read, unsent)])
    assert await service.rows("SELECT sent FROM payments WHERE id = :id", id=key) == [(True,)]
