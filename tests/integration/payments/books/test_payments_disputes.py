"""Disputes: the provider's record moves them and the journal, whatever the events say, in any order."""

import time
import uuid
from typing import Any

import pytest

from services.payments.dispatch import parked
from services.payments.domain import DisputeState
from stampede.payments.v1 import books_service_pb2 as pb
from stampede.payments.v1 import charge_service_pb2 as charge_pb
from stampede.payments.v1 import events_pb2
from stampede.payments.v1 import payment_service_pb2 as payment_pb
from tests.integration.payments.conftest import ORDERS, Payments, Sandbox, State, an_order
from tests.integration.payments.refunds.test_payments_refunds import a_line, a_request
from tests.support import tokens
from tests.support.serving import refusal
from tests.support.waiting import until

STRIPE = "provider:stripe"
TAKEN = [("DISPUTED", "disputes", STRIPE, 1999), ("FEE", "fees", STRIPE, 1500)]


async def a_paid_order(service: Payments, sandbox: Sandbox) -> tuple[charge_pb.Charge, str, str]:
    """Return a paid order, its payment, and its intent."""
    item = an_order()
    payment_id = (await service.charged(item)).payment_id
    (intent,) = await sandbox.intents(item.order_id)
    return item, payment_id, intent["id"]


async def disputes(service: Payments, **query: Any) -> list[pb.Dispute]:
    answer = await service.books.ListDisputes(pb.ListDisputesRequest(**query), metadata=tokens.as_staff())
    return list(answer.disputes)


async def reaches(service: Payments, state: DisputeState) -> pb.Dispute:
    async def there() -> pb.Dispute | None:
        return next((one for one in await disputes(service) if one.state == pb.Dispute.State.Value(state)), None)

    found: pb.Dispute = await until(there)
    return found


async def entries(service: Payments) -> list[tuple[str, str, str, int]]:
    """The entries after that of the charge."""
    found = await service.rows("SELECT kind, debit, credit, amount_minor FROM journal_entries ORDER BY id")
    return [tuple(row) for row in found][1:]


async def published(service: Payments) -> list[tuple[str, events_pb2.PaymentDisputed]]:
    found = await service.rows("SELECT subject, payload FROM outbox WHERE subject LIKE '%dispute%' ORDER BY id")
    return [(subject, events_pb2.PaymentDisputed.FromString(payload)) for subject, payload in found]


async def is_disputed(service: Payments, item: charge_pb.Charge) -> bool:
    request = charge_pb.GetPaymentsRequest(order_ids=[item.order_id])
    (outcome,) = (await service.charges.GetPayments(request, metadata=ORDERS)).outcomes
    return bool(outcome.payment.disputed)


async def test_a_dispute_is_recorded_entered_and_published(running: Payments, sandbox: Sandbox) -> None:
    item, payment_id, intent = await a_paid_order(running, sandbox)
    reference = await sandbox.dispute(intent, reason="fraudulent", amount=1999)
    found = await reaches(running, DisputeState.NEEDS_RESPONSE)
    assert (found.id, found.payment_id, found.order_id) == (reference, payment_id, item.order_id)
    assert (found.status, found.reason, found.amount.minor_units) == ("NEEDS_RESPONSE", "FRAUDULENT", 1999)
    assert (found.withdrawn.minor_units, found.fee.minor_units) == (1999, 1500)
    assert found.evidence_due_time.seconds > time.time()
    assert await entries(running) == TAKEN
    ((subject, event),) = await published(running)
    assert (subject, event.order_id, event.state) == (
        "stampede.payments.dispute.needs_response", item.order_id, "NEEDS_RESPONSE",
    )  # fmt: skip
    assert event.evidence_due_time == found.evidence_due_time
    assert await is_disputed(running, item)
    assert (await running.get(payment_id)).state == payment_pb.Payment.SUCCEEDED


@pytest.mark.parametrize(
    ("outcome", "state", "entered"),
    [
        ("win", DisputeState.WON, [("DISPUTE_WON", STRIPE, "disputes", 1999), ("FEE_RETURNED", STRIPE, "fees", 1500)]),
        ("lose", DisputeState.LOST, [("DISPUTE_LOST", "disputes_lost", "disputes", 1999)]),
    ],
)
async def test_the_end_of_a_dispute_moves_its_money(
    running: Payments, sandbox: Sandbox, outcome: str, state: DisputeState, entered: list[Any]
) -> None:
    item, _, intent = await a_paid_order(running, sandbox)
    reference = await sandbox.dispute(intent, reason="fraudulent", amount=1999)
    await reaches(running, DisputeState.NEEDS_RESPONSE)
    await sandbox.decide(reference, outcome)
    await reaches(running, state)
    assert await entries(running) == TAKEN + entered
    assert await is_disputed(running, item) == (state is DisputeState.LOST)


