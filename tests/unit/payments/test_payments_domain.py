"""The rules of payments: the moves that exist, and that no provider result is lost or undone."""

import dataclasses
import uuid
from datetime import UTC, datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.payments.dispatch import rules
from services.payments.dispatch.decisions import Verdict, decide
from services.payments.dispatch.rules import Operation, next_operation
from services.payments.domain import (
    AUTHORIZATION_ENDED,
    MOVES,
    OPEN,
    Capture,
    Payment,
    Refund,
    RefundState,
    State,
)
from services.payments.providers.results import ChargeResult, ChargeStatus
from services.payments.providers.stripe.declines import decline_reason
from services.payments.refunds.rules import after_refund

_ID = uuid.UUID(int=7)
_RANK = {State.AWAITING_CUSTOMER: 0, State.PROCESSING: 0, State.AUTHORIZED: 1, State.SUCCEEDED: 2, State.FAILED: 2,
         State.CANCELLED: 2, State.REFUNDED: 3}  # fmt: skip


def a_payment(**changes: object) -> Payment:
    moment = datetime(2026, 11, 1, tzinfo=UTC)
    payment = Payment(
        id=_ID, order_id=_ID, customer_id=_ID, amount_minor=1999, currency="USD", state=State.PROCESSING,
        provider="stripe", customer_pays=False, payment_method="pm_card_visa", provider_reference=None,
        client_secret=None, attempt=1, failure_reason="", authenticating=False, refunded_minor=0, refunding_minor=0,
        cancel_requested=False, problem="", checks=0, version=1, create_time=moment, update_time=moment,
    )  # fmt: skip
    return dataclasses.replace(payment, **changes)  # type: ignore[arg-type]


def a_result(kind: ChargeStatus, reference: str | None = "pi_1", **more: object) -> ChargeResult:
    reason = "CARD_DECLINED" if kind is ChargeStatus.DECLINED else ""
    result = ChargeResult(
        payment_id=_ID, status=kind, reference=reference, client_secret="secret", amount_minor=1999, currency="usd",
        reason=reason,
    )  # fmt: skip
    return dataclasses.replace(result, **more)  # type: ignore[arg-type]


def test_the_moves_that_exist() -> None:
    assert set(MOVES) == set(State)
    assert not MOVES[State.CANCELLED]
    assert MOVES[State.FAILED] == {State.PROCESSING}, "another attempt may follow"
    assert MOVES[State.SUCCEEDED] == {State.REFUNDED}
    assert MOVES[State.REFUNDED] == {State.SUCCEEDED}, "a refund may fail after it has succeeded"
    back = [(before, after) for before, ends in MOVES.items() for after in ends if _RANK[after] < _RANK[before]]
    assert back == [(State.FAILED, State.PROCESSING), (State.REFUNDED, State.SUCCEEDED)]


@pytest.mark.parametrize(
    ("customer_pays", "state", "kind", "after"),
    [
        (False, State.PROCESSING, ChargeStatus.SUCCEEDED, State.SUCCEEDED),
        (False, State.PROCESSING, ChargeStatus.REQUIRES_ACTION, State.AWAITING_CUSTOMER),
        (False, State.PROCESSING, ChargeStatus.DECLINED, State.FAILED),
        (False, State.PROCESSING, ChargeStatus.UNKNOWN, State.PROCESSING),
        (False, State.AWAITING_CUSTOMER, ChargeStatus.DECLINED, State.AWAITING_CUSTOMER),
        (True, State.PROCESSING, ChargeStatus.DECLINED, State.AWAITING_CUSTOMER),
        (True, State.AWAITING_CUSTOMER, ChargeStatus.PENDING, State.PROCESSING),
        (True, State.AWAITING_CUSTOMER, ChargeStatus.CANCELLED, State.CANCELLED),
        (False, State.SUCCEEDED, ChargeStatus.CANCELLED, State.SUCCEEDED),
        (False, State.FAILED, ChargeStatus.CANCELLED, State.FAILED),
        (False, State.CANCELLED, ChargeStatus.DECLINED, State.CANCELLED),
        (False, State.REFUNDED, ChargeStatus.SUCCEEDED, State.REFUNDED),
    ],
)
def test_the_state_after_a_result(customer_pays: bool, state: State, kind: ChargeStatus, after: State) -> None:
    payment, verdict = decide(a_payment(state=state, customer_pays=customer_pays), a_result(kind))
    assert (payment.state, verdict) == (after, Verdict.ACCEPTED)


