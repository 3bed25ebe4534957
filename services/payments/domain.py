"""What a payment may become, and what a provider's word changes: values and rules, without I/O."""

import dataclasses
import enum
import uuid
from dataclasses import dataclass
from datetime import datetime

from services.chassis.errors import AppError, InvalidFields, WrongState
from services.chassis.money import Money

WEBHOOK_BYTES_MOST = 256 * 1024
IN_FLIGHT_MOST = 5_000
ANSWER_SECONDS = 3.0
"""After this long a call answers with what is known; the provider is asked on in the background."""
LEASE_SECONDS = 4.0
"""How long a payment belongs to the process that works on it, unless that process renews it."""
LOOK_UP_AFTER_CHECKS = 6
"""Repeats under one key that brought no answer, before the provider's records are searched instead."""
EVENT_ATTEMPTS_MOST = 12
NOT_FOUND = "NOT_FOUND"
"""The reason of an unknown fact: the provider has no record of the payment."""

_PROCESSING_SECONDS = (1.0, 60.0)
_AWAITING_SECONDS = (60.0, 3600.0)
_CANCELLING_SECONDS = (1.0, 60.0)
_EVENT_SECONDS = (1.0, 600.0)


class State(enum.StrEnum):
    """Where a payment stands; as in `Payment.State` of the contract."""

    AWAITING_CUSTOMER = "AWAITING_CUSTOMER"
    PROCESSING = "PROCESSING"
    SUCCEEDED = "SUCCEEDED"
    FAILED = "FAILED"
    CANCELLED = "CANCELLED"
    REFUNDED = "REFUNDED"


class RefundState(enum.StrEnum):
    """Where a refund stands."""

    PENDING = "PENDING"
    SUCCEEDED = "SUCCEEDED"
    FAILED = "FAILED"


OPEN = frozenset((State.AWAITING_CUSTOMER, State.PROCESSING))
_ENDS = frozenset((State.SUCCEEDED, State.FAILED, State.CANCELLED))

# The only moves there are. The two open states alternate (3-D Secure, another card); nothing returns to them.
MOVES: dict[State, frozenset[State]] = {
    State.AWAITING_CUSTOMER: _ENDS | {State.PROCESSING},
    State.PROCESSING: _ENDS | {State.AWAITING_CUSTOMER},
    State.SUCCEEDED: frozenset((State.REFUNDED,)),
    State.FAILED: frozenset(),
    State.CANCELLED: frozenset(),
    State.REFUNDED: frozenset(),
}


class PaymentNotFound(AppError):
    code = "NOT_FOUND"
    template = "There is no such payment."


class RefundTooLarge(AppError):
    code = "FAILED_PRECONDITION"
    template = "Only {leftMinorUnits} minor units of the payment are left to refund."


class BadSignature(AppError):
    code = "INVALID_ARGUMENT"
    template = "The signature is missing, wrong, or too old."


@dataclass(frozen=True, slots=True, kw_only=True)
class Payment:
    """The money of one order, as it was when read."""

    id: uuid.UUID
    order_id: uuid.UUID
    customer_id: uuid.UUID
    amount_minor: int
    currency: str
    state: State
    provider: str
    customer_pays: bool
    """Begun without a card: the customer pays in the browser, and may try several cards."""
    payment_method: str | None
    """The card an unanswered attempt is made with; gone as soon as the answer is known."""
    provider_reference: str | None
    client_secret: str | None
    attempt: int
    failure_reason: str
    authenticating: bool
    """The customer has begun to pay, and answers to their bank; only while the payment waits for the customer."""
    refunded_minor: int
    refunding_minor: int
    """What refunds that the provider has not confirmed yet will pay back."""
    cancel_requested: bool
    checks: int
    version: int
    create_time: datetime
    update_time: datetime

    @property
    def left_minor(self) -> int:
        """What may still be refunded."""
        return self.amount_minor - self.refunded_minor - self.refunding_minor


@dataclass(frozen=True, slots=True, kw_only=True)
class Refund:
    """Money on its way back."""

    id: uuid.UUID
    payment_id: uuid.UUID
    amount_minor: int
    state: RefundState
    stray: bool
    """Pays back money that the payment never counted: it arrived after the payment had ended without it."""
    charge_reference: str
    provider_reference: str | None
    failure_reason: str
    checks: int


