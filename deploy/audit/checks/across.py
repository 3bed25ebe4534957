"""Checks that order, reservation, payment and the provider agree, order by order. Pure.

An order in progress is excused, for a limited time. Its lines, amounts and customers are compared all the same.
"""

from collections import Counter
from collections.abc import Callable, Iterator

from deploy.audit import repairs
from deploy.audit.checks.excuses import OVER_SECONDS, in_flight, pending_most, waits_for_staff
from deploy.audit.checks.journal import (
    authorised_money_is_the_providers,
    booked_money_is_the_providers,
    disputes_are_the_providers,
    order_knows_its_disputes,
)
from deploy.audit.findings import Check, Finding, Invariant
from deploy.audit.reading.rows import Case, Payment, Reservation

PAID_STATES = frozenset(("PAID", "SHIPPED", "DELIVERED", "REFUNDED", "PARTIALLY_REFUNDED"))
CHARGED = frozenset(("SUCCEEDED", "REFUNDED"))
LEDGER_OF = "stripe"
"""The provider whose records are read."""
_TAKING = frozenset(("HELD", "CONFIRMED"))
_OPEN = frozenset(("AWAITING_CUSTOMER", "PROCESSING", "AUTHORIZED"))


def is_refunded(case: Case) -> bool:
    """Whether there is no money to keep: all of it was refunded, or it came to 0."""
    payment = case.payment
    if payment is None:
        return case.order is not None and case.order.total_minor == 0
    return payment.state in CHARGED and payment.refunded_minor == payment.amount_minor


# --- the order exists ---


def _order_is_lost(case: Case) -> Iterator[str]:
    if case.order is not None:
        return
    if case.reservation and _has_units(case.reservation):
        yield f"its reservation is {case.reservation.state}, but there is no order"
    for payment in case.payments:
        yield f"payment {payment.id} is {payment.state}, but there is no order"


# --- units ---


def _reservation_is_the_orders(case: Case) -> Iterator[str]:
    order, reservation = case.order, case.reservation
    if order is None:
        return
    if reservation is None:
        yield f"it is {order.state}, but has no reservation"
        return
    if reservation.lines != order.lines:
        yield "its reservation is for other lines"
    if reservation.customer_id != order.customer_id:
        yield f"its reservation is another customer's, {reservation.customer_id}"


def _price_is_the_sales(case: Case) -> Iterator[str]:
    if case.order and case.reservation:
        for product, price in case.reservation.prices.items():
            if (asked := case.order.prices.get(product)) not in (price, None):
                yield f"product {product} costs {asked}, in its sale {price}"


def _paid_order_has_its_units(case: Case) -> Iterator[str]:
    order, reservation = case.order, case.reservation
    if order and order.state in PAID_STATES and reservation and reservation.state != "CONFIRMED":
        yield f"it is {order.state}, but its reservation is {reservation.state}"


def _unpaid_order_has_none(case: Case) -> Iterator[str]:
    order, reservation = case.order, case.reservation
    if order is None or order.state in PAID_STATES or reservation is None or not _has_units(reservation):
        return
    if order.state == "CANCELLED" and reservation.state == "CONFIRMED" and is_refunded(case):
        return  # the units did not come back, which staff decide
    # A failed order may be about to be paid once more; if it is not, its units go back when its time is over.
    may_hold = _is_waiting(case) or order.state == "FAILED"
    if may_hold and reservation.state == "HELD" and reservation.over_seconds < OVER_SECONDS:
        return
    yield f"it is {order.state}, but its reservation is {reservation.state}"


def _has_units(reservation: Reservation) -> bool:
    return reservation.state in _TAKING and reservation.returned != reservation.lines


def _no_more_came_back_than_was_sold(case: Case) -> Iterator[str]:
    if case.reservation is None:
        return
    reservation = case.reservation
    sold = Counter({line[:2]: line[2] for line in reservation.lines if reservation.state == "CONFIRMED"})
    for product, sale, quantity in reservation.returned:
        if quantity > sold[product, sale]:
            yield f"{quantity} units of product {product} were returned, of {sold[product, sale]} sold"


def _order_counts_its_returns(case: Case) -> Iterator[str]:
    """A cancelled order may have been compensated, which is no refund."""
    order, reservation = case.order, case.reservation
    if order is None or order.state not in PAID_STATES or reservation is None:
        return
    back = Counter[str]()
    for product, _, quantity in reservation.returned:
        back[product] += quantity
    if back != order.returned:
        yield f"it counts {dict(order.returned)} as returned, its reservation {dict(back)}"


