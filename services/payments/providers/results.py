"""Provider results: what a provider says about a charge or a refund. Pure."""

import enum
import uuid
from dataclasses import dataclass
from datetime import datetime

from services.payments.domain import Calls, DisputeState, Payment, Refund, RefundState


class ChargeStatus(enum.Enum):
    """The statuses of a charge. Only `DECLINED` turns an order back."""

    SUCCEEDED = enum.auto()
    """The money was taken."""
    AUTHORISED = enum.auto()
    """The money is set aside, and taken by `capture`."""
    DECLINED = enum.auto()
    """The bank or the provider refused for good, and no money has moved; `reason` says why, and a buyer may see it."""
    REQUIRES_ACTION = enum.auto()
    """The customer must pay or authenticate in the browser."""
    PENDING = enum.auto()
    """The provider works on it, and reports the end later."""
    CANCELLED = enum.auto()
    """It was voided, and can never take money."""
    MISSING = enum.auto()
    """The provider has no charge with the payment's reference."""
    UNKNOWN = enum.auto()
    """The provider gave no final answer: money may or may not have moved."""
    WITHDRAWN = enum.auto()
    """No call was sent that could have taken money, or the provider has no record of one."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Unknown:
    """The provider gave no final answer to a call without a result type of its own."""

    too_many: bool = False
    """The list is longer than one search may read."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ChargeResult:
    """The provider result of one payment."""

    payment_id: uuid.UUID
    status: ChargeStatus
    reference: str | None = None
    client_secret: str | None = None
    amount_minor: int | None = None
    currency: str | None = None
    reason: str = ""
    authenticating: bool = False
    """With `REQUIRES_ACTION`: the customer has started to pay and the bank is authenticating them."""
    capture_reference: str | None = None
    """The provider's id of the money that was authorised or taken, if one charge may be paid more than once."""
    has_ended: bool = False
    """With `UNKNOWN`: the provider has answered with an error, so the call can take no effect later."""
    was_sent: bool = True
    """With `UNKNOWN`: False if our limits kept the call from being sent."""
    calls: Calls | None = None
    """With `UNKNOWN`: the earlier calls, if this one has ended for sure; None if it may still take effect."""
    problem: str = ""
    """With `UNKNOWN`: why an operator must look at it."""
    provider: str = ""
    """The provider that has the charge; empty for the payment's."""
    checkout_reference: str | None = None
    """The page on which the customer pays."""
    checkout_url: str | None = None
    """Its address, while they can pay there."""


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
    has_ended: bool = False
    """As in `ChargeResult`."""
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


@dataclass(frozen=True, slots=True, kw_only=True)
class ProviderCharge:
    """Money that the provider has captured, in its records."""

    reference: str
    """As `Payment.provider_reference`."""
    capture_reference: str | None
    """As `Payment.capture_reference`; None where a charge is paid at most once."""
    payment_id: uuid.UUID | None
    """From its metadata; None if that names none of our payments, or if the provider does not list it."""
    order_id: str
    """From its metadata, for people."""
    amount_minor: int
    refunded_minor: int
    currency: str
    create_time: datetime

    @property
    def money(self) -> str:
        """The id of the money, as refunds name it."""
        return self.capture_reference or self.reference


@dataclass(frozen=True, slots=True, kw_only=True)
class Card:
    """A card that a provider keeps for a customer, by what they recognise it."""

    reference: str
    """The provider's id of it."""
    brand: str
    last4: str
    expire_month: int
    expire_year: int


@dataclass(frozen=True, slots=True, kw_only=True)
class ProviderDispute:
    """A dispute in the provider's records."""

    reference: str
    charge_reference: str
    state: DisputeState
    status: str
    reason: str
    amount_minor: int
    currency: str
    withdrawn_minor: int
    fee_minor: int
    evidence_due_time: datetime | None


def unknown_charge(payment: Payment, *, has_ended: bool = False, was_sent: bool = True) -> ChargeResult:
    """Return the result of a call about `payment` without a final answer."""
    return ChargeResult(
        payment_id=payment.id, status=ChargeStatus.UNKNOWN, has_ended=has_ended, was_sent=was_sent
    )  # fmt: skip


def unknown_refund(refund: Refund, *, has_ended: bool = False) -> RefundResult:
    """Return the result of a call about `refund` without a final answer."""
    return RefundResult(refund_id=refund.id, payment_id=refund.payment_id, has_ended=has_ended)


def own_id(value: object) -> uuid.UUID | None:
    """Return the payment id in a charge's metadata; None if other software has made the charge."""
    try:
        return uuid.UUID(str(value))
    except ValueError:
        return None
