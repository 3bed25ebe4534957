"""The entries of each change: they take the balances from what the row was to what it is, whatever happens between."""

import dataclasses
import uuid
from collections import Counter
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.payments.books.chart import (
    CHART,
    CUSTOMER_PAYMENTS,
    KINDS,
    PROVIDER,
    Entry,
    entries_of_dispute,
    entries_of_payment,
    entries_of_refund,
    of_refund,
)
from services.payments.books.disputes import after_record
from services.payments.domain import DISPUTE_MOVES, Dispute, DisputeState, RefundState, Settlement, State
from services.payments.providers.results import ProviderDispute
from tests.unit.payments.test_payments_domain import a_payment
from tests.unit.payments.test_payments_refunds import a_refund

STRIPE = "provider:stripe"
S, P, F = RefundState.SUCCEEDED, RefundState.PENDING, RefundState.FAILED


def told(entries: list[Entry]) -> list[tuple[str, str, str, int]]:
    return [(entry.kind, entry.debit, entry.credit, entry.amount_minor) for entry in entries]


def test_a_captured_charge_is_one_entry() -> None:
    before = a_payment(state=State.PROCESSING)
    after = dataclasses.replace(before, state=State.SUCCEEDED, provider_reference="pi_1")
    (entry,) = entries_of_payment(before, after)
    assert told([entry]) == [("CAPTURED", STRIPE, CUSTOMER_PAYMENTS, after.amount_minor)]
    assert (entry.payment_id, entry.reference) == (after.id, "pi_1")


def test_moves_without_money_enter_nothing() -> None:
    paid = a_payment(state=State.SUCCEEDED, provider_reference="pi_1")
    assert entries_of_payment(paid, dataclasses.replace(paid, state=State.REFUNDED)) == []
    begun = a_payment(state=State.PROCESSING)
    assert entries_of_payment(begun, dataclasses.replace(begun, state=State.FAILED)) == []
    assert entries_of_refund(None, a_refund(1, 500, P)) == []


def test_a_refund_that_fails_after_it_succeeded_is_entered_both_ways() -> None:
    pending, done, failed = (a_refund(1, 500, state) for state in (P, S, F))
    assert told(entries_of_refund(pending, done)) == [("REFUNDED", "refunds", STRIPE, 500)]
    assert told(entries_of_refund(done, failed)) == [("REFUND_FAILED", STRIPE, "refunds", 500)]
    assert told(entries_of_refund(pending, failed)) == []


def test_a_stray_charge_arrives_and_returns() -> None:
    pending = a_refund(1, 500, P, stray=True, received_minor=500)
    done = dataclasses.replace(pending, state=S)
    assert told(entries_of_refund(None, pending)) == [("STRAY_RECEIVED", STRIPE, "stray_money", 500)]
    assert told(entries_of_refund(pending, done)) == [("STRAY_RETURNED", "stray_money", STRIPE, 500)]
    assert told(entries_of_refund(done, pending)) == [("STRAY_RETURN_FAILED", STRIPE, "stray_money", 500)]
    assert len(entries_of_refund(None, done)) == 2


def test_money_that_goes_back_another_way_leaves_the_provider_alone() -> None:
    failed = a_refund(1, 500, F, "re_1")
    outside = dataclasses.replace(failed, state=S, settlement=Settlement.OUTSIDE)
    assert told(entries_of_refund(failed, outside)) == [("REFUNDED_OUTSIDE", "refunds", "outside", 500)]
    written_off = dataclasses.replace(failed, state=S, settlement=Settlement.WRITTEN_OFF)
    assert told(entries_of_refund(failed, written_off)) == [("WRITTEN_OFF", "refunds", "written_off", 500)]
    assert sorted(told(entries_of_refund(outside, written_off))) == [
        ("REFUND_OUTSIDE_REVERSED", "outside", "refunds", 500), ("WRITTEN_OFF", "refunds", "written_off", 500),
    ]  # fmt: skip