def test_a_declined_payment_without_a_charge_has_failed() -> None:
    """There is nothing at the provider that its customer could pay."""
    refused = a_result(ChargeStatus.DECLINED, reference=None)
    assert decide(a_payment(customer_pays=True), refused)[0].state is State.FAILED
    begun = a_payment(customer_pays=True, provider_reference="pi_1")
    assert decide(begun, refused)[0].state is State.AWAITING_CUSTOMER


_WITHOUT_CHARGE = (ChargeStatus.UNKNOWN, ChargeStatus.WITHDRAWN, ChargeStatus.MISSING)


@pytest.mark.parametrize("changed", [{"amount_minor": 1}, {"currency": "eur"}])
@pytest.mark.parametrize("kind", [kind for kind in ChargeStatus if kind not in _WITHOUT_CHARGE])
def test_a_result_with_another_amount_parks_the_payment(kind: ChargeStatus, changed: dict[str, object]) -> None:
    before = a_payment()
    parked = dataclasses.replace(before, problem="OTHER_AMOUNT")
    if kind is ChargeStatus.CANCELLED:
        assert decide(before, a_result(kind, **changed))[0].state is State.CANCELLED, "nothing can be charged any more"
    else:
        assert decide(before, a_result(kind, **changed)) == (parked, Verdict.OTHER_AMOUNT)
    assert decide(parked, a_result(ChargeStatus.SUCCEEDED))[0].problem == ""
    paid = a_payment(state=State.SUCCEEDED, provider_reference="pi_1")
    if kind is ChargeStatus.SUCCEEDED:
        assert decide(paid, a_result(kind, **changed)) == (paid, Verdict.OTHER_AMOUNT)


@pytest.mark.parametrize("changed", [{"amount_minor": 1}, {"currency": "eur"}])
@pytest.mark.parametrize(
    "before",
    [
        a_payment(cancel_requested=True),
        a_payment(
            state=State.AWAITING_CUSTOMER, cancel_requested=True, provider_reference="pi_1", problem="OTHER_AMOUNT"
        ),
        a_payment(state=State.CANCELLED),
        a_payment(state=State.FAILED, provider_reference="pi_1"),
        a_payment(state=State.SUCCEEDED, provider_reference="pi_2"),
    ],
)
def test_money_of_another_amount_that_nobody_wants_goes_back(before: Payment, changed: dict[str, object]) -> None:
    after, verdict = decide(before, a_result(ChargeStatus.SUCCEEDED, **changed))
    assert verdict is Verdict.STRAY_CHARGE
    assert (after.state, after.problem) == (State.CANCELLED if before.cancel_requested else before.state, "")


def test_a_charge_that_the_provider_does_not_have_is_a_problem_until_it_answers() -> None:
    missing, _ = decide(a_payment(provider_reference="pi_1"), a_result(ChargeStatus.MISSING))
    assert (missing.state, missing.problem) == (State.PROCESSING, "MISSING_AT_PROVIDER")
    paid, _ = decide(missing, a_result(ChargeStatus.SUCCEEDED))
    assert (paid.state, paid.problem) == (State.SUCCEEDED, "")
    for checks, state in ((2, State.PROCESSING), (3, State.CANCELLED)):
        asked = dataclasses.replace(missing, cancel_requested=True, checks=checks)
        assert decide(asked, a_result(ChargeStatus.MISSING))[0].state is state


