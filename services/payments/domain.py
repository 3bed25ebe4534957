"""The rules of payments and refunds: their states, and how a provider result changes them. Pure."""

import dataclasses
import enum
import uuid
from dataclasses import dataclass
from datetime import datetime

from services.chassis.errors import AppError, InvalidFields, WrongState
from services.chassis.money import Money

WEBHOOK_BYTES_MOST = 256 * 1024
IN_PROGRESS_MOST = 5_000
ANSWER_SECONDS = 3.0
"""A call returns the known state after this long. Its provider calls continue in the background."""
LEASE_SECONDS = 4.0
"""A process owns a payment for this long, unless it renews the lease."""
LOOK_UP_AFTER_CHECKS = 6
"""After this many calls under one key without an answer, the provider's records are searched instead."""
EVENT_ATTEMPTS_MOST = 12
UNANSWERED_ATTEMPTS_MOST = 150
"""An event about which the provider gives no answer is parked after this many attempts, about a day."""

_PROCESSING_SECONDS = (1.0, 60.0)
_AWAITING_SECONDS = (60.0, 3600.0)
_CANCELLING_SECONDS = (1.0, 60.0)
_EVENT_SECONDS = (1.0, 600.0)


class State(enum.StrEnum):
    """The states of a payment, as in `Payment.State` of the contract."""

    AWAITING_CUSTOMER = "AWAITING_CUSTOMER"
    PROCESSING = "PROCESSING"
    SUCCEEDED = "SUCCEEDED"
    FAILED = "FAILED"
    CANCELLED = "CANCELLED"
    REFUNDED = "REFUNDED"


class RefundState(enum.StrEnum):
    """The states of a refund, as in `RefundStatus.State` of the contract."""

    PENDING = "PENDING"
    SUCCEEDED = "SUCCEEDED"
    FAILED = "FAILED"


OPEN = frozenset((State.AWAITING_CUSTOMER, State.PROCESSING))
_ENDS = frozenset((State.SUCCEEDED, State.FAILED, State.CANCELLED))

# All moves that exist. The two open states alternate (3-D Secure, another card); no move leads back to them.
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
class Charge:
    """One line of a request of orders: the order, its customer, and the money to take."""

    order_id: uuid.UUID
    customer_id: uuid.UUID
    amount: Money
    payment_method: str = ""


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
    """The card of an attempt whose result is unknown; NULL as soon as the result is known."""
    provider_reference: str | None
    client_secret: str | None
    attempt: int
    failure_reason: str
    authenticating: bool
    """The customer has started to pay and the bank is authenticating them; only in `AWAITING_CUSTOMER`."""
    refunded_minor: int
    refunding_minor: int
    """The sum of the refunds that the provider has not confirmed yet."""
    cancel_requested: bool
    checks: int
    version: int
    create_time: datetime
    update_time: datetime

    @property
    def left_minor(self) -> int:
        """The minor units that can still be refunded."""
        return self.amount_minor - self.refunded_minor - self.refunding_minor

    @property
    def is_cancellable(self) -> bool:
        """Whether the provider can be asked to cancel it; a charge in progress must end first."""
        return self.state is State.AWAITING_CUSTOMER


@dataclass(frozen=True, slots=True, kw_only=True)
class Refund:
    """Money of a payment that goes back to the customer."""

    id: uuid.UUID
    payment_id: uuid.UUID
    provider: str
    amount_minor: int
    state: RefundState
    stray: bool
    """Returns a stray charge, which the payment never counted."""
    charge_reference: str
    provider_reference: str | None
    failure_reason: str
    checks: int


@dataclass(frozen=True, slots=True, kw_only=True)
class NewRefund:
    """A refund to insert. `stray_reference` is the provider's id of the stray charge that it returns."""

    id: uuid.UUID
    payment: Payment
    amount_minor: int
    reason: str
    stray_reference: str | None = None


