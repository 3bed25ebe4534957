"""The expectations that Stampede's adapter has of Stripe, against the sandbox, localstripe and the test mode."""

from __future__ import annotations

import uuid
from dataclasses import replace

import pytest

from services.payments.domain import Payment, RefundState
from services.payments.providers.results import ChargeRecord, ChargeResult, ChargeStatus
from tests.contract.providers.conftest import Backend, payment, refund_of, wanted


async def paid(backend: Backend) -> tuple[Payment, str]:
    bought = payment()
    result = await backend.adapter.create(bought, wanted)
    assert result.status is ChargeStatus.SUCCEEDED
    assert result.reference
    return replace(bought, provider_reference=result.reference), result.reference


async def test_a_card_is_charged_at_once(backend: Backend) -> None:
    bought = payment()
    result = await backend.adapter.create(bought, wanted)
    assert result.reference
    assert result.reference.startswith("pi_")
    assert (result.status, result.amount_minor, result.currency) == (ChargeStatus.SUCCEEDED, 1999, "usd")
    found = await backend.adapter.retrieve(replace(bought, provider_reference=result.reference))
    assert (found.status, found.reference) == (ChargeStatus.SUCCEEDED, result.reference)


async def test_a_charge_without_a_card_waits_for_the_buyer(backend: Backend) -> None:
    bought = payment(payment_method=None, customer_pays=True)
    result = await backend.adapter.create(bought, wanted)
    assert result.status is ChargeStatus.REQUIRES_ACTION
    assert result.client_secret
    assert not result.authenticating
    begun = replace(bought, provider_reference=result.reference, payment_method="pm_card_visa")
    backend.needs("confirm")
    assert (await backend.adapter.confirm(begun, wanted)).status is ChargeStatus.SUCCEEDED
    assert (await backend.adapter.confirm(replace(begun, attempt=2), wanted)).status is ChargeStatus.SUCCEEDED


@pytest.mark.parametrize(
    ("card", "reason"),
    [
        ("pm_card_visa_chargeDeclined", "CARD_DECLINED"),
        ("pm_card_chargeDeclinedInsufficientFunds", "INSUFFICIENT_FUNDS"),
        ("pm_card_chargeDeclinedExpiredCard", "EXPIRED_CARD"),
        ("pm_card_chargeDeclinedStolenCard", "CARD_DECLINED"),
    ],
)
async def test_a_decline_has_a_reason_for_the_buyer(backend: Backend, card: str, reason: str) -> None:
    backend.needs("declines")
    declined = await backend.adapter.create(payment(payment_method=card), wanted)
    assert (declined.status, declined.reason) == (ChargeStatus.DECLINED, reason)
    assert declined.reference


async def test_an_unheard_card_is_refused_for_good(backend: Backend) -> None:
    backend.needs("refusals")
    refused = await backend.adapter.create(payment(payment_method="pm_card_unheard"), wanted)
    assert (refused.status, refused.reason) == (ChargeStatus.DECLINED, "INVALID_PAYMENT_METHOD")


async def test_a_repeat_under_the_same_key_charges_once(backend: Backend) -> None:
    backend.needs("idempotency")
    bought = payment()
    first, again = [await backend.adapter.create(bought, wanted) for _ in range(2)]
    assert first.reference == again.reference
    other = await backend.adapter.create(replace(bought, attempt=2), wanted)
    assert other.reference != first.reference


async def test_a_challenge_is_waited_for(backend: Backend) -> None:
    backend.needs("challenge")
    result = await backend.adapter.create(payment(payment_method="pm_card_authenticationRequired"), wanted)
    assert (result.status, result.authenticating) == (ChargeStatus.REQUIRES_ACTION, True)
    assert result.client_secret


