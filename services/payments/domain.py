"""The values of payments and refunds: their states, and the moves between them. Pure."""

import enum
import uuid
from dataclasses import dataclass, field
from datetime import datetime, timedelta

from services.chassis.errors import AppError
from services.chassis.money import Money

WEBHOOK_BYTES_MOST = 256 * 1024
IN_PROGRESS_MOST = 5_000
ANSWER_SECONDS = 3.0
"""A call returns the known state after this long. Its provider calls continue in the background."""
LEASE_SECONDS = 4.0
"""A process owns a payment for this long, unless it renews the lease."""
ANSWERED_SECONDS = 180.0
"""A provider that answered about a payment or refund within this time is not silent: it is asked once a minute."""
REFUND_CHECK_SECONDS = 15.0
"""After this long, a comparison of refunds with the provider's list that has not finished begins again."""
READ_AGAIN_SECONDS = 0.05
"""A call that takes money and begins later than this after its payment was read looks again whether it is wanted."""
PAGE_SECONDS_LEAST = 2_700
"""A page on which a customer pays ends no earlier by itself. Stripe's shortest time is 30 minutes after it was made,
which may be some minutes after it was asked for; an earlier end of a hold ends the page by a call."""
MISSING_AT_PROVIDER = "MISSING_AT_PROVIDER"
OTHER_AMOUNT = "OTHER_AMOUNT"
REVERSAL_REFUSED = "REVERSAL_REFUSED"
AUTHORIZATION_LAPSING = "AUTHORIZATION_LAPSING"
"""The problem of a payment whose money is set aside, and soon given back by its provider."""
AUTHORIZATION_ENDED = "AUTHORIZATION_ENDED"
"""Why a payment was cancelled whose authorisation its provider has ended: it had lapsed, or people ended it there."""
CHARGE_DISPUTED = "CHARGE_DISPUTED"
"""The problem of a payment that shall be reversed while a bank holds its money."""
REVERSAL = "order reversed"
"""The reason of refunds that reverse a payment."""
PROVIDER_NOT_SET_UP = "PROVIDER_NOT_SET_UP"
"""The settings do not name the provider of a payment or refund any more. It goes on once they do again."""
MISSING_CHECKS = 3
"""A payment whose cancellation was requested ends once the provider has said so often that it has no such charge."""
EVENT_ATTEMPTS_MOST = 12
UNANSWERED_ATTEMPTS_MOST = 150
"""An event about which the provider gives no answer is parked after this many attempts, about a day."""


class State(enum.StrEnum):
    """The states of a payment, as in `Payment.State` of the contract."""

    AWAITING_CUSTOMER = "AWAITING_CUSTOMER"
    PROCESSING = "PROCESSING"
    AUTHORIZED = "AUTHORIZED"
    """The money is set aside until it is captured or voided; see `Capture`."""
    SUCCEEDED = "SUCCEEDED"
    FAILED = "FAILED"
    CANCELLED = "CANCELLED"
    REFUNDED = "REFUNDED"


class Capture(enum.StrEnum):
    """The fate of a payment's money once it is authorised."""

    AUTOMATIC = "AUTOMATIC"
    """It is captured at once."""
    MANUAL = "MANUAL"
    """It waits until staff decide."""
    REQUESTED = "REQUESTED"
    """Staff have decided that it is captured."""
    VOID = "VOID"
    """It is given back: staff voided the payment, or its order is reversed."""


class RefundState(enum.StrEnum):
    """The states of a refund, as in `RefundStatus.State` of the contract."""

    PENDING = "PENDING"
    SUCCEEDED = "SUCCEEDED"
    FAILED = "FAILED"


class Settlement(enum.StrEnum):
    """The way in which the money of a refund went back, once it has succeeded."""

    PROVIDER = "PROVIDER"
    OUTSIDE = "OUTSIDE"
    """Another way, for example by bank transfer: an operator has marked it as done."""
    WRITTEN_OFF = "WRITTEN_OFF"
    """It did not, and nobody claims it any more: an operator has given it up."""
    BANK = "BANK"
    """The customer's bank has taken it, by a dispute that was lost."""


class DisputeState(enum.StrEnum):
    """The states of a dispute, as in `Dispute.State` of the contract."""

    INQUIRY = "INQUIRY"
    """The bank asks, and has taken no money; an answer in time may keep it from becoming a dispute."""
    NEEDS_RESPONSE = "NEEDS_RESPONSE"
    UNDER_REVIEW = "UNDER_REVIEW"
    WON = "WON"
    LOST = "LOST"
    CLOSED = "CLOSED"
    """An inquiry that has ended, or a dispute that was withdrawn."""


