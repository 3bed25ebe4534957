"""Manual capture: authorised money is taken later, in part, or never."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import stripe

from tests.sandbox.conftest import Provider

Order = Callable[..., Any]


async def authorised(provider: Provider, order: Order, method: str = "pm_card_visa") -> stripe.PaymentIntent:
    return await provider.sdk().v1.payment_intents.create_async(order(method, capture_method="manual"))


async def the_charge(provider: Provider, intent: stripe.PaymentIntent) -> stripe.Charge:
    return await provider.sdk().v1.charges.retrieve_async(str(intent.latest_charge))


async def types(provider: Provider, number: int) -> list[str]:
    return [event.type for event in (await provider.sdk().v1.events.list_async({"limit": number})).data]


async def test_an_authorisation_takes_money_only_when_captured(provider: Provider, order: Order) -> None:
    held = await authorised(provider, order)
    assert (held.status, held.amount_capturable, held.amount_received) == ("requires_capture", 2500, 0)
    charge = await the_charge(provider, held)
    assert (charge.captured, charge.paid, charge.amount_captured) == (False, True, 0)
    assert charge.balance_transaction is None
    assert (await provider.control("GET", "ledger"))["usd"]["captured"] == 0
    assert await types(provider, 2) == ["payment_intent.amount_capturable_updated", "charge.succeeded"]
    sdk = provider.sdk()
    paid = await sdk.v1.payment_intents.capture_async(held.id, {}, {"idempotency_key": "c"})
    again = await sdk.v1.payment_intents.capture_async(held.id, {}, {"idempotency_key": "c"})
    assert (paid.status, paid.amount_capturable, paid.amount_received) == ("succeeded", 0, 2500)
    assert again.to_dict() == paid.to_dict()
    assert await types(provider, 2) == ["payment_intent.succeeded", "charge.captured"]
    assert (await provider.control("GET", "ledger"))["usd"]["captured"] == 2500
    with pytest.raises(stripe.InvalidRequestError, match="already been captured"):
        await sdk.v1.payment_intents.capture_async(held.id)


async def test_a_partial_capture_releases_the_rest(provider: Provider, order: Order) -> None:
    """Stripe reports the rest as refunded, although no refund exists."""
    sdk, held = provider.sdk(), await authorised(provider, order)
    with pytest.raises(stripe.InvalidRequestError) as caught:
        await sdk.v1.payment_intents.capture_async(held.id, {"amount_to_capture": 2501})
    assert caught.value.code == "amount_too_large"
    paid = await sdk.v1.payment_intents.capture_async(held.id, {"amount_to_capture": 1700})
    assert (paid.amount, paid.amount_received) == (2500, 1700)
    charge = await the_charge(provider, held)
    assert (charge.amount, charge.amount_captured, charge.amount_refunded) == (2500, 1700, 800)
    assert not (await sdk.v1.refunds.list_async({"payment_intent": held.id})).data
    with pytest.raises(stripe.InvalidRequestError):
        await sdk.v1.refunds.create_async({"payment_intent": held.id, "amount": 1701})
    await sdk.v1.refunds.create_async({"payment_intent": held.id})
    charge = await the_charge(provider, held)
    assert (charge.amount_refunded, charge.refunded) == (2500, True)
    ledger = (await provider.control("GET", "ledger"))["usd"]
    assert (ledger["captured"], ledger["refunded"]) == (1700, 1700)


async def test_a_cancelled_authorisation_looks_refunded_and_took_nothing(provider: Provider, order: Order) -> None:
    sdk, held = provider.sdk(), await authorised(provider, order)
    ended = await sdk.v1.payment_intents.cancel_async(held.id)
    assert (ended.status, ended.amount_capturable) == ("canceled", 0)
    charge = await the_charge(provider, held)
    assert (charge.captured, charge.refunded, charge.amount_captured) == (False, True, 0)
    assert await types(provider, 2) == ["payment_intent.canceled", "charge.refunded"]
    ledger = (await provider.control("GET", "ledger"))["usd"]
    assert (ledger["captured"], ledger["refunded"], ledger["payments"]) == (0, 0, 0)
    for call in (sdk.v1.payment_intents.capture_async(held.id), sdk.v1.payment_intents.cancel_async(held.id)):
        with pytest.raises(stripe.InvalidRequestError) as caught:
            await call
        assert caught.value.code == "payment_intent_unexpected_state"


async def test_an_authorisation_expires_after_seven_days(provider: Provider, order: Order) -> None:
    by_time, by_command = await authorised(provider, order), await authorised(provider, order)
    await provider.control("POST", f"payment_intents/{by_command.id}/expire")
    await provider.restart()
    provider.sandbox.expire(by_time.created + 7 * 24 * 3600 - 1)
    assert (await provider.sdk().v1.payment_intents.retrieve_async(by_time.id)).status == "requires_capture"
    provider.sandbox.expire(by_time.created + 7 * 24 * 3600)
    for intent in (by_time, by_command):
        ended = await provider.sdk().v1.payment_intents.retrieve_async(intent.id)
        assert (ended.status, ended.cancellation_reason) == ("canceled", "automatic")
    assert await types(provider, 2) == ["payment_intent.canceled", "charge.expired"]


async def test_an_authorisation_may_need_a_challenge_first(provider: Provider, order: Order) -> None:
    waiting = await authorised(provider, order, "pm_card_authenticationRequired")
    held = await provider.control("POST", f"payment_intents/{waiting.id}/authenticate", {"outcome": "succeed"})
    assert held["status"] == "requires_capture"


async def test_a_capture_whose_answer_is_lost_took_the_money_once(provider: Provider, order: Order) -> None:
    sdk, held = provider.sdk(), await authorised(provider, order)
    await provider.control("POST", "faults", {"drop_after_charge": {"next": 1}})
    with pytest.raises(stripe.APIConnectionError):
        await sdk.v1.payment_intents.capture_async(held.id, {}, {"idempotency_key": "c"})
    assert (await sdk.v1.payment_intents.capture_async(held.id, {}, {"idempotency_key": "c"})).status == "succeeded"
    assert (await provider.control("GET", "ledger"))["usd"]["captured"] == 2500