async def test_events_in_any_order_and_twice_change_nothing(running: Payments, sandbox: Sandbox) -> None:
    """Each one only has the record read: an event that claims an earlier state finds the later one."""
    await sandbox.faults(webhooks={"duplicate": True, "reorder": True, "delay_ms": 50})
    _, _, intent = await a_paid_order(running, sandbox)
    reference = await sandbox.dispute(intent, reason="fraudulent", amount=1999)
    await sandbox.decide(reference, "lose")
    await reaches(running, DisputeState.LOST)
    dispute = {
        "id": reference, "object": "dispute", "payment_intent": intent, "charge": "ch_1", "amount": 1999,
        "currency": "usd", "status": "needs_response", "reason": "fraudulent",
    }  # fmt: skip
    old = {"id": "evt_old", "type": "charge.dispute.created", "created": 1, "data": {"object": dispute}}
    await running.send_event(old)

    async def read() -> bool:
        applied = "SELECT count(*) FROM provider_events WHERE event_id = 'evt_old' AND processed_time IS NOT NULL"
        return await running.rows(applied) == [(1,)] and await running.rows(
            "SELECT count(*) FROM dispute_checks"
        ) == [(0,)]  # fmt: skip

    await until(read)
    assert [one.state for one in await disputes(running)] == [pb.Dispute.LOST]
    assert sorted(kind for kind, *_ in await entries(running)) == ["DISPUTED", "DISPUTE_LOST", "FEE"]


async def test_an_inquiry_takes_no_money_until_it_grows(running: Payments, sandbox: Sandbox) -> None:
    _, _, intent = await a_paid_order(running, sandbox)
    reference = await sandbox.dispute(intent, reason="fraudulent", amount=700, inquiry=True)
    assert (await reaches(running, DisputeState.INQUIRY)).withdrawn.minor_units == 0
    assert await entries(running) == []
    await sandbox.control("POST", f"disputes/{reference}/escalate", {})
    await reaches(running, DisputeState.NEEDS_RESPONSE)
    assert await entries(running) == [("DISPUTED", "disputes", STRIPE, 700), ("FEE", "fees", STRIPE, 1500)]


async def test_a_dispute_whose_events_are_lost_is_found(service: Payments, sandbox: Sandbox) -> None:
    _, _, intent = await a_paid_order(service, sandbox)
    await sandbox.dispute(intent, reason="fraudulent", amount=1999)  # its webhooks are dropped
    service.start_loops()
    await service.walk.walk_once()
    await reaches(service, DisputeState.NEEDS_RESPONSE)


async def test_a_dispute_that_the_provider_does_not_have_is_dropped(service: Payments, sandbox: Sandbox) -> None:
    """A forged or mistaken event has the record looked up a few times, and records nothing."""
    _, payment_id, _ = await a_paid_order(service, sandbox)
    await service.rows(
        "INSERT INTO dispute_checks (provider, reference, payment_id) VALUES ('stripe', 'dp_none', CAST(:id AS uuid))",
        id=payment_id,
    )
    for _ in range(5):
        await service.rows("UPDATE dispute_checks SET due_time = now()")
        await service.reconciler.reconcile_once()
        await service.dispatcher.drain(seconds=10)
        service.dispatcher.draining = False
    assert await service.rows("SELECT count(*) FROM dispute_checks") == [(0,)]
    assert await disputes(service) == []


async def test_a_dispute_of_another_charge_moves_nothing(service: Payments, sandbox: Sandbox) -> None:
    _, payment_id, _ = await a_paid_order(service, sandbox)
    _, _, other = await a_paid_order(service, sandbox)
    reference = await sandbox.dispute(other, reason="fraudulent", amount=1999)
    await service.rows(
        "INSERT INTO dispute_checks (provider, reference, payment_id) VALUES ('stripe', :dp, CAST(:id AS uuid))",
        dp=reference, id=payment_id,
    )  # fmt: skip
    await service.reconciler.reconcile_once()
    await service.dispatcher.drain(seconds=10)
    assert await disputes(service) == []