DISPUTE_ENDS = frozenset((DisputeState.WON, DisputeState.LOST, DisputeState.CLOSED))
DISPUTE_MONEY_BACK = frozenset((DisputeState.INQUIRY, DisputeState.WON, DisputeState.CLOSED))
"""The states in which the bank has no money of ours."""
# All moves of disputes. None leads back: a report that would is an old one.
DISPUTE_MOVES: dict[DisputeState, frozenset[DisputeState]] = {
    DisputeState.INQUIRY: DISPUTE_ENDS | {DisputeState.NEEDS_RESPONSE, DisputeState.UNDER_REVIEW},
    DisputeState.NEEDS_RESPONSE: DISPUTE_ENDS | {DisputeState.UNDER_REVIEW},
    DisputeState.UNDER_REVIEW: DISPUTE_ENDS,
    **dict.fromkeys(DISPUTE_ENDS, frozenset()),
}

OPEN = frozenset((State.AWAITING_CUSTOMER, State.PROCESSING, State.AUTHORIZED))
_ENDS = frozenset((State.AUTHORIZED, State.SUCCEEDED, State.FAILED, State.CANCELLED))

# All moves that exist. The two open states alternate: 3-D Secure, another attempt. Only an attempt leads back to them.
MOVES: dict[State, frozenset[State]] = {
    State.AWAITING_CUSTOMER: _ENDS | {State.PROCESSING},
    State.PROCESSING: _ENDS | {State.AWAITING_CUSTOMER},
    State.AUTHORIZED: frozenset((State.SUCCEEDED, State.CANCELLED)),
    State.SUCCEEDED: frozenset((State.REFUNDED,)),
    State.FAILED: frozenset((State.PROCESSING,)),
    State.CANCELLED: frozenset(),
    State.REFUNDED: frozenset((State.SUCCEEDED,)),  # a refund failed after it had succeeded
}


class PaymentNotFound(AppError):
    code = "NOT_FOUND"
    template = "There is no such payment."


class PaymentMethodNotFound(AppError):
    code = "NOT_FOUND"
    template = "There is no payment method {paymentMethodId}."


class RefundTooLarge(AppError):
    code = "FAILED_PRECONDITION"
    template = "Only {leftMinorUnits} minor units of the payment are left to refund."


class RefundRefused(AppError):
    code = "FAILED_PRECONDITION"
    template = "The provider refused the refund: {cause}."


class ProviderNotSetUp(AppError):
    code = "FAILED_PRECONDITION"
    template = "The shop takes no payments through {provider}."


class PaymentDisputed(AppError):
    code = "FAILED_PRECONDITION"
    template = "A bank holds money of the payment because of a dispute; it cannot be refunded meanwhile."


class BadSignature(AppError):
    code = "INVALID_ARGUMENT"
    template = "The signature is missing, wrong, or too old."


@dataclass(frozen=True, slots=True, kw_only=True)
class Terms:
    """How the customer pays an attempt that they asked for."""

    number: int
    """By which orders counts them; 0 stands for the attempt that the order came with, which has no terms."""
    provider: str = ""
    """In a request, empty for that of the earlier attempt."""
    payment_method: str = ""
    """The token of a card, until the attempt begins."""
    checkout: bool = False
    """Whether the customer pays on a page of the provider."""
    return_url: str = ""
    """The address to which that page sends them back."""
    page_end: int = 0
    """When that page ends, in seconds since 1970."""
    saved_method: str = ""
    """The id of the customer's saved method that is charged."""
    saves_method: bool = False
    """Whether the provider saves the method that pays; the customer has agreed to it."""
    refusal: str = ""
    """Why the customer cannot pay as they asked for: they pay in the browser then."""

    @property
    def names_customer(self) -> bool:
        """Whether the charge belongs to a customer at the provider."""
        return bool(self.saved_method) or self.saves_method


