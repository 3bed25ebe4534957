"""The rows of one order agree in good cases, and each contradiction is found, also behind a refund that is pending."""

from dataclasses import replace

import pytest

from deploy.audit.books import Books
from deploy.audit.checks.excuses import MOVING_SECONDS, OVER_SECONDS, REFUND_SECONDS, SAGA_SECONDS
from deploy.audit.findings import Invariant
from deploy.audit.reading.merge import cases, missing
from deploy.audit.reading.rows import (
    Case,
    Intent,
    Order,
    Payment,
    PaymentCopy,
    ProviderRefund,
    Refund,
    Reservation,
    Saga,
)

LINES = (("shoe", "sale", 1),)
COPY = PaymentCopy(id="p", provider="stripe", state="SUCCEEDED")
ORDER = Order(
    id="o", customer_id="ann", state="PAID", lines=LINES, prices={"shoe": (1999, "USD")}, total_minor=1999,
    currency="USD", payment=COPY,
)  # fmt: skip
RESERVATION = Reservation(
    id="o", customer_id="ann", state="CONFIRMED", lines=LINES, prices={"shoe": (1999, "USD")}, over_seconds=-300
)
PAYMENT = Payment(
    id="p", order_id="o", customer_id="ann", state="SUCCEEDED", provider="stripe", reference="pi", amount_minor=1999,
    currency="USD", refunded_minor=0,
)  # fmt: skip
CAPTURE = Intent(id="pi", order_id="o", payment_id="p", amount_minor=1999, currency="USD")
PAID = Case(id="o", order=ORDER, reservation=RESERVATION, payments=(PAYMENT,), intents=(CAPTURE,))
FAILED = Case(
    id="o",
    order=replace(ORDER, state="FAILED", payment=replace(COPY, state="FAILED")),
    reservation=replace(RESERVATION, state="RELEASED"),
    payments=(replace(PAYMENT, state="FAILED"),),
)
BACK = Refund(id="r", state="SUCCEEDED", amount_minor=1999, stray=False, reference="re")
THEIRS = ProviderRefund(id="re", refund_id="r", amount_minor=1999)
REFUNDED = Case(
    id="o",
    order=replace(ORDER, state="REFUNDED", refunded_minor=1999, payment=replace(COPY, state="REFUNDED")),
    reservation=RESERVATION,
    payments=(replace(PAYMENT, state="REFUNDED", refunded_minor=1999, refunds=(BACK,)),),
    intents=(replace(CAPTURE, refunded_minor=1999, refunds=(THEIRS,)),),
)
PART, THEIR_PART = replace(BACK, amount_minor=500), replace(THEIRS, amount_minor=500)
PARTLY_REFUNDED = Case(
    id="o",
    order=replace(ORDER, state="PARTIALLY_REFUNDED", refunded_minor=500),
    reservation=RESERVATION,
    payments=(replace(PAYMENT, refunded_minor=500, refunds=(PART,)),),
    intents=(replace(CAPTURE, refunded_minor=500, refunds=(THEIR_PART,)),),
)
RESTOCKED = replace(
    REFUNDED,
    order=replace(REFUNDED.order or ORDER, returned={"shoe": 1}),
    reservation=replace(RESERVATION, returned=LINES),
)
# Paid, then cancelled by staff: all of the money was refunded, and the units were returned or not.
CANCELLED_BY_STAFF = replace(REFUNDED, order=replace(REFUNDED.order or ORDER, state="CANCELLED"))
FREE = Case(id="o", order=replace(ORDER, total_minor=0, payment=None), reservation=RESERVATION)
# A stray charge, after the order had expired, and refunded.
STRAY = replace(
    FAILED,
    order=replace(FAILED.order or ORDER, state="EXPIRED"),
    intents=(replace(CAPTURE, refunded_minor=CAPTURE.amount_minor),),
)
PENDING = Case(
    id="o",
    order=replace(ORDER, state="PENDING", saga=Saga(kind="PURCHASE"), hold_over_seconds=-300),
    reservation=replace(RESERVATION, state="HELD"),
    payments=(PAYMENT,),
    intents=(CAPTURE,),
)
ORPHANED_HOLD = Case(id="o", reservation=replace(RESERVATION, state="HELD"))
# The provider has refunded it, and payments does not know that yet.
REFUNDING = replace(
    PAID,
    payments=(replace(PAYMENT, refunds=(replace(PART, state="PENDING", reference=""),)),),
    intents=(replace(CAPTURE, refunded_minor=500, refunds=(THEIR_PART,)),),
)