async def test_a_void_prevents_the_charge_for_good(backend: Backend) -> None:
    bought = payment(payment_method=None, customer_pays=True)
    begun = await backend.adapter.create(bought, wanted)
    opened = replace(bought, provider_reference=begun.reference, payment_method="pm_card_visa")
    assert (await backend.adapter.void(opened)).status is ChargeStatus.CANCELLED
    assert (await backend.adapter.retrieve(opened)).status is ChargeStatus.CANCELLED
    backend.needs("confirm")
    assert (await backend.adapter.confirm(opened, wanted)).status is ChargeStatus.CANCELLED


async def test_a_void_of_a_paid_charge_says_that_it_is_paid(backend: Backend) -> None:
    bought, _ = await paid(backend)
    assert (await backend.adapter.void(bought)).status is ChargeStatus.SUCCEEDED


@pytest.mark.parametrize("amount", [1999, 1200])
async def test_authorised_money_is_captured_once(backend: Backend, amount: int) -> None:
    backend.needs("capture")
    bought = payment()
    held = await backend.sdk.v1.payment_intents.create_async(
        {
            "amount": 1999, "currency": "usd", "confirm": True, "payment_method": "pm_card_visa",
            "capture_method": "manual", "metadata": {"payment_id": str(bought.id)},
            "automatic_payment_methods": {"enabled": True, "allow_redirects": "never"},
        }
    )  # fmt: skip
    begun = replace(bought, provider_reference=held.id)
    assert (await backend.adapter.retrieve(begun)).status is ChargeStatus.AUTHORISED
    assert (await backend.adapter.capture(begun, amount, wanted)).status is ChargeStatus.SUCCEEDED
    assert (await backend.adapter.capture(begun, amount, wanted)).status is ChargeStatus.SUCCEEDED
    intent = await backend.sdk.v1.payment_intents.retrieve_async(held.id)
    assert intent.amount_received == amount


async def test_a_charge_that_nobody_made_is_missing(backend: Backend) -> None:
    unheard = payment(provider_reference="pi_3unheard")
    assert (await backend.adapter.retrieve(unheard)).status is ChargeStatus.MISSING
    assert await backend.adapter.look_up(unheard, "pi_3unheard") is None


async def test_a_charge_is_found_by_our_reference(backend: Backend) -> None:
    backend.needs("search")
    bought, reference = await paid(backend)
    never = payment()
    found = await backend.adapter.find([bought, never])
    assert isinstance(found, dict)
    assert {id_: result.reference for id_, result in found.items()} == {bought.id: reference}


async def test_a_record_names_its_payment(backend: Backend) -> None:
    bought, reference = await paid(backend)
    record = await backend.adapter.look_up(payment(), reference)
    assert isinstance(record, ChargeRecord)
    assert isinstance(record.result, ChargeResult)
    assert (record.payment_id, record.result.status) == (bought.id, ChargeStatus.SUCCEEDED)


async def test_refunds_are_made_once_and_listed(backend: Backend) -> None:
    backend.needs("idempotency")
    bought, reference = await paid(backend)
    refund = refund_of(bought, reference, 700)
    first, again = [await backend.adapter.refund(refund) for _ in range(2)]
    assert first.state is RefundState.SUCCEEDED
    assert first.reference == again.reference
    (listed,) = await backend.adapter.list_refunds(reference)  # type: ignore[misc]
    assert (listed.refund_id, listed.amount_minor) == (refund.id, 700)
    known = await backend.adapter.refund(replace(refund, provider_reference=first.reference))
    assert known.state is RefundState.SUCCEEDED


async def test_more_than_the_charge_is_not_refunded(backend: Backend) -> None:
    backend.needs("over-refund")
    bought, reference = await paid(backend)
    assert (await backend.adapter.refund(refund_of(bought, reference, 1500))).state is RefundState.SUCCEEDED
    refused = await backend.adapter.refund(refund_of(bought, reference, 500, id=uuid.uuid4()))
    assert (refused.state, refused.reference) == (RefundState.FAILED, None)
    rest = await backend.adapter.refund(refund_of(bought, reference, 499, id=uuid.uuid4()))
    assert rest.state is RefundState.SUCCEEDED