class ChargeStatus(enum.Enum):
    """The statuses of a charge that a provider can report."""

    UNKNOWN = enum.auto()
    """The provider gave no answer: money may or may not have moved."""
    AWAITING_CUSTOMER = enum.auto()
    PROCESSING = enum.auto()
    SUCCEEDED = enum.auto()
    DECLINED = enum.auto()
    """The bank declined the card."""
    REFUSED = enum.auto()
    """The provider refused the request itself, for good, before any money could move."""
    CANCELLED = enum.auto()


@dataclass(frozen=True, slots=True, kw_only=True)
class ChargeResult:
    """The provider result of one payment, from an answer or from an event."""

    payment_id: uuid.UUID
    status: ChargeStatus
    reference: str | None = None
    client_secret: str | None = None
    amount_minor: int | None = None
    currency: str | None = None
    reason: str = ""
    authenticating: bool = False
    """With `AWAITING_CUSTOMER`: the customer has started to pay and the bank is authenticating them."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ChargeRecord:
    """A provider's own record of a charge, looked up because an event names it."""

    payment_id: uuid.UUID | None
    """From the charge's metadata, as the provider has it."""
    result: ChargeResult
    refunded_minor: int
    """The sum of the charge's refunds."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RefundResult:
    """The provider result of one refund; `state` is None if the provider gave no answer."""

    refund_id: uuid.UUID
    payment_id: uuid.UUID
    state: RefundState | None = None
    reference: str | None = None
    reason: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class ProviderEvent:
    """A signed event of a provider, reduced to what is used: no secrets, no card data. It is a hint, not a result."""

    provider: str
    id: str
    type: str
    """The provider's name of the event, for metrics."""
    reference: str
    """The provider's id of the charge."""
    payment_id: uuid.UUID | None
    """From the charge's metadata; None if that names none of our payments."""
    amount_minor: int
    currency: str
    charge_status: ChargeStatus | None = None
    """The final status that the event claims; None if a later event may contradict it."""
    refunded_minor: int | None = None
    """The sum of all refunds of the charge that the event claims; only in events about refunds."""


def own_id(value: object) -> uuid.UUID | None:
    """Return the payment id in a charge's metadata; None if other software has made the charge."""
    try:
        return uuid.UUID(str(value))
    except ValueError:
        return None


class Verdict(enum.Enum):
    """The finding of `decide` about a result, besides the payment's new state."""

    ACCEPTED = enum.auto()
    OTHER_AMOUNT = enum.auto()
    """Its amount or currency is not the payment's, so it was ignored."""
    STRAY_CHARGE = enum.auto()
    """Money arrived for a payment that had ended without it; it must be refunded."""


def decide(payment: Payment, result: ChargeResult) -> tuple[Payment, Verdict]:
    """Return the payment after `result`. Results may come twice, late and in any order; none moves a payment back."""
    if result.status is ChargeStatus.UNKNOWN:
        return payment, Verdict.ACCEPTED
    succeeded = result.status is ChargeStatus.SUCCEEDED
    if is_other_amount(payment, result.amount_minor, result.currency, reported=succeeded):
        return payment, Verdict.OTHER_AMOUNT
    own, reported = payment.provider_reference, result.reference
    is_other_charge = own is not None and reported is not None and own != reported
    if is_other_charge or payment.state not in OPEN:
        counted = payment.state in (State.SUCCEEDED, State.REFUNDED) and not is_other_charge
        stray = succeeded and not counted
        return payment, Verdict.STRAY_CHARGE if stray else Verdict.ACCEPTED
    state = _state_after(payment, result.status)
    assert state == payment.state or state in MOVES[payment.state], f"{payment.state} to {state}"
    declined = result.status in (ChargeStatus.DECLINED, ChargeStatus.REFUSED)
    return dataclasses.replace(
        payment,
        state=state,
        payment_method=None,
        provider_reference=own or reported,
        client_secret=(result.client_secret or payment.client_secret) if state in OPEN else None,
        failure_reason=result.reason if declined else "" if state is State.SUCCEEDED else payment.failure_reason,
        authenticating=result.authenticating and state is State.AWAITING_CUSTOMER,
        checks=payment.checks if state == payment.state else 0,
    ), Verdict.ACCEPTED


