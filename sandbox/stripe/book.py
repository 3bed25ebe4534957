"""Stripe's tables, and running totals, so that the ledger needs no scan."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator

from sandbox.rows import Event, Json
from sandbox.state.store import EVENTS_KEPT, Table
from sandbox.stripe.rows import TAGS, Charge, Intent, Refund, Subject


class StripeBook:
    """All rows of Stripe's protocol, as `sandbox.state.store.Book` describes."""

    name = "stripe"
    tags = TAGS

    def __init__(self) -> None:
        self.intents: Table[Intent] = Table()
        self.charges: Table[Charge] = Table()
        self.refunds: Table[Refund] = Table()
        self.events: Table[Event] = Table(EVENTS_KEPT)
        self.charges_of: dict[str, tuple[str, ...]] = {}
        self.refunds_of: dict[str, tuple[str, ...]] = {}
        self._totals: dict[str, Counter[str]] = {}
        self._statuses: dict[str, Counter[str]] = {}

    def apply(self, subject: Subject) -> None:
        if isinstance(subject, Intent):
            self._apply_intent(subject)
        elif isinstance(subject, Charge):
            self._apply_charge(subject)
        else:
            self._apply_refund(subject)

    def current(self) -> Iterator[Subject]:
        yield from self.intents.rows.values()
        yield from self.charges.rows.values()
        yield from self.refunds.rows.values()

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