refunds = st.builds(
    a_refund,
    st.just(1),
    st.sampled_from((1, 500, 99_999_999)),
    st.sampled_from(RefundState),
    stray=st.booleans(),
    settlement=st.sampled_from(Settlement),
    received_minor=st.sampled_from((0, 1)),
)


@given(st.lists(refunds, min_size=1, max_size=8))
def test_the_entries_of_any_history_add_up_to_its_end(history: list[Any]) -> None:
    net = Counter[str]()
    entries = [entry for before, after in zip([None, *history], history, strict=False)
               for entry in entries_of_refund(before, after)]  # fmt: skip
    for entry in entries:
        assert entry.amount_minor > 0
        assert entry.debit != entry.credit
        assert entry.kind in KINDS
        net[entry.debit] += entry.amount_minor
        net[entry.credit] -= entry.amount_minor
    expected = Counter[str]()
    for (debit, credit), amount in of_refund(history[-1]).items():
        expected[debit] += amount
        expected[credit] -= amount
    assert {account: sum_ for account, sum_ in net.items() if sum_} == {a: s for a, s in expected.items() if s}


def test_every_account_of_an_entry_is_in_the_chart() -> None:
    named = {account.name.removesuffix("*") for account in CHART}
    for state in RefundState:
        for settlement in Settlement:
            for stray in (False, True):
                one = a_refund(1, 500, state, stray=stray, settlement=settlement, received_minor=1)
                for pair in of_refund(one):
                    assert {PROVIDER if name.startswith(PROVIDER) else name for name in pair} <= named


def a_dispute(state: DisputeState, withdrawn: int, fee: int = 1500) -> Dispute:
    return Dispute(
        provider="stripe", reference="dp_1", payment_id=uuid.UUID(int=7), state=state, status=state, reason="OTHER",
        amount_minor=700, currency="USD", withdrawn_minor=withdrawn, fee_minor=fee, evidence_due_time=None,
    )  # fmt: skip


def test_a_dispute_is_entered_from_its_opening_to_its_end() -> None:
    inquiry, opened = a_dispute(DisputeState.INQUIRY, 0, 0), a_dispute(DisputeState.NEEDS_RESPONSE, 700)
    assert told(entries_of_dispute(None, inquiry)) == []
    taken = [("DISPUTED", "disputes", STRIPE, 700), ("FEE", "fees", STRIPE, 1500)]
    assert told(entries_of_dispute(inquiry, opened)) == taken
    assert told(entries_of_dispute(None, opened)) == taken
    assert told(entries_of_dispute(opened, a_dispute(DisputeState.UNDER_REVIEW, 700))) == []
    assert told(entries_of_dispute(opened, a_dispute(DisputeState.WON, 0, 0))) == [
        ("DISPUTE_WON", STRIPE, "disputes", 700), ("FEE_RETURNED", STRIPE, "fees", 1500),
    ]  # fmt: skip
    assert told(entries_of_dispute(opened, a_dispute(DisputeState.LOST, 700))) == [
        ("DISPUTE_LOST", "disputes_lost", "disputes", 700),
    ]  # fmt: skip


RECORD = ProviderDispute(
    reference="dp_1", charge_reference="pi_1", state=DisputeState.NEEDS_RESPONSE, status="NEEDS_RESPONSE",
    reason="FRAUDULENT", amount_minor=700, currency="USD", withdrawn_minor=700, fee_minor=0, evidence_due_time=None,
)  # fmt: skip


@pytest.mark.parametrize("known", DisputeState)
@pytest.mark.parametrize("found", DisputeState)
def test_a_dispute_only_moves_forward(known: DisputeState, found: DisputeState) -> None:
    before = a_dispute(known, 0, 0)
    after = after_record(before, dataclasses.replace(RECORD, state=found), a_payment(provider_reference="pi_1"))
    assert after.state in DISPUTE_MOVES[known] | {known}
    assert (after.state is found) == (found is known or found in DISPUTE_MOVES[known])
    assert after.withdrawn_minor == 700  # its money is as the provider has it