class Kind(enum.Enum):
    """What a provider can say of a payment."""

    UNKNOWN = enum.auto()
    AWAITING = enum.auto()
    PROCESSING = enum.auto()
    SUCCEEDED = enum.auto()
    DECLINED = enum.auto()
    REFUSED = enum.auto()
    """The request was turned down before any money could move, for good."""
    CANCELLED = enum.auto()


@dataclass(frozen=True, slots=True, kw_only=True)
class Fact:
    """What the provider said of one payment, in an answer or in an event."""

    payment_id: uuid.UUID
    kind: Kind
    reference: str | None = None
    client_secret: str | None = None
    amount_minor: int | None = None
    currency: str | None = None
    reason: str = ""
    authenticating: bool = False
    """With `AWAITING`: the customer has begun to pay, and is asked by the bank."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RefundFact:
    """What the provider said of one refund; `state` None where it said nothing."""

    refund_id: uuid.UUID
    payment_id: uuid.UUID
    state: RefundState | None = None
    reference: str | None = None
    reason: str = ""


class Verdict(enum.Enum):
    """What came of a fact besides the payment."""

    TAKEN = enum.auto()
    NOT_BELIEVED = enum.auto()
    """Its amount or currency is not the payment's."""
    STRAY_MONEY = enum.auto()
    """Money arrived for a payment that had ended without it; it must go back."""


def decide(payment: Payment, fact: Fact) -> tuple[Payment, Verdict]:
    """The payment after `fact`. Facts may come twice, late and in any order; none moves a payment backwards."""
    if fact.kind is Kind.UNKNOWN:
        return payment, Verdict.TAKEN
    if contradicts(payment, fact.amount_minor, fact.currency):
        return payment, Verdict.NOT_BELIEVED
    known, said = payment.provider_reference, fact.reference
    other = known is not None and said is not None and known != said
    if other or payment.state not in OPEN:
        counted = payment.state in (State.SUCCEEDED, State.REFUNDED) and not other
        stray = fact.kind is Kind.SUCCEEDED and not counted
        return payment, Verdict.STRAY_MONEY if stray else Verdict.TAKEN
    state = _state_after(payment, fact.kind)
    assert state == payment.state or state in MOVES[payment.state], f"{payment.state} to {state}"
    declined = fact.kind in (Kind.DECLINED, Kind.REFUSED)
    return dataclasses.replace(
        payment,
        state=state,
        payment_method=None,
        provider_reference=known or said,
        client_secret=(fact.client_secret or payment.client_secret) if state in OPEN else None,
        failure_reason=fact.reason if declined else "" if state is State.SUCCEEDED else payment.failure_reason,
        authenticating=fact.authenticating and state is State.AWAITING_CUSTOMER,
        checks=payment.checks if state == payment.state else 0,
    ), Verdict.TAKEN


def contradicts(payment: Payment, amount_minor: int | None, currency: str | None) -> bool:
    """Whether somebody speaks of another sum than the payment's; None says nothing of it."""
    if amount_minor is not None and amount_minor != payment.amount_minor:
        return True
    return currency is not None and currency.upper() != payment.currency


def _state_after(payment: Payment, kind: Kind) -> State:
    if kind in (Kind.DECLINED, Kind.REFUSED):
        # A customer in the browser may try another card; where the order brought the card, no is no.
        final = payment.state is State.PROCESSING and not payment.customer_pays
        if kind is Kind.REFUSED:
            final = final or payment.provider_reference is None
        return State.FAILED if final else State.AWAITING_CUSTOMER
    return {
        Kind.AWAITING: State.AWAITING_CUSTOMER,
        Kind.PROCESSING: State.PROCESSING,
        Kind.SUCCEEDED: State.SUCCEEDED,
        Kind.CANCELLED: State.CANCELLED,
    }[kind]


def refundable(payment: Payment, amount: Money | None) -> int:
    """The minor units that a refund of `amount`, or of all that is left, would pay back.

    Raises `WrongState`, `InvalidFields` or `RefundTooLarge` where it may not be.
    """
    if payment.state not in (State.SUCCEEDED, State.REFUNDED):
        raise WrongState(resource="payment", state=payment.state, wanted=State.REFUNDED)
    if amount is not None and amount.minor < 1:
        raise InvalidFields({"amount.minorUnits": "must be at least 1"})
    if amount is not None and amount.currency != payment.currency:
        raise InvalidFields({"amount.currencyCode": f"must be {payment.currency}, the payment's"})
    minor = payment.left_minor if amount is None else amount.minor
    if minor > payment.left_minor or minor == 0:
        raise RefundTooLarge(leftMinorUnits=payment.left_minor)
    return minor