def test_only_a_cancelled_payment_ends_without_a_call() -> None:
    result = a_result(ChargeStatus.WITHDRAWN)
    assert decide(a_payment(), result)[0].state is State.PROCESSING
    assert decide(a_payment(cancel_requested=True), result)[0].state is State.CANCELLED
    begun = a_payment(cancel_requested=True, provider_reference="pi_1")
    assert decide(begun, result)[0].state is State.PROCESSING


def test_secrets_and_cards_are_removed_at_the_end() -> None:
    for kind in (ChargeStatus.SUCCEEDED, ChargeStatus.DECLINED, ChargeStatus.CANCELLED):
        payment, _ = decide(a_payment(client_secret="secret"), a_result(kind))
        assert (payment.client_secret, payment.payment_method) == (None, None)


@pytest.mark.parametrize("kind", list(ChargeStatus))
def test_only_awaited_payments_are_authenticating(kind: ChargeStatus) -> None:
    asked, _ = decide(a_payment(customer_pays=True), a_result(ChargeStatus.REQUIRES_ACTION, authenticating=True))
    assert asked.authenticating
    after, _ = decide(asked, a_result(kind))
    assert after.authenticating == (kind in _WITHOUT_CHARGE), "a result without a charge changes nothing"
    after, _ = decide(a_payment(), a_result(kind, authenticating=True))
    assert after.authenticating == (kind is ChargeStatus.REQUIRES_ACTION)


_RESULTS = st.lists(
    st.builds(
        a_result,
        st.sampled_from(ChargeStatus),
        st.sampled_from(["pi_1", "pi_1", "pi_1", "pi_2"]),
        amount_minor=st.sampled_from([1999, 1999, 1999, 1]),
    ),
    max_size=12,
)


@given(_RESULTS, st.booleans(), st.booleans(), st.sampled_from(Capture))
def test_no_sequence_of_results_moves_back_or_loses_money(
    results: list[ChargeResult], customer_pays: bool, cancelling: bool, capture: Capture
) -> None:
    payment = a_payment(customer_pays=customer_pays, cancel_requested=cancelling, capture=capture)
    counted: set[str] = set()
    for result in results:
        after, verdict = decide(payment, result)
        assert after.state == payment.state or after.state in MOVES[payment.state]
        assert _RANK[after.state] >= _RANK[payment.state]
        assert payment.provider_reference in (None, after.provider_reference)
        if result.status is ChargeStatus.SUCCEEDED:
            # Money that arrived is either counted, or refunded as a stray charge, or waits for an operator.
            own = after.provider_reference == result.reference
            is_counted = after.state in (State.SUCCEEDED, State.REFUNDED) and own
            waits = verdict is Verdict.OTHER_AMOUNT and after.state in OPEN and not cancelling
            assert is_counted + waits + (verdict is Verdict.STRAY_CHARGE) == 1
            if is_counted:
                counted.add(result.reference or "")
        else:
            assert verdict is not Verdict.STRAY_CHARGE
        payment = after
    assert len(counted) <= 1
    assert bool(counted) == (payment.state is State.SUCCEEDED)


@given(st.lists(st.tuples(st.integers(1, 800), st.booleans()), max_size=8))
def test_refunds_add_up(parts: list[tuple[int, bool]]) -> None:
    payment = a_payment(state=State.SUCCEEDED)
    for minor, succeeds in parts:
        if minor > payment.left_minor:
            continue
        payment = dataclasses.replace(payment, refunding_minor=payment.refunding_minor + minor)
        refund = Refund(
            id=_ID, payment_id=_ID, provider="stripe", amount_minor=minor, state=RefundState.PENDING, stray=False,
            external=False, charge_reference="pi_1", provider_reference=None, failure_reason="", problem="",
            attempt=1, checks=0,
        )  # fmt: skip
        before = payment.refunded_minor
        payment = after_refund(payment, refund, RefundState.SUCCEEDED if succeeds else RefundState.FAILED)
        assert payment.refunded_minor == before + (minor if succeeds else 0)
        assert payment.refunding_minor == 0
        assert (payment.state is State.REFUNDED) == (payment.refunded_minor == payment.amount_minor)


