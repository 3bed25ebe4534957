"""Attempts that customers ask for: never two charges that can take money, and no number is used twice."""

import dataclasses

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.payments.dispatch import attempts
from services.payments.dispatch.decisions import Verdict, decide
from services.payments.dispatch.rules import Operation, next_operation
from services.payments.domain import OPEN, Payment, State, Terms
from services.payments.providers.results import ChargeStatus
from tests.unit.payments.test_payments_domain import a_payment, a_result

WAITING = {
    "state": State.AWAITING_CUSTOMER, "customer_pays": True, "payment_method": None, "provider_reference": "pi_1",
    "client_secret": "secret",
}  # fmt: skip
CARD, ELSEWHERE = Terms(number=1, payment_method="pm_2"), Terms(number=1, provider="other")


def after(payment: Payment, status: ChargeStatus, reference: str | None = "pi_1") -> Payment:
    now, verdict = decide(payment, a_result(status, reference))
    assert verdict is Verdict.ACCEPTED
    return now


def test_another_card_uses_the_charge_that_waits() -> None:
    asked = attempts.ask(a_payment(**WAITING, failure_reason="CARD_DECLINED"), CARD)
    assert (asked.state, asked.payment_method, asked.attempt, asked.failure_reason) == (State.PROCESSING, "pm_2", 2, "")
    assert (asked.order_attempt, asked.accepted_attempt, asked.latest_order_attempt) == (1, 1, 1)
    assert next_operation(asked) is Operation.CONFIRM
    assert after(asked, ChargeStatus.DECLINED).state is State.AWAITING_CUSTOMER


def test_waiting_charge_serves_an_attempt_in_the_same_way() -> None:
    waits = a_payment(**WAITING)
    asked = attempts.ask(waits, Terms(number=1))
    terms = Terms(number=1, provider="stripe")
    assert asked == dataclasses.replace(waits, order_attempt=1, latest_order_attempt=1, terms=terms)
    assert not attempts.calls_now(waits, asked)


def test_another_provider_begins_after_the_void() -> None:
    asked = attempts.ask(a_payment(**WAITING), ELSEWHERE)
    assert (asked.state, asked.provider, asked.client_secret) == (State.PROCESSING, "stripe", None)
    assert not asked.is_payable
    assert next_operation(asked) is Operation.VOID
    begun = after(asked, ChargeStatus.CANCELLED)
    assert (begun.state, begun.provider, begun.provider_reference) == (State.PROCESSING, "other", None)
    assert (begun.former_references, begun.attempt, begun.next_terms) == (("pi_1",), 2, None)
    assert next_operation(begun) is Operation.CREATE


def test_charge_that_was_paid_meanwhile_stays() -> None:
    asked = attempts.ask(a_payment(**WAITING), ELSEWHERE)
    paid = after(asked, ChargeStatus.SUCCEEDED)
    assert (paid.state, paid.provider, paid.next_terms) == (State.SUCCEEDED, "stripe", None)
    assert paid.accepted_attempt == 0 < paid.latest_order_attempt


def test_charge_that_may_be_taking_money_stays() -> None:
    asked = attempts.ask(a_payment(**WAITING), ELSEWHERE)
    moving = after(asked, ChargeStatus.PENDING)
    assert (moving.state, moving.next_terms, moving.accepted_attempt) == (State.PROCESSING, None, 0)
    again = attempts.ask(moving, dataclasses.replace(ELSEWHERE, number=2))
    assert again == dataclasses.replace(moving, latest_order_attempt=2)


def test_declined_payment_is_tried_again_with_a_charge_of_its_own() -> None:
    failed = after(a_payment(), ChargeStatus.DECLINED)
    assert failed.state is State.FAILED
    asked = attempts.ask(failed, CARD)
    assert next_operation(asked) is Operation.VOID
    begun = after(asked, ChargeStatus.CANCELLED)
    assert (begun.payment_method, begun.customer_pays, begun.former_references) == ("pm_2", True, ("pi_1",))
    assert begun.terms == dataclasses.replace(CARD, provider="stripe", payment_method=""), "the token is not kept"
    assert after(begun, ChargeStatus.DECLINED, "pi_2").state is State.AWAITING_CUSTOMER


def test_payment_that_failed_without_a_charge_begins_at_once() -> None:
    failed = after(a_payment(), ChargeStatus.DECLINED, None)
    begun = attempts.ask(failed, CARD)
    assert (begun.state, begun.attempt, begun.former_references) == (State.PROCESSING, 2, ())
    assert next_operation(begun) is Operation.CREATE


def test_card_that_is_refused_leaves_the_customer_a_secret() -> None:
    asked = attempts.ask(a_payment(**WAITING), dataclasses.replace(CARD, provider="other"))
    plain = after(after(asked, ChargeStatus.CANCELLED), ChargeStatus.DECLINED, None)
    assert (plain.state, plain.payment_method, plain.failure_reason) == (State.PROCESSING, None, "CARD_DECLINED")
    assert after(plain, ChargeStatus.DECLINED, None).state is State.FAILED, "without an end, it would go on for ever"
    waits = after(plain, ChargeStatus.REQUIRES_ACTION, "pi_2")
    assert (waits.state, waits.failure_reason, waits.client_secret) == (
        State.AWAITING_CUSTOMER, "CARD_DECLINED", "secret",
    )  # fmt: skip