def order_of(case: Case, **changes: object) -> Case:
    assert case.order
    return replace(case, order=replace(case.order, **changes))  # type: ignore[arg-type]


def payment_of(case: Case, **changes: object) -> Case:
    return replace(case, payments=(replace(case.payments[0], **changes),))  # type: ignore[arg-type]


def with_journal(case: Case) -> Case:
    """The case with a journal that agrees with its rows: what was taken and not given back, stray charges included."""
    return replace(case, payments=tuple(replace(payment, booked_minor=_booked(payment)) for payment in case.payments))


def _booked(payment: Payment) -> int:
    stray = sum(r.amount_minor for r in payment.refunds if r.stray and r.state != "SUCCEEDED")
    if payment.state not in ("SUCCEEDED", "REFUNDED"):
        return stray
    return payment.amount_minor - payment.refunded_minor + payment.by_hand_minor + stray


def found(case: Case) -> set[str]:
    """The checks that find something in a case; each finding has the id of the order."""
    findings = Books().enter(with_journal(case))
    assert all(finding.ids == (case.id,) for finding in findings)
    return {finding.check.name for finding in findings}


@pytest.mark.parametrize(
    "case",
    [
        PAID,
        order_of(PAID, state="SHIPPED"),
        FAILED,
        REFUNDED,
        PARTLY_REFUNDED,
        RESTOCKED,
        replace(order_of(PARTLY_REFUNDED, returned={"shoe": 1}), reservation=RESTOCKED.reservation),
        CANCELLED_BY_STAFF,
        replace(CANCELLED_BY_STAFF, reservation=RESTOCKED.reservation),
        # An operator compensated the confirmation.
        replace(FAILED, reservation=RESTOCKED.reservation),
        # An order of amount 0 has no payment, and no money to refund.
        FREE,
        order_of(FREE, state="CANCELLED"),
        STRAY,
        PENDING,
        order_of(PENDING, saga=Saga(kind="PURCHASE", waits_for_customer=True, still_seconds=500)),
        ORPHANED_HOLD,
        REFUNDING,
        # An operator has marked the refund as done: the provider has failed it, or knows nothing of it.
        replace(
            payment_of(PARTLY_REFUNDED, refunds=(replace(PART, by_hand=True),)),
            intents=(replace(CAPTURE, refunds=(replace(THEIR_PART, state="failed"),)),),
        ),
        replace(payment_of(PARTLY_REFUNDED, refunds=(replace(PART, reference="", by_hand=True),)), intents=(CAPTURE,)),
        # A declined card leaves its intent open; nobody has the secret.
        replace(FAILED, intents=(replace(CAPTURE, status="requires_payment_method"),)),
        # A refund in the provider's dashboard has no row.
        replace(
            payment_of(PARTLY_REFUNDED, refunds=()),
            intents=(replace(CAPTURE, refunded_minor=500, refunds=(replace(THEIR_PART, refund_id=""),)),),
        ),
    ],
)
def test_good_cases_add_up(case: Case) -> None:
    assert found(case) == set()


