"""Each invariant of orders and money holds on a good case, and fails on tampered ones."""

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
PARTLY = Case(
    id="o",
    order=replace(ORDER, state="PARTIALLY_REFUNDED"),
    reservation=RESERVATION,
    payment=replace(PAYMENT, refunded_minor=500),
    captures=(replace(CAPTURE, refunded_minor=500),),
)
RESTOCKED = replace(REFUNDED, reservation=replace(RESERVATION, returned=LINES))
# Paid, and called off by staff: all the money went back, and the units or not.
CALLED_OFF = replace(REFUNDED, order=replace(ORDER, state="CANCELLED"))
# Money came after the order had expired, and went back.
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
    """What a case breaks, sums included; each finding names the order or the currency."""
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
        PARTLY,
        RESTOCKED,
        replace(PARTLY, reservation=replace(RESERVATION, returned=LINES)),
        CALLED_OFF,
        replace(CALLED_OFF, reservation=RESTOCKED.reservation),
        # An operator took the confirmation back.
        replace(FAILED, reservation=RESTOCKED.reservation),
        # What cost nothing has no money to go back.
        replace(
            CALLED_OFF, payment=replace(PAYMENT, amount_minor=0), captures=(), order=replace(ORDER, state="CANCELLED")
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
        replace(CALLED_OFF, reservation=replace(RESERVATION, state="HELD"), payment=None, captures=()),
        replace(FAILED, reservation=RESERVATION),
        replace(FAILED, order=replace(ORDER, state="CANCELLED"), reservation=RESERVATION),
        replace(FAILED, reservation=replace(RESERVATION, state="HELD")),
        Case(id="o", reservation=RESERVATION),
        replace(ORPHANED_HOLD, reservation=replace(RESERVATION, state="HELD", overdue=True)),
        replace(FAILED, order=replace(ORDER, state="PENDING")),
    ],
)
def test_an_order_and_a_reservation_that_disagree_are_found(case: Case) -> None:
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
        replace(PARTLY, payment=PAYMENT, captures=(CAPTURE,)),
        Case(id="o", payment=PAYMENT, captures=(CAPTURE,)),
    ],
)
def test_an_order_and_a_payment_that_disagree_are_found(case: Case) -> None:
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
def test_a_provider_that_says_otherwise_is_found(captures: tuple[Capture, ...]) -> None:
    assert found(replace(PAID, captures=captures)) == {Invariant.MONEY}


def test_money_of_no_order_is_found() -> None:
    assert found(Case(id="", captures=(replace(CAPTURE, order_id=""),))) == {Invariant.MONEY}


def test_money_for_a_declined_order_is_found() -> None:
    assert found(replace(FAILED, captures=(CAPTURE,))) == {Invariant.MONEY}


def test_what_is_in_flight_is_counted_apart_and_not_judged() -> None:
    books = Books()
    for case in (PAID, PENDING, replace(PAID, payment=replace(PAYMENT, refunds_pending=1))):
        assert books.enter(case) == []
    assert (books.in_flight_count, books.captured["USD"], books.ordered["USD"]) == (2, 1999, 1999)


def test_without_a_ledger_the_word_of_payments_is_taken() -> None:
    books = Books(with_ledger=False)
    assert books.enter(replace(PAID, captures=())) == []
    assert list(books.check_totals()) == []
    assert books.captured["USD"] == 1999


def test_streams_are_put_together_by_order() -> None:
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


def test_a_stream_out_of_order_is_refused_rather_than_misread() -> None:
    with pytest.raises(AssertionError, match="orders are not sorted"):
        list(cases([replace(ORDER, id="b"), ORDER, replace(ORDER, id="a")], [], [], []))


def test_ids_that_are_not_known_are_found() -> None:
    assert list(missing(["a", "c", "d"], ["b", "c"])) == ["a", "d"]
