"""The sandbox's answers against Stripe's public description of them."""

from __future__ import annotations

from typing import Any

import pytest
import stripe

from tests.contract.providers.shapes import problems
from tests.sandbox.conftest import Provider, order, provider, settings
from tests.sandbox.test_checkout import a_session

__all__ = ["order", "provider", "settings"]  # fixtures
CARDS = (
    "pm_card_visa", "pm_card_chargeDeclined", "pm_card_authenticationRequired", "pm_usBankAccount_processing",
    "pm_card_createDispute", "pm_card_createDisputeInquiry", "pm_card_pendingRefund",
)  # fmt: skip
KINDS: dict[str, type[stripe.StripeObject]] = {
    "payment_intents": stripe.PaymentIntent, "charges": stripe.Charge, "refunds": stripe.Refund,
    "customers": stripe.Customer, "checkout/sessions": stripe.checkout.Session, "disputes": stripe.Dispute,
    "balance_transactions": stripe.BalanceTransaction, "events": stripe.Event,
}  # fmt: skip


async def a_day(provider: Provider, order: Any) -> None:
    """Makes at least one object of each kind, in each of its states."""
    sdk = provider.sdk()
    customer = await sdk.v1.customers.create_async({"email": "a@b.test"})
    await sdk.v1.payment_methods.attach_async("pm_card_visa", {"customer": customer.id})
    for card in CARDS:
        for more in ({}, {"customer": customer.id, "setup_future_usage": "off_session"}, {"capture_method": "manual"}):
            try:
                made = await sdk.v1.payment_intents.create_async(order(card, return_url="https://shop.test/", **more))
            except stripe.CardError:
                continue
            if made.status == "succeeded" and card != "pm_card_createDispute":
                await sdk.v1.refunds.create_async({"payment_intent": made.id, "amount": 100})
    for refund in (await sdk.v1.refunds.list_async()).data[:1]:
        await provider.control("POST", f"refunds/{refund.id}/settle", {"outcome": "fail"})
    for dispute in (await sdk.v1.disputes.list_async()).data[:1]:
        await sdk.v1.disputes.update_async(dispute.id, {"evidence": {"uncategorized_text": "winning_evidence"}})
    for ended in ("pay", "expire", ""):
        session = await sdk.v1.checkout.sessions.create_async(a_session())
        if ended:
            await provider.control("POST", f"checkout/sessions/{session.id}/{ended}", {"email": "a@b.test"})


async def test_every_answer_has_the_shape_that_stripe_describes(provider: Provider, order: Any) -> None:
    await a_day(provider, order)
    found = []
    auth = {"Authorization": "Bearer sk_test_sandbox"}
    for path, kind in KINDS.items():
        async with provider.http.get(f"{provider.url}/v1/{path}?limit=100", headers=auth) as answer:
            listed = (await answer.json())["data"]
        assert listed, path
        found += [problem for item in listed for problem in problems(item, kind, path)]
        if path == "events":
            found += [
                problem
                for item in listed
                for problem in problems(
                    item["data"]["object"], _kind(item["data"]["object"]["object"]), f"events/{item['type']}"
                )
            ]
    url = f"{provider.url}/v1/customers/{(await _first(provider, 'customers'))['id']}/payment_methods"
    async with provider.http.get(url, headers=auth) as answer:
        methods = (await answer.json())["data"]
    found += [problem for item in methods for problem in problems(item, stripe.PaymentMethod, "payment_methods")]
    assert methods
    assert not found, "\n".join(sorted(set(found)))


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        ({"amount": "2500"}, "pi.amount: '2500' is no int"),
        ({"amount": None}, "pi.amount: None is no int"),
        ({"status": "paid"}, "pi.status: 'paid' is none of"),
        ({"colour": "red"}, "pi.colour is unknown"),
        ({"latest_charge": 7}, "pi.latest_charge: 7 is no"),
        ({"currency": ...}, "pi.currency is missing"),
    ],
)
async def test_a_wrong_shape_is_found(provider: Provider, order: Any, change: Any, problem: str) -> None:
    await provider.sdk().v1.payment_intents.create_async(order())
    right = await _first(provider, "payment_intents")
    wrong = {name: value for name, value in (right | change).items() if value is not ...}
    assert not list(problems(right, stripe.PaymentIntent, "pi"))
    (found,) = problems(wrong, stripe.PaymentIntent, "pi")
    assert found.startswith(problem)


def _kind(noun: str) -> type[stripe.StripeObject]:
    names = {"checkout.session": stripe.checkout.Session, "dispute": stripe.Dispute, "charge": stripe.Charge,
             "refund": stripe.Refund, "payment_intent": stripe.PaymentIntent, "customer": stripe.Customer,
             "payment_method": stripe.PaymentMethod}  # fmt: skip
    return names[noun]


async def _first(provider: Provider, path: str) -> dict[str, Any]:
    auth = {"Authorization": "Bearer sk_test_sandbox"}
    async with provider.http.get(f"{provider.url}/v1/{path}", headers=auth) as answer:
        first: dict[str, Any] = (await answer.json())["data"][0]
        return first