@pytest.mark.parametrize(
    ("code", "decline_code", "reason"),
    [
        ("card_declined", "generic_decline", "CARD_DECLINED"),
        ("card_declined", "insufficient_funds", "INSUFFICIENT_FUNDS"),
        ("card_declined", "stolen_card", "CARD_DECLINED"),
        ("card_declined", None, "CARD_DECLINED"),
        ("expired_card", None, "EXPIRED_CARD"),
        ("incorrect_cvc", None, "INCORRECT_CVC"),
        ("processing_error", None, "PROCESSING_ERROR"),
        ("authentication_required", "authentication_required", "AUTHENTICATION_REQUIRED"),
        ("something_new", None, "CARD_DECLINED"),
        (None, None, "CARD_DECLINED"),
    ],
)
def test_declines_get_our_reasons(code: str | None, decline_code: str | None, reason: str) -> None:
    assert decline_reason(code, decline_code) == reason


def test_the_next_operation() -> None:
    assert next_operation(a_payment()) is Operation.CREATE
    assert next_operation(a_payment(), key_expired=True) is Operation.FIND
    assert next_operation(a_payment(checks=rules.LOOK_UP_AFTER_CHECKS)) is Operation.FIND
    assert next_operation(a_payment(checks=rules.LOOK_UP_AFTER_CHECKS + 1)) is Operation.CREATE
    assert next_operation(a_payment(provider_reference="pi_1")) is Operation.CONFIRM
    assert next_operation(a_payment(provider_reference="pi_1", payment_method=None)) is Operation.RETRIEVE
    assert next_operation(a_payment(provider_reference="pi_1", cancel_requested=True)) is Operation.VOID
    assert next_operation(a_payment(cancel_requested=True)) is Operation.FIND, "a repeat could take money"


def test_ended_payments_are_not_checked_and_pauses_are_bounded() -> None:
    assert all((rules.check_seconds(a_payment(state=state)) is None) == (state not in OPEN) for state in State)
    pauses = [rules.check_seconds(a_payment(checks=n)) or 0 for n in range(40)]
    assert pauses == sorted(pauses)
    assert (pauses[0], pauses[-1]) == (1.0, 60.0)


def test_money_of_a_charge_is_counted_once() -> None:
    """Where one charge may be paid twice, the first money that arrives is the payment's, and the second goes back."""
    first = a_result(ChargeStatus.SUCCEEDED, "order_1", capture_reference="pay_1")
    paid, verdict = decide(a_payment(), first)
    assert (paid.state, paid.capture_reference, paid.charge_reference) == (State.SUCCEEDED, "pay_1", "pay_1")
    assert verdict is Verdict.ACCEPTED
    assert decide(paid, first) == (paid, Verdict.ACCEPTED)
    for status in (ChargeStatus.SUCCEEDED, ChargeStatus.AUTHORISED):
        second = a_result(status, "order_1", capture_reference="pay_2")
        assert decide(paid, second) == (paid, Verdict.STRAY_CHARGE)
        assert decide(dataclasses.replace(paid, state=State.REFUNDED), second)[1] is Verdict.STRAY_CHARGE
        for ended in (State.CANCELLED, State.FAILED):
            before = a_payment(state=ended, provider_reference="order_1")
            assert decide(before, second) == (before, Verdict.STRAY_CHARGE)


