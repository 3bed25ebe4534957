"""Checkout Sessions through the official SDK: the page's part is played by the sandbox's commands."""

from __future__ import annotations

import time
from typing import Any

import pytest
import stripe

from tests.sandbox.conftest import Listener, Provider

Json = dict[str, Any]


def a_session(**more: Any) -> Any:
    return {
        "mode": "payment",
        "line_items": [
            {
                "price_data": {"currency": "usd", "unit_amount": 1250, "product_data": {"name": "A cap"}},
                "quantity": 2,
            }
        ],
        "success_url": "https://shop.test/paid?session={CHECKOUT_SESSION_ID}",
        "cancel_url": "https://shop.test/cart",
        "client_reference_id": "o-1",
        "metadata": {"order": "o-1"},
        "payment_intent_data": {"metadata": {"payment": "p-1"}},
        **more,
    }


async def opened(provider: Provider, **more: Any) -> stripe.checkout.Session:
    return await provider.sdk().v1.checkout.sessions.create_async(a_session(**more))


async def found(provider: Provider, session: stripe.checkout.Session, *expand: str) -> stripe.checkout.Session:
    return await provider.sdk().v1.checkout.sessions.retrieve_async(session.id, {"expand": list(expand)})


async def paying(provider: Provider, session: stripe.checkout.Session, method: str = "pm_card_visa") -> Json:
    body = {"payment_method": method, "email": "buyer@example.com"}
    async with provider.http.post(
        f"{provider.url}/_sandbox/checkout/sessions/{session.id}/pay", json=body
    ) as answer:  # fmt: skip
        paid: Json = await answer.json()
        return paid | {"http": answer.status}


async def test_a_paid_session_is_complete_and_has_its_intent(notifying: Provider, listener: Listener) -> None:
    session = await opened(notifying)
    assert (session.status, session.payment_status, session.amount_total) == ("open", "unpaid", 2500)
    assert session.payment_intent is None
    assert session.url
    assert session.url.startswith(notifying.url)
    intent = await paying(notifying, session)
    assert intent["status"] == "succeeded"
    done = await found(notifying, session, "payment_intent.latest_charge", "line_items")
    assert (done.status, done.payment_status, done.url) == ("complete", "paid", None)
    assert isinstance(done.payment_intent, stripe.PaymentIntent)
    assert done.payment_intent.metadata.to_dict() == {"payment": "p-1"}
    assert done.payment_intent.latest_charge.paid  # type: ignore[union-attr]
    assert done.line_items
    assert [(item.description, item.amount_total) for item in done.line_items.data] == [("A cap", 2500)]
    assert done.customer_details
    assert done.customer_details.email == "buyer@example.com"
    events = [event for _, event in await listener.take(4)]
    assert [e.type for e in events if e.type.startswith("checkout")] == ["checkout.session.completed"]
    (completed,) = (e for e in events if e.type.startswith("checkout"))
    assert (completed.data.object.payment_intent, completed.data.object.client_reference_id) == (intent["id"], "o-1")


async def test_a_decline_leaves_the_session_open_with_one_intent(provider: Provider) -> None:
    session = await opened(provider)
    declined = await paying(provider, session, "pm_card_chargeDeclined")
    assert declined["http"] == 402
    assert (await found(provider, session)).status == "open"
    assert (await paying(provider, session))["status"] == "succeeded"
    intents = await provider.sdk().v1.payment_intents.list_async()
    assert [intent.status for intent in intents.data] == ["succeeded"]
    charges = await provider.sdk().v1.charges.list_async({"payment_intent": intents.data[0].id})
    assert [charge.status for charge in charges.data] == ["succeeded", "failed"]
    assert (await paying(provider, session))["http"] == 400


async def test_a_challenge_completes_the_session(provider: Provider) -> None:
    session = await opened(provider)
    waiting = await paying(provider, session, "pm_card_authenticationRequired")
    assert waiting["status"] == "requires_action"
    assert (await found(provider, session)).status == "open"
    await provider.control("POST", f"payment_intents/{waiting['id']}/authenticate", {"outcome": "succeed"})
    assert (await found(provider, session)).payment_status == "paid"


@pytest.mark.parametrize(
    ("outcome", "event", "paid"),
    [
        ("succeed", "checkout.session.async_payment_succeeded", "paid"),
        ("fail", "checkout.session.async_payment_failed", "unpaid"),
    ],
)
async def test_a_bank_debit_completes_unpaid_and_is_reported_later(
    provider: Provider, outcome: str, event: str, paid: str
) -> None:
    session = await opened(provider, payment_method_types=["us_bank_account"])
    intent = await paying(provider, session, "pm_usBankAccount_processing")
    done = await found(provider, session)
    assert (done.status, done.payment_status) == ("complete", "unpaid")
    await provider.control("POST", f"payment_intents/{intent['id']}/settle", {"outcome": outcome})
    assert (await found(provider, session)).payment_status == paid
    events = [e.type for e in (await provider.sdk().v1.events.list_async()).data if e.type.startswith("checkout")]
    assert events == [event, "checkout.session.completed"]