def is_other_amount(
    payment: Payment, amount_minor: int | None, currency: str | None, *, reported: bool = False
) -> bool:
    """Whether an amount or a currency differs from the payment's; None differs only if it must be `reported`."""
    amount = payment.amount_minor if amount_minor is None and not reported else amount_minor
    code = payment.currency if currency is None and not reported else currency
    return amount != payment.amount_minor or code is None or code.upper() != payment.currency


def _state_after(payment: Payment, status: ChargeStatus) -> State:
    if status in (ChargeStatus.DECLINED, ChargeStatus.REFUSED):
        # A customer in the browser may try another card; a card that came with the order is tried once.
        final = payment.state is State.PROCESSING and not payment.customer_pays
        if status is ChargeStatus.REFUSED:
            final = final or payment.provider_reference is None
        return State.FAILED if final else State.AWAITING_CUSTOMER
    return State[status.name]


def refundable_minor(payment: Payment, amount: Money | None) -> int:
    """Return the minor units that a refund of `amount` takes; without `amount`, all that is left.

    Raises `WrongState`, `InvalidFields` or `RefundTooLarge` if the refund is not allowed.
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


def after_refund(payment: Payment, refund: Refund, outcome: RefundState) -> Payment:
    """Return the payment after its pending `refund` has ended with `outcome`."""
    if refund.stray:
        return payment
    total = payment.refunded_minor + (refund.amount_minor if outcome is RefundState.SUCCEEDED else 0)
    payment = with_refunded(payment, total)
    return dataclasses.replace(payment, refunding_minor=payment.refunding_minor - refund.amount_minor)


def with_refunded(payment: Payment, total_minor: int) -> Payment:
    """Return the payment once refunds of `total_minor` are confirmed; a full refund makes it `REFUNDED`."""
    whole = total_minor == payment.amount_minor and payment.state is State.SUCCEEDED
    return dataclasses.replace(payment, refunded_minor=total_minor, state=State.REFUNDED if whole else payment.state)


class Operation(enum.Enum):
    """The calls of a provider about a payment; see `PaymentProvider`."""

    CREATE = enum.auto()
    FIND = enum.auto()
    CONFIRM = enum.auto()
    CANCEL = enum.auto()
    RETRIEVE = enum.auto()


def next_operation(payment: Payment, *, key_expired: bool = False) -> Operation:
    """Return the next provider call for an open payment. `key_expired`: the provider may have forgotten the key."""
    if payment.provider_reference is None:
        # Every second time only: while the provider is unavailable, nothing but a repeat under the key can charge.
        look_up = payment.checks >= LOOK_UP_AFTER_CHECKS and payment.checks % 2 == 0
        return Operation.FIND if key_expired or look_up else Operation.CREATE
    if payment.cancel_requested:
        return Operation.CANCEL
    # Safe without a key too: an intent takes money once, and then refuses to be confirmed again.
    return Operation.CONFIRM if payment.payment_method else Operation.RETRIEVE


def check_seconds(payment: Payment) -> float | None:
    """Return the pause before the reconciler asks the provider again; None once the payment has ended."""
    if payment.state not in OPEN:
        return None
    if payment.state is State.PROCESSING:
        return backoff(payment.checks, _PROCESSING_SECONDS)
    return backoff(payment.checks, _CANCELLING_SECONDS if payment.cancel_requested else _AWAITING_SECONDS)


def refund_check_seconds(refund: Refund) -> float | None:
    """Return the pause before the reconciler repeats a refund; None once it has ended."""
    return backoff(refund.checks, _PROCESSING_SECONDS) if refund.state is RefundState.PENDING else None


def event_seconds(attempts: int) -> float:
    """Return the pause before an event that could not be applied is tried again."""
    return backoff(attempts, _EVENT_SECONDS)


def backoff(tries: int, bounds: tuple[float, float]) -> float:
    """Double the pause with each try, within the bounds. The database adds the jitter."""
    least, most = bounds
    return min(least * 2.0 ** min(tries, 30), most)