def refunded(payment: Payment, refund: Refund, outcome: RefundState) -> Payment:
    """The payment after its pending `refund` has ended with `outcome`."""
    if refund.stray:
        return payment
    back = payment.refunded_minor + (refund.amount_minor if outcome is RefundState.SUCCEEDED else 0)
    return dataclasses.replace(paid_back(payment, back), refunding_minor=payment.refunding_minor - refund.amount_minor)


def paid_back(payment: Payment, total_minor: int) -> Payment:
    """The payment once `total_minor` of it was paid back."""
    whole = total_minor == payment.amount_minor and payment.state is State.SUCCEEDED
    return dataclasses.replace(payment, refunded_minor=total_minor, state=State.REFUNDED if whole else payment.state)


class Step(enum.Enum):
    """What to ask the provider next."""

    CREATE = enum.auto()
    FIND = enum.auto()
    CONFIRM = enum.auto()
    CANCEL = enum.auto()
    RETRIEVE = enum.auto()


def next_step(payment: Payment, *, key_expired: bool = False) -> Step:
    """How to get on with an open payment. `key_expired`: the provider may no longer know the attempt's key."""
    if payment.provider_reference is None:
        # Not every time: while the provider is away, only a repeat under the key can bring the charge about.
        look_up = payment.checks >= LOOK_UP_AFTER_CHECKS and payment.checks % 2 == 0
        return Step.FIND if key_expired or look_up else Step.CREATE
    if payment.cancel_requested:
        return Step.CANCEL
    # Safe without a known key as well: an intent takes money once, and then refuses to be confirmed.
    return Step.CONFIRM if payment.payment_method else Step.RETRIEVE


def check_seconds(payment: Payment) -> float | None:
    """When to ask the provider again by ourselves; None once the payment has come to rest."""
    if payment.state not in OPEN:
        return None
    if payment.state is State.PROCESSING:
        return backoff(payment.checks, _PROCESSING_SECONDS)
    return backoff(payment.checks, _CANCELLING_SECONDS if payment.cancel_requested else _AWAITING_SECONDS)


def refund_check_seconds(refund: Refund) -> float | None:
    """The same for a refund."""
    return backoff(refund.checks, _PROCESSING_SECONDS) if refund.state is RefundState.PENDING else None


def event_seconds(attempts: int) -> float:
    """The pause before an event that could not be placed is tried again."""
    return backoff(attempts, _EVENT_SECONDS)


def backoff(tries: int, bounds: tuple[float, float]) -> float:
    """Doubles with each try, between the two bounds. The database adds the jitter."""
    least, most = bounds
    return min(least * 2.0 ** min(tries, 30), most)


_REASONS = {
    "insufficient_funds": "INSUFFICIENT_FUNDS",
    "expired_card": "EXPIRED_CARD",
    "invalid_expiry_month": "EXPIRED_CARD",
    "invalid_expiry_year": "EXPIRED_CARD",
    "incorrect_cvc": "INCORRECT_CVC",
    "invalid_cvc": "INCORRECT_CVC",
    "incorrect_number": "INCORRECT_NUMBER",
    "invalid_number": "INCORRECT_NUMBER",
    "processing_error": "PROCESSING_ERROR",
    "issuer_not_available": "PROCESSING_ERROR",
    "try_again_later": "PROCESSING_ERROR",
    "authentication_required": "AUTHENTICATION_REQUIRED",
    "payment_intent_authentication_failure": "AUTHENTICATION_FAILED",
    "card_velocity_exceeded": "CARD_LIMIT_EXCEEDED",
    "withdrawal_count_limit_exceeded": "CARD_LIMIT_EXCEEDED",
    "card_not_supported": "CARD_NOT_SUPPORTED",
    "currency_not_supported": "CURRENCY_NOT_SUPPORTED",
    "payment_method_provider_decline": "DECLINED_BY_BANK",
}


def decline_reason(code: str | None, decline_code: str | None) -> str:
    """Our word for a provider's decline. Suspicions (stolen, lost, fraud) stay with us: the buyer reads a plain no."""
    return _REASONS.get(decline_code or "") or _REASONS.get(code or "") or "CARD_DECLINED"