async def test_an_expired_session_takes_no_money_and_cancels_its_intent(provider: Provider) -> None:
    session = await opened(provider)
    waiting = await paying(provider, session, "pm_card_authenticationRequired")
    sdk = provider.sdk()
    with pytest.raises(stripe.InvalidRequestError):
        await sdk.v1.payment_intents.cancel_async(waiting["id"])
    expired = await sdk.v1.checkout.sessions.expire_async(session.id)
    assert (expired.status, expired.url) == ("expired", None)
    intent = await sdk.v1.payment_intents.retrieve_async(waiting["id"])
    assert (intent.status, intent.cancellation_reason) == ("canceled", "expired")
    assert (await paying(provider, session))["http"] == 400
    with pytest.raises(stripe.InvalidRequestError, match="status of `expired`"):
        await sdk.v1.checkout.sessions.expire_async(session.id)
    assert [e.type for e in (await sdk.v1.events.list_async({"limit": 1})).data] == ["checkout.session.expired"]


async def test_a_paid_session_cannot_be_expired(provider: Provider) -> None:
    session = await opened(provider)
    await paying(provider, session)
    with pytest.raises(stripe.InvalidRequestError, match="status of `complete`"):
        await provider.sdk().v1.checkout.sessions.expire_async(session.id)


async def test_a_session_expires_by_itself_when_its_time_is_over(provider: Provider) -> None:
    session = await opened(provider)
    provider.sandbox.expire(session.expires_at - 1)
    assert (await found(provider, session)).status == "open"
    provider.sandbox.expire(session.expires_at)
    assert (await found(provider, session)).status == "expired"


@pytest.mark.parametrize(
    ("wrong", "param"),
    [
        ({"expires_at": int(time.time()) + 25 * 60}, "expires_at"),
        ({"expires_at": int(time.time()) + 25 * 3600}, "expires_at"),
        ({"mode": "subscription"}, "mode"),
        ({"line_items": []}, "line_items"),
        ({"customer": "cus_unheard"}, "customer"),
        ({"success_url": "no address"}, "success_url"),
        ({"colour": "red"}, "colour"),
        ({"payment_intent_data": {"capture_method": "later"}}, "payment_intent_data[capture_method]"),
    ],
)
async def test_a_session_with_a_wrong_parameter_is_refused(provider: Provider, wrong: Json, param: str) -> None:
    with pytest.raises(stripe.InvalidRequestError) as caught:
        await opened(provider, **wrong)
    assert caught.value.param == param


async def test_manual_capture_leaves_the_session_unpaid_until_then(provider: Provider) -> None:
    session = await opened(provider, payment_intent_data={"capture_method": "manual"})
    intent = await paying(provider, session)
    assert intent["status"] == "requires_capture"
    done = await found(provider, session)
    assert (done.status, done.payment_status) == ("complete", "unpaid")
    await provider.sdk().v1.payment_intents.capture_async(intent["id"])
    assert (await found(provider, session)).payment_status == "paid"


async def test_a_session_that_saves_the_method_makes_a_customer(provider: Provider) -> None:
    session = await opened(provider, payment_intent_data={"setup_future_usage": "off_session"})
    intent = await paying(provider, session)
    done = await found(provider, session, "customer")
    assert isinstance(done.customer, stripe.Customer)
    assert (intent["customer"], done.customer.email) == (done.customer.id, "buyer@example.com")
    saved = await provider.sdk().v1.payment_methods.list_async({"customer": done.customer.id})
    assert [method.id for method in saved.data] == [intent["payment_method"]]


async def test_sessions_survive_a_restart(provider: Provider) -> None:
    first, second = await opened(provider), await opened(provider)
    await paying(provider, first)
    await provider.restart()
    assert (await found(provider, first)).payment_status == "paid"
    assert (await found(provider, second)).status == "open"
    provider.sandbox.expire(second.expires_at)
    assert (await found(provider, second)).status == "expired"


async def test_faults_can_hit_one_operation_of_checkout(provider: Provider) -> None:
    on = "POST checkout/sessions"
    sdk = provider.sdk()
    for fault, error in (
        ({"error_500": {"next": 1}, "error_500_on": on}, stripe.APIError),
        ({"rate_limit_429": {"next": 1}, "rate_limit_429_on": on}, stripe.RateLimitError),
        ({"drop_request": {"next": 1}, "drop_request_on": on}, stripe.APIConnectionError),
        ({"drop_answer": {"next": 1}, "drop_answer_on": on}, stripe.APIConnectionError),
    ):
        await provider.control("POST", "faults", fault)
        await sdk.v1.payment_intents.create_async({"amount": 500, "currency": "eur"})
        with pytest.raises(error):
            await sdk.v1.checkout.sessions.create_async(a_session(), {"idempotency_key": str(fault)})
        await provider.control("DELETE", "faults")
    assert len((await sdk.v1.checkout.sessions.list_async()).data) == 1, "only the lost answer has made a session"