def _units_came_back_for_money(case: Case) -> Iterator[str]:
    order, payment, reservation = case.order, case.payment, case.reservation
    if not (order and order.state in PAID_STATES and reservation and reservation.returned and payment):
        return
    if payment.amount_minor and not payment.refunded_minor and not payment.pending_minor:
        yield "units of it were returned, but no money was refunded"


# --- money ---


def _one_payment(case: Case) -> Iterator[str]:
    if len(case.payments) > 1:
        yield f"it has {len(case.payments)} payments: {', '.join(payment.id for payment in case.payments)}"


def _payment_is_the_orders(case: Case) -> Iterator[str]:
    order, payment = case.order, case.payment
    if order is None or payment is None:
        return
    if (payment.amount_minor, payment.currency) != (order.total_minor, order.currency):
        paid = f"{payment.currency} {payment.amount_minor}"
        yield f"its total is {order.currency} {order.total_minor}, but payment {payment.id} is {paid}"
    if payment.customer_id != order.customer_id:
        yield f"payment {payment.id} is another customer's, {payment.customer_id}"


def _paid_order_has_its_money(case: Case) -> Iterator[str]:
    order, payment = case.order, case.payment
    if order is None or order.state not in PAID_STATES:
        return
    if payment is None:
        if order.total_minor:
            yield f"it is {order.state}, but has no payment"
    elif payment.state not in CHARGED and not waits_for_staff(case):
        yield f"it is {order.state}, but payment {payment.id} is {payment.state}"


def _unpaid_order_keeps_none(case: Case) -> Iterator[str]:
    order, payment = case.order, case.payment
    if payment is None or payment.state != "SUCCEEDED" or (order and order.state in PAID_STATES):
        return
    if not is_refunded(case) and not payment.pending_minor:
        yield f"payment {payment.id} keeps money, but {_state_of_order(case)}"


def _payment_has_ended(case: Case) -> Iterator[str]:
    payment = case.payment
    if payment and payment.state in _OPEN and not _is_waiting(case) and not waits_for_staff(case):
        yield f"payment {payment.id} is still {payment.state}, but {_state_of_order(case)}"


def _saga_waits_for_the_provider(case: Case) -> Iterator[str]:
    payment = case.payment
    if not (case.order and case.order.saga and case.order.saga.waits_for_provider):
        return
    if payment is None or (payment.state != "PROCESSING" and not payment.pending_minor):
        yield f"its saga waits for the provider, but {f'its payment is {payment.state}' if payment else 'has none'}"


def _is_waiting(case: Case) -> bool:
    """Whether its saga may still charge it, however long that takes; `saga-stuck` finds those that stand still."""
    return case.order is not None and case.order.state == "PENDING" and case.order.saga is not None


def _state_of_order(case: Case) -> str:
    return f"its order is {case.order.state}" if case.order else "there is no order"


def _order_knows_its_payment(case: Case) -> Iterator[str]:
    order, payment = case.order, case.payment
    if order is None:
        return
    if order.payment is None:
        if payment and order.state in PAID_STATES:
            yield f"it is {order.state}, but does not name payment {payment.id}"
        return
    copy = order.payment
    if payment is None:
        yield f"it names payment {copy.id}, which does not exist"
        return
    if (copy.id, copy.provider) != (payment.id, payment.provider):
        yield f"it names payment {copy.id} at {copy.provider}, but has {payment.id} at {payment.provider}"
    if order.saga is None and (copy.state in CHARGED) != (payment.state in CHARGED) and order.state in PAID_STATES:
        yield f"its copy of payment {payment.id} is {copy.state}, the payment {payment.state}"
    if order.saga is None and payment.state not in CHARGED and copy.state in CHARGED:
        yield f"its copy of payment {payment.id} is {copy.state}, the payment {payment.state}"


def _order_knows_its_refunds(case: Case) -> Iterator[str]:
    order, payment = case.order, case.payment
    if order and payment and order.refunded_minor != payment.refunded_minor:
        back = f"{payment.refunded_minor} of {payment.amount_minor}"
        yield f"it has {order.refunded_minor} refunded, payment {payment.id} {back}"


# --- the provider ---


