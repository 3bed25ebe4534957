"""Disputes, refunds that end badly, and what each movement costs."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import stripe

from tests.sandbox.conftest import Listener, Provider

Order = Callable[..., Any]


async def disputed(provider: Provider, order: Order, card: str = "pm_card_createDispute") -> stripe.Dispute:
    paid = await provider.sdk().v1.payment_intents.create_async(order(card))
    assert paid.status == "succeeded"
    (dispute,) = (await provider.sdk().v1.disputes.list_async({"payment_intent": paid.id})).data
    return dispute


async def types(provider: Provider, number: int) -> list[str]:
    return [event.type for event in (await provider.sdk().v1.events.list_async({"limit": number})).data]


async def test_a_dispute_takes_the_money_and_the_fee(notifying: Provider, listener: Listener, order: Order) -> None:
    dispute = await disputed(notifying, order)
    assert (dispute.status, dispute.reason, dispute.amount) == ("needs_response", "fraudulent", 2500)
    assert dispute.evidence_details.due_by > dispute.created  # type: ignore[operator]
    (taken,) = dispute.balance_transactions
    assert (taken.amount, taken.fee, taken.net, taken.reporting_category) == (-2500, 1500, -4000, "dispute")
    charge = await notifying.sdk().v1.charges.retrieve_async(str(dispute.charge))
    assert charge.disputed
    seen = [event.type for _, event in await listener.take(5)]
    assert seen[-2:] == ["charge.dispute.created", "charge.dispute.funds_withdrawn"]
    with pytest.raises(stripe.InvalidRequestError) as caught:
        await notifying.sdk().v1.refunds.create_async({"charge": charge.id})
    assert caught.value.code == "charge_disputed"


async def test_evidence_wins_or_loses_a_dispute(provider: Provider, order: Order) -> None:
    sdk, won = provider.sdk(), await disputed(provider, order)
    draft = await sdk.v1.disputes.update_async(won.id, {"evidence": {"receipt": "file_1"}, "submit": False})
    assert (draft.status, draft.evidence_details.submission_count) == ("needs_response", 0)
    sent = await sdk.v1.disputes.update_async(won.id, {"evidence": {"product_description": "A cap"}})
    assert (sent.status, sent.evidence_details.submission_count, sent.evidence.receipt) == ("under_review", 1, "file_1")
    done = await provider.control("POST", f"disputes/{won.id}/decide", {"outcome": "win"})
    assert done["status"] == "won"
    assert [t["net"] for t in done["balance_transactions"]] == [-4000, 4000]
    assert await types(provider, 2) == ["charge.dispute.funds_reinstated", "charge.dispute.closed"]
    assert (await sdk.v1.refunds.create_async({"charge": str(won.charge)})).status == "succeeded"
    for text, status in (("winning_evidence", "won"), ("losing_evidence", "lost")):
        other = await disputed(provider, order)
        decided = await sdk.v1.disputes.update_async(other.id, {"evidence": {"uncategorized_text": text}})
        assert decided.status == status
        with pytest.raises(stripe.InvalidRequestError):
            await sdk.v1.disputes.close_async(other.id)


async def test_a_closed_dispute_is_lost(provider: Provider, order: Order) -> None:
    sdk, dispute = provider.sdk(), await disputed(provider, order, "pm_card_createDisputeProductNotReceived")
    assert dispute.reason == "product_not_received"
    closed = await sdk.v1.disputes.close_async(dispute.id, {}, {"idempotency_key": "c"})
    assert closed.status == "lost"
    assert (await sdk.v1.disputes.close_async(dispute.id, {}, {"idempotency_key": "c"})).status == "lost"
    assert await types(provider, 1) == ["charge.dispute.closed"]
    with pytest.raises(stripe.InvalidRequestError):
        await sdk.v1.refunds.create_async({"charge": str(dispute.charge)})


async def test_an_inquiry_takes_no_money_until_it_escalates(provider: Provider, order: Order) -> None:
    sdk = provider.sdk()
    asked, grown = [await disputed(provider, order, "pm_card_createDisputeInquiry") for _ in range(2)]
    assert (asked.status, asked.is_charge_refundable, asked.balance_transactions) == (
        "warning_needs_response", True, [],
    )  # fmt: skip
    await sdk.v1.refunds.create_async({"charge": str(asked.charge)})
    assert (await sdk.v1.disputes.retrieve_async(asked.id)).status == "warning_closed"
    await provider.control("POST", f"disputes/{grown.id}/escalate")
    assert (await sdk.v1.disputes.retrieve_async(grown.id)).status == "needs_response"
    assert await types(provider, 2) == ["charge.dispute.funds_withdrawn", "charge.dispute.updated"]


async def test_any_payment_can_be_disputed_by_command(provider: Provider, order: Order) -> None:
    paid = await provider.sdk().v1.payment_intents.create_async(order())
    wanted = {"reason": "duplicate", "amount": 700}
    made = await provider.control("POST", f"payment_intents/{paid.id}/dispute", wanted)
    assert (made["amount"], made["reason"], made["charge"]) == (700, "duplicate", paid.latest_charge)
    async with provider.http.post(f"{provider.url}/_sandbox/charges/{paid.latest_charge}/dispute") as answer:
        assert answer.status == 400
    await provider.restart()
    assert (await provider.sdk().v1.disputes.retrieve_async(made["id"])).amount == 700
    async with provider.http.get(f"{provider.url}/_sandbox/ledger?detail=records") as answer:
        assert f'"dispute":{{"id":"{made["id"]}","amount":700' in await answer.text()


async def test_fees_are_known_with_the_charge_and_listed(provider: Provider, order: Order) -> None:
    sdk = provider.sdk()
    paid = await sdk.v1.payment_intents.create_async(order(expand=["latest_charge.balance_transaction"]))
    cost = paid.latest_charge.balance_transaction  # type: ignore[union-attr]
    assert (cost.amount, cost.fee, cost.net) == (2500, 103, 2397)  # type: ignore[union-attr]
    await sdk.v1.refunds.create_async({"payment_intent": paid.id, "amount": 500})
    listed = (await sdk.v1.balance_transactions.list_async({"limit": 10})).data
    assert [(t.type, t.amount, t.fee) for t in listed] == [("refund", -500, 0), ("charge", 2500, 103)]
    assert [t.id for t in (await sdk.v1.balance_transactions.list_async({"type": "charge"})).data] == [listed[1].id]
    found = await sdk.v1.balance_transactions.retrieve_async(listed[0].id, {"expand": ["source"]})
    assert found.source.object == "refund"  # type: ignore[union-attr]
    with pytest.raises(stripe.InvalidRequestError):
        await sdk.v1.balance_transactions.retrieve_async("txn_unheard")


async def test_a_fee_may_become_known_later(provider: Provider, order: Order) -> None:
    await provider.control("POST", "faults", {"late_fee": {"next": 1}})
    paid = await provider.sdk().v1.payment_intents.create_async(order(expand=["latest_charge.balance_transaction"]))
    assert paid.latest_charge.balance_transaction is None  # type: ignore[union-attr]
    known = await provider.control("POST", f"charges/{paid.latest_charge.id}/fee")  # type: ignore[union-attr]
    assert known["balance_transaction"].startswith("txn_")
    assert await types(provider, 1) == ["charge.updated"]


async def test_refunds_may_be_pending_and_may_fail_later(provider: Provider, order: Order) -> None:
    sdk = provider.sdk()
    slow = await sdk.v1.payment_intents.create_async(order("pm_card_pendingRefund"))
    for outcome, status in (("succeed", "succeeded"), ("fail", "failed")):
        refund = await sdk.v1.refunds.create_async({"payment_intent": slow.id, "amount": 100})
        assert refund.status == "pending"
        await provider.control("POST", f"refunds/{refund.id}/settle", {"outcome": outcome})
        assert (await sdk.v1.refunds.retrieve_async(refund.id)).status == status
    charge = await sdk.v1.charges.retrieve_async(str(slow.latest_charge))
    assert charge.amount_refunded == 100
    paid = await sdk.v1.payment_intents.create_async(order("pm_card_refundFail"))
    refund = await sdk.v1.refunds.create_async({"payment_intent": paid.id})
    assert refund.status == "succeeded"
    provider.sandbox.expire(refund.created + 10)
    failed = await sdk.v1.refunds.retrieve_async(refund.id, {"expand": ["failure_balance_transaction"]})
    assert (failed.status, failed.failure_reason) == ("failed", "lost_or_stolen_card")
    assert failed.failure_balance_transaction.amount == 2500  # type: ignore[union-attr]
