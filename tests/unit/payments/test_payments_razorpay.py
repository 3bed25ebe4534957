"""Razorpay's objects and signed events, parsed at the door, and what they mean for a payment."""

import hashlib
import hmac
import json
from typing import Any

import pytest

from services.chassis.errors import InvalidFields
from services.payments.domain import BadSignature, RefundState
from services.payments.providers.events import EventKind, ProviderEvent
from services.payments.providers.razorpay import reading
from services.payments.providers.razorpay.declines import decline_reason
from services.payments.providers.razorpay.objects import RazorpayPayment
from services.payments.providers.razorpay.signatures import Signatures
from services.payments.providers.razorpay.webhook import RazorpayWebhook
from services.payments.providers.results import ChargeStatus
from tests.unit.payments.test_payments_domain import a_payment

_OLD, _NEW = "hooks_before_the_rotation", "hooks_after_the_rotation"
_NOW = 1_800_000_000
_PAYMENT: dict[str, Any] = {
    "id": "pay_1", "amount": 1999, "currency": "INR", "status": "captured", "order_id": "order_1", "captured": True,
    "notes": [], "created_at": _NOW, "error_reason": None,
}  # fmt: skip
_REFUND: dict[str, Any] = {
    "id": "rfnd_1", "amount": 500, "payment_id": "pay_1", "status": "processed", "created_at": _NOW,
    "notes": {"payment_id": "018f0000-0000-7000-8000-000000000001", "refund_id": "x", "attempt": "1"},
}  # fmt: skip
_DISPUTE: dict[str, Any] = {
    "id": "disp_1", "payment_id": "pay_1", "amount": 1999, "currency": "INR", "status": "open",
    "reason_code": "fraudulent", "created_at": _NOW,
}  # fmt: skip


def _event(kind: str, payload: dict[str, Any], /, **changes: Any) -> dict[str, Any]:
    parts = {name: {"entity": entity} for name, entity in payload.items()}
    event = {"entity": "event", "account_id": "acc_1", "event": kind, "payload": parts, "created_at": _NOW}
    return event | changes


def _verify(
    event: Any, *, secret: str = _NEW, account: str = "", event_id: str = "Event0001", now: float = _NOW
) -> ProviderEvent | None:
    body = event if isinstance(event, bytes) else json.dumps(event).encode()
    signature = hmac.new(secret.encode(), body, hashlib.sha256).hexdigest()
    webhook = RazorpayWebhook(Signatures([_OLD, _NEW]), account=account, clock=lambda: now)
    return webhook.verify(body, {"x-razorpay-signature": signature, "x-razorpay-event-id": event_id})


def test_an_event_is_reduced_to_what_is_used() -> None:
    paid = _verify(_event("payment.captured", {"payment": _PAYMENT}))
    assert paid
    assert (paid.id, paid.reference, paid.capture_reference) == ("Event0001", "order_1", "pay_1")
    assert (paid.amount_minor, paid.currency, paid.charge_status) == (1999, "INR", ChargeStatus.SUCCEEDED)
    assert paid.payment_id is None, "only the provider's own references say whose it is"
    failed = _verify(_event("payment.failed", {"payment": {**_PAYMENT, "status": "failed", "captured": False}}))
    assert failed
    assert failed.charge_status is None, "another payment of the order may succeed"
    refunded = _verify(_event("refund.processed", {"payment": _PAYMENT, "refund": _REFUND}))
    assert refunded
    assert (refunded.kind, refunded.refund_reference, refunded.refund_state) == (
        EventKind.REFUND, "rfnd_1", RefundState.SUCCEEDED
    )  # fmt: skip
    disputed = _verify(_event("payment.dispute.lost", {"payment": _PAYMENT, "dispute": {**_DISPUTE, "status": "lost"}}))
    assert disputed
    assert disputed.dispute
    assert (disputed.reference, disputed.dispute.status, disputed.dispute.reason) == ("order_1", "LOST", "FRAUDULENT")


def test_every_type_is_handled_dropped_or_counted() -> None:
    assert _verify(_event("order.paid", {"payment": _PAYMENT})) is None
    new = _verify(_event("payment.teleported", {}))
    assert new
    assert new.kind is EventKind.UNHANDLED
    assert _verify(_event("payment.captured", {"payment": {**_PAYMENT, "order_id": None}})) is None, "none of ours"


def test_both_secrets_of_a_rotation_are_accepted() -> None:
    event = _event("payment.captured", {"payment": _PAYMENT})
    assert _verify(event, secret=_OLD) == _verify(event, secret=_NEW)
    for wrong in ("", "another", _NEW + "x"):
        with pytest.raises(BadSignature):
            _verify(event, secret=wrong)


def test_a_replayed_old_event_is_refused() -> None:
    """The signature has no time. Razorpay repeats an event for a day; three days later nobody does but an attacker."""
    event = _event("payment.captured", {"payment": _PAYMENT})
    assert _verify(event, now=_NOW + 2 * 86_400)
    for now in (_NOW + 4 * 86_400, _NOW - 3_600):
        with pytest.raises(BadSignature):
            _verify(event, now=now)


def test_events_of_another_account_are_refused() -> None:
    event = _event("payment.captured", {"payment": _PAYMENT})
    assert _verify(event, account="acc_1")
    for other in ({"account_id": "acc_2"}, {"account_id": None}):
        with pytest.raises(InvalidFields):
            _verify(event | other, account="acc_1")


