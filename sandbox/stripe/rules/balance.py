"""Balance transactions: views of charges, refunds and disputes, because each of these moves the balance once.

A transaction's id is that of its source with the prefix `txn`, so nothing is stored for it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from heapq import merge
from typing import Any, NamedTuple

from sandbox.state.store import Table
from sandbox.stripe.book import StripeBook
from sandbox.stripe.rows import Charge, Dispute, Refund
from sandbox.stripe.rules.currencies import THREE_DECIMAL, ZERO_DECIMAL

# Stripe's published price of a domestic card in each kind of currency: thousandths, and minor units.
_TWO_DECIMALS, _NO_DECIMALS, _THREE_DECIMALS = (29, 30), (36, 0), (29, 100)
_DISPUTE_FEE = 1_500


class Transaction(NamedTuple):
    """One movement of the balance. `amount` is negative if money left; `fee` is taken off in addition."""

    id: str
    created: int
    amount: int
    fee: int
    currency: str
    source: str
    type: str
    category: str
    description: str | None


def of_charge(charge: Charge) -> Transaction | None:
    """The transaction of a charge; None while it took nothing, or while its fee is not known yet."""
    if not charge.taken or not charge.fee_known:
        return None
    fee = _fee(charge.taken, charge.currency)
    return Transaction(
        _id(charge.id), charge.captured_at or charge.created, charge.taken, fee, charge.currency, charge.id,
        "charge", "charge", charge.description,
    )  # fmt: skip


def id_of_charge(charge: Charge) -> str | None:
    """The same transaction's id, without its fee."""
    return _id(charge.id) if charge.fee_known and charge.taken else None


def of_refund(refund: Refund) -> Transaction:
    """Stripe keeps the fee of the charge, and takes none for the refund."""
    return Transaction(
        _id(refund.id), refund.created, -refund.amount, 0, refund.currency, refund.id,
        "refund", "refund", "REFUND FOR CHARGE",
    )  # fmt: skip


def of_failed_refund(refund: Refund) -> Transaction | None:
    if refund.status != "failed":
        return None
    return Transaction(
        f"{_id(refund.id)}f", refund.created, refund.amount, 0, refund.currency, refund.id,
        "refund_failure", "refund_failure", "REFUND FAILED",
    )  # fmt: skip


def of_dispute(dispute: Dispute) -> list[Transaction]:
    """The withdrawal with the bank's fee, and the return of both if the dispute is won."""
    found: list[Transaction] = []
    words = (dispute.currency, dispute.id, "adjustment")
    if dispute.withdrawn_at is not None:
        found.append(
            Transaction(
                _id(dispute.id), dispute.withdrawn_at, -dispute.amount, _DISPUTE_FEE, *words,
                "dispute", f"Chargeback withdrawal for {dispute.charge}",
            )
        )  # fmt: skip
    if dispute.reinstated_at is not None:
        found.append(
            Transaction(
                f"{_id(dispute.id)}r", dispute.reinstated_at, dispute.amount, -_DISPUTE_FEE, *words,
                "dispute_reversal", f"Chargeback reversal for {dispute.charge}",
            )
        )  # fmt: skip
    return found


def find(book: StripeBook, identifier: str) -> Transaction | None:
    suffix = identifier.removeprefix("txn_")
    for tail in (suffix, suffix[:-1]):
        for found in _of(book, tail):
            if found.id == identifier:
                return found
    return None


def newest_first(book: StripeBook) -> Iterator[Transaction]:
    """All transactions by the time of their source."""

    def rows(table: Table[Any], views: Callable[[Any], list[Transaction]]) -> Iterator[tuple[int, list[Transaction]]]:
        return ((-row.created, views(row)) for row in table.newest_first())

    charges = rows(book.charges, lambda charge: [t for t in (of_charge(charge),) if t])
    refunds = rows(book.refunds, lambda refund: [t for t in (of_failed_refund(refund), of_refund(refund)) if t])
    disputes = rows(book.disputes, lambda dispute: of_dispute(dispute)[::-1])
    for _, found in merge(disputes, refunds, charges, key=lambda each: each[0]):
        yield from found


def _of(book: StripeBook, suffix: str) -> list[Transaction]:
    if (charge := book.charges.rows.get(f"ch_{suffix}")) is not None:
        return [t for t in (of_charge(charge),) if t]
    if (refund := book.refunds.rows.get(f"re_{suffix}")) is not None:
        return [t for t in (of_refund(refund), of_failed_refund(refund)) if t]
    dispute = book.disputes.rows.get(f"dp_{suffix}")
    return of_dispute(dispute) if dispute is not None else []


def _fee(amount: int, currency: str) -> int:
    thousandths, fixed = _TWO_DECIMALS
    if currency in ZERO_DECIMAL:
        thousandths, fixed = _NO_DECIMALS
    elif currency in THREE_DECIMAL:
        thousandths, fixed = _THREE_DECIMALS
    return (amount * thousandths + 500) // 1000 + fixed


def _id(source: str) -> str:
    return f"txn_{source.partition('_')[2]}"
