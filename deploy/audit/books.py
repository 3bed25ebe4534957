"""The sums of all settled orders, by currency: what the provider keeps is what paid orders are worth."""

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field

from deploy.audit import repairs
from deploy.audit.checks import across
from deploy.audit.checks.across import CHARGED, LEDGER_OF, PAID_STATES
from deploy.audit.checks.excuses import in_flight, refund_in_flight, waits_for_staff
from deploy.audit.findings import Check, Finding, Invariant
from deploy.audit.reading.rows import Case

BALANCE = Check(
    "balance",
    Invariant.MONEY,
    "in each currency, captured - refunded at the provider = paid orders - their refunds",
    repairs.LOOK,
)
JOURNAL = Check(
    "journal-balance",
    Invariant.MONEY,
    "in each currency, the provider's account of the journal = captured - refunded - disputed at the provider",
    repairs.COMPLETE_JOURNAL,
)


@dataclass
class Books:
    """The sums. Orders in progress are left out of both sides."""

    with_ledger: bool = True
    captured: Counter[str] = field(default_factory=Counter)
    provider_refunds: Counter[str] = field(default_factory=Counter)
    """Refunds in the provider's records."""
    ordered: Counter[str] = field(default_factory=Counter)
    refunded: Counter[str] = field(default_factory=Counter)
    """Refunds of paid orders in the payments database."""
    withdrawn: Counter[str] = field(default_factory=Counter)
    """Money that banks have taken because of disputes, in the provider's records."""
    booked: Counter[str] = field(default_factory=Counter)
    """The money at the provider, by the journal."""
    states: Counter[str] = field(default_factory=Counter)
    confirmed: int = 0
    in_flight: list[str] = field(default_factory=list)
    in_flight_count: int = 0
    ending_soon: int = 0
    """Orders in progress that end within seconds: they wait for no customer, no bank, and no end of a hold."""

    @property
    def paid(self) -> int:
        return sum(self.states[state] for state in PAID_STATES)

    def enter(self, case: Case) -> list[Finding]:
        """Counts one order; returns its findings."""
        if case.order:
            self.states[case.order.state] += 1
        self.confirmed += bool(case.reservation and case.reservation.state == "CONFIRMED")
        if in_flight(case) or refund_in_flight(case):
            self.in_flight_count += 1
            saga = case.order.saga if case.order else None
            waits = case.order is None or (saga and (saga.waits_for_customer or saga.waits_for_provider))
            self.ending_soon += not waits
            if len(self.in_flight) < 100:
                self.in_flight.append(case.id)
        else:
            self._count_money(case)
        return list(across.compare(case, with_provider=self.with_ledger))

    def _count_money(self, case: Case) -> None:
        order, payment = case.order, case.payment
        if order and order.state in PAID_STATES and not waits_for_staff(case):
            self.ordered[order.currency] += order.total_minor
            if payment:
                self.refunded[payment.currency] += payment.refunded_minor - payment.by_hand_minor
        for each in case.payments:
            self.booked[each.currency] += each.booked_minor
            # Refunds that the provider never makes leave money there which no paid order counts.
            is_paid = order is not None and order.state in PAID_STATES
            kept = [r.amount_minor for r in each.refunds if r.by_hand and (r.stray or not is_paid)]
            self.ordered[each.currency] += sum(kept)
        for capture in case.captures:
            self.captured[capture.currency] += capture.amount_minor
            self.withdrawn[capture.currency] += capture.withdrawn_minor
            self.provider_refunds[capture.currency] += capture.refunded_minor
        # If the provider has no records to read, the payments database is taken as the provider's.
        if payment and payment.state in CHARGED and not (self.with_ledger and payment.provider == LEDGER_OF):
            self.captured[payment.currency] += payment.amount_minor
            self.provider_refunds[payment.currency] += payment.refunded_minor - payment.by_hand_minor

    def check_totals(self) -> Iterator[Finding]:
        """Checks that, in each currency, the provider's balance is that of paid orders, and that of the journal."""
        for currency in sorted(self.captured.keys() | self.ordered.keys() | self.booked.keys()):
            has = self.captured[currency] - self.provider_refunds[currency]
            keeps = has - self.withdrawn[currency]
            if keeps != self.booked[currency]:
                text = f"{currency}: the provider keeps {keeps}, but by the journal {self.booked[currency]}"
                yield Finding(JOURNAL, (currency,), text)
            due = self.ordered[currency] - self.refunded[currency]
            if has != due:
                text = (
                    f"{currency}: captured {self.captured[currency]}"
                    f" - refunded {self.provider_refunds[currency]} = {has},"
                    f" but paid orders {self.ordered[currency]} - refunds {self.refunded[currency]} = {due}"
                )
                yield Finding(BALANCE, (currency,), text)
