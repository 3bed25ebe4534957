"""Pure checks, order by order, that orders, reservations, payments and the provider agree."""

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field

from deploy.audit.findings import Finding, Invariant
from deploy.audit.rows import Case, Order, Payment, Reservation

PAID_STATES = frozenset(("PAID", "SHIPPED", "DELIVERED", "REFUNDED", "PARTIALLY_REFUNDED"))
_CHARGED = frozenset(("SUCCEEDED", "REFUNDED"))
_TAKING = frozenset(("HELD", "CONFIRMED"))
LEDGER_OF = "stripe"
"""The provider with a ledger that is read."""


@dataclass
class Books:
    """The sums of all settled orders, by currency. Orders in flight are left out of both sides."""

    with_ledger: bool = True
    captured: Counter[str] = field(default_factory=Counter)
    provider_refunds: Counter[str] = field(default_factory=Counter)
    """Refunds in the provider's ledger."""
    ordered: Counter[str] = field(default_factory=Counter)
    refunded: Counter[str] = field(default_factory=Counter)
    """Refunds of paid orders in the payments database."""
    states: Counter[str] = field(default_factory=Counter)
    confirmed: int = 0
    in_flight: list[str] = field(default_factory=list)
    in_flight_count: int = 0
    ending_soon: int = 0
    """Orders in flight that end within seconds: they wait neither for a customer nor for the end of a hold."""

    @property
    def paid(self) -> int:
        return sum(self.states[state] for state in PAID_STATES)

    def enter(self, case: Case) -> list[Finding]:
        """Counts one order; returns its findings."""
        if case.order:
            self.states[case.order.state] += 1
        self.confirmed += bool(case.reservation and case.reservation.state == "CONFIRMED")
        if in_flight(case):
            self.in_flight_count += 1
            self.ending_soon += bool(case.order and not case.order.waits_for_customer)
            if len(self.in_flight) < 100:
                self.in_flight.append(case.id)
            return []
        self._count_money(case)
        return [*check_reservation(case), *check_payment(case), *(check_captures(case) if self.with_ledger else ())]

    def _count_money(self, case: Case) -> None:
        order, payment = case.order, case.payment
        if order and order.state in PAID_STATES:
            self.ordered[order.currency] += order.total_minor
            if payment:
                self.refunded[payment.currency] += payment.refunded_minor
        for capture in case.captures:
            self.captured[capture.currency] += capture.amount_minor
            self.provider_refunds[capture.currency] += capture.refunded_minor
        # If the provider has no ledger to read, the payments database is taken as the provider's.
        if payment and payment.state in _CHARGED and not (self.with_ledger and payment.provider == LEDGER_OF):
            self.captured[payment.currency] += payment.amount_minor
            self.provider_refunds[payment.currency] += payment.refunded_minor

    def check_totals(self) -> Iterator[Finding]:
        """Checks that, in each currency, the provider's balance is that of paid orders."""
        for currency in sorted(self.captured.keys() | self.ordered.keys()):
            has = self.captured[currency] - self.provider_refunds[currency]
            due = self.ordered[currency] - self.refunded[currency]
            if has != due:
                text = (
                    f"{currency}: captured {self.captured[currency]}"
                    f" - refunded {self.provider_refunds[currency]} = {has},"
                    f" but paid orders {self.ordered[currency]} - refunds {self.refunded[currency]} = {due}"
                )
                yield Finding(Invariant.MONEY, (currency,), text)


def in_flight(case: Case) -> bool:
    """Whether a saga, a refund or a hold is still in progress, so that the parts need not agree yet."""
    if case.payment and case.payment.refunds_pending:
        return True
    if case.order:
        return case.order.has_saga
    held = case.reservation is not None and case.reservation.state == "HELD" and not case.reservation.overdue
    return held and not case.payment and not case.captures


def check_reservation(case: Case) -> Iterator[Finding]:
    """Checks that only orders that keep money keep units.

    A paid order has its units, except those that were returned with a refund. Any other settled order has none, unless
    all of its money was refunded. A reservation without an order has none.
    """
    order, reservation = case.order, case.reservation
    wrong = ""
    if order is None:
        if reservation and _has_units(reservation):
            wrong = f"its reservation is {reservation.state}, but there is no order"
    elif order.state in PAID_STATES:
        wrong = _reservation_problem(order, reservation) or _returned_without_refund(reservation, case.payment)
    elif order.state == "PENDING":
        wrong = "it is PENDING, but has no saga"
    elif reservation and _has_units(reservation) and not (order.state == "CANCELLED" and _is_refunded(case.payment)):
        wrong = f"it ended as {order.state}, but its reservation is {reservation.state}"
    if reservation and (more := _returned_more_than_sold(reservation)):
        wrong = more
    if wrong:
        yield Finding(Invariant.ORDERS, (case.id,), f"order {case.id}: {wrong}")


