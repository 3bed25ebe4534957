"""Razorpay's webhooks: signed, stored once each, hints only, and harmless in any order."""

import hashlib
import hmac
import json
import time
from typing import Any

from services.payments.domain import State
from stampede.payments.v1 import payment_service_pb2 as pb
from tests.integration.payments.conftest import RAZORPAY_WEBHOOK_SECRET, Payments
from tests.integration.payments.razorpay.conftest import Razorpay
from tests.support.serving import refusal
from tests.support.waiting import until


async def _send(
    razorpay: Razorpay, event: dict[str, Any], event_id: str, *, secret: str = RAZORPAY_WEBHOOK_SECRET
) -> None:
    body = json.dumps(event).encode()
    signature = hmac.new(secret.encode(), body, hashlib.sha256).hexdigest()
    await razorpay.service.razorpay_webhook(body, signature, event_id)


def _event(kind: str, payment: dict[str, Any]) -> dict[str, Any]:
    return {
        "entity": "event", "event": kind, "account_id": "acc_1", "created_at": int(time.time()),
        "contains": ["payment"], "payload": {"payment": {"entity": payment}},
    }  # fmt: skip


async def test_a_payment_in_checkout_is_captured_by_its_webhook(running_razorpay: Razorpay) -> None:
    """No callback: the customer has closed the page."""
    payment = await running_razorpay.begun()
    await running_razorpay.pay(payment)
    await running_razorpay.service.reaches(str(payment.id), pb.Payment.SUCCEEDED)
    (captured,) = await running_razorpay.payments(payment)
    assert captured["captured"]
    assert await running_razorpay.service.published(str(payment.order_id)) == ["succeeded"]


async def test_duplicate_and_disordered_webhooks_change_nothing(running_razorpay: Razorpay) -> None:
    razorpay = running_razorpay
    await razorpay.sandbox.faults(webhooks={"duplicate": True, "reorder": True})
    payment = await razorpay.begun()
    await razorpay.pay(payment, "fail")
    await razorpay.pay(payment)
    await razorpay.service.reaches(str(payment.id), pb.Payment.SUCCEEDED)
    paid = await razorpay.row(payment.id)
    await razorpay.act(f"payments/{paid.capture_reference}/refund", amount=300)

    async def refunded() -> bool:
        return (await razorpay.row(payment.id)).refunded_minor == 300

    await until(refunded)

    async def all_done() -> bool:
        left = "SELECT count(*) FROM provider_events WHERE processed_time IS NULL OR error IS NOT NULL"
        return (await razorpay.service.rows(left))[0][0] == 0

    await until(all_done)
    assert await razorpay.service.published(str(payment.order_id)) == ["succeeded", "refunded"]
    assert len(await razorpay.refunds(payment)) == 1


async def test_an_event_is_stored_once_by_its_id(razorpay: Razorpay) -> None:
    payment = await razorpay.begun()
    answer = await razorpay.pay(payment)
    for event_id in ("Event00001", "Event00001", "Event00002"):
        await _send(razorpay, _event("payment.authorized", answer["payment"]), event_id)
    stored = await razorpay.service.rows("SELECT event_id FROM provider_events ORDER BY event_id")
    assert [row.event_id for row in stored] == ["Event00001", "Event00002"]


async def test_forged_and_mistaken_events_are_refused(razorpay: Razorpay) -> None:
    payment = await razorpay.begun()
    answer = await razorpay.pay(payment, "begin")
    event = _event("payment.captured", {**answer["payment"], "status": "captured", "captured": True})
    assert (await refusal(_send(razorpay, event, "Event00001", secret="another"))).reason == "BAD_SIGNATURE"
    assert (await refusal(_send(razorpay, event, ""))).reason == "INVALID_FIELDS"
    event["payload"]["payment"]["entity"]["amount"] = None
    assert (await refusal(_send(razorpay, event, "Event00001"))).reason == "INVALID_FIELDS"
    assert not await razorpay.service.rows("SELECT 1 FROM provider_events")


async def test_an_event_that_razorpay_denies_moves_no_payment(razorpay: Razorpay) -> None:
    payment = await razorpay.begun()
    answer = await razorpay.pay(payment, "begin")
    claimed = {**answer["payment"], "status": "captured", "captured": True}
    await _send(razorpay, _event("payment.captured", claimed), "Event00001")
    await razorpay.apply_events()
    assert (await razorpay.row(payment.id)).state is State.AWAITING_CUSTOMER
    (parked,) = await razorpay.service.rows("SELECT error, processed_time FROM provider_events")
    assert parked.error == "NOT_CONFIRMED"


async def test_an_event_of_the_other_mode_moves_no_payment(razorpay: Razorpay) -> None:
    """Its payment is unknown to the key of this mode. Razorpay's events do not name their mode."""
    payment = await razorpay.begun()
    answer = await razorpay.pay(payment, "begin")
    other = {**answer["payment"], "id": "pay_of_the_test_mode", "status": "captured", "captured": True}
    await _send(razorpay, _event("payment.captured", other), "Event00001")
    await razorpay.apply_events()
    assert (await razorpay.row(payment.id)).state is State.AWAITING_CUSTOMER
    (parked,) = await razorpay.service.rows("SELECT error FROM provider_events")
    assert parked.error == "NO_SUCH_CHARGE"


async def test_another_amount_is_not_believed(razorpay: Razorpay) -> None:
    payment = await razorpay.begun()
    answer = await razorpay.pay(payment)
    for number, changed in enumerate(({"amount": 1}, {"currency": "USD"})):
        await _send(razorpay, _event("payment.authorized", {**answer["payment"], **changed}), f"Event0000{number}")
    await razorpay.service.rows("UPDATE payments SET amount_minor = 5000 WHERE id = :id", id=payment.id)
    await razorpay.apply_events()
    await razorpay.reconcile()
    assert (await razorpay.row(payment.id)).state is State.AWAITING_CUSTOMER
    causes = await razorpay.service.rows("SELECT DISTINCT error FROM provider_events")
    assert [row.error for row in causes] == ["OTHER_AMOUNT"]


async def test_an_event_before_its_row_is_kept(razorpay: Razorpay, service: Payments) -> None:
    """The webhook is faster than the commit: the event waits, and is applied once the payment is there."""
    payment = await razorpay.begun()
    reference = payment.provider_reference
    answer = await razorpay.pay(payment)
    await service.rows("UPDATE payments SET provider_reference = NULL WHERE id = :id", id=payment.id)
    await _send(razorpay, _event("payment.authorized", answer["payment"]), "Event00001")
    await razorpay.apply_one()
    (waiting,) = await service.rows("SELECT error, processed_time FROM provider_events")
    assert (waiting.error, waiting.processed_time) == ("UNKNOWN_PAYMENT", None)
    await service.rows("UPDATE payments SET provider_reference = :ref WHERE id = :id", id=payment.id, ref=reference)
    await razorpay.apply_events()
    await razorpay.reconcile()
    assert (await razorpay.row(payment.id)).state is State.SUCCEEDED
