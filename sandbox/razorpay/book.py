"""Razorpay's tables, and running totals, so that the ledger needs no scan."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator

from sandbox.razorpay.rows import TAGS, Dispute, Order, Payment, Refund, Subject
from sandbox.rows import Event, Json
from sandbox.state.store import EVENTS_KEPT, Table


class RazorpayBook:
    """All rows of Razorpay's protocol, as `sandbox.state.store.Book` describes."""

    name = "razorpay"
    tags = TAGS

    def __init__(self) -> None:
        self.orders: Table[Order] = Table()
        self.payments: Table[Payment] = Table()
        self.refunds: Table[Refund] = Table()
        self.disputes: Table[Dispute] = Table()
        self.events: Table[Event] = Table(EVENTS_KEPT)
        self.by_receipt: dict[str, tuple[str, ...]] = {}
        self.payments_of: dict[str, tuple[str, ...]] = {}
        self.refunds_of: dict[str, tuple[str, ...]] = {}
        self._disputed: set[str] = set()
        self._totals: dict[str, Counter[str]] = {}

    def apply(self, subject: Subject) -> None:
        if isinstance(subject, Order):
            if self.orders.put(subject) is None and subject.receipt is not None:
                self.by_receipt[subject.receipt] = (*self.by_receipt.get(subject.receipt, ()), subject.id)
        elif isinstance(subject, Payment):
            self._apply_payment(subject)
        elif isinstance(subject, Refund):
            if self.refunds.put(subject) is None:
                self.refunds_of[subject.payment] = (*self.refunds_of.get(subject.payment, ()), subject.id)
                self._of(subject.currency)["refunds"] += 1
        else:
            self.disputes.put(subject)
            self._disputed.add(subject.payment)

    def current(self) -> Iterator[Subject]:
        for table in (self.orders, self.payments, self.refunds, self.disputes):
            yield from table.rows.values()

    def ledger(self) -> Json:
        """Totals by currency."""
        names = ("captured", "refunded", "payments", "refunds")
        return {currency: {name: totals[name] for name in names} for currency, totals in self._totals.items()}

    def paid(self) -> Iterator[Json]:
        """Yields one entry for each captured payment, oldest first."""
        for payment in self.payments.oldest_first():
            if payment.captured:
                yield {
                    "id": payment.id,
                    "amount": payment.amount,
                    "currency": payment.currency,
                    "amount_refunded": payment.amount_refunded,
                    "metadata": self.orders.rows[payment.order].notes,
                }

    def records(self) -> Iterator[Json]:
        """Yields one entry for each order with its payments and refunds, oldest first: what an audit compares."""
        for order in self.orders.oldest_first():
            payments = [self.payments.rows[key] for key in self.payments_of.get(order.id, ())]
            yield {
                **order._asdict(),
                "payments": [
                    payment._asdict()
                    | {"refunds": [self.refunds.rows[key]._asdict() for key in self.refunds_of.get(payment.id, ())]}
                    for payment in payments
                ],
            }

    def drop_surplus(self) -> None:
        if dropped := self.orders.surplus(self._has_ended):
            for order in dropped:
                self._forget_receipt(self.orders.rows[order])
            payments = [key for order in dropped for key in self.payments_of.pop(order, ())]
            self.refunds.drop([key for payment in payments for key in self.refunds_of.pop(payment, ())])
            self.payments.drop(payments)
            self.orders.drop(dropped)

    def _forget_receipt(self, order: Order) -> None:
        if order.receipt is not None:
            left = tuple(key for key in self.by_receipt.pop(order.receipt) if key != order.id)
            if left:
                self.by_receipt[order.receipt] = left

    def _has_ended(self, order: Order) -> bool:
        """Whether nothing can happen to the order's payments any more, as far as can be foreseen."""
        payments = [self.payments.rows[key] for key in self.payments_of.get(order.id, ())]
        refunds = [self.refunds.rows[key] for payment in payments for key in self.refunds_of.get(payment.id, ())]
        return (
            order.status == "paid"
            and all(payment.status in ("captured", "refunded", "failed") for payment in payments)
            and all(refund.status != "pending" for refund in refunds)
            and all(payment.id not in self._disputed for payment in payments)
        )

    def _apply_payment(self, payment: Payment) -> None:
        before = self.payments.put(payment)
        totals = self._of(payment.currency)
        if before is None:
            self.payments_of[payment.order] = (*self.payments_of.get(payment.order, ()), payment.id)
        if payment.captured and not (before and before.captured):
            totals["captured"] += payment.amount
            totals["payments"] += 1
        if payment.captured:
            totals["refunded"] += payment.amount_refunded - (before.amount_refunded if before else 0)

    def _of(self, currency: str) -> Counter[str]:
        return self._totals.setdefault(currency, Counter())
