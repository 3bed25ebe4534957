"""The invariants of orders and money hold on good cases, and fail on each tampered one."""

from dataclasses import replace

import pytest

from deploy.audit.findings import Invariant
from deploy.audit.merge import cases, missing
from deploy.audit.money import Books
from deploy.audit.rows import Capture, Case, Order, Payment, Reservation

LINES = (("shoe", "sale", 1),)
ORDER = Order(id="o", customer_id="ann", state="PAID", lines=LINES, total_minor=1999, currency="USD", has_saga=False)
RESERVATION = Reservation(id="o", customer_id="ann", state="CONFIRMED", lines=LINES, overdue=False)
PAYMENT = Payment(
    id="p", order_id="o", customer_id="ann", state="SUCCEEDED", provider="stripe", reference="pi", amount_minor=1999,
    currency="USD", refunded_minor=0, refunds_pending=0,
)  # fmt: skip
CAPTURE = Capture(id="pi", order_id="o", payment_id="p", amount_minor=1999, currency="USD", refunded_minor=0)
PAID = Case(id="o", order=ORDER, reservation=RESERVATION, payment=PAYMENT, captures=(CAPTURE,))
FAILED = Case(
    id="o",
    order=replace(ORDER, state="FAILED"),
    reservation=replace(RESERVATION, state="RELEASED"),
    payment=replace(PAYMENT, state="FAILED"),
)
REFUNDED = Case(
    id="o",
    order=replace(ORDER, state="REFUNDED"),
    reservation=RESERVATION,
    payment=replace(PAYMENT, state="REFUNDED", refunded_minor=1999),
    captures=(replace(CAPTURE, refunded_minor=1999),),
)
PARTLY_REFUNDED = Case(
    id="o",
    order=replace(ORDER, state="PARTIALLY_REFUNDED"),
    reservation=RESERVATION,
    payment=replace(PAYMENT, refunded_minor=500),
    captures=(replace(CAPTURE, refunded_minor=500),),
)
RESTOCKED = replace(REFUNDED, reservation=replace(RESERVATION, returned=LINES))
# Paid, then cancelled by staff: all of the money was refunded, and the units were returned or not.
CANCELLED_BY_STAFF = replace(REFUNDED, order=replace(ORDER, state="CANCELLED"))
# A stray charge, after the order had expired, and refunded.
STRAY = replace(
    FAILED, order=replace(ORDER, state="EXPIRED"), captures=(replace(CAPTURE, refunded_minor=CAPTURE.amount_minor),)
)
PENDING = Case(
    id="o",
    order=replace(ORDER, state="PENDING", has_saga=True),
    reservation=replace(RESERVATION, state="HELD"),
    payment=PAYMENT,
    captures=(CAPTURE,),
)
ORPHANED_HOLD = Case(id="o", reservation=replace(RESERVATION, state="HELD"))


def found(case: Case) -> set[Invariant]:
    """The invariants that a case breaks, sums included; each finding has the id of the order or the currency."""
    books = Books()
    findings = [*books.enter(case), *books.check_totals()]
    assert all(finding.ids in ((case.id,), ("USD",), ("EUR",)) for finding in findings)
    return {finding.invariant for finding in findings}


@pytest.mark.parametrize(
    "case",
    [
        PAID,
        replace(PAID, order=replace(ORDER, state="SHIPPED")),
        FAILED,
        REFUNDED,
        PARTLY_REFUNDED,
        RESTOCKED,
        replace(PARTLY_REFUNDED, reservation=replace(RESERVATION, returned=LINES)),
        CANCELLED_BY_STAFF,
        replace(CANCELLED_BY_STAFF, reservation=RESTOCKED.reservation),
        # An operator compensated the confirmation.
        replace(FAILED, reservation=RESTOCKED.reservation),
        # An order of amount 0 has no money to refund.
        replace(
            CANCELLED_BY_STAFF,
            payment=replace(PAYMENT, amount_minor=0),
            captures=(),
            order=replace(ORDER, state="CANCELLED"),
        ),
        STRAY,
        PENDING,
        ORPHANED_HOLD,
    ],
)
def test_good_cases_add_up(case: Case) -> None:
    assert found(case) == set()


