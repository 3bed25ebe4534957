"""Razorpay's objects as JSON."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from sandbox.razorpay.rows import Dispute, Order, Payment, Refund, Subject
from sandbox.rows import Event, Json

ACCOUNT = "acc_sandbox"


def render(subject: Subject) -> Json:
    """Returns one object as the API does."""
    if isinstance(subject, Order):
        return order(subject)
    if isinstance(subject, Payment):
        return payment(subject)
    return refund(subject) if isinstance(subject, Refund) else dispute(subject)


def collection(items: Sequence[Any]) -> Json:
    """Returns a page of a list."""
    return {"entity": "collection", "count": len(items), "items": [render(item) for item in items]}


def order(row: Order) -> Json:
    paid = row.amount if row.status == "paid" else 0
    return {
        "id": row.id, "entity": "order", "amount": row.amount, "amount_paid": paid, "amount_due": row.amount - paid,
        "currency": row.currency, "receipt": row.receipt, "offer_id": None, "status": row.status,
        "attempts": row.attempts, "notes": row.notes or [], "created_at": row.created,
    }  # fmt: skip


def payment(row: Payment) -> Json:
    error = row.error or {}
    return {
        "id": row.id, "entity": "payment", "amount": row.amount, "currency": row.currency, "status": row.status,
        "order_id": row.order, "invoice_id": None, "international": False, "method": row.method,
        "amount_refunded": row.amount_refunded, "refund_status": _refund_status(row), "captured": row.captured,
        "description": None, "card_id": None, "bank": None, "wallet": None, "vpa": None,
        "email": "buyer@example.com", "contact": "+919000090000", "notes": row.notes or [],
        "fee": row.amount // 50 if row.captured else None, "tax": 0 if row.captured else None,
        "error_code": error.get("code"), "error_description": error.get("description"),
        "error_source": error.get("source"), "error_step": error.get("step"), "error_reason": error.get("reason"),
        "acquirer_data": {}, "created_at": row.created,
    }  # fmt: skip


def refund(row: Refund) -> Json:
    return {
        "id": row.id, "entity": "refund", "amount": row.amount, "currency": row.currency, "payment_id": row.payment,
        "notes": row.notes or [], "receipt": row.receipt, "acquirer_data": {"arn": None}, "created_at": row.created,
        "batch_id": None, "status": row.status, "speed_processed": "normal", "speed_requested": "normal",
    }  # fmt: skip


def dispute(row: Dispute) -> Json:
    return {
        "id": row.id, "entity": "dispute", "payment_id": row.payment, "amount": row.amount, "currency": row.currency,
        "amount_deducted": row.amount if row.status == "lost" else 0, "reason_code": row.reason,
        "respond_by": row.respond_by, "status": row.status, "phase": "chargeback", "created_at": row.created,
    }  # fmt: skip


def event(row: Event) -> Json:
    """Returns the body of a webhook: the object, and with it what it belongs to."""
    parts = {key: {"entity": entity} for key, entity in _parts(row.subject).items()}
    return {
        "entity": "event", "account_id": ACCOUNT, "event": row.type, "contains": list(parts), "payload": parts,
        "created_at": row.created,
    }  # fmt: skip


def _parts(subject: Subject) -> dict[str, Json]:
    if isinstance(subject, Payment):
        return {"payment": payment(subject)}
    if isinstance(subject, Order):
        assert subject.paid_by is not None
        return {"payment": payment(_paying(subject)), "order": order(subject)}
    if isinstance(subject, Refund):
        return {"refund": refund(subject), "payment": payment(_refunded(subject))}
    return {"payment": payment(_disputed(subject)), "dispute": dispute(subject)}


def _paying(row: Order) -> Payment:
    return Payment(row.paid_by or "", row.id, row.amount, row.currency, row.created, "captured", "card", {}, True)


def _refunded(row: Refund) -> Payment:
    status = "refunded" if row.payment_refunded == row.payment_amount else "captured"
    return Payment(
        row.payment, row.order, row.payment_amount, row.currency, row.created, status, "card", {},
        row.payment_captured, row.payment_refunded,
    )  # fmt: skip


def _disputed(row: Dispute) -> Payment:
    return Payment(row.payment, row.order, row.amount, row.currency, row.created, "captured", "card", {}, True)


def _refund_status(row: Payment) -> str | None:
    if row.amount_refunded == 0:
        return None
    return "full" if row.amount_refunded == row.amount else "partial"
