"""Stripe's objects read as provider results. Pure."""

import uuid
from datetime import UTC, datetime

import stripe

from services.payments.domain import DisputeState, Payment, Refund, RefundState
from services.payments.providers.results import (
    ChargeResult,
    ChargeStatus,
    ProviderCharge,
    ProviderDispute,
    ProviderRefund,
    RefundResult,
    own_id,
)
from services.payments.providers.stripe.declines import decline_reason
from services.payments.providers.stripe.transport import Object

_STATUSES = {
    "succeeded": ChargeStatus.SUCCEEDED,
    "processing": ChargeStatus.PENDING,
    "requires_capture": ChargeStatus.AUTHORISED,
    "canceled": ChargeStatus.CANCELLED,
    "requires_action": ChargeStatus.REQUIRES_ACTION,
    "requires_payment_method": ChargeStatus.REQUIRES_ACTION,
    "requires_confirmation": ChargeStatus.REQUIRES_ACTION,
}
_REFUND_STATES = {
    "succeeded": RefundState.SUCCEEDED,
    "failed": RefundState.FAILED,
    "canceled": RefundState.FAILED,
}
_DISPUTE_STATES = {
    "warning_needs_response": DisputeState.INQUIRY,
    "warning_under_review": DisputeState.INQUIRY,
    "warning_closed": DisputeState.CLOSED,
    "needs_response": DisputeState.NEEDS_RESPONSE,
    "under_review": DisputeState.UNDER_REVIEW,
    "won": DisputeState.WON,
    "lost": DisputeState.LOST,
    "prevented": DisputeState.CLOSED,
}


def is_live(key: str) -> bool:
    """Whether an API key moves real money: its prefix says so, as in `sk_live_…` and `rk_test_…`."""
    return "_live_" in key[:8]


def charge_status(status: str) -> ChargeStatus:
    """Return the meaning of a PaymentIntent's status. A status that Stripe adds later is unknown, and asked again."""
    return _STATUSES.get(status, ChargeStatus.UNKNOWN)


def refund_state(status: str) -> RefundState:
    """Return the meaning of a Refund's status. A status that Stripe adds later is one without an end."""
    return _REFUND_STATES.get(status, RefundState.PENDING)


def charge_result(payment_id: uuid.UUID, intent: Object) -> ChargeResult:
    """Read a PaymentIntent."""
    error: Object = intent.get("last_payment_error") or {}
    declined = bool(error) and intent["status"] == "requires_payment_method"
    return ChargeResult(
        payment_id=payment_id,
        status=ChargeStatus.DECLINED if declined else charge_status(intent["status"]),
        reference=intent["id"],
        client_secret=intent["client_secret"],
        amount_minor=_amount(intent),
        currency=intent["currency"],
        reason=decline_reason(error.get("code"), error.get("decline_code")) if declined else "",
        authenticating=intent["status"] == "requires_action",
    )


def _amount(intent: Object) -> int:
    """Return the money of an intent: of a captured one what was taken, for people may capture a part at Stripe."""
    asked: int = intent["amount"]
    return intent.get("amount_received", asked) if intent["status"] == "succeeded" else asked


def declined(payment: Payment, error: stripe.CardError) -> ChargeResult:
    """Read the error of a declined card, which carries the PaymentIntent."""
    body = error.json_body if isinstance(error.json_body, dict) else {}
    details = body.get("error") or {}
    intent = details.get("payment_intent") or {}
    return ChargeResult(
        payment_id=payment.id,
        status=ChargeStatus.DECLINED,
        reference=intent.get("id"),
        client_secret=intent.get("client_secret"),
        amount_minor=intent.get("amount"),
        currency=intent.get("currency"),
        reason=decline_reason(error.code, details.get("decline_code")),
    )


def refused(payment: Payment, error: stripe.InvalidRequestError) -> ChargeResult:
    """Read the error of a request that Stripe refused for good, before any money could move."""
    reason = "INVALID_PAYMENT_METHOD" if error.param == "payment_method" else "REFUSED_BY_PROVIDER"
    return ChargeResult(
        payment_id=payment.id, status=ChargeStatus.DECLINED, reference=payment.provider_reference, reason=reason
    )


def provider_refund(charge_reference: str, made: Object) -> ProviderRefund:
    """Read a Refund of a charge."""
    metadata = made.get("metadata") or {}
    return ProviderRefund(
        reference=made["id"],
        charge_reference=charge_reference,
        amount_minor=made["amount"],
        state=refund_state(made["status"]),
        refund_id=own_id(metadata.get("refund_id")),
        attempt=_attempt(metadata.get("attempt")),
        reason=str(made.get("failure_reason") or "").upper(),
    )


def refund_result(refund: Refund, made: Object) -> RefundResult:
    """Read a Refund as the result of `refund`."""
    return provider_refund(refund.charge_reference, made).result(refund)


def provider_charge(found: Object) -> ProviderCharge:
    """Read a Charge whose money was taken. One without an intent was made by other software."""
    metadata: Object = found.get("metadata") or {}
    return ProviderCharge(
        reference=found.get("payment_intent") or found["id"],
        capture_reference=None,
        payment_id=own_id(metadata.get("payment_id")),
        order_id=str(metadata.get("order_id") or ""),
        amount_minor=found["amount_captured"],
        refunded_minor=found["amount_refunded"] - (found["amount"] - found["amount_captured"]),
        currency=found["currency"].upper(),
        create_time=datetime.fromtimestamp(found["created"], UTC),
    )


def provider_dispute(found: Object) -> ProviderDispute:
    """Read a Dispute. A status that Stripe adds later needs an answer, so that staff look at it."""
    moved: list[Object] = found.get("balance_transactions") or []
    due = (found.get("evidence_details") or {}).get("due_by")
    return ProviderDispute(
        reference=found["id"],
        charge_reference=found.get("payment_intent") or "",
        state=_DISPUTE_STATES.get(found["status"], DisputeState.NEEDS_RESPONSE),
        status=found["status"].upper(),
        reason=found["reason"].upper(),
        amount_minor=found["amount"],
        currency=found["currency"].upper(),
        withdrawn_minor=max(-sum(each["amount"] for each in moved), 0),
        fee_minor=max(sum(each["fee"] for each in moved), 0),
        evidence_due_time=datetime.fromtimestamp(due, UTC) if due else None,
    )


def _attempt(value: object) -> int:
    return int(value) if isinstance(value, str) and value.isascii() and value.isdigit() else 1