def _charge_is_the_payments(case: Case) -> Iterator[str]:
    expected = _charged(case.payment)
    if expected is None:
        return
    matched = [intent for intent in case.captures if intent.id == expected.reference]
    if not matched and expected.amount_minor:
        yield f"payment {expected.id} is {expected.state}, but the provider has no {expected.reference}"
    for intent in matched:
        theirs = (intent.amount_minor, intent.currency, intent.payment_id)
        ours = (expected.amount_minor, expected.currency, expected.id)
        if theirs != ours:
            yield f"{intent.id} is {theirs} at the provider, {ours} in payments"
        least = expected.refunded_minor - expected.by_hand_minor
        most = least + expected.pending_minor
        if not least <= intent.refunded_minor <= most:
            yield f"{intent.id} has {intent.refunded_minor} refunded at the provider, {most} in payments"


def _every_charge_has_its_payment(case: Case) -> Iterator[str]:
    expected = _charged(case.payment)
    strays = [refund for payment in case.payments for refund in payment.refunds if refund.stray]
    refunds = [refund for refund in strays if refund.provider == LEDGER_OF]
    on_their_way = sum(refund.amount_minor for refund in refunds if refund.state == "PENDING" or refund.by_hand)
    for intent in case.captures:
        is_own = expected is not None and intent.id == expected.reference
        left = intent.amount_minor - intent.refunded_minor
        if not is_own and left > on_their_way:
            yield f"{intent.id} keeps {intent.currency} {left} at the provider, without a payment"


def _charged(payment: Payment | None) -> Payment | None:
    return payment if payment and payment.provider == LEDGER_OF and payment.state in CHARGED else None


def _ended_order_cannot_be_paid(case: Case) -> Iterator[str]:
    # A declined card leaves its intent open, but nobody has the secret to pay it with.
    if _is_waiting(case) or (case.payment and case.payment.state in (*_OPEN, "FAILED")):
        return
    for intent in case.intents:
        if intent.can_be_paid and case.id:
            yield f"{intent.id} is {intent.status} and can still be paid, but {_state_of_order(case)}"


def _refunds_are_the_providers(case: Case) -> Iterator[str]:
    rows = {refund.id: refund for payment in case.payments for refund in payment.refunds}
    referred = {refund.reference: refund for refund in rows.values() if refund.reference}
    theirs = {refund.id: refund for intent in case.intents for refund in intent.refunds}
    for refund in theirs.values():
        # One that was made in the provider's dashboard names none of ours.
        row = referred.get(refund.id) or rows.get(refund.refund_id)
        if refund.refund_id and row is None:
            yield f"{refund.id} refunds {refund.amount_minor}, but refund {refund.refund_id} is lost"
        elif row and row.amount_minor != refund.amount_minor:
            yield f"{refund.id} refunds {refund.amount_minor}, but refund {row.id} is {row.amount_minor}"
        elif (
            row and not row.by_hand and (row.state, refund.state) in (("FAILED", "succeeded"), ("SUCCEEDED", "failed"))
        ):
            yield f"{refund.id} has {refund.state}, but refund {row.id} is {row.state}"
    for row in rows.values():
        is_theirs = row.provider == LEDGER_OF and row.state == "SUCCEEDED" and not row.by_hand
        if is_theirs and row.reference not in theirs:
            yield f"refund {row.id} SUCCEEDED, but the provider has no {row.reference or 'refund of it'}"


def _refunds_end(case: Case) -> Iterator[str]:
    for payment in case.payments:
        for refund in payment.refunds:
            if refund.state == "PENDING" and refund.age_seconds >= pending_most(case, refund):
                yield f"refund {refund.id} of {refund.amount_minor} is PENDING for {refund.age_seconds:.0f} s"


Compare = Callable[[Case], Iterator[str]]
_COMPARE = """
    INSERT INTO payment_checks (order_id) VALUES (CAST(:id AS uuid))
    ON CONFLICT (order_id) DO UPDATE SET due_time = now(), attempts = 0
"""
"""Requests a comparison with payments, in which orders takes over what payments has."""


def _check(invariant: Invariant, name: str, means: str, repair: str, mend: str = "") -> Check:
    return Check(name, invariant, means, repair, "orders" if mend else "", "", mend)


