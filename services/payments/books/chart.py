"""The chart of accounts, and the entries that payments, refunds and disputes make in it. Pure.

An entry moves one amount from its credit to its debit account, in one row. So no row can be unbalanced, and neither can
a sum of rows: no constraint, no trigger and no second row is needed for that.

`of_payment`, `of_refund` and `of_dispute` say which balances a row stands for as it is now. A change enters the
difference, so the journal follows each row whatever the way of its changes; `make audit` compares both.
"""

import enum
import uuid
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import lru_cache

from services.payments.domain import Dispute, DisputeState, Payment, Refund, RefundState, Settlement, State


class Nature(enum.Enum):
    """The side on which an account grows."""

    DEBIT = enum.auto()
    """Assets and expenses."""
    CREDIT = enum.auto()
    """Liabilities and income."""


@dataclass(frozen=True, slots=True)
class Account:
    """One account of the chart. Each provider has its own `provider:<name>`."""

    name: str
    nature: Nature
    meaning: str


PROVIDER = "provider:"
"""The prefix of the accounts of providers."""
CUSTOMER_PAYMENTS, REFUNDS, STRAY_MONEY, FEES = "customer_payments", "refunds", "stray_money", "fees"
DISPUTES, DISPUTES_LOST = "disputes", "disputes_lost"
AUTHORIZED, UNCAPTURED = "authorized", "uncaptured"
OUTSIDE, WRITTEN_OFF = "outside", "written_off"

CHART = (
    Account(PROVIDER + "*", Nature.DEBIT, "money that a provider has or had for us, before it pays us out"),
    Account(CUSTOMER_PAYMENTS, Nature.CREDIT, "money that customers paid for orders"),
    Account(REFUNDS, Nature.DEBIT, "money of orders that went back to customers"),
    Account(STRAY_MONEY, Nature.CREDIT, "money that belongs to no order and must go back"),
    Account(FEES, Nature.DEBIT, "fees of providers, as far as they are known"),
    Account(DISPUTES, Nature.DEBIT, "money that banks hold until a dispute ends"),
    Account(DISPUTES_LOST, Nature.DEBIT, "money that customers got back by their banks"),
    Account(OUTSIDE, Nature.CREDIT, "money that went back another way than by the provider"),
    Account(AUTHORIZED, Nature.DEBIT, "money of customers that is set aside, and that a provider has not taken"),
    Account(UNCAPTURED, Nature.CREDIT, "money that customers owe for orders, as far as it is set aside"),
    Account(WRITTEN_OFF, Nature.CREDIT, "money that should have gone back and is given up"),
)

_MOVEMENTS = {
    (PROVIDER, CUSTOMER_PAYMENTS): ("CAPTURED", "CAPTURE_REVERSED"),
    (AUTHORIZED, UNCAPTURED): ("AUTHORIZED", "AUTHORIZATION_ENDED"),
    (REFUNDS, PROVIDER): ("REFUNDED", "REFUND_FAILED"),
    (REFUNDS, OUTSIDE): ("REFUNDED_OUTSIDE", "REFUND_OUTSIDE_REVERSED"),
    (REFUNDS, WRITTEN_OFF): ("WRITTEN_OFF", "WRITE_OFF_REVERSED"),
    (PROVIDER, STRAY_MONEY): ("STRAY_RECEIVED", "STRAY_NOT_RECEIVED"),
    (STRAY_MONEY, PROVIDER): ("STRAY_RETURNED", "STRAY_RETURN_FAILED"),
    (STRAY_MONEY, OUTSIDE): ("STRAY_RETURNED_OUTSIDE", "STRAY_OUTSIDE_REVERSED"),
    (STRAY_MONEY, WRITTEN_OFF): ("STRAY_WRITTEN_OFF", "STRAY_WRITE_OFF_REVERSED"),
    (STRAY_MONEY, DISPUTES_LOST): ("STRAY_RETURNED_BY_BANK", "STRAY_BY_BANK_REVERSED"),
    (DISPUTES, PROVIDER): ("DISPUTED", "DISPUTE_WON"),
    (DISPUTES_LOST, DISPUTES): ("DISPUTE_LOST", "DISPUTE_LOSS_REVERSED"),
    (REFUNDS, DISPUTES_LOST): ("REFUNDED_BY_BANK", "REFUND_BY_BANK_REVERSED"),
    (FEES, PROVIDER): ("FEE", "FEE_RETURNED"),
}  # fmt: skip
"""By debit and credit account: the kind of the entry, and of the one that takes it back."""
OPENING = "OPENING"
"""The kind of entries for rows that are older than the journal, or that lacked theirs."""
KINDS = frozenset(kind for both in _MOVEMENTS.values() for kind in both) | {OPENING}