def test_authorised_money_is_captured_or_voided() -> None:
    authorised, _ = decide(a_payment(), a_result(ChargeStatus.AUTHORISED, "order_1", capture_reference="pay_1"))
    assert (authorised.state, authorised.capture_reference) == (State.PROCESSING, "pay_1")
    assert next_operation(authorised) is Operation.CAPTURE
    cancelling = dataclasses.replace(authorised, cancel_requested=True)
    assert next_operation(cancelling) is Operation.VOID
    assert next_operation(cancelling, can_void=False) is Operation.CAPTURE, "it goes back after that only"
    stuck = dataclasses.replace(authorised, checks=rules.LOOK_UP_AFTER_CHECKS)
    assert next_operation(stuck) is Operation.RETRIEVE
    gone, _ = decide(authorised, a_result(ChargeStatus.REQUIRES_ACTION, "order_1"))
    assert (gone.state, gone.capture_reference) == (State.AWAITING_CUSTOMER, None), "the bank took it back"


def test_authorised_money_without_a_reference_of_its_own_is_no_stray_charge() -> None:
    """Such a provider voids what is not captured."""
    ended = a_payment(state=State.CANCELLED, provider_reference="pi_1")
    assert decide(ended, a_result(ChargeStatus.AUTHORISED)) == (ended, Verdict.ACCEPTED)


AUTHORISED = {"state": State.AUTHORIZED, "provider_reference": "pi_1", "payment_method": None}


@pytest.mark.parametrize("capture", list(Capture))
def test_authorised_money_waits_only_with_manual_capture(capture: Capture) -> None:
    after, verdict = decide(a_payment(capture=capture), a_result(ChargeStatus.AUTHORISED))
    expected = State.PROCESSING if capture is Capture.AUTOMATIC else State.AUTHORIZED
    assert (after.state, verdict) == (expected, Verdict.ACCEPTED)


@pytest.mark.parametrize("kind", list(ChargeStatus))
def test_only_a_capture_or_an_end_changes_authorised_money(kind: ChargeStatus) -> None:
    """Any other result is older than the authorisation, or says the same again; the warning of staff stays too."""
    waits = a_payment(**AUTHORISED, capture=Capture.MANUAL, problem="AUTHORIZATION_LAPSING")
    after, _ = decide(waits, a_result(kind))
    ends = {ChargeStatus.SUCCEEDED: State.SUCCEEDED, ChargeStatus.CANCELLED: State.CANCELLED}
    assert after.state is ends.get(kind, State.AUTHORIZED)
    if kind not in (*ends, ChargeStatus.MISSING):
        assert after == waits


def test_authorisation_that_nobody_voided_has_ended_at_the_provider() -> None:
    for capture, reason in ((Capture.MANUAL, AUTHORIZATION_ENDED), (Capture.REQUESTED, AUTHORIZATION_ENDED)):
        after, _ = decide(a_payment(**AUTHORISED, capture=capture), a_result(ChargeStatus.CANCELLED))
        assert (after.state, after.failure_reason) == (State.CANCELLED, reason)
    after, _ = decide(a_payment(**AUTHORISED, capture=Capture.VOID), a_result(ChargeStatus.CANCELLED))
    assert after.failure_reason == ""


@pytest.mark.parametrize(
    ("capture", "can_void", "expected"),
    [
        (Capture.MANUAL, True, Operation.RETRIEVE),
        (Capture.REQUESTED, True, Operation.CAPTURE),
        (Capture.VOID, True, Operation.VOID),
        (Capture.MANUAL, False, Operation.RETRIEVE),
        (Capture.REQUESTED, False, Operation.CAPTURE),
        (Capture.VOID, False, Operation.CAPTURE),  # what was captured is then refunded
    ],
)
@pytest.mark.parametrize("cancel_requested", [False, True])
def test_staff_decide_the_next_call_about_authorised_money(
    capture: Capture, can_void: bool, expected: Operation, cancel_requested: bool
) -> None:
    """A hold that ended before the answer came has requested a cancellation; the money that came in time waits."""
    payment = a_payment(**AUTHORISED, capture=capture, cancel_requested=cancel_requested, capture_reference="pay_1")
    assert next_operation(payment, can_void=can_void) is expected
    assert check_is_due_soon(payment) == (capture is not Capture.MANUAL)


def check_is_due_soon(payment: Payment) -> bool:
    pause = rules.check_seconds(payment)
    return pause is not None and pause <= 1
