"""Events of Stripe: signature, types of their fields, and reduction to what is used."""

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Any, Self

import orjson
import stripe
from pydantic import ValidationError, model_validator

from services.chassis.errors import InvalidFields
from services.payments.domain import WEBHOOK_BYTES_MOST, BadSignature
from services.payments.providers.events import Dispute, EventKind, ProviderEvent
from services.payments.providers.results import ChargeStatus, own_id
from services.payments.providers.stripe.reading import charge_status, is_live, refund_state
from services.payments.providers.typed import YEAR_9999, Currency, Id, Minor, Seconds, Typed, unreadable

_PROVIDER = "stripe"
_TOLERANCE_SECONDS = 300
_REFUNDED = "charge.refunded"
REFUND_EVENTS = frozenset((
    "charge.refunded", "charge.refund.updated", "refund.created", "refund.updated", "refund.failed",
))  # fmt: skip
DISPUTE_EVENTS = frozenset((
    "charge.dispute.created", "charge.dispute.updated", "charge.dispute.closed", "charge.dispute.funds_withdrawn",
    "charge.dispute.funds_reinstated",
))  # fmt: skip
WALKED_EVENTS = (REFUND_EVENTS | DISPUTE_EVENTS) - {"refund.created"}
"""The types that report what no answer of a call does. They are listed again, so that a lost one is found.

`charge.refunded` is sent for each refund that is created.
"""
IGNORED = {
    "payment_intent.created": "the answer of the call that made the intent says the same",
    "payment_intent.partially_funded": "only of bank transfers, which are not offered",
    "charge.succeeded": "the event of its intent says the same",
    "charge.failed": "the event of its intent says the same",
    "charge.pending": "the event of its intent says the same",
    "charge.captured": "the event of its intent says the same",
    "charge.updated": "changes descriptions and fees, which are not stored here",
}
"""The types that are dropped, each with the reason. Any other type is stored and counted as unhandled."""
_INTENTS = frozenset((
    "payment_intent.succeeded", "payment_intent.payment_failed", "payment_intent.canceled",
    "payment_intent.processing", "payment_intent.requires_action", "payment_intent.amount_capturable_updated",
))  # fmt: skip
_PAID = frozenset(("checkout.session.completed", "checkout.session.async_payment_succeeded"))
_PAGES = _PAID | {"checkout.session.expired", "checkout.session.async_payment_failed"}
# Only the first two statuses of an intent never change again; events with others may be overtaken.
_CLAIMED = frozenset((ChargeStatus.SUCCEEDED, ChargeStatus.CANCELLED, ChargeStatus.AUTHORISED))


class _Data(Typed):
    object: dict[str, Any]


class _Event(Typed):
    id: Id
    type: Id
    created: Seconds | None = None
    livemode: bool | None = None
    account: Id | None = None
    """The connected account that it is about; Stripe leaves it out for the account itself."""
    data: _Data


class _Intent(Typed):
    id: Id
    amount: Minor
    currency: Currency
    status: Id
    livemode: bool | None = None
    metadata: dict[str, Any] | None = None


class _Session(Typed):
    id: Id
    amount_total: Minor
    currency: Currency
    payment_status: Id
    livemode: bool | None = None
    metadata: dict[str, Any] | None = None


class _Charge(Typed):
    payment_intent: Id | None
    amount: Minor
    amount_refunded: Minor
    currency: Currency
    livemode: bool | None = None
    metadata: dict[str, Any] | None = None

    @model_validator(mode="after")
    def _within_the_charge(self) -> Self:
        if self.amount_refunded > self.amount:
            raise ValueError("amount_refunded must be at most amount")
        return self


class _Refund(Typed):
    id: Id
    payment_intent: Id | None
    status: Id
    metadata: dict[str, Any] | None = None


class _Dispute(Typed):
    id: Id
    payment_intent: Id | None
    amount: Minor
    currency: Currency
    status: Id
    reason: Id
    livemode: bool | None = None


