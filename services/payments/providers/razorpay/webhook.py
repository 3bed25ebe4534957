"""Events of Razorpay: signature, types of their fields, and reduction to what is used."""

import re
import time
from collections.abc import Callable, Mapping
from typing import Any

import orjson
from pydantic import ValidationError

from services.chassis.errors import InvalidFields
from services.payments.domain import WEBHOOK_BYTES_MOST, BadSignature
from services.payments.providers.events import EventKind, ProviderEvent
from services.payments.providers.razorpay.listed import about_dispute, about_payment, about_refund
from services.payments.providers.razorpay.objects import RazorpayDispute, RazorpayPayment, RazorpayRefund
from services.payments.providers.razorpay.signatures import Signatures
from services.payments.providers.typed import Id, Seconds, Typed, unreadable

PROVIDER = "razorpay"
_OLD_SECONDS, _EARLY_SECONDS = 3 * 86_400, 600
"""Razorpay repeats an event for a day. The signature has no time, so an older one may be replayed by anybody."""
_EVENT_ID = re.compile(r"[A-Za-z0-9_-]{8,128}")
IGNORED = {
    "order.paid": "the event of its payment says the same",
    "order.notification.delivered": "about messages to customers",
    "order.notification.failed": "about messages to customers",
    "payment.downtime.started": "about banks, not about a payment",
    "payment.downtime.updated": "about banks, not about a payment",
    "payment.downtime.resolved": "about banks, not about a payment",
    "refund.speed_changed": "the money goes back all the same",
}
"""The types that are dropped, each with the reason. Any other type is stored and counted as unhandled."""
_PAYMENTS = frozenset(("payment.authorized", "payment.captured", "payment.failed", "payment.pending"))
_REFUNDS = frozenset(("refund.created", "refund.processed", "refund.failed"))
_DISPUTES = "payment.dispute."


class _Part(Typed):
    entity: dict[str, Any]


class _Event(Typed):
    event: Id
    account_id: Id | None = None
    created_at: Seconds
    payload: dict[str, Any]


class RazorpayWebhook:
    """The receiving end of one Razorpay endpoint, with its signing secrets."""

    def __init__(self, secrets: Signatures, *, account: str = "", clock: Callable[[], float] = time.time) -> None:
        """`account` is the id of the account, if it is known: events of others are refused.

        Razorpay's events do not say whether they are of the test mode. Each mode has an endpoint and a secret of its
        own, and its payments are unknown to the key of the other mode.
        """
        self._secrets, self._account, self._clock = secrets, account, clock

    def verify(self, body: bytes, headers: Mapping[str, Any]) -> ProviderEvent | None:
        """Check the signature of `body`, and reduce it; see `PaymentProvider.verify_webhook`."""
        if len(body) > WEBHOOK_BYTES_MOST:
            raise InvalidFields({"body": f"must have at most {WEBHOOK_BYTES_MOST} bytes"})
        self._secrets.verify(body, str(headers.get("x-razorpay-signature", "")))
        event_id = str(headers.get("x-razorpay-event-id", ""))
        if not _EVENT_ID.fullmatch(event_id):
            raise InvalidFields({"x-razorpay-event-id": "must have 8 to 128 letters, digits, hyphens or underscores"})
        try:
            event = _Event.model_validate(orjson.loads(body))
            self._check_source(event)
            return self._reduced(event_id, event)
        except orjson.JSONDecodeError:
            raise InvalidFields({"body": "must be JSON"}) from None
        except ValidationError as error:
            raise unreadable(error) from None

    def _check_source(self, event: _Event) -> None:
        if self._account and event.account_id != self._account:
            raise InvalidFields({"account_id": "must be the account of this endpoint"})
        age = self._clock() - event.created_at
        if not -_EARLY_SECONDS <= age <= _OLD_SECONDS:
            raise BadSignature()

    def _reduced(self, event_id: str, event: _Event) -> ProviderEvent | None:
        """Return what is used of an event; None for one of no use. Raises `ValidationError`."""
        if event.event in IGNORED:
            return None
        if event.event in _PAYMENTS:
            return about_payment(event_id, event.event, _payment_in(event))
        if event.event in _REFUNDS:
            refund = RazorpayRefund.model_validate(_part(event, "refund"))
            return about_refund(event_id, event.event, refund, _payment_in(event).order_id or "")
        if event.event.startswith(_DISPUTES):
            dispute = RazorpayDispute.model_validate(_part(event, "dispute"))
            order_id = _payment_in(event).order_id or ""
            return about_dispute(event_id, event.event, dispute, order_id, event.created_at)
        return ProviderEvent(provider=PROVIDER, id=event_id, type=event.event, kind=EventKind.UNHANDLED)


def _payment_in(event: _Event) -> RazorpayPayment:
    return RazorpayPayment.model_validate(_part(event, "payment"))


def _part(event: _Event, name: str) -> dict[str, Any]:
    return _Part.model_validate(event.payload.get(name)).entity
