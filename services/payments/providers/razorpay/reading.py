"""Razorpay's objects read as provider results. Pure."""

from collections.abc import Sequence
from datetime import UTC, datetime

from services.payments.domain import DISPUTE_MONEY_BACK, DisputeState, Payment, Refund, RefundState, State
from services.payments.providers.razorpay.declines import decline_reason
from services.payments.providers.razorpay.objects import Order, RazorpayDispute, RazorpayPayment, RazorpayRefund
from services.payments.providers.results import (
    ChargeResult,
    ChargeStatus,
    ProviderCharge,
    ProviderDispute,
    ProviderRefund,
    RefundResult,
    own_id,
)
from services.payments.providers.typed import YEAR_9999

_DISPUTE_STATES = {
    "under_review": DisputeState.UNDER_REVIEW,
    "won": DisputeState.WON,
    "lost": DisputeState.LOST,
    "closed": DisputeState.CLOSED,
}
_ASKING_PHASES = ("retrieval",)
_REFUND_STATES = {"processed": RefundState.SUCCEEDED, "failed": RefundState.FAILED}


def refund_state(status: str) -> RefundState:
    """Return the meaning of a refund's status. A status that Razorpay adds later is one without an end."""
    return _REFUND_STATES.get(status, RefundState.PENDING)


def payment_status(found: RazorpayPayment) -> ChargeStatus:
    """Return the meaning of one payment of an order."""
    if found.is_paid:
        return ChargeStatus.SUCCEEDED
    if found.status == "authorized":
        return ChargeStatus.AUTHORISED
    if found.status == "pending":
        return ChargeStatus.PENDING
    return ChargeStatus.DECLINED if found.status == "failed" else ChargeStatus.REQUIRES_ACTION


def result_of_order(payment: Payment, order_id: str, found: Sequence[RazorpayPayment]) -> ChargeResult:
    """Read an order with all its payments: what was taken counts, then what is authorised, then the latest try.

    Of two that were taken, the one that `payment` counts already, else the first. Any other is looked up by itself.
    """
    by_time = sorted(found, key=lambda one: (one.created_at, one.id))
    paid = [one for one in by_time if one.is_paid]
    own = next((one for one in by_time if one.id == payment.capture_reference), None)
    if own and own.is_returned and payment.state is State.AUTHORIZED:
        return ChargeResult(payment_id=payment.id, status=ChargeStatus.CANCELLED, reference=order_id)
    own = own if own in paid else None
    held = next((one for one in by_time if one.status == "authorized"), None)
    chosen = own or next(iter(paid), None) or held or (by_time[-1] if by_time else None)
    return result_of_payment(payment, order_id, chosen)


def result_of_payment(payment: Payment, order_id: str, found: RazorpayPayment | None) -> ChargeResult:
    """Read one payment of an order; None for an order that nobody has tried to pay."""
    status = payment_status(found) if found else ChargeStatus.REQUIRES_ACTION
    has_money = status in (ChargeStatus.SUCCEEDED, ChargeStatus.AUTHORISED)
    return ChargeResult(
        payment_id=payment.id,
        status=status,
        reference=order_id,
        capture_reference=found.id if found and has_money else None,
        amount_minor=found.amount if found else None,
        currency=found.currency if found else None,
        reason=decline_reason(found.error_reason) if found and status is ChargeStatus.DECLINED else "",
        authenticating=found is not None and found.status == "created",
    )


def result_of_new_order(payment: Payment, order: Order) -> ChargeResult:
    """Read an order that was just made, or found before anybody has paid."""
    return ChargeResult(
        payment_id=payment.id, status=ChargeStatus.REQUIRES_ACTION, reference=order.id, amount_minor=order.amount,
        currency=order.currency,
    )  # fmt: skip


def provider_refund(made: RazorpayRefund) -> ProviderRefund:
    """Read a refund."""
    return ProviderRefund(
        reference=made.id,
        charge_reference=made.payment_id,
        amount_minor=made.amount,
        state=refund_state(made.status),
        refund_id=own_id(made.note("refund_id")),
        attempt=_attempt(made.note("attempt")),
    )


def refund_result(refund: Refund, made: RazorpayRefund) -> RefundResult:
    """Read a refund as the result of `refund`."""
    return provider_refund(made).result(refund)


def provider_charge(found: RazorpayPayment) -> ProviderCharge:
    """Read a payment whose money was taken. Its order names our payment, and the list does not show that."""
    return ProviderCharge(
        reference=found.order_id or found.id,
        capture_reference=found.id,
        payment_id=None,
        order_id="",
        amount_minor=found.amount,
        refunded_minor=found.amount_refunded,
        currency=found.currency.upper(),
        create_time=datetime.fromtimestamp(min(found.created_at, YEAR_9999), UTC),
    )


def provider_dispute(found: RazorpayDispute) -> ProviderDispute:
    """Read a dispute. A status that Razorpay adds later needs an answer, so that staff look at it."""
    state = _DISPUTE_STATES.get(found.status, DisputeState.NEEDS_RESPONSE)
    if state is DisputeState.NEEDS_RESPONSE and found.phase in _ASKING_PHASES:
        state = DisputeState.INQUIRY
    return ProviderDispute(
        reference=found.id,
        charge_reference=found.payment_id,
        state=state,
        status=found.status.upper(),
        reason=found.reason_code.upper(),
        amount_minor=found.amount,
        currency=found.currency.upper(),
        withdrawn_minor=0 if state in DISPUTE_MONEY_BACK else min(found.amount_deducted, found.amount),
        fee_minor=0,  # Razorpay does not say it
        evidence_due_time=datetime.fromtimestamp(min(found.respond_by, YEAR_9999), UTC) if found.respond_by else None,
    )


def _attempt(value: object) -> int:
    return int(value) if isinstance(value, str) and value.isascii() and value.isdigit() else 1
