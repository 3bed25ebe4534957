"""Renders rows, events and errors as the JSON objects of Stripe's API."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from sandbox.rows import Event, Json
from sandbox.stripe.errors import ApiError
from sandbox.stripe.render import buyers, checkout, disputes, payments
from sandbox.stripe.rows import Charge, Customer, Dispute, Intent, Method, Refund, Session, Subject

API_VERSION = "2026-10-28.endive"

_SUBJECTS: dict[type[Any], Callable[[Any], Json]] = {
    Intent: payments.intent, Charge: payments.charge, Refund: payments.refund, Customer: buyers.customer,
    Method: buyers.method, Session: checkout.session, Dispute: disputes.dispute,
}  # fmt: skip


def subject(value: Subject) -> Json:
    return _SUBJECTS[type(value)](value)


def event(value: Event) -> Json:
    return {
        "id": value.id,
        "object": "event",
        "api_version": API_VERSION,
        "created": value.created,
        "data": {"object": subject(value.subject)},
        "livemode": False,
        "pending_webhooks": int(value.pending),
        "request": {"id": value.request_id, "idempotency_key": value.idempotency_key},
        "type": value.type,
    }


def error(problem: ApiError, request_id: str, *, for_buyer: bool = False) -> Json:
    body = dict(problem.body)
    if (code := body.get("code")) is not None:
        body["doc_url"] = f"https://stripe.com/docs/error-codes/{str(code).replace('_', '-')}"
    if problem.intent is not None:
        body["payment_intent"] = (payments.intent_for_buyer if for_buyer else payments.intent)(problem.intent)
        if problem.status == 402:
            body["payment_method"] = body["payment_intent"]["last_payment_error"]["payment_method"]
    body["request_log_url"] = f"https://dashboard.stripe.com/test/logs/{request_id}"
    return {"error": body}


def page(items: list[Json], *, has_more: bool, url: str) -> Json:
    return {"object": "list", "data": items, "has_more": has_more, "url": url}