@pytest.mark.parametrize(
    ("case", "names"),
    [
        (replace(PAID, reservation=None), {"order-reservation"}),
        (replace(PAID, reservation=replace(RESERVATION, state="HELD")), {"order-units"}),
        (replace(PAID, reservation=replace(RESERVATION, state="EXPIRED")), {"order-units"}),
        (replace(PAID, reservation=replace(RESERVATION, lines=(("shoe", "sale", 2),))), {"order-reservation"}),
        (replace(PAID, reservation=replace(RESERVATION, customer_id="bob")), {"order-reservation"}),
        (replace(PAID, reservation=replace(RESERVATION, prices={"shoe": (1, "USD")})), {"order-sale-price"}),
        (replace(order_of(PAID, returned={"shoe": 1}), reservation=RESTOCKED.reservation), {"return-without-refund"}),
        (
            replace(
                order_of(REFUNDED, returned={"shoe": 2}),
                reservation=replace(RESERVATION, returned=(("shoe", "sale", 2),)),
            ),
            {"order-returns"},
        ),
        (replace(RESTOCKED, reservation=replace(RESERVATION, returned=(("shoe", "", 1),))), {"order-returns"}),
        (replace(REFUNDED, reservation=RESTOCKED.reservation), {"order-returned"}),
        (order_of(REFUNDED, returned={"shoe": 1}), {"order-returned"}),
        (replace(CANCELLED_BY_STAFF, reservation=replace(RESERVATION, state="HELD")), {"order-without-money"}),
        (replace(FAILED, reservation=RESERVATION), {"order-without-money"}),
        (
            replace(FAILED, reservation=replace(RESERVATION, state="HELD", over_seconds=OVER_SECONDS)),
            {"order-without-money"},
        ),
        (Case(id="o", reservation=RESERVATION), {"order-lost"}),
        (replace(ORPHANED_HOLD, reservation=replace(RESERVATION, state="HELD", over_seconds=91)), {"order-lost"}),
    ],
)
def test_a_reservation_that_contradicts_its_order_is_found(case: Case, names: set[str]) -> None:
    assert found(case) == names


@pytest.mark.parametrize(
    ("case", "name"),
    [
        (replace(PAID, payments=()), "payment-of-paid-order"),
        (replace(PAID, payments=(PAYMENT, replace(PAYMENT, id="q"))), "payment-twice"),
        (payment_of(PAID, state="FAILED"), "payment-of-paid-order"),
        (payment_of(PAID, amount_minor=1998), "payment-amount"),
        (payment_of(PENDING, amount_minor=1998), "payment-amount"),
        (payment_of(PAID, currency="EUR"), "payment-amount"),
        (payment_of(PAID, customer_id="bob"), "payment-amount"),
        (payment_of(PAID, refunded_minor=1), "order-refunded"),
        (order_of(PAID, refunded_minor=1), "order-refunded"),
        (order_of(PAID, payment=None), "order-payment-copy"),
        (order_of(PAID, payment=replace(COPY, id="q")), "order-payment-copy"),
        (order_of(PAID, payment=replace(COPY, state="PROCESSING")), "order-payment-copy"),
        (order_of(FAILED, payment=COPY), "order-payment-copy"),
        (replace(FAILED, payments=(PAYMENT,), intents=(CAPTURE,)), "payment-kept"),
        (payment_of(FAILED, state="PROCESSING"), "payment-open"),
        (Case(id="o", payments=(PAYMENT,), intents=(CAPTURE,)), "order-lost"),
    ],
)
def test_a_payment_that_contradicts_its_order_is_found(case: Case, name: str) -> None:
    assert name in found(case)


@pytest.mark.parametrize(
    ("intents", "name"),
    [
        ((), "provider-charge"),
        ((replace(CAPTURE, amount_minor=2000),), "provider-charge"),
        ((replace(CAPTURE, currency="EUR"),), "provider-charge"),
        ((replace(CAPTURE, refunded_minor=1),), "provider-charge"),
        ((replace(CAPTURE, payment_id="other"),), "provider-charge"),
        ((replace(CAPTURE, id="other"),), "provider-stray"),
        ((CAPTURE, replace(CAPTURE, id="twice")), "provider-stray"),
        ((CAPTURE, replace(CAPTURE, id="open", status="processing")), "provider-open"),
        ((replace(CAPTURE, refunds=(THEIRS,)),), "provider-refunds"),
    ],
)
def test_records_that_contradict_the_payment_are_found(intents: tuple[Intent, ...], name: str) -> None:
    assert name in found(replace(PAID, intents=intents))


