"""The rules of payments and refunds: their states, and how a provider result changes them. Pure."""

import dataclasses
import enum
import uuid
from dataclasses import dataclass
from datetime import datetime, timedelta

from services.chassis.errors import AppError
from services.chassis.money import Money

WEBHOOK_BYTES_MOST = 256 * 1024
IN_PROGRESS_MOST = 5_000
ANSWER_SECONDS = 3.0
"""A call returns the known state after this long. Its provider calls continue in the background."""
LEASE_SECONDS = 4.0
"""A process owns a payment for this long, unless it renews the lease."""
REFUND_CHECK_SECONDS = 15.0
"""After this long, a comparison of refunds with the provider's list that has not finished begins again."""
READ_AGAIN_SECONDS = 0.05
"""A call that takes money and begins later than this after its payment was read looks again whether it is wanted."""
MISSING_AT_PROVIDER = "MISSING_AT_PROVIDER"
MISSING_CHECKS = 3
"""A payment whose cancellation was requested ends once the provider has said so often that it has no such charge."""
EVENT_ATTEMPTS_MOST = 12
UNANSWERED_ATTEMPTS_MOST = 150
"""An event about which the provider gives no answer is parked after this many attempts, about a day."""


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
    State.REFUNDED: frozenset((State.SUCCEEDED,)),  # a refund failed after it had succeeded
}


class PaymentNotFound(AppError):
    code = "NOT_FOUND"
    template = "There is no such payment."


class RefundTooLarge(AppError):
    code = "FAILED_PRECONDITION"
    template = "Only {leftMinorUnits} minor units of the payment are left to refund."


class RefundRefused(AppError):
    code = "FAILED_PRECONDITION"
    template = "The provider refused the refund: {cause}."


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
    problem: str
    """Why an operator must look at it; empty if nothing is wrong."""
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

    @property
    def is_payable(self) -> bool:
        """Whether its customer may pay it."""
        return self.state is State.AWAITING_CUSTOMER and not self.cancel_requested


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
    external: bool
    """Made at the provider by people, or by an operator; not by a call of ours."""
    charge_reference: str
    provider_reference: str | None
    failure_reason: str
    problem: str
    """Why an operator must look at it; empty if nothing is wrong."""
    attempt: int
    """Part of its idempotency key."""
    checks: int


@dataclass(frozen=True, slots=True, kw_only=True)
class NewRefund:
    """A refund to insert. `stray_reference` is the provider's id of the stray charge that it returns."""

    id: uuid.UUID
    payment: Payment
    amount_minor: int
    reason: str
    stray_reference: str | None = None


@dataclass(frozen=True, slots=True)
class Calls:
    """The calls of one payment or refund under its current idempotency key, before the one that begins now."""

    key_age: timedelta = timedelta(0)
    unanswered_age: timedelta | None = None
    """The time since the last one that may still take effect, because it got no answer; None if there is none."""
    is_first: bool = True
    """Whether none was sent."""


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
    WITHDRAWN = enum.auto()
    """No call was sent that could have taken money, or the provider has no record of one: nothing can move any more."""
    MISSING = enum.auto()
    """The provider has no charge with the payment's reference."""


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
    calls: Calls | None = None
    """With `UNKNOWN`: the earlier calls, if this one has ended for sure; None if it may still take effect."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ChargeRecord:
    """A provider's own record of a charge, looked up because an event names it."""

    payment_id: uuid.UUID | None
    """From the charge's metadata, as the provider has it."""
    result: ChargeResult


@dataclass(frozen=True, slots=True, kw_only=True)
class RefundResult:
    """The provider result of one refund; `state` is None if the provider gave no answer."""

    refund_id: uuid.UUID
    payment_id: uuid.UUID
    state: RefundState | None = None
    reference: str | None = None
    reason: str = ""
    calls: Calls | None = None
    """As in `ChargeResult`."""
    problem: str = ""
    """Why an operator must look at it, if the provider does not take it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ProviderRefund:
    """A refund in the provider's records, made by a call of ours or by people."""

    reference: str
    charge_reference: str
    amount_minor: int
    state: RefundState
    refund_id: uuid.UUID | None
    """Our id, from its metadata; None if people made it at the provider."""
    attempt: int = 1
    reason: str = ""

    def is_of(self, refund: Refund) -> bool:
        """Whether it is our `refund`, made under its current key."""
        return self.refund_id == refund.id and self.attempt == refund.attempt

    def result(self, refund: Refund) -> RefundResult:
        """Return it as the result of our `refund`."""
        return RefundResult(
            refund_id=refund.id, payment_id=refund.payment_id, state=self.state, reference=self.reference,
            reason=self.reason,
        )  # fmt: skip


class EventKind(enum.Enum):
    """The subject of a provider event."""

    CHARGE = enum.auto()
    REFUND = enum.auto()
    """A refund was made, has succeeded, or has failed. A hint: the provider's list of refunds decides."""
    DISPUTE = enum.auto()
    UNHANDLED = enum.auto()
    """Nothing here handles its type. It is stored and counted."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Dispute:
    """Money that the customer's bank demands back, as the provider reported it at `report_time`."""

    reference: str
    status: str
    reason: str
    amount_minor: int
    currency: str
    report_time: datetime


@dataclass(frozen=True, slots=True, kw_only=True)
class ProviderEvent:
    """A signed event of a provider, reduced to what is used: no secrets, no card data. It is a hint, not a result."""

    provider: str
    id: str
    type: str
    """The provider's name of the event, for metrics."""
    kind: EventKind = EventKind.CHARGE
    reference: str = ""
    """The provider's id of the charge."""
    payment_id: uuid.UUID | None = None
    """From the charge's metadata; None if that names none of our payments."""
    amount_minor: int = 0
    currency: str = ""
    charge_status: ChargeStatus | None = None
    """The final status that the event claims; None if a later event may contradict it."""
    refunded_minor: int | None = None
    """The sum of all refunds of the charge that the event claims; only in some events about refunds."""
    refund_reference: str = ""
    """The provider's id of the refund, if the event is about one."""
    refund_state: RefundState | None = None
    dispute: Dispute | None = None


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
    if result.status in (ChargeStatus.WITHDRAWN, ChargeStatus.MISSING):
        return _without_charge(payment, result.status), Verdict.ACCEPTED
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
        problem="",
        checks=payment.checks if state == payment.state else 0,
    ), Verdict.ACCEPTED


def _without_charge(payment: Payment, status: ChargeStatus) -> Payment:
    """Return a payment that the provider has no charge for: it ends if that was requested."""
    if payment.state not in OPEN or (status is ChargeStatus.WITHDRAWN and payment.provider_reference is not None):
        return payment
    missing = status is ChargeStatus.MISSING
    problem = MISSING_AT_PROVIDER if missing else payment.problem
    if not payment.cancel_requested or (missing and payment.checks < MISSING_CHECKS):
        return dataclasses.replace(payment, problem=problem)
    return dataclasses.replace(
        payment, state=State.CANCELLED, payment_method=None, client_secret=None, authenticating=False, problem=problem,
        failure_reason=problem, checks=0,
    )  # fmt: skip


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
