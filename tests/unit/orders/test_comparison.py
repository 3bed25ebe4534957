"""The differences between an order and its payment: some are repaired, others are raised."""

import uuid
from dataclasses import replace
from datetime import UTC, datetime

import pytest

from services.chassis.money import Money
from services.orders import domain
from services.orders.domain import (
    Line,
    Order,
    OrderDisputed,
    Payment,
    PaymentNotCaptured,
    PaymentState,
    Shipment,
    State,
)
from services.orders.saga.comparison import BACK, Comparison, Problem, compare, repairs

TOTAL = 700
PAID = Payment(uuid.UUID(int=7), "sandbox", PaymentState.SUCCEEDED)
ORDER = Order(
    id=uuid.UUID(int=1), customer_id=uuid.UUID(int=2), request_id=uuid.UUID(int=3), digest=b"", shipping_address=None,
    lines=(Line(uuid.UUID(int=4), 1, None, "TEE", "A tee", Money("USD", TOTAL)),), total=Money("USD", TOTAL),
    hold_expire_time=datetime.now(UTC), state=State.PAID, payment=PAID,
)  # fmt: skip
SENT = Shipment("DHL", "1", datetime.now(UTC))
ARRIVED = replace(SENT, deliver_time=datetime.now(UTC))


def compared(order: Order, payment: Payment | None) -> Comparison:
    found = compare(order, payment)
    assert found
    return found


@pytest.mark.parametrize(
    ("before", "refunded", "after"),
    [
        (replace(ORDER), 300, State.PARTIALLY_REFUNDED),
        (replace(ORDER, shipment=SENT, state=State.SHIPPED), TOTAL, State.REFUNDED),
        (replace(ORDER, state=State.REFUNDED, refunded_minor=TOTAL), 0, State.PAID),
        (replace(ORDER, state=State.REFUNDED, refunded_minor=TOTAL), 300, State.PARTIALLY_REFUNDED),
        (replace(ORDER, state=State.REFUNDED, refunded_minor=TOTAL, shipment=SENT), 0, State.SHIPPED),
        (replace(ORDER, state=State.PARTIALLY_REFUNDED, refunded_minor=300, shipment=ARRIVED), 0, State.DELIVERED),
        (replace(ORDER, state=State.EXPIRED), TOTAL, State.EXPIRED),
        (replace(ORDER, state=State.CANCELLED, refunded_minor=TOTAL), 0, State.CANCELLED),
    ],
)
def test_order_follows_the_sum_that_payments_has(before: Order, refunded: int, after: State) -> None:
    state = PaymentState.REFUNDED if refunded == TOTAL else PaymentState.SUCCEEDED
    found = compared(before, replace(PAID, state=state, refunded_minor=refunded))
    assert (found.state, found.refunded_minor) == (after, refunded)
    assert repairs(before, found)
    assert after in {before.state} | domain.NEXT[before.state] | BACK.get(before.state, set())


@pytest.mark.parametrize(
    ("order", "payment", "problem"),
    [
        (ORDER, None, Problem.NO_PAYMENT),
        (ORDER, replace(PAID, state=PaymentState.CANCELLED), Problem.NO_PAYMENT),
        (replace(ORDER, state=State.FAILED), PAID, Problem.MONEY_KEPT),
        (replace(ORDER, state=State.CANCELLED, refunded_minor=TOTAL), PAID, Problem.MONEY_KEPT),
        (replace(ORDER, state=State.EXPIRED), replace(PAID, state=PaymentState.PROCESSING), Problem.PAYMENT_OPEN),
    ],
)
def test_difference_that_nobody_can_repair_is_raised(order: Order, payment: Payment | None, problem: Problem) -> None:
    assert compared(order, payment).problem is problem


@pytest.mark.parametrize(
    ("order", "payment"),
    [
        (ORDER, PAID),
        (replace(ORDER, state=State.SHIPPED, refunded_minor=300), replace(PAID, refunded_minor=300)),
        (replace(ORDER, state=State.FAILED, payment=None), None),
        (replace(ORDER, total=Money("USD", 0), payment=None), None),
    ],
)
def test_order_that_agrees_with_its_payment_is_left_alone(order: Order, payment: Payment | None) -> None:
    assert compare(order, payment) is None


@pytest.mark.parametrize("disputed", [True, False])
def test_an_order_takes_over_whether_its_payment_is_disputed(*, disputed: bool) -> None:
    before = replace(ORDER, disputed=not disputed)
    found = compared(before, replace(PAID, disputed=disputed))
    assert repairs(before, found)
    assert (found.disputed, found.state) == (disputed, State.PAID)
    assert found.cause == ("payment disputed" if disputed else "dispute ended")


def test_a_disputed_order_is_not_shipped() -> None:
    disputed = replace(ORDER, disputed=True)
    with pytest.raises(OrderDisputed):
        disputed.check_move(State.SHIPPED)
    ORDER.check_move(State.SHIPPED)
    replace(disputed, state=State.SHIPPED, shipment=SENT).check_move(State.DELIVERED)


UNCAPTURED = replace(ORDER, payment=replace(PAID, state=PaymentState.AUTHORIZED))


def test_order_whose_money_waits_for_staff_is_as_it_should_be() -> None:
    assert compare(UNCAPTURED, UNCAPTURED.payment) is None
    for state in (State.FAILED, State.EXPIRED, State.CANCELLED):
        found = compared(replace(UNCAPTURED, state=state), UNCAPTURED.payment)
        assert found.problem is Problem.PAYMENT_OPEN


def test_captured_money_is_noted() -> None:
    found = compared(UNCAPTURED, PAID)
    assert (found.payment_state, found.cause, found.cancels) == (PaymentState.SUCCEEDED, "payment captured", False)
    assert repairs(UNCAPTURED, found)


def test_order_is_cancelled_only_if_its_money_was_set_aside() -> None:
    """An order whose payment was captured, as it says, is for people."""
    gone = replace(PAID, state=PaymentState.CANCELLED)
    found = compared(UNCAPTURED, gone)
    assert (found.cancels, found.problem) == (True, None)
    assert not compared(ORDER, gone).cancels


def test_order_is_not_shipped_or_refunded_before_the_capture() -> None:
    for wanted in (State.SHIPPED, State.REFUNDED, State.PARTIALLY_REFUNDED):
        with pytest.raises(PaymentNotCaptured):
            UNCAPTURED.check_move(wanted)
    UNCAPTURED.check_move(State.CANCELLED)
    ORDER.check_move(State.SHIPPED)