@pytest.mark.parametrize("event_id", ["", "short", "x" * 129, "a b c d e f", "evt_\x00\x00\x00", "é" * 10])
def test_an_event_without_a_usable_id_is_refused(event_id: str) -> None:
    with pytest.raises(InvalidFields):
        _verify(_event("payment.captured", {"payment": _PAYMENT}), event_id=event_id)


_ODD: list[tuple[str, Any]] = [
    *(("amount", value) for value in (None, "1999", 19.99, -1, True, [1999], 10**30)),
    *(("currency", value) for value in (None, 356, "IN", "rupee", "I\x00R")),
    *(("status", value) for value in (None, 1, [], "")),
    *(("id", value) for value in (None, 5, [], "", "pay 1", "pay_\x00", "p" * 256)),
    *(("order_id", value) for value in (5, [], "order 1")), ("captured", "yes"), ("created_at", -1),
]  # fmt: skip


@pytest.mark.parametrize(("field", "value"), _ODD)
def test_a_payment_with_an_odd_field_is_refused(field: str, value: Any) -> None:
    with pytest.raises(InvalidFields) as refused:
        _verify(_event("payment.captured", {"payment": {**_PAYMENT, field: value}}))
    assert "1999" not in str(refused.value.violations), "a refusal quotes no value"


@pytest.mark.parametrize(
    "body", [b"", b"null", b"[]", b'"evt"', b"1", b'{"event": "payment.captured"}', b"[" * 100_000, b"\xff\xfe"]
)
def test_a_body_that_is_no_event_is_refused(body: bytes) -> None:
    with pytest.raises(InvalidFields):
        _verify(body)


@pytest.mark.parametrize(
    "event",
    [
        _event("payment.captured", {}), _event("refund.processed", {"payment": _PAYMENT}),
        _event("payment.captured", {"payment": _PAYMENT}, payload=[]),
        _event("payment.captured", {"payment": _PAYMENT}, payload={"payment": {"entity": []}}),
        _event("payment.captured", {"payment": _PAYMENT}, created_at="now"), _event("x" * 300, {}),
    ],
)  # fmt: skip
def test_an_odd_envelope_is_refused(event: Any) -> None:
    with pytest.raises(InvalidFields):
        _verify(event)


def _tries(*statuses: str) -> list[RazorpayPayment]:
    return [
        RazorpayPayment.model_validate(
            {**_PAYMENT, "id": f"pay_{number}", "status": status, "captured": status in ("captured", "refunded"),
             "created_at": _NOW + number, "error_reason": "card_expired" if status == "failed" else None}
        )
        for number, status in enumerate(statuses, 1)
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("statuses", "status", "captured"),
    [
        ((), ChargeStatus.REQUIRES_ACTION, None),
        (("created",), ChargeStatus.REQUIRES_ACTION, None),
        (("failed",), ChargeStatus.DECLINED, None),
        (("failed", "created"), ChargeStatus.REQUIRES_ACTION, None),
        (("failed", "authorized"), ChargeStatus.AUTHORISED, "pay_2"),
        (("authorized", "failed"), ChargeStatus.AUTHORISED, "pay_1"),
        (("failed", "captured"), ChargeStatus.SUCCEEDED, "pay_2"),
        (("authorized", "captured"), ChargeStatus.SUCCEEDED, "pay_2"),
        (("captured", "captured"), ChargeStatus.SUCCEEDED, "pay_1"),
        (("refunded", "created"), ChargeStatus.SUCCEEDED, "pay_1"),
        (("pending",), ChargeStatus.PENDING, None),
        (("something_new",), ChargeStatus.REQUIRES_ACTION, None),
    ],
)
def test_the_payments_of_an_order_are_one_charge(
    statuses: tuple[str, ...], status: ChargeStatus, captured: str | None
) -> None:
    for tries in (_tries(*statuses), _tries(*statuses)[::-1]):
        result = reading.result_of_order(a_payment(), "order_1", tries)
        assert (result.status, result.capture_reference, result.reference) == (status, captured, "order_1")
        assert result.amount_minor == (1999 if tries else None)


def test_the_payment_that_is_counted_stays_the_one_that_counts() -> None:
    counted = a_payment(capture_reference="pay_2")
    assert reading.result_of_order(counted, "order_1", _tries("captured", "captured")).capture_reference == "pay_2"


def test_a_payment_that_went_back_by_itself_is_no_money() -> None:
    expired = RazorpayPayment.model_validate({**_PAYMENT, "status": "refunded", "captured": False})
    assert reading.result_of_order(a_payment(), "order_1", [expired]).status is ChargeStatus.REQUIRES_ACTION


@pytest.mark.parametrize(
    ("reason", "ours"),
    [
        ("insufficient_funds", "INSUFFICIENT_FUNDS"), ("card_expired", "EXPIRED_CARD"),
        ("authentication_failed", "AUTHENTICATION_FAILED"), ("payment_cancelled", "NOT_COMPLETED"),
        ("payment_risk_check_failed", "CARD_DECLINED"), ("something_new", "CARD_DECLINED"), (None, "CARD_DECLINED"),
    ],
)  # fmt: skip
def test_declines_get_our_reasons(reason: str | None, ours: str) -> None:
    assert decline_reason(reason) == ours
