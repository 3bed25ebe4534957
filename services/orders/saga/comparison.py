"""The rules by which a settled order is compared with its payment. Pure."""

from dataclasses import dataclass, replace
from enum import StrEnum

from services.orders.domain import Order, Payment, PaymentState, State

BACK = {
    State.REFUNDED: {State.PAID, State.SHIPPED, State.DELIVERED, State.PARTIALLY_REFUNDED},
    State.PARTIALLY_REFUNDED: {State.PAID, State.SHIPPED, State.DELIVERED},
}
"""The moves of orders whose refund failed after it had succeeded, beside those of `domain.NEXT`."""
_UNPAID = (State.FAILED, State.CANCELLED, State.EXPIRED)
_OPEN = (PaymentState.AWAITING_CUSTOMER, PaymentState.PROCESSING, PaymentState.AUTHORIZED)
_CAPTURED = (PaymentState.SUCCEEDED, PaymentState.REFUNDED)


class Problem(StrEnum):
    """A difference that only people can resolve."""

    NO_PAYMENT = "NO_PAYMENT"
    """The order was paid, as it says, and payments does not have its money."""
    MONEY_KEPT = "MONEY_KEPT"
    """The order ended without goods, and its money was not given back."""
    PAYMENT_OPEN = "PAYMENT_OPEN"
    """The order has ended, and can still be paid."""


@dataclass(frozen=True, slots=True)
class Comparison:
    """A settled order as its payment says it should be."""

    state: State
    refunded_minor: int
    payment_state: PaymentState
    cause: str
    """For the order's log."""
    problem: Problem | None = None
    disputed: bool = False
    cancels: bool = False
    """Whether the order is to be cancelled, because its money was set aside and will not be taken."""


def compare(order: Order, payment: Payment | None) -> Comparison | None:
    """Compares a settled order with its payment as payments has it; None if there is nothing to repair or to raise.

    The sum of refunds may have fallen, because a refund can fail after it had succeeded. Then the order moves back.
    """
    if payment is None:
        if order.payment is None or not order.total.minor or order.state in _UNPAID:
            return None
        return Comparison(
            order.state, order.refunded_minor, order.payment.state, "", Problem.NO_PAYMENT, order.disputed
        )
    refunded = min(payment.refunded_minor, order.total.minor)
    cancels = order.state is State.PAID and order.is_uncaptured and payment.state is PaymentState.CANCELLED
    found = Comparison(
        state=_state(order, refunded),
        refunded_minor=refunded,
        payment_state=payment.state,
        cause=_cause(order, payment, refunded),
        problem=_problem(order, payment, refunded),
        disputed=payment.disputed,
        cancels=cancels,
    )
    if cancels:
        return replace(found, problem=None)
    return found if repairs(order, found) or found.problem else None


def repairs(order: Order, found: Comparison) -> bool:
    """Whether the order has to be changed."""
    known = order.payment.state if order.payment else found.payment_state
    has = (order.state, order.refunded_minor, known, order.disputed)
    return (found.state, found.refunded_minor, found.payment_state, found.disputed) != has


def _cause(order: Order, payment: Payment, refunded_minor: int) -> str:
    if order.is_uncaptured and payment.state is PaymentState.SUCCEEDED and not refunded_minor:
        return "payment captured"
    if refunded_minor == order.refunded_minor and payment.disputed != order.disputed:
        return "payment disputed" if payment.disputed else "dispute ended"
    return "refund failed" if refunded_minor < order.refunded_minor else "refunded at payments"


def _state(order: Order, refunded_minor: int) -> State:
    if order.state in _UNPAID or refunded_minor == order.refunded_minor:
        return order.state
    if refunded_minor:
        return order.state_after_refund(refunded_minor)
    if order.shipment is None:
        return State.PAID
    return State.DELIVERED if order.shipment.deliver_time else State.SHIPPED


def _problem(order: Order, payment: Payment, refunded_minor: int) -> Problem | None:
    if payment.state is PaymentState.AUTHORIZED and order.state is State.PAID:
        return None
    if payment.state in _OPEN:
        return Problem.PAYMENT_OPEN
    if order.state in _UNPAID:
        kept = payment.state in _CAPTURED and refunded_minor < order.total.minor
        return Problem.MONEY_KEPT if kept else None
    return None if payment.state in _CAPTURED else Problem.NO_PAYMENT
