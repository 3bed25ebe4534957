"""All rows in memory, with an index for each kind of query."""

from __future__ import annotations

from bisect import bisect_right
from collections import Counter
from collections.abc import Iterable, Iterator
from typing import Generic, TypeVar

from deploy.sandbox.rules.values import Change, Charge, Event, Intent, Json, Refund

# Stripe keeps events for 30 days; the sandbox keeps so many, so that its memory is bounded.
EVENTS_KEPT = 200_000

Row = TypeVar("Row", Intent, Charge, Refund, Event)


class Table(Generic[Row]):
    """Rows by id, and their ids in order of creation."""

    def __init__(self, kept: int | None = None) -> None:
        self.rows: dict[str, Row] = {}
        self._order: list[str] = []
        self._kept = kept

    def put(self, row: Row) -> Row | None:
        """Stores `row`; returns the row that it replaces."""
        before = self.rows.get(row.id)
        self.rows[row.id] = row
        if before is None:
            self._order.append(row.id)
            # Deleting a tenth of the rows at once spreads the cost of shifting the list.
            if self._kept is not None and len(self._order) > self._kept * 1.1:
                surplus = len(self._order) - self._kept
                for old in self._order[:surplus]:
                    del self.rows[old]
                del self._order[:surplus]
        return before

    def newest_first(self, *, after: str | None = None, until: int | None = None) -> Iterator[Row]:
        """Rows created before `after`, and not later than the second `until`, newest first.

        Ids are in order of creation, so binary search finds the start.
        """
        if after is not None:
            until = self.rows[after].created
        end = len(self._order)
        if until is not None:
            end = bisect_right(self._order, until, key=lambda key: self.rows[key].created)
        waiting = after is not None
        for position in range(end - 1, -1, -1):
            row = self.rows[self._order[position]]
            if not waiting:
                yield row
            elif row.id == after:
                waiting = False

    def oldest_first(self) -> Iterator[Row]:
        return (self.rows[key] for key in list(self._order) if key in self.rows)


class Store:
    """The tables, and running totals, so that the ledger needs no scan."""

    def __init__(self) -> None:
        self.intents: Table[Intent] = Table()
        self.charges: Table[Charge] = Table()
        self.refunds: Table[Refund] = Table()
        self.events: Table[Event] = Table(EVENTS_KEPT)
        self.charges_of: dict[str, tuple[str, ...]] = {}
        self.refunds_of: dict[str, tuple[str, ...]] = {}
        self.newest: int = 0
        self._totals: dict[str, Counter[str]] = {}
        self._statuses: dict[str, Counter[str]] = {}

    def apply(self, changes: Iterable[Change]) -> None:
        """Applies the changes of a request, after the journal has them."""
        for change in changes:
            self.newest = max(self.newest, change.created)
            if isinstance(change, Event):
                self.events.put(change)
            elif isinstance(change, Intent):
                self._apply_intent(change)
            elif isinstance(change, Charge):
                self._apply_charge(change)
            else:
                self._apply_refund(change)

    def charge_of(self, intent: Intent) -> Charge | None:
        """The charge that took the intent's money, or None."""
        if intent.status != "succeeded" or intent.latest_charge is None:
            return None
        return self.charges.rows[intent.latest_charge]

    def ledger(self) -> Json:
        """Totals by currency."""
        return {
            currency: {
                "captured": totals["captured"],
                "refunded": totals["refunded"],
                "payments": totals["payments"],
                "refunds": totals["refunds"],
                "intents": {status: count for status, count in self._statuses[currency].items() if count},
            }
            for currency, totals in self._totals.items()
        }

    def paid(self) -> Iterator[Json]:
        """Yields one entry for each successful payment, oldest first."""
        for intent in self.intents.oldest_first():
            charge = self.charge_of(intent)
            if charge is not None:
                yield {
                    "id": intent.id,
                    "amount": charge.amount,
                    "currency": charge.currency,
                    "amount_refunded": charge.amount_refunded,
                    "metadata": intent.metadata,
                }

    def records(self) -> Iterator[Json]:
        """Yields one entry for each intent with its refunds, oldest first: what an audit compares."""
        for intent in self.intents.oldest_first():
            charge = self.charge_of(intent)
            yield {
                "id": intent.id,
                "status": intent.status,
                "amount": charge.amount if charge else intent.amount,
                "currency": intent.currency,
                "amount_refunded": charge.amount_refunded if charge else 0,
                "metadata": intent.metadata,
                "refunds": [
                    refund._asdict()
                    for refund in map(self.refunds.rows.__getitem__, self.refunds_of.get(intent.id, ()))
                ],
            }

    def _apply_intent(self, intent: Intent) -> None:
        before = self.intents.put(intent)
        statuses = self._statuses.setdefault(intent.currency, Counter())
        self._totals.setdefault(intent.currency, Counter())
        if before is not None:
            statuses[before.status] -= 1
        statuses[intent.status] += 1

    def _apply_charge(self, charge: Charge) -> None:
        before = self.charges.put(charge)
        totals = self._totals.setdefault(charge.currency, Counter())
        if before is None:
            self.charges_of[charge.intent] = (*self.charges_of.get(charge.intent, ()), charge.id)
            if charge.failure is None:
                totals["captured"] += charge.amount
                totals["payments"] += 1
        totals["refunded"] += charge.amount_refunded - (before.amount_refunded if before else 0)

    def _apply_refund(self, refund: Refund) -> None:
        if self.refunds.put(refund) is None:
            self.refunds_of[refund.intent] = (*self.refunds_of.get(refund.intent, ()), refund.id)
            self._totals.setdefault(refund.currency, Counter())["refunds"] += 1
