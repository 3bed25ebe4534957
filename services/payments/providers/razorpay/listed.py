"""Razorpay's objects as provider events: those of webhooks, and those that it lists, for it lists no events. Pure."""

from datetime import UTC, datetime, timedelta

from services.payments.providers.events import Dispute, EventKind, ProviderEvent
from services.payments.providers.razorpay.objects import RazorpayDispute, RazorpayPayment, RazorpayRefund
from services.payments.providers.razorpay.reading import payment_status, refund_state
from services.payments.providers.results import ChargeStatus, own_id
from services.payments.providers.typed import YEAR_9999, Typed

_PROVIDER = "razorpay"
LOOKS = (timedelta(0), timedelta(minutes=20), timedelta(days=1), timedelta(days=5))
"""An object is listed by the time at which it was made, and changes later: so it is looked at again so long after.

Checkout gives a customer some minutes. Razorpay asks a bank that is silent for five days.
"""
_CLAIMED = (ChargeStatus.SUCCEEDED, ChargeStatus.AUTHORISED)


def listed_event(found: Typed, order_id: str) -> ProviderEvent | None:
    """Return the event that a listed object stands for, always with the same id; None for one of no use.

    `order_id` is the order of a refund's or dispute's payment, if it is known.
    """
    if isinstance(found, RazorpayPayment):
        if payment_status(found) not in _CLAIMED:
            return None
        return about_payment(f"listed.{found.id}.{payment_status(found).name}", "listed.payment", found)
    if isinstance(found, RazorpayRefund):
        return about_refund(f"listed.{found.id}.{found.status}", "listed.refund", found, order_id)
    assert isinstance(found, RazorpayDispute)
    return about_dispute(f"listed.{found.id}.{found.status}", "listed.dispute", found, order_id, found.created_at)


def about_payment(event_id: str, kind: str, found: RazorpayPayment) -> ProviderEvent | None:
    """Return the event about one payment of an order; None for one without an order, which is none of ours."""
    if found.order_id is None:
        return None
    status = payment_status(found)
    return ProviderEvent(
        provider=_PROVIDER, id=event_id, type=kind, reference=found.order_id, capture_reference=found.id,
        amount_minor=found.amount, currency=found.currency, charge_status=status if status in _CLAIMED else None,
    )  # fmt: skip


def about_refund(event_id: str, kind: str, found: RazorpayRefund, order_id: str) -> ProviderEvent:
    """Return the event about a refund of a payment of `order_id`. Ours has the payment's id in its notes."""
    return ProviderEvent(
        provider=_PROVIDER, id=event_id, type=kind, kind=EventKind.REFUND,
        reference=order_id, capture_reference=found.payment_id, payment_id=own_id(found.note("payment_id")),
        refund_reference=found.id, refund_state=refund_state(found.status),
    )  # fmt: skip


def about_dispute(event_id: str, kind: str, found: RazorpayDispute, order_id: str, reported_at: int) -> ProviderEvent:
    """Return the event about a dispute of a payment of `order_id`."""
    return ProviderEvent(
        provider=_PROVIDER, id=event_id, type=kind, kind=EventKind.DISPUTE,
        reference=order_id, capture_reference=found.payment_id,
        dispute=Dispute(
            reference=found.id, status=found.status.upper(), reason=found.reason_code.upper(),
            amount_minor=found.amount, currency=found.currency.upper(),
            report_time=datetime.fromtimestamp(min(reported_at, YEAR_9999), UTC),
        ),
    )  # fmt: skip