def test_a_capture_without_an_order_is_found() -> None:
    assert found(Case(id="", intents=(replace(CAPTURE, order_id=""),))) == {"provider-stray"}


def test_a_capture_for_a_declined_order_is_found() -> None:
    assert found(replace(FAILED, intents=(CAPTURE,))) == {"provider-stray", "journal-provider"}


def test_units_of_a_failed_order_may_be_held_until_its_time_is_over() -> None:
    """Its customer is about to pay it once more, or has given up meanwhile."""
    held = replace(RESERVATION, state="HELD", over_seconds=OVER_SECONDS - 1)
    assert found(replace(FAILED, reservation=held)) == set()
    over = replace(held, over_seconds=OVER_SECONDS)
    assert found(replace(FAILED, reservation=over)) == {"order-without-money"}


def _without_progress(saga: Saga, over: float) -> set[str]:
    return found(replace(order_of(PENDING, saga=saga, hold_over_seconds=over), payments=(), intents=(CAPTURE,)))


def test_nothing_is_excused_for_ever() -> None:
    """A saga that stands still, or waits behind its hold, is judged as if there were none."""
    waits = Saga(kind="PURCHASE", waits_for_customer=True)
    assert _without_progress(Saga(kind="PURCHASE", still_seconds=SAGA_SECONDS - 1), -1) == set()
    assert _without_progress(Saga(kind="PURCHASE", still_seconds=SAGA_SECONDS), -1) != set()
    assert _without_progress(waits, OVER_SECONDS - 1) == set()
    assert _without_progress(waits, OVER_SECONDS) != set()


def test_a_pending_refund_excuses_only_its_own_amount() -> None:
    old = replace(PART, state="PENDING", reference="", age_seconds=REFUND_SECONDS)
    assert found(payment_of(REFUNDING, refunds=(old,))) == {"refund-pending"}
    assert "provider-charge" in found(replace(REFUNDING, intents=(replace(CAPTURE, refunded_minor=501),)))
    assert "order-units" in found(replace(REFUNDING, reservation=replace(RESERVATION, state="RELEASED")))


def test_a_refund_that_the_provider_has_as_pending_may_take_weeks() -> None:
    old = replace(PART, state="PENDING", age_seconds=MOVING_SECONDS - 1)
    pending = replace(CAPTURE, refunds=(replace(THEIR_PART, state="pending"),))
    assert found(replace(payment_of(REFUNDING, refunds=(old,)), intents=(pending,))) == set()
    older = replace(old, age_seconds=MOVING_SECONDS)
    assert found(replace(payment_of(REFUNDING, refunds=(older,)), intents=(pending,))) == {"refund-pending"}
    succeeded = replace(CAPTURE, refunds=(THEIR_PART,))
    assert found(replace(payment_of(REFUNDING, refunds=(old,)), intents=(succeeded,))) == {"refund-pending"}


def test_a_saga_that_waits_for_the_provider_is_judged_and_needs_moving_money() -> None:
    waits = Saga(kind="PURCHASE", waits_for_provider=True, still_seconds=86_400)
    debit, taking = replace(PAYMENT, state="PROCESSING"), replace(CAPTURE, status="processing")
    unpaid = order_of(PENDING, saga=waits, payment=replace(COPY, state="PROCESSING"))
    moving = replace(unpaid, payments=(debit,), intents=(taking,))
    assert found(moving) == set()
    assert found(replace(moving, payments=(replace(debit, state="AWAITING_CUSTOMER"),))) == {"saga-waits"}
    assert "saga-waits" in found(replace(moving, payments=()))
    assert "provider-stray" in found(replace(moving, intents=(CAPTURE,)))


def test_refunds_at_another_provider_are_not_looked_for_at_this_one() -> None:
    elsewhere = replace(BACK, provider="razorpay", reference="rfnd")
    case = payment_of(REFUNDED, provider="razorpay", reference="order", refunds=(elsewhere,))
    assert "provider-refunds" not in found(replace(case, intents=()))
    assert "provider-refunds" in found(replace(payment_of(REFUNDED, refunds=(BACK,)), intents=()))