class StripeWebhook:
    """The receiving end of one Stripe endpoint, with its signing secrets: during a rotation there are two."""

    def __init__(self, secrets: Sequence[str], *, api_key: str, account: str = "") -> None:
        """`api_key` shows whether the mode is test or live. `account` is the id of the account, if events name it."""
        self._secrets, self._is_live, self._account = list(secrets), is_live(api_key), account

    def verify(self, body: bytes, headers: Mapping[str, Any]) -> ProviderEvent | None:
        """Check the signature of `body`, and reduce it; see `PaymentProvider.verify_webhook`."""
        if len(body) > WEBHOOK_BYTES_MOST:
            raise InvalidFields({"body": f"must have at most {WEBHOOK_BYTES_MOST} bytes"})
        signature = str(headers.get("stripe-signature", ""))
        if not any(_has_signed(secret, body, signature) for secret in self._secrets):
            raise BadSignature()
        try:
            return self.reduce(orjson.loads(body))
        except orjson.JSONDecodeError:
            raise InvalidFields({"body": "must be JSON"}) from None

    def reduce(self, event: object) -> ProviderEvent | None:
        """Return an event as `verify` does. Raises `InvalidFields` for a value that is no event."""
        try:
            typed = _Event.model_validate(event)
            self._check_source(typed.account, typed.livemode)
            return self._reduced(typed)
        except ValidationError as error:
            raise unreadable(error) from None

    def _check_source(self, account: str | None, livemode: bool | None) -> None:
        """Refuse events of another account, and of the mode that the API key does not belong to."""
        if account is not None and account != self._account:
            raise InvalidFields({"account": "must be the account of this endpoint"})
        if livemode is not None and livemode is not self._is_live:
            raise InvalidFields({"livemode": f"must be {str(self._is_live).lower()}, the mode of the API key"})

    def _reduced(self, event: _Event) -> ProviderEvent | None:
        """Return what is used of an event; None for one of no use. Raises `ValidationError`."""
        if event.type in IGNORED:
            return None
        if event.type in _INTENTS:
            return self._about_intent(event)
        if event.type in _PAGES:
            return self._about_page(event)
        if event.type in REFUND_EVENTS:
            return self._about_refund(event)
        if event.type in DISPUTE_EVENTS:
            return self._about_dispute(event)
        return ProviderEvent(provider=_PROVIDER, id=event.id, type=event.type, kind=EventKind.UNHANDLED)

    def _about_intent(self, event: _Event) -> ProviderEvent:
        intent = _Intent.model_validate(event.data.object)
        self._check_source(None, intent.livemode)
        status = charge_status(intent.status)
        return ProviderEvent(
            provider=_PROVIDER, id=event.id, type=event.type, reference=intent.id,
            payment_id=own_id((intent.metadata or {}).get("payment_id")), amount_minor=intent.amount,
            currency=intent.currency, charge_status=status if status in _CLAIMED else None,
        )  # fmt: skip

    def _about_page(self, event: _Event) -> ProviderEvent:
        """Reduce an event about a page. A completed one may still wait for the customer's bank."""
        session = _Session.model_validate(event.data.object)
        self._check_source(None, session.livemode)
        is_paid = event.type in _PAID and session.payment_status == "paid"
        return ProviderEvent(
            provider=_PROVIDER, id=event.id, type=event.type, reference=session.id,
            payment_id=own_id((session.metadata or {}).get("payment_id")), amount_minor=session.amount_total,
            currency=session.currency, charge_status=ChargeStatus.SUCCEEDED if is_paid else None,
        )  # fmt: skip

    def _about_refund(self, event: _Event) -> ProviderEvent | None:
        """Reduce an event about a refund: `charge.refunded` has its charge, all others the refund itself."""
        subject: _Charge | _Refund
        if event.type == _REFUNDED:
            subject = _Charge.model_validate(event.data.object)
            self._check_source(None, subject.livemode)
        else:
            subject = _Refund.model_validate(event.data.object)
        if subject.payment_intent is None:
            return None  # a charge without an intent is none of ours
        made = subject if isinstance(subject, _Refund) else None
        return ProviderEvent(
            provider=_PROVIDER, id=event.id, type=event.type, kind=EventKind.REFUND, reference=subject.payment_intent,
            payment_id=own_id((subject.metadata or {}).get("payment_id")),
            refunded_minor=subject.amount_refunded if isinstance(subject, _Charge) else None,
            refund_reference=made.id if made else "", refund_state=refund_state(made.status) if made else None,
        )  # fmt: skip

    def _about_dispute(self, event: _Event) -> ProviderEvent | None:
        dispute = _Dispute.model_validate(event.data.object)
        self._check_source(None, dispute.livemode)
        if dispute.payment_intent is None:
            return None
        return ProviderEvent(
            provider=_PROVIDER, id=event.id, type=event.type, kind=EventKind.DISPUTE, reference=dispute.payment_intent,
            dispute=Dispute(
                reference=dispute.id, status=dispute.status.upper(), reason=dispute.reason.upper(),
                amount_minor=dispute.amount, currency=dispute.currency.upper(),
                report_time=datetime.fromtimestamp(min(event.created or 0, YEAR_9999), UTC),
            ),
        )  # fmt: skip


def _has_signed(secret: str, body: bytes, signature: str) -> bool:
    """Whether `secret` has signed `body`, not too long ago."""
    try:
        return bool(stripe.WebhookSignature.verify_header(body, signature, secret, _TOLERANCE_SECONDS))
    except (stripe.SignatureVerificationError, UnicodeDecodeError, OverflowError, TypeError):
        return False