@dataclass(frozen=True, slots=True, kw_only=True)
class Charge:
    """One line of a request of orders: the order, its customer, and the money to take."""

    order_id: uuid.UUID
    customer_id: uuid.UUID
    amount: Money
    payment_method: str = ""
    hold_expire_time: datetime | None = None
    """When the units of the order are given up; None if that is not known."""
    terms: Terms | None = None
    """Of an attempt that the customer asked for; None for the one that the order came with."""


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
    answer_time: datetime | None = field(default=None, compare=False)
    """When the provider answered about it last; None if it never has."""
    hold_expire_time: datetime | None = None
    """When the units of the order are given up, as the first charge said: calls that end earlier go first."""
    capture_reference: str | None = None
    """The provider's id of the money that was authorised or taken, if it differs from that of the charge."""
    order_attempt: int = 0
    """The attempt in progress, by the number that orders gave it."""
    latest_order_attempt: int = 0
    """The latest attempt that orders asked for; above `order_attempt` if it waits, or if it was not made."""
    terms: Terms | None = None
    """Of the attempt in progress; None for the one that the order came with."""
    next_terms: Terms | None = None
    """Of the attempt that begins as soon as the charge of the present one is voided."""
    former_references: tuple[str, ...] = ()
    """The charges and pages of earlier attempts. Money that arrives there is stray."""
    checkout_reference: str | None = None
    """The provider's id of the page on which the customer pays, which makes the charge only once they do."""
    checkout_url: str | None = None
    """Its address, while they can pay there."""
    capture: Capture = Capture.AUTOMATIC
    authorize_time: datetime | None = field(default=None, compare=False)
    """When its money was set aside, if that waits for staff."""

    @property
    def charge_reference(self) -> str | None:
        """The provider's id of the charge whose money a refund returns."""
        return self.capture_reference or self.provider_reference

    @property
    def is_begun(self) -> bool:
        """Whether the provider has a charge, or a page, of the attempt in progress, as far as is known."""
        return self.provider_reference is not None or self.checkout_reference is not None

    @property
    def references(self) -> tuple[str, ...]:
        """The provider's ids of the attempt in progress."""
        return tuple(one for one in (self.provider_reference, self.checkout_reference) if one)

    @property
    def accepted_attempt(self) -> int:
        """The attempt that the customer may rely on, by the number that orders gave it."""
        return self.next_terms.number if self.next_terms else self.order_attempt

    @property
    def left_minor(self) -> int:
        """The minor units that can still be refunded."""
        return self.amount_minor - self.refunded_minor - self.refunding_minor

    @property
    def is_cancellable(self) -> bool:
        """Whether the provider can be asked to cancel it; a charge in progress must end first."""
        gives_back = self.state is State.AUTHORIZED and self.capture is Capture.VOID
        return self.state is State.AWAITING_CUSTOMER or gives_back

    @property
    def waits_for_staff(self) -> bool:
        """Whether its money is set aside, and nobody has decided yet whether to take it."""
        return self.state is State.AUTHORIZED and self.capture is Capture.MANUAL

    @property
    def keeps_authorisation(self) -> bool:
        """Whether money that its customer has set aside in time stays so, though the charge is to be cancelled.

        The hold has ended, or another attempt waits. Money that was captured at once would be kept likewise.
        """
        return self.capture is Capture.MANUAL and self.state in OPEN

    @property
    def is_payable(self) -> bool:
        """Whether its customer may pay it."""
        return self.state is State.AWAITING_CUSTOMER and not self.cancel_requested and not self.next_terms

    @property
    def payable_reference(self) -> str | None:
        """The charge that its customer pays by the provider's id alone; None if that needs a secret or a page."""
        return None if self.client_secret or self.checkout_reference else self.provider_reference

    def is_in_process(self, now: float) -> bool:
        """Whether the provider answers, at `now` in seconds since 1970, that it processes the charge: a bank debit."""
        begun = self.provider_reference is not None and self.payment_method is None
        return self.state is State.PROCESSING and begun and _is_recent(self.answer_time, now)


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
    settlement: Settlement = Settlement.PROVIDER
    received_minor: int = 0
    """The money whose arrival it records: of a stray charge, which no payment counts."""
    answer_time: datetime | None = field(default=None, compare=False)
    """As in `Payment`."""

    def is_in_process(self, now: float) -> bool:
        """Whether the provider answers, at `now` in seconds since 1970, that it has the refund and it is pending."""
        begun = self.provider_reference is not None and not self.problem
        return self.state is RefundState.PENDING and begun and _is_recent(self.answer_time, now)


def _is_recent(answer_time: datetime | None, now: float) -> bool:
    return answer_time is not None and abs(now - answer_time.timestamp()) < ANSWERED_SECONDS


@dataclass(frozen=True, slots=True, kw_only=True)
class Dispute:
    """Money of a payment that its customer's bank demands back."""

    provider: str
    reference: str
    """The provider's id of it."""
    payment_id: uuid.UUID
    state: DisputeState
    status: str
    """The provider's own word for the state, in upper case."""
    reason: str
    amount_minor: int
    currency: str
    withdrawn_minor: int
    """The money that the bank has taken and not given back."""
    fee_minor: int
    """The fee that the provider has taken and not given back."""
    evidence_due_time: datetime | None
    """Until when evidence must be sent; None if none is expected."""


@dataclass(frozen=True, slots=True)
class Calls:
    """The calls of one payment or refund under its current idempotency key, before the one that begins now."""

    key_age: timedelta = timedelta(0)
    unanswered_age: timedelta | None = None
    """The time since the last one that may still take effect, because it got no answer; None if there is none."""
    is_first: bool = True
    """Whether none was sent."""