def test_page_that_people_end_at_the_provider_leaves_the_customer_a_secret() -> None:
    on_page = {**WAITING, "provider_reference": None, "client_secret": None, "checkout_reference": "cs_1"}
    waits = a_payment(**on_page, terms=Terms(number=1, provider="stripe", checkout=True), order_attempt=1)
    goes_on = after(waits, ChargeStatus.CANCELLED, None)
    assert (goes_on.state, goes_on.terms, goes_on.attempt) == (State.PROCESSING, Terms(number=1, provider="stripe"), 2)
    assert (goes_on.former_references, next_operation(goes_on)) == (("cs_1",), Operation.CREATE)
    ended = after(dataclasses.replace(waits, cancel_requested=True), ChargeStatus.CANCELLED, None)
    assert ended.state is State.CANCELLED


def test_charge_that_is_being_made_is_voided_first() -> None:
    making = a_payment(customer_pays=True, payment_method=None)
    asked = attempts.ask(making, CARD)
    assert next_operation(asked) is Operation.CREATE, "under the old key: only then is the charge known"
    known = after(asked, ChargeStatus.REQUIRES_ACTION)
    assert (known.state, known.client_secret, next_operation(known)) == (State.PROCESSING, None, Operation.VOID)
    assert after(known, ChargeStatus.CANCELLED).payment_method == "pm_2"


@pytest.mark.parametrize("state", [State.SUCCEEDED, State.REFUNDED, State.CANCELLED])
def test_payment_that_has_ended_is_not_tried_again(state: State) -> None:
    ended = a_payment(state=state, payment_method=None, provider_reference="pi_1")
    assert attempts.ask(ended, CARD) == dataclasses.replace(ended, latest_order_attempt=1)


def test_payment_that_is_being_cancelled_is_not_tried_again() -> None:
    cancelling = a_payment(**WAITING, cancel_requested=True)
    assert attempts.ask(cancelling, CARD) == dataclasses.replace(cancelling, latest_order_attempt=1)


def test_cancellation_ends_an_attempt_that_waits() -> None:
    asked = dataclasses.replace(attempts.ask(a_payment(**WAITING), ELSEWHERE), cancel_requested=True, next_terms=None)
    assert next_operation(asked) is Operation.VOID
    assert after(asked, ChargeStatus.CANCELLED).state is State.CANCELLED


def test_money_of_an_earlier_attempt_is_stray() -> None:
    begun = after(attempts.ask(a_payment(**WAITING), ELSEWHERE), ChargeStatus.CANCELLED)
    late = a_result(ChargeStatus.SUCCEEDED, "pi_1")
    assert decide(begun, late) == (begun, Verdict.STRAY_CHARGE), "before the new charge is known"
    waits = after(begun, ChargeStatus.REQUIRES_ACTION, "pi_2")
    assert decide(waits, late) == (waits, Verdict.STRAY_CHARGE)
    assert decide(waits, a_result(ChargeStatus.CANCELLED, "pi_1")) == (waits, Verdict.ACCEPTED)


class Provider:
    """The charges of one payment: each is open, paid or void, and only its customer's payments and calls move it."""

    def __init__(self) -> None:
        self.charges: dict[str, str] = {}

    def answer(self, payment: Payment, operation: Operation) -> tuple[ChargeStatus, str | None]:
        reference, card = payment.provider_reference or f"pi_{payment.attempt}", payment.payment_method
        if operation is Operation.FIND and reference not in self.charges:
            return ChargeStatus.WITHDRAWN, None
        takes = operation in (Operation.CREATE, Operation.CONFIRM)
        if self.charges.setdefault(reference, "open") == "open":
            if operation is Operation.VOID:
                self.charges[reference] = "void"
            elif takes and card == "good":
                self.charges[reference] = "paid"
        waits = ChargeStatus.DECLINED if takes and card == "bad" else ChargeStatus.REQUIRES_ACTION
        statuses = {"open": waits, "paid": ChargeStatus.SUCCEEDED, "void": ChargeStatus.CANCELLED}
        return statuses[self.charges[reference]], reference


STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("ask"), st.sampled_from(["good", "bad", ""]), st.sampled_from(["", "stripe", "other"])),
        st.tuples(st.just("call"), st.booleans(), st.just("")),
        st.tuples(st.just("pay"), st.just(""), st.just("")),
        st.tuples(st.just("cancel"), st.just(""), st.just("")),
    ),
    max_size=25,
)


@given(first=st.sampled_from(["good", "bad", ""]), steps=STEPS)
def test_no_sequence_of_attempts_charges_twice(first: str, steps: list[tuple[str, object, str]]) -> None:
    """Calls, lost answers, browsers and cancellations in any order: at most one charge is open or paid at any time."""
    provider, number, known = Provider(), 0, set[str | None]()
    payment = a_payment(payment_method=first or None, customer_pays=not first)

    def call(*, is_lost: bool) -> None:
        nonlocal payment
        status, reference = provider.answer(payment, next_operation(payment))
        if not is_lost:
            payment, verdict = decide(payment, a_result(status, reference))
            assert verdict is Verdict.ACCEPTED

    for step, argument, at in steps:
        if step == "ask":
            number += 1
            payment = attempts.ask(payment, Terms(number=number, provider=at, payment_method=str(argument)))
        elif step == "call" and payment.state in OPEN:
            call(is_lost=bool(argument))
        elif step == "pay":
            paid = [name for name, state in provider.charges.items() if state == "open" and name in known]
            provider.charges |= dict.fromkeys(paid, "paid")
        elif step == "cancel" and payment.state in OPEN:
            payment = dataclasses.replace(payment, cancel_requested=True, next_terms=None)
        if payment.is_payable:
            known.add(payment.provider_reference)
        assert sum(state in ("open", "paid") for state in provider.charges.values()) <= 1
        assert payment.latest_order_attempt == number
    for _ in range(4):
        if payment.state in OPEN:
            call(is_lost=False)
    if "paid" in provider.charges.values():
        assert payment.state is State.SUCCEEDED
