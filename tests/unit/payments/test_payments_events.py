"""Signed events of Stripe, parsed at the door: each used field has its own type, and the rest is ignored."""

import json
from typing import Any

import pytest
import stripe

from services.chassis.errors import InvalidFields
from services.payments.providers.events import ProviderEvent
from services.payments.providers.results import ChargeStatus
from services.payments.providers.stripe.webhook import StripeWebhook

_SECRET = "whsec_for_unit_tests"
_PAYMENT = "018f0000-0000-7000-8000-000000000001"
_INTENT: dict[str, Any] = {
    "id": "pi_1", "amount": 1999, "currency": "usd", "status": "succeeded", "livemode": False,
    "metadata": {"payment_id": _PAYMENT},
}  # fmt: skip
_CHARGE: dict[str, Any] = {
    "id": "ch_1", "payment_intent": "pi_1", "amount": 1999, "amount_refunded": 500, "currency": "usd",
    "livemode": False, "metadata": {"payment_id": _PAYMENT},
}  # fmt: skip


def _event(kind: str, subject: Any, **changes: Any) -> dict[str, Any]:
    event = {"id": "evt_1", "type": kind, "created": 1_700_000_000, "livemode": False, "data": {"object": subject}}
    return event | changes


def _verify(event: Any, *, key: str = "sk_test_1", account: str = "") -> ProviderEvent | None:
    body = event if isinstance(event, str) else json.dumps(event)
    signature = stripe.WebhookSignature.generate_signature_header(body, _SECRET)
    return StripeWebhook([_SECRET], api_key=key, account=account).verify(body.encode(), {"stripe-signature": signature})


def test_an_event_is_reduced_to_what_is_used() -> None:
    succeeded = _verify(_event("payment_intent.succeeded", _INTENT))
    assert succeeded
    assert (succeeded.reference, str(succeeded.payment_id), succeeded.amount_minor) == ("pi_1", _PAYMENT, 1999)
    assert (succeeded.charge_status, succeeded.refunded_minor) == (ChargeStatus.SUCCEEDED, None)
    refunded = _verify(_event("charge.refunded", _CHARGE))
    assert refunded
    assert (refunded.reference, refunded.charge_status, refunded.refunded_minor) == ("pi_1", None, 500)


_ODD: list[tuple[str, Any]] = [
    *(("amount", value) for value in (None, "1999", 19.99, -1, True, [1999], 10**30)),
    *(("currency", value) for value in (None, 840, "us", "dollars", "u\x00d", ["usd"])),
    *(("status", value) for value in (None, 1, [], "")),
    ("metadata", ["payment_id"]),
    ("metadata", "payment_id"),
]


@pytest.mark.parametrize(("field", "value"), _ODD)
def test_an_intent_with_an_odd_field_is_refused(field: str, value: Any) -> None:
    with pytest.raises(InvalidFields) as refused:
        _verify(_event("payment_intent.succeeded", {**_INTENT, field: value}))
    assert list(refused.value.violations) == [field]


@pytest.mark.parametrize("value", [None, "500", 2000, -1, 5.5, True, [], {}])
def test_an_odd_sum_of_refunds_is_refused(value: Any) -> None:
    with pytest.raises(InvalidFields):
        _verify(_event("charge.refunded", {**_CHARGE, "amount_refunded": value}))


@pytest.mark.parametrize("value", [["pi_1"], {}, 5, "", "pi 1", "pi_\x00", "p" * 256, "pi_é", "pi_\n"])
def test_an_odd_id_of_a_charge_is_refused(value: Any) -> None:
    for kind, subject in (
        ("payment_intent.succeeded", {**_INTENT, "id": value}),
        ("charge.refunded", {**_CHARGE, "payment_intent": value}),
    ):
        with pytest.raises(InvalidFields):
            _verify(_event(kind, subject))


@pytest.mark.parametrize(
    "changes",
    [
        {"id": ["evt_1"]}, {"id": "evt_\x00"}, {"id": "e" * 256}, {"id": None}, {"type": 1}, {"created": "now"},
        {"created": -1}, {"created": 1.5}, {"created": 10**18}, {"livemode": "false"}, {"livemode": 0}, {"data": []},
        {"data": {"object": []}}, {"data": {}}, {"account": 1},
    ],
)  # fmt: skip
def test_an_odd_envelope_is_refused(changes: dict[str, Any]) -> None:
    with pytest.raises(InvalidFields):
        _verify(_event("payment_intent.succeeded", _INTENT, **changes))


@pytest.mark.parametrize("body", ["", "null", "[]", '"evt"', "1", '{"id": "\\ud800"}', "[" * 100_000, "1" * 10_000])
def test_a_body_that_is_no_event_is_refused(body: str) -> None:
    with pytest.raises(InvalidFields):
        _verify(body)


@pytest.mark.parametrize("key", ["sk_live_1", "rk_live_1"])
def test_events_of_the_other_mode_are_refused(key: str) -> None:
    """A test payment must not pay an order of a live shop, nor a live one be lost in a test shop."""
    live, test = (
        _event("payment_intent.succeeded", {**_INTENT, "livemode": True}, livemode=True),
        _event("payment_intent.succeeded", _INTENT),
    )
    assert _verify(live, key=key)
    assert _verify(test)
    for event, wrong in ((test, key), (live, "sk_test_1"), (live, "rk_test_1")):
        with pytest.raises(InvalidFields) as refused:
            _verify(event, key=wrong)
        assert list(refused.value.violations) == ["livemode"]


def test_the_mode_of_the_subject_is_compared_too() -> None:
    with pytest.raises(InvalidFields):
        _verify(_event("charge.refunded", {**_CHARGE, "livemode": True}))


def test_events_of_another_account_are_refused() -> None:
    event = _event("payment_intent.succeeded", _INTENT, account="acct_1")
    assert _verify(event, account="acct_1")
    for own in ("", "acct_2"):
        with pytest.raises(InvalidFields) as refused:
            _verify(event, account=own)
        assert list(refused.value.violations) == ["account"]


def test_a_refusal_quotes_no_value() -> None:
    with pytest.raises(InvalidFields) as refused:
        _verify(_event("payment_intent.succeeded", {**_INTENT, "amount": "4242 secret"}))
    assert "secret" not in str(refused.value.violations)