def _has_units(reservation: Reservation) -> bool:
    return reservation.state in _TAKING and reservation.returned != reservation.lines


def _returned_more_than_sold(reservation: Reservation) -> str:
    sold = Counter({line[:2]: line[2] for line in reservation.lines if reservation.state == "CONFIRMED"})
    for product, sale, quantity in reservation.returned:
        if quantity > sold[product, sale]:
            return f"{quantity} units of product {product} were returned, of {sold[product, sale]} sold"
    return ""


def _is_refunded(payment: Payment | None) -> bool:
    """Whether it was charged and all of it was refunded, which also holds for an amount of 0."""
    return bool(payment and payment.state in _CHARGED and payment.refunded_minor == payment.amount_minor)


def _returned_without_refund(reservation: Reservation | None, payment: Payment | None) -> str:
    if reservation and reservation.returned and payment and payment.amount_minor and not payment.refunded_minor:
        return "units of it were returned, but no money was refunded"
    return ""


def _reservation_problem(order: Order, reservation: Reservation | None) -> str:
    if reservation is None:
        return f"it is {order.state}, but has no reservation"
    if reservation.state != "CONFIRMED":
        return f"it is {order.state}, but its reservation is {reservation.state}"
    if reservation.lines != order.lines:
        return f"it is {order.state}, but its reservation is for other lines"
    if reservation.customer_id != order.customer_id:
        return f"its reservation is another customer's, {reservation.customer_id}"
    return ""


def check_payment(case: Case) -> Iterator[Finding]:
    """Checks that a paid order has one payment of its total, and any other settled order none that keeps money."""
    order, payment = case.order, case.payment
    wrong = ""
    if order and order.state in PAID_STATES:
        wrong = _payment_problem(order, payment)
    elif payment and payment.state == "SUCCEEDED" and not _is_refunded(payment):
        whose = f"its order is {order.state}" if order else "there is no order"
        wrong = f"payment {payment.id} SUCCEEDED, but {whose}"
    elif payment and payment.state not in _CHARGED | {"FAILED", "CANCELLED"}:
        whose = f"its order is {order.state}" if order else "there is no order"
        wrong = f"payment {payment.id} is still {payment.state}, but {whose}"
    if wrong:
        yield Finding(Invariant.MONEY, (case.id,), f"order {case.id}: {wrong}")


def _payment_problem(order: Order, payment: Payment | None) -> str:
    if payment is None:
        return f"it is {order.state}, but has no payment"
    if payment.state not in _CHARGED:
        return f"it is {order.state}, but payment {payment.id} is {payment.state}"
    if (payment.amount_minor, payment.currency) != (order.total_minor, order.currency):
        paid = f"{payment.currency} {payment.amount_minor}"
        return f"its total is {order.currency} {order.total_minor}, but payment {payment.id} is {paid}"
    if payment.customer_id != order.customer_id:
        return f"payment {payment.id} is another customer's, {payment.customer_id}"
    back, whole = payment.refunded_minor, payment.amount_minor
    fits = {"PAID": back == 0, "REFUNDED": back == whole, "PARTIALLY_REFUNDED": 0 < back < whole}
    if not fits.get(order.state, True):
        return f"it is {order.state}, but payment {payment.id} has {back} of {whole} refunded"
    return ""


def check_captures(case: Case) -> Iterator[Finding]:
    """Checks that the provider has the captures of the payments, and keeps no other money."""
    payment, wrong = case.payment, []
    expected = payment if payment and payment.provider == LEDGER_OF and payment.state in _CHARGED else None
    matched = False
    for capture in case.captures:
        if expected and capture.id == expected.reference:
            matched = True
            theirs = (capture.amount_minor, capture.currency, capture.refunded_minor, capture.payment_id)
            ours = (expected.amount_minor, expected.currency, expected.refunded_minor, expected.id)
            if theirs != ours:
                wrong.append(f"{capture.id} is {theirs} at the provider, {ours} in payments")
        elif capture.refunded_minor != capture.amount_minor:
            left = f"{capture.currency} {capture.amount_minor - capture.refunded_minor}"
            wrong.append(f"{capture.id} keeps {left} at the provider, without a payment")
    if expected and expected.amount_minor and not matched:
        wrong.append(f"payment {expected.id} is {expected.state}, but the provider has no {expected.reference}")
    if wrong:
        yield Finding(Invariant.MONEY, (case.id,), f"order {case.id or '(none)'}: {'; '.join(wrong)}")
