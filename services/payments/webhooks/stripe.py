"""Events of Stripe: signature, and reduction to what is used."""

from collections.abc import Mapping
from typing import Any

import orjson
import stripe

from services.chassis.errors import InvalidFields
from services.payments.domain import WEBHOOK_BYTES_MOST, BadSignature, ChargeStatus, ProviderEvent, own_id
from services.payments.providers.stripe import charge_status

_TOLERANCE_SECONDS = 300
_REFUNDED = "charge.refunded"
_USED = frozenset((
    "payment_intent.succeeded", "payment_intent.payment_failed", "payment_intent.canceled",
    "payment_intent.processing", "payment_intent.requires_action", _REFUNDED,
))  # fmt: skip
# Only these two statuses of an intent never change again; events with others may be overtaken.
_FINAL = frozenset((ChargeStatus.SUCCEEDED, ChargeStatus.CANCELLED))


class StripeWebhook:
    """The `Webhook` of one Stripe endpoint and its signing secret."""

    def __init__(self, secret: str) -> None:
        self._secret = secret

    def verify(self, body: bytes, headers: Mapping[str, Any]) -> ProviderEvent | None:
        if len(body) > WEBHOOK_BYTES_MOST:
            raise InvalidFields({"body": f"must have at most {WEBHOOK_BYTES_MOST} bytes"})
        signature = str(headers.get("stripe-signature", ""))
        try:
            stripe.WebhookSignature.verify_header(body, signature, self._secret, _TOLERANCE_SECONDS)
        except (stripe.SignatureVerificationError, UnicodeDecodeError, OverflowError, TypeError):
            raise BadSignature() from None
        try:
            event = orjson.loads(body)
            event_id, kind = str(event["id"]), str(event["type"])
            return _reduced(event_id, kind, event["data"]["object"]) if kind in _USED else None
        except (orjson.JSONDecodeError, KeyError, TypeError, AttributeError):
            raise InvalidFields({"body": "must be an event of Stripe"}) from None


def _reduced(event_id: str, kind: str, subject: dict[str, Any]) -> ProviderEvent | None:
    is_refund = kind == _REFUNDED
    reference = subject["payment_intent"] if is_refund else subject["id"]
    if reference is None:
        return None  # a charge without an intent is none of ours
    status = charge_status(subject["status"])
    return ProviderEvent(
        provider="stripe",
        id=event_id,
        type=kind,
        reference=reference,
        payment_id=own_id((subject.get("metadata") or {}).get("payment_id")),
        amount_minor=subject["amount"],
        currency=subject["currency"],
        charge_status=status if status in _FINAL and not is_refund else None,
        refunded_minor=subject["amount_refunded"] if is_refund else None,
    )
