"""The provider's list of refunds, compared with ours: sums agree with it, and nothing is counted twice."""

import uuid

from hypothesis import given
from hypothesis import strategies as st

from services.payments.domain import Payment, Refund, RefundState, State
from services.payments.providers.results import ProviderRefund
from services.payments.refunds.rules import DISPLACED, FAILED_LATER, Comparison, compare
from tests.unit.payments.test_payments_domain import a_payment

S, P, F = RefundState.SUCCEEDED, RefundState.PENDING, RefundState.FAILED


def a_paid_payment(**changes: object) -> Payment:
    return a_payment(**{"state": State.SUCCEEDED, "provider_reference": "pi_1", **changes})


def a_refund(number: int, minor: int, state: RefundState, reference: str | None = None, **changes: object) -> Refund:
    values = {
        "id": uuid.UUID(int=number), "payment_id": uuid.UUID(int=7), "provider": "stripe", "amount_minor": minor,
        "state": state, "stray": False, "external": False, "charge_reference": "pi_1", "provider_reference": reference,
        "failure_reason": "", "problem": "", "attempt": 1, "checks": 0, **changes,
    }  # fmt: skip
    return Refund(**values)  # type: ignore[arg-type]


def listed(reference: str, minor: int, state: RefundState, number: int | None = None) -> ProviderRefund:
    return ProviderRefund(
        reference=reference, charge_reference="pi_1", amount_minor=minor, state=state,
        refund_id=None if number is None else uuid.UUID(int=number),
    )  # fmt: skip


def sums(found: Comparison) -> tuple[int, int, State]:
    return found.payment.refunded_minor, found.payment.refunding_minor, found.payment.state


def test_a_lost_answer_is_found_by_our_id_in_the_metadata() -> None:
    found = compare(a_paid_payment(refunding_minor=500), [a_refund(1, 500, P)], [listed("re_1", 500, S, 1)])
    assert sums(found) == (500, 0, State.SUCCEEDED)
    assert [(r.state, r.provider_reference) for r in found.changed] == [(S, "re_1")]


def test_a_refund_that_fails_later_makes_a_payment_succeeded_again() -> None:
    payment = a_paid_payment(state=State.REFUNDED, refunded_minor=1999)
    found = compare(payment, [a_refund(1, 1999, S, "re_1")], [listed("re_1", 1999, F, 1)])
    assert sums(found) == (0, 0, State.SUCCEEDED)
    assert [refund.problem for refund in found.failed] == [FAILED_LATER]


def test_a_refund_under_way_is_not_failed_by_a_list_without_it() -> None:
    found = compare(a_paid_payment(refunding_minor=500), [a_refund(1, 500, P)], [listed("re_9", 999, S)])
    assert sums(found) == (999, 500, State.SUCCEEDED)
    assert (len(found.new), found.changed, found.failed) == (1, [], [])


def test_a_refund_without_room_at_the_provider_fails() -> None:
    known = [a_refund(1, 500, P), a_refund(2, 600, P)]
    found = compare(a_paid_payment(refunding_minor=1100), known, [listed("re_9", 1000, S)])
    assert sums(found) == (1000, 500, State.SUCCEEDED)
    assert [(r.id.int, r.state, r.failure_reason) for r in found.failed] == [(2, F, DISPLACED)]


def test_a_second_refund_under_one_id_counts_too() -> None:
    known = [a_refund(1, 500, S, "re_1")]
    payment = a_paid_payment(refunded_minor=500)
    found = compare(payment, known, [listed("re_1", 500, S, 1), listed("re_2", 500, S, 1)])
    assert sums(found) == (1000, 0, State.SUCCEEDED)


def test_refunds_of_other_charges_are_not_counted() -> None:
    stray = ProviderRefund(reference="re_s", charge_reference="pi_2", amount_minor=1999, state=S, refund_id=None)
    found = compare(a_paid_payment(), [], [stray])
    assert sums(found) == (0, 0, State.SUCCEEDED)
    assert [refund.stray for refund in found.new] == [True]
    own = compare(a_payment(state=State.CANCELLED, provider_reference="pi_1"), [], [listed("re_1", 1999, S)])
    assert sums(own) == (0, 0, State.CANCELLED)


@given(st.lists(st.tuples(st.integers(1, 900), st.sampled_from(RefundState), st.booleans()), max_size=6))
def test_sums_agree_with_the_list_and_a_repeat_changes_nothing(made: list[tuple[int, RefundState, bool]]) -> None:
    reports, left = list[ProviderRefund](), 1999
    for number, (minor, state, own) in enumerate(made):
        if state is F or minor <= left:  # the provider never refunds more than it took
            left -= 0 if state is F else minor
            reports.append(listed(f"re_{number}", minor, state, number if own else None))
    known = [a_refund(n, minor, P) for n, (minor, _, own) in enumerate(made) if own and f"re_{n}" in str(reports)]
    pending = sum(refund.amount_minor for refund in known)
    first = compare(a_paid_payment(refunding_minor=pending), known, reports)
    assert first.payment.refunded_minor == sum(r.amount_minor for r in reports if r.state is S)
    assert first.payment.refunding_minor == sum(r.amount_minor for r in reports if r.state is P)
    now = {refund.id: refund for refund in [*known, *first.changed, *first.new]}
    again = compare(first.payment, list(now.values()), reports)
    assert (again.payment, again.changed, again.new) == (first.payment, [], [])