Balances = Mapping[tuple[str, str], int]
"""Amounts by debit and credit account."""


@dataclass(frozen=True, slots=True)
class Entry:
    """One entry; its currency is that of its payment."""

    payment_id: uuid.UUID
    kind: str
    debit: str
    credit: str
    amount_minor: int
    reference: str
    """The charge, our refund, or the dispute that it is about."""


def entries_of_payment(before: Payment, after: Payment) -> list[Entry]:
    """Return the entries of a payment's change. Most of them have none, or one: this is the hot path."""
    if before.state is after.state and before.amount_minor == after.amount_minor:
        return []
    return list(_difference(after.id, after.provider_reference or "", of_payment(before), of_payment(after)))


def entries_of_refund(before: Refund | None, after: Refund) -> list[Entry]:
    """Return the entries of a refund's change; without `before` it is a new one."""
    return list(_difference(after.payment_id, str(after.id), of_refund(before) if before else {}, of_refund(after)))


def entries_of_dispute(before: Dispute | None, after: Dispute) -> list[Entry]:
    """Return the entries of a dispute's change; without `before` it is a new one."""
    balances = of_dispute(before) if before else {}
    return list(_difference(after.payment_id, after.reference, balances, of_dispute(after)))


def of_payment(payment: Payment) -> Balances:
    """Return what a payment stands for: the money that was taken, or that is set aside."""
    if payment.state is State.AUTHORIZED:
        return {(AUTHORIZED, UNCAPTURED): payment.amount_minor}
    if payment.state not in (State.SUCCEEDED, State.REFUNDED):
        return {}
    return {(PROVIDER + payment.provider, CUSTOMER_PAYMENTS): payment.amount_minor}


def of_refund(refund: Refund) -> Balances:
    """Return what a refund stands for: the money that went back and, of a stray charge, its arrival."""
    provider = PROVIDER + refund.provider
    balances = {(provider, STRAY_MONEY): refund.received_minor}
    if refund.state is RefundState.SUCCEEDED:
        owed = STRAY_MONEY if refund.stray else REFUNDS
        by = {
            Settlement.PROVIDER: provider, Settlement.OUTSIDE: OUTSIDE, Settlement.WRITTEN_OFF: WRITTEN_OFF,
            Settlement.BANK: DISPUTES_LOST,
        }  # fmt: skip
        balances[owed, by[refund.settlement]] = refund.amount_minor
    return balances


def of_dispute(dispute: Dispute) -> Balances:
    """Return what a dispute stands for: the money that the bank has taken, for good if it is lost, and the fee."""
    provider = PROVIDER + dispute.provider
    balances = {(DISPUTES, provider): dispute.withdrawn_minor, (FEES, provider): dispute.fee_minor}
    if dispute.state is DisputeState.LOST:
        balances[DISPUTES_LOST, DISPUTES] = dispute.withdrawn_minor
    return balances


def _difference(payment_id: uuid.UUID, reference: str, before: Balances, after: Balances) -> Iterator[Entry]:
    if before == after:
        return
    for pair in dict.fromkeys((*before, *after)):
        if more := after.get(pair, 0) - before.get(pair, 0):
            yield _entry(payment_id, reference, pair, more)


def _entry(payment_id: uuid.UUID, reference: str, pair: tuple[str, str], more: int) -> Entry:
    debit, credit = pair if more > 0 else pair[::-1]
    kind = _kinds(*pair)[0 if more > 0 else 1]
    return Entry(payment_id, kind, debit, credit, abs(more), reference)


@lru_cache(maxsize=256)
def _kinds(debit: str, credit: str) -> tuple[str, str]:
    return _MOVEMENTS[_pattern(debit), _pattern(credit)]


def _pattern(account: str) -> str:
    return PROVIDER if account.startswith(PROVIDER) else account