def test_stray_charge_at_another_provider_excuses_no_money_at_this_one() -> None:
    stray = replace(BACK, state="PENDING", stray=True, provider="razorpay", reference="")
    assert "provider-stray" in found(replace(payment_of(FAILED, refunds=(stray,)), intents=(CAPTURE,)))
    assert "provider-stray" not in found(
        replace(payment_of(FAILED, refunds=(replace(stray, provider="stripe"),)), intents=(CAPTURE,))
    )


@pytest.mark.parametrize(
    ("refunds", "theirs"),
    [
        ((), (THEIR_PART,)),
        ((PART,), ()),
        ((replace(PART, amount_minor=1),), (THEIR_PART,)),
        ((replace(PART, state="FAILED"),), (THEIR_PART,)),
        ((PART, replace(PART, id="r2", reference="re2")), (THEIR_PART,)),
        ((PART,), (replace(THEIR_PART, state="failed"),)),
        ((replace(PART, id="theirs"),), (replace(THEIR_PART, refund_id="", amount_minor=1),)),
    ],
)
def test_refunds_that_contradict_the_provider_are_found(
    refunds: tuple[Refund, ...], theirs: tuple[ProviderRefund, ...]
) -> None:
    case = replace(payment_of(PARTLY_REFUNDED, refunds=refunds), intents=(replace(CAPTURE, refunds=theirs),))
    assert "provider-refunds" in found(case)


def test_orders_in_flight_are_counted_apart() -> None:
    books = Books()
    for case in (PAID, PENDING, REFUNDING):
        assert books.enter(with_journal(case)) == []
    assert (books.in_flight_count, books.captured["USD"], books.ordered["USD"]) == (2, 1999, 1999)


def test_sums_that_differ_are_found() -> None:
    books = Books()
    books.enter(with_journal(replace(PAID, intents=())))
    journal, balance = books.check_totals()
    assert (balance.invariant, balance.ids) == (Invariant.MONEY, ("USD",))
    assert (journal.check.name, balance.check.name) == ("journal-balance", "balance")


@pytest.mark.parametrize("more", [-1, 1])
@pytest.mark.parametrize("case", [PAID, REFUNDED, PARTLY_REFUNDED, STRAY, FAILED])
def test_a_journal_that_differs_from_the_provider_is_found(case: Case, more: int) -> None:
    payment, *_ = with_journal(case).payments
    wrong = replace(case, payments=(replace(payment, booked_minor=payment.booked_minor + more),))
    assert {finding.check.name for finding in Books().enter(wrong)} == {"journal-provider"}


def test_without_a_ledger_payments_count_as_captured() -> None:
    books = Books(with_ledger=False)
    assert books.enter(with_journal(replace(PAID, intents=()))) == []
    assert list(books.check_totals()) == []
    assert books.captured["USD"] == 1999


def test_streams_are_joined_by_order_id() -> None:
    orders = [replace(ORDER, id=id_) for id_ in ("a", "c")]
    reservations = [replace(RESERVATION, id=id_) for id_ in ("a", "b")]
    payments = [replace(PAYMENT, order_id=id_) for id_ in ("c", "d")]
    intents = [replace(CAPTURE, order_id=id_, id=f"pi{n}") for n, id_ in enumerate(("", "c", "c", "e"))]
    together = list(cases(orders, reservations, payments, intents))
    assert [case.id for case in together] == ["", "a", "b", "c", "d", "e"]
    assert [len(case.intents) for case in together] == [1, 0, 0, 2, 0, 1]
    third = together[3]
    assert third.order
    assert third.payment
    assert not third.reservation


def test_an_unsorted_stream_fails() -> None:
    with pytest.raises(AssertionError, match="orders are not sorted"):
        list(cases([replace(ORDER, id="b"), ORDER, replace(ORDER, id="a")], [], [], []))


def test_missing_ids_are_found() -> None:
    assert list(missing(["a", "c", "d"], ["b", "c"])) == ["a", "d"]