@pytest.mark.parametrize(
    "case",
    [
        replace(PAID, reservation=None),
        replace(PAID, reservation=replace(RESERVATION, state="HELD")),
        replace(PAID, reservation=replace(RESERVATION, state="EXPIRED")),
        replace(PAID, reservation=replace(RESERVATION, lines=(("shoe", "sale", 2),))),
        replace(PAID, reservation=replace(RESERVATION, customer_id="bob")),
        replace(PAID, reservation=RESTOCKED.reservation),
        replace(REFUNDED, reservation=replace(RESERVATION, returned=(("shoe", "sale", 2),))),
        replace(REFUNDED, reservation=replace(RESERVATION, returned=(("shoe", "", 1),))),
        replace(FAILED, reservation=replace(RESERVATION, state="RELEASED", returned=LINES)),
        replace(CANCELLED_BY_STAFF, reservation=replace(RESERVATION, state="HELD"), payment=None, captures=()),
        replace(FAILED, reservation=RESERVATION),
        replace(FAILED, order=replace(ORDER, state="CANCELLED"), reservation=RESERVATION),
        replace(FAILED, reservation=replace(RESERVATION, state="HELD")),
        Case(id="o", reservation=RESERVATION),
        replace(ORPHANED_HOLD, reservation=replace(RESERVATION, state="HELD", overdue=True)),
        replace(FAILED, order=replace(ORDER, state="PENDING")),
    ],
)
def test_a_reservation_that_contradicts_its_order_is_found(case: Case) -> None:
    assert found(case) == {Invariant.ORDERS}


@pytest.mark.parametrize(
    "case",
    [
        replace(PAID, payment=None),
        replace(PAID, payment=replace(PAYMENT, state="FAILED")),
        replace(PAID, payment=replace(PAYMENT, amount_minor=1998)),
        replace(PAID, payment=replace(PAYMENT, currency="EUR")),
        replace(PAID, payment=replace(PAYMENT, customer_id="bob")),
        replace(PAID, payment=replace(PAYMENT, refunded_minor=1)),
        replace(FAILED, payment=PAYMENT, captures=(CAPTURE,)),
        replace(FAILED, payment=replace(PAYMENT, state="PROCESSING")),
        replace(REFUNDED, payment=replace(REFUNDED.payment or PAYMENT, refunded_minor=1998)),
        replace(PARTLY_REFUNDED, payment=PAYMENT, captures=(CAPTURE,)),
        Case(id="o", payment=PAYMENT, captures=(CAPTURE,)),
    ],
)
def test_a_payment_that_contradicts_its_order_is_found(case: Case) -> None:
    assert found(case) == {Invariant.MONEY}


@pytest.mark.parametrize(
    "captures",
    [
        (),
        (replace(CAPTURE, amount_minor=2000),),
        (replace(CAPTURE, currency="EUR"),),
        (replace(CAPTURE, refunded_minor=1),),
        (replace(CAPTURE, payment_id="other"),),
        (replace(CAPTURE, id="other"),),
        (CAPTURE, replace(CAPTURE, id="twice")),
    ],
)
def test_a_ledger_that_contradicts_the_payment_is_found(captures: tuple[Capture, ...]) -> None:
    assert found(replace(PAID, captures=captures)) == {Invariant.MONEY}


def test_a_capture_without_an_order_is_found() -> None:
    assert found(Case(id="", captures=(replace(CAPTURE, order_id=""),))) == {Invariant.MONEY}


def test_a_capture_for_a_declined_order_is_found() -> None:
    assert found(replace(FAILED, captures=(CAPTURE,))) == {Invariant.MONEY}


def test_orders_in_flight_are_counted_but_not_checked() -> None:
    books = Books()
    for case in (PAID, PENDING, replace(PAID, payment=replace(PAYMENT, refunds_pending=1))):
        assert books.enter(case) == []
    assert (books.in_flight_count, books.captured["USD"], books.ordered["USD"]) == (2, 1999, 1999)


def test_without_a_ledger_payments_count_as_captured() -> None:
    books = Books(with_ledger=False)
    assert books.enter(replace(PAID, captures=())) == []
    assert list(books.check_totals()) == []
    assert books.captured["USD"] == 1999


def test_streams_are_joined_by_order_id() -> None:
    orders = [replace(ORDER, id=id_) for id_ in ("a", "c")]
    reservations = [replace(RESERVATION, id=id_) for id_ in ("a", "b")]
    payments = [replace(PAYMENT, order_id=id_) for id_ in ("c", "d")]
    captures = [replace(CAPTURE, order_id=id_, id=f"pi{n}") for n, id_ in enumerate(("", "c", "c", "e"))]
    together = list(cases(orders, reservations, payments, captures))
    assert [case.id for case in together] == ["", "a", "b", "c", "d", "e"]
    assert [len(case.captures) for case in together] == [1, 0, 0, 2, 0, 1]
    third = together[3]
    assert third.order
    assert third.payment
    assert not third.reservation


def test_an_unsorted_stream_fails() -> None:
    with pytest.raises(AssertionError, match="orders are not sorted"):
        list(cases([replace(ORDER, id="b"), ORDER, replace(ORDER, id="a")], [], [], []))


def test_missing_ids_are_found() -> None:
    assert list(missing(["a", "c", "d"], ["b", "c"])) == ["a", "d"]
