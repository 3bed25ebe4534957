"""Stripe's tables, and running totals, so that the ledger needs no scan."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from heapq import heappush
from itertools import chain
from typing import Any

from sandbox.rows import Event, Json
from sandbox.state.store import EVENTS_KEPT, Table
from sandbox.stripe.rows import (
    TAGS,
    Charge,
    Customer,
    Dispute,
    Intent,
    Method,
    Refund,
    Session,
    Subject,
)
from sandbox.stripe.rules.cards import CARDS  # fmt: skip

_ENDED = ("succeeded", "canceled")
# An authorisation ends after this time, and a refund of `pm_card_refundFail` fails.
AUTHORISED_S, REFUND_FAILS_S = 7 * 24 * 3600, 2


class StripeBook:
    """All rows of Stripe's protocol, as `sandbox.state.store.Book` describes."""

    name = "stripe"
    tags = TAGS

    def __init__(self) -> None:
        self.intents: Table[Intent] = Table()
        self.charges: Table[Charge] = Table()
        self.refunds: Table[Refund] = Table()
        self.customers: Table[Customer] = Table()
        self.methods: Table[Method] = Table()
        self.sessions: Table[Session] = Table()
        self.disputes: Table[Dispute] = Table()
        self.events: Table[Event] = Table(EVENTS_KEPT)
        self.charges_of: dict[str, tuple[str, ...]] = {}
        self.refunds_of: dict[str, tuple[str, ...]] = {}
        self.methods_of: dict[str, tuple[str, ...]] = {}
        self.due: list[tuple[int, str]] = []
        """A heap of the objects that change by themselves, by the second at which they do."""
        self._totals: dict[str, Counter[str]] = {}
        self._statuses: dict[str, Counter[str]] = {}
        self._apply: dict[type[Any], Any] = {
            Intent: self._apply_intent, Charge: self._apply_charge, Refund: self._apply_refund,
            Customer: self.customers.put, Method: self._apply_method, Session: self._apply_session,
            Dispute: self.disputes.put,
        }  # fmt: skip

    def apply(self, subject: Subject) -> None:
        self._apply[type(subject)](subject)

    def current(self) -> Iterator[Subject]:
        tables: tuple[Table[Any], ...] = (
            self.intents, self.charges, self.refunds, self.customers, self.methods, self.sessions, self.disputes,
        )  # fmt: skip
        return chain.from_iterable(table.rows.values() for table in tables)

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
                    "amount": charge.taken,
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
                "amount": charge.taken if charge else intent.amount,
                "currency": intent.currency,
                "amount_refunded": charge.amount_refunded if charge else 0,
                "dispute": self._dispute(charge),
                "metadata": intent.metadata,
                "refunds": [
                    refund._asdict()
                    for refund in map(self.refunds.rows.__getitem__, self.refunds_of.get(intent.id, ()))
                ],
            }

    def _dispute(self, charge: Charge | None) -> Json | None:
        if charge is None or charge.dispute is None:
            return None
        dispute = self.disputes.rows[charge.dispute]
        return {
            "id": dispute.id, "amount": dispute.amount, "status": dispute.status, "created": dispute.created,
        }  # fmt: skip

    def _apply_intent(self, intent: Intent) -> None:
        before = self.intents.put(intent)
        statuses = self._statuses.setdefault(intent.currency, Counter())
        self._totals.setdefault(intent.currency, Counter())
        if before is not None:
            statuses[before.status] -= 1
        statuses[intent.status] += 1
        if intent.status == "requires_capture" and (before is None or before.status != intent.status):
            heappush(self.due, (intent.created + AUTHORISED_S, intent.id))

    def _apply_charge(self, charge: Charge) -> None:
        before = self.charges.put(charge)
        totals = self._totals.setdefault(charge.currency, Counter())
        taken = 0
        if before is None:
            self.charges_of[charge.intent] = (*self.charges_of.get(charge.intent, ()), charge.id)
        else:
            taken = before.taken
        if charge.taken and not taken:
            totals["payments"] += 1
        totals["captured"] += charge.taken - taken
        totals["refunded"] += charge.amount_refunded - (before.amount_refunded if before else 0)

    def _apply_refund(self, refund: Refund) -> None:
        if self.refunds.put(refund) is None:
            self.refunds_of[refund.intent] = (*self.refunds_of.get(refund.intent, ()), refund.id)
            self._totals.setdefault(refund.currency, Counter())["refunds"] += 1
            if CARDS[self.charges.rows[refund.charge].card].refunds_fail:
                heappush(self.due, (refund.created + REFUND_FAILS_S, refund.id))

    def _apply_session(self, session: Session) -> None:
        if self.sessions.put(session) is None:
            heappush(self.due, (session.expires_at, session.id))

    def drop_surplus(self) -> None:
        if dropped := self.intents.surplus(self._has_ended):
            self.charges.drop([key for intent in dropped for key in self.charges_of.pop(intent, ())])
            self.refunds.drop([key for intent in dropped for key in self.refunds_of.pop(intent, ())])
            self.intents.drop(dropped)
        if sessions := self.sessions.surplus(lambda session: session.status != "open"):
            self.sessions.drop(sessions)

    def _has_ended(self, intent: Intent) -> bool:
        """Whether nothing can happen to the payment any more, as far as can be foreseen."""
        return (
            intent.status in _ENDED
            and all(self.charges.rows[key].dispute is None for key in self.charges_of.get(intent.id, ()))
            and all(self.refunds.rows[key].status != "pending" for key in self.refunds_of.get(intent.id, ()))
        )

    def _apply_method(self, method: Method) -> None:
        before = self.methods.put(method)
        was = before.customer if before else None
        if was == method.customer:
            return
        if was is not None:
            self.methods_of[was] = tuple(key for key in self.methods_of[was] if key != method.id)
        if method.customer is not None:
            self.methods_of[method.customer] = (*self.methods_of.get(method.customer, ()), method.id)