async def test_a_disputed_charge_is_not_refunded(running: Payments, sandbox: Sandbox) -> None:
    item, payment_id, intent = await a_paid_order(running, sandbox)
    reference = await sandbox.dispute(intent, reason="fraudulent", amount=700)
    await reaches(running, DisputeState.NEEDS_RESPONSE)
    staff = tokens.as_staff()
    refused = await refusal(running.payments.RefundPayment(a_request(payment_id, 500), metadata=staff))
    assert (refused.code, refused.reason) == ("FAILED_PRECONDITION", "PAYMENT_DISPUTED")
    request = charge_pb.BatchCreateRefundsRequest(refunds=[a_line(item.order_id, 500)])
    (outcome,) = (await running.charges.BatchCreateRefunds(request, metadata=ORDERS)).outcomes
    assert outcome.refusal.reason == "PAYMENT_DISPUTED"
    assert await running.rows("SELECT count(*) FROM refunds") == [(0,)]
    await sandbox.decide(reference, "win")
    await reaches(running, DisputeState.WON)
    refunded = await running.payments.RefundPayment(a_request(payment_id, 500), metadata=staff)
    assert refunded.refunded.minor_units == 500


async def test_a_dispute_that_is_not_known_yet_refuses_a_refund(service: Payments, sandbox: Sandbox) -> None:
    _, payment_id, intent = await a_paid_order(service, sandbox)
    await sandbox.dispute(intent, reason="fraudulent", amount=1999)  # its webhooks are dropped
    refused = await refusal(service.payments.RefundPayment(a_request(payment_id, 500), metadata=tokens.as_staff()))
    assert (refused.reason, refused.metadata["cause"]) == ("REFUND_REFUSED", "CHARGE_DISPUTED")


@pytest.mark.parametrize(("outcome", "refunds"), [("win", ["PROVIDER"]), ("lose", ["BANK"])])
@pytest.mark.parametrize("known", [True, False])
async def test_a_reversal_waits_for_the_end_of_a_dispute(
    running: Payments, sandbox: Sandbox, outcome: str, refunds: list[str], *, known: bool
) -> None:
    """It makes no row after row: the payment needs attention, and goes on by itself when the dispute has ended.

    Won money is refunded. Lost money has gone back by the bank, and counts as refunded.
    """
    item, payment_id, intent = await a_paid_order(running, sandbox)
    if not known:
        sandbox.receiver.forward = None
    reference = await sandbox.dispute(intent, reason="fraudulent", amount=1999)
    if known:
        await reaches(running, DisputeState.NEEDS_RESPONSE)
    for _ in range(4):
        (waiting,) = await running.reverse(item)
        assert waiting.state == State.SUCCEEDED
        await running.rows("UPDATE refunds SET update_time = now() - interval '1 hour'")
    assert (await running.reverse(item))[0].needs_attention == "CHARGE_DISPUTED"
    assert await running.rows("SELECT count(*) FROM refunds") == [(0 if known else 1,)]
    ((one),) = await parked.list_parked(running.db, most=10)
    assert (one.kind, str(one.id), one.problem) == ("payment", payment_id, "CHARGE_DISPUTED")
    sandbox.receiver.forward = running.webhook
    await sandbox.decide(reference, outcome)
    await reaches(running, DisputeState.WON if outcome == "win" else DisputeState.LOST)

    async def reversed_() -> bool:
        return (await running.reverse(item))[0].state == State.REFUNDED

    await until(reversed_)
    succeeded = "SELECT settlement FROM refunds WHERE state = 'SUCCEEDED'"
    assert [settlement for (settlement,) in await running.rows(succeeded)] == refunds
    assert await parked.list_parked(running.db, most=10) == []


async def test_staff_list_disputes_by_state_in_pages(running: Payments, sandbox: Sandbox) -> None:
    references = []
    for number in range(3):
        _, _, intent = await a_paid_order(running, sandbox)
        references.append(await sandbox.dispute(intent, reason="fraudulent", amount=1000 + number))

    async def all_known() -> bool:
        return len(await disputes(running)) == 3

    await until(all_known)
    first = await running.books.ListDisputes(pb.ListDisputesRequest(page_size=2), metadata=tokens.as_staff())
    rest = await running.books.ListDisputes(
        pb.ListDisputesRequest(page_size=2, page_token=first.next_page_token), metadata=tokens.as_staff()
    )
    assert sorted(one.id for one in (*first.disputes, *rest.disputes)) == sorted(references)
    assert (len(first.disputes), rest.next_page_token) == (2, "")
    await sandbox.decide(references[0], "lose")
    await reaches(running, DisputeState.LOST)
    assert [one.id for one in await disputes(running, state=pb.Dispute.LOST)] == references[:1]
    assert await disputes(running, state=pb.Dispute.WON) == []
    assert uuid.UUID((await disputes(running))[0].order_id)