ALWAYS: dict[Compare, Check] = {
    _reservation_is_the_orders: _check(
        Invariant.ORDERS, "order-reservation", "each order has a reservation for its lines and its customer",
        repairs.RESTORE,
    ),
    _price_is_the_sales: _check(
        Invariant.ORDERS, "order-sale-price", "a line of a flash sale has the sale's price", repairs.LOOK
    ),
    _no_more_came_back_than_was_sold: _check(
        Invariant.ORDERS, "order-returns", "no more units of an order come back than were sold", repairs.LOOK
    ),
    _one_payment: _check(Invariant.MONEY, "payment-twice", "no order has two payments", repairs.LOOK),
    _payment_is_the_orders: _check(
        Invariant.MONEY, "payment-amount", "a payment has the total, the currency and the customer of its order",
        repairs.LOOK,
    ),
    _refunds_end: _check(
        Invariant.REFUNDS, "refund-pending", "a refund ends within an hour", repairs.RESUME
    ),
}  # fmt: skip
"""Compared for every order, also while it is in progress."""

SETTLED: dict[Compare, Check] = {
    _order_is_lost: _check(
        Invariant.ORDERS, "order-lost", "a payment, or units that are not given back, belong to an order",
        repairs.RESTORE,
    ),
    _paid_order_has_its_units: _check(
        Invariant.ORDERS, "order-units", "a paid order has its units", repairs.LOOK
    ),
    _unpaid_order_has_none: _check(
        Invariant.ORDERS, "order-without-money", "an order that ended without money has no units", repairs.LOOK
    ),
    _order_counts_its_returns: _check(
        Invariant.ORDERS, "order-returned", "an order counts the units that came back", repairs.LOOK
    ),
    _units_came_back_for_money: _check(
        Invariant.REFUNDS, "return-without-refund", "units come back for money that goes back", repairs.LOOK
    ),
    _paid_order_has_its_money: _check(
        Invariant.MONEY, "payment-of-paid-order", "a paid order has its money, if only set aside", repairs.LOOK
    ),
    _unpaid_order_keeps_none: _check(
        Invariant.MONEY, "payment-kept", "an order that was not paid keeps no money", repairs.LOOK
    ),
    _payment_has_ended: _check(
        Invariant.MONEY, "payment-open", "the payment of an order that has ended has ended", repairs.LOOK
    ),
    _saga_waits_for_the_provider: _check(
        Invariant.SAGAS, "saga-waits", "a saga that waits for the provider has money that is being moved",
        repairs.RESUME,
    ),
    _order_knows_its_payment: _check(
        Invariant.MONEY, "order-payment-copy", "the payment in an order is the one at payments", repairs.MEND,
        _COMPARE,
    ),
    _order_knows_its_refunds: _check(
        Invariant.REFUNDS, "order-refunded", "an order has as much refunded as its payment", repairs.MEND, _COMPARE
    ),
    order_knows_its_disputes: _check(
        Invariant.MONEY, "order-disputed", "an order says whether its payment is disputed", repairs.MEND, _COMPARE
    ),
}  # fmt: skip
"""Compared once an order is settled, or should be."""

PROVIDER: dict[Compare, Check] = {
    _charge_is_the_payments: _check(
        Invariant.MONEY, "provider-charge", "the provider has the charge of each payment", repairs.LOOK
    ),
    _every_charge_has_its_payment: _check(
        Invariant.MONEY, "provider-stray", "the provider keeps no other money", repairs.LOOK
    ),
    authorised_money_is_the_providers: _check(
        Invariant.MONEY, "provider-authorised", "money that waits for staff is set aside at the provider",
        "payments asks once an hour: see its log for the payment",
    ),
    booked_money_is_the_providers: _check(
        Invariant.MONEY, "journal-provider", "the journal has as much at the provider as the provider", repairs.LOOK
    ),
    disputes_are_the_providers: _check(
        Invariant.MONEY, "provider-dispute", "each dispute of the provider is here, as it is there", repairs.LOOK
    ),
    _ended_order_cannot_be_paid: _check(
        Invariant.MONEY, "provider-open", "nobody can pay an order that has ended", repairs.LOOK
    ),
    _refunds_are_the_providers: _check(
        Invariant.REFUNDS, "provider-refunds", "each refund is at the provider, and each of the provider's here",
        repairs.LOOK,
    ),
}  # fmt: skip
"""Compared with the provider's records, once an order is settled, or should be."""

CHECKS = (*ALWAYS.values(), *SETTLED.values(), *PROVIDER.values())


def compare(case: Case, *, with_provider: bool) -> Iterator[Finding]:
    """The findings of one order."""
    due = dict(ALWAYS)
    if not in_flight(case):
        due |= SETTLED | (PROVIDER if with_provider else {})
    for problems, check in due.items():
        if wrong := list(problems(case)):
            yield Finding(check, (case.id,), f"order {case.id or '(none)'}: {'; '.join(wrong)}")
