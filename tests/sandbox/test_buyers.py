"""Customers and saved payment methods, and charges while the buyer is away."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import stripe

from tests.sandbox.conftest import Provider

Order = Callable[..., Any]


async def a_customer(provider: Provider) -> str:
    made = await provider.sdk().v1.customers.create_async({"email": "buyer@example.com", "metadata": {"user": "u-1"}})
    return made.id


async def methods_of(provider: Provider, customer: str) -> list[str]:
    listed = await provider.sdk().v1.payment_methods.list_async({"customer": customer, "type": "card"})
    return [method.id for method in listed.data]


async def test_a_deleted_customer_keeps_only_its_id(provider: Provider) -> None:
    sdk, customer = provider.sdk(), await a_customer(provider)
    method = await sdk.v1.payment_methods.attach_async("pm_card_visa", {"customer": customer})
    assert (await sdk.v1.customers.delete_async(customer)).deleted
    gone = await sdk.v1.customers.retrieve_async(customer)
    assert gone.to_dict() == {"id": customer, "object": "customer", "deleted": True}
    assert (await sdk.v1.payment_methods.retrieve_async(method.id)).customer is None
    for call in (
        sdk.v1.payment_methods.attach_async("pm_card_visa", {"customer": customer}),
        sdk.v1.payment_intents.create_async({"amount": 500, "currency": "eur", "customer": customer}),
        sdk.v1.customers.delete_async(customer),
    ):
        with pytest.raises(stripe.InvalidRequestError, match="No such customer"):
            await call


async def test_each_attached_test_card_is_a_method_of_its_own(provider: Provider) -> None:
    sdk, customer = provider.sdk(), await a_customer(provider)
    made = [await sdk.v1.payment_methods.attach_async("pm_card_visa", {"customer": customer}) for _ in range(2)]
    assert len({method.id for method in made} | {"pm_card_visa"}) == 3
    assert await methods_of(provider, customer) == [made[1].id, made[0].id]
    nested = await sdk.v1.customers.payment_methods.list_async(customer)
    assert [method.id for method in nested.data] == [made[1].id, made[0].id]
    detached = await sdk.v1.payment_methods.detach_async(made[0].id)
    assert detached.customer is None
    assert await methods_of(provider, customer) == [made[1].id]
    for call in (
        sdk.v1.payment_methods.detach_async(made[0].id),
        sdk.v1.payment_methods.attach_async(made[0].id, {"customer": customer}),
    ):
        with pytest.raises(stripe.InvalidRequestError):
            await call


async def test_a_saved_method_pays_for_its_customer_only(provider: Provider, order: Order) -> None:
    sdk, customer = provider.sdk(), await a_customer(provider)
    method = await sdk.v1.payment_methods.attach_async("pm_card_mastercard", {"customer": customer})
    paid = await sdk.v1.payment_intents.create_async(
        order(method.id, customer=customer, off_session=True, expand=["latest_charge", "customer"])
    )
    assert paid.status == "succeeded"
    assert paid.payment_method == method.id
    assert paid.latest_charge.payment_method_details.card.brand == "mastercard"  # type: ignore[union-attr]
    assert paid.latest_charge.customer == customer  # type: ignore[union-attr]
    for wrong in ({}, {"customer": await a_customer(provider)}):
        with pytest.raises(stripe.InvalidRequestError) as caught:
            await sdk.v1.payment_intents.create_async(order(method.id, **wrong))
        assert caught.value.param == "payment_method"
    await sdk.v1.payment_methods.detach_async(method.id)
    with pytest.raises(stripe.InvalidRequestError, match="detached"):
        await sdk.v1.payment_intents.create_async(order(method.id, customer=customer))


async def test_a_method_is_saved_by_the_payment_that_asks_for_it(provider: Provider, order: Order) -> None:
    sdk, customer = provider.sdk(), await a_customer(provider)
    paid = await sdk.v1.payment_intents.create_async(order(customer=customer, setup_future_usage="off_session"))
    assert paid.setup_future_usage == "off_session"
    assert await methods_of(provider, customer) == [paid.payment_method]
    again = await sdk.v1.payment_intents.create_async(
        order(str(paid.payment_method), customer=customer, off_session=True)
    )
    assert again.status == "succeeded"
    with pytest.raises(stripe.CardError):
        await sdk.v1.payment_intents.create_async(
            order("pm_card_chargeDeclined", customer=customer, setup_future_usage="off_session")
        )
    await sdk.v1.payment_intents.create_async(order(customer=customer))
    assert await methods_of(provider, customer) == [paid.payment_method]


@pytest.mark.parametrize(
    ("card", "set_up", "declined"),
    [
        ("pm_card_authenticationRequired", True, True),
        ("pm_card_authenticationRequiredOnSetup", True, False),
        ("pm_card_authenticationRequiredOnSetup", False, True),
        ("pm_card_authenticationRequiredSetupForOffSession", False, False),
    ],
)
async def test_an_absent_buyer_cannot_authenticate(
    provider: Provider, order: Order, card: str, set_up: bool, declined: bool
) -> None:
    sdk, customer = provider.sdk(), await a_customer(provider)
    if set_up:
        waiting = await sdk.v1.payment_intents.create_async(
            order(card, customer=customer, setup_future_usage="off_session")
        )
        assert waiting.status == "requires_action"
        assert await methods_of(provider, customer) == []
        await provider.control("POST", f"payment_intents/{waiting.id}/authenticate", {"outcome": "succeed"})
        (method,) = await methods_of(provider, customer)
    else:
        method = (await sdk.v1.payment_methods.attach_async(card, {"customer": customer})).id
    here = await sdk.v1.payment_intents.create_async(order(method, customer=customer))
    assert here.status == "requires_action"
    away = order(method, customer=customer, off_session=True)
    if not declined:
        assert (await sdk.v1.payment_intents.create_async(away)).status == "succeeded"
        return
    with pytest.raises(stripe.CardError) as caught:
        await sdk.v1.payment_intents.create_async(away)
    error = caught.value.json_body["error"]
    assert (error["code"], error["decline_code"]) == ("authentication_required", "authentication_required")
    inside = error["payment_intent"]
    assert inside["last_payment_error"]["payment_method"]["id"] == method
    back = await sdk.v1.payment_intents.confirm_async(inside["id"], {"payment_method": method})
    assert back.status == "requires_action"


async def test_a_bank_may_decline_after_the_challenge(provider: Provider, order: Order) -> None:
    card = "pm_card_authenticationRequiredChargeDeclinedInsufficientFunds"
    waiting = await provider.sdk().v1.payment_intents.create_async(order(card))
    answer = await provider.control("POST", f"payment_intents/{waiting.id}/authenticate", {"outcome": "succeed"})
    assert answer["status"] == "requires_payment_method"
    assert answer["last_payment_error"]["decline_code"] == "insufficient_funds"


async def test_a_challenge_can_be_asked_for_or_excluded(provider: Provider, order: Order) -> None:
    sdk = provider.sdk()
    asked = {"payment_method_options": {"card": {"request_three_d_secure": "challenge"}}}
    assert (await sdk.v1.payment_intents.create_async(order(**asked))).status == "requires_action"
    with pytest.raises(stripe.CardError) as caught:
        await sdk.v1.payment_intents.create_async(
            order("pm_card_authenticationRequired", error_on_requires_action=True)
        )
    assert caught.value.code == "authentication_required"


async def test_buyers_survive_a_restart(provider: Provider) -> None:
    sdk, customer = provider.sdk(), await a_customer(provider)
    kept = await sdk.v1.payment_methods.attach_async("pm_card_visa", {"customer": customer})
    gone = await sdk.v1.payment_methods.attach_async("pm_card_visa", {"customer": customer})
    await sdk.v1.payment_methods.detach_async(gone.id)
    await provider.restart()
    assert await methods_of(provider, customer) == [kept.id]
    assert (await provider.sdk().v1.customers.retrieve_async(customer)).email == "buyer@example.com"
