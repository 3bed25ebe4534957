"""Renders values as the JSON objects of Stripe's API."""

from __future__ import annotations

from typing import Any

from sandbox.rows import Event, Json
from sandbox.stripe.errors import ApiError
from sandbox.stripe.rows import Charge, Intent, Refund, Subject
from sandbox.stripe.rules.cards import CARDS

API_VERSION = "2026-10-28.endive"

_NOBODY: Json = {
    "address": {
        "city": None,
        "country": None,
        "line1": None,
        "line2": None,
        "postal_code": None,
        "state": None,
    },
    "email": None,
    "name": None,
    "phone": None,
    "tax_id": None,
}
# The fields of an intent that a publishable key may read.
_BUYER_TEXT = (
    "id object amount amount_details automatic_payment_methods canceled_at cancellation_reason "
    "capture_method client_secret confirmation_method created currency description "
    "last_payment_error livemode next_action payment_method payment_method_configuration_details "
    "payment_method_types processing receipt_email setup_future_usage shipping source status"
)
_BUYER_FIELDS = tuple(_BUYER_TEXT.split())


def intent(value: Intent) -> Json:
    options = value.options
    automatic = options.get("automatic")
    types = options.get("payment_method_types")
    if automatic is None and types is None:
        automatic = {"enabled": True, "allow_redirects": "always"}
    return {
        "id": value.id,
        "object": "payment_intent",
        "amount": value.amount,
        "amount_capturable": 0,
        "amount_details": {"tip": {}},
        "amount_received": value.amount_received,
        "application": None,
        "application_fee_amount": None,
        "automatic_payment_methods": automatic,
        "canceled_at": value.canceled_at,
        "cancellation_reason": value.cancellation_reason,
        "capture_method": options.get("capture_method", "automatic_async"),
        "client_secret": value.client_secret,
        "confirmation_method": "automatic",
        "created": value.created,
        "currency": value.currency,
        "customer": options.get("customer"),
        "description": value.description,
        "last_payment_error": _last_error(value.last_error),
        "latest_charge": value.latest_charge,
        "livemode": False,
        "metadata": value.metadata,
        "next_action": value.next_action,
        "on_behalf_of": None,
        "payment_method": value.payment_method,
        "payment_method_configuration_details": None,
        "payment_method_options": {
            "card": {
                "installments": None,
                "mandate_options": None,
                "network": None,
                "request_three_d_secure": "automatic",
            }
        },
        "payment_method_types": types or ["card"],
        "processing": None,
        "receipt_email": options.get("receipt_email"),
        "review": None,
        "setup_future_usage": None,
        "shipping": None,
        "source": None,
        "statement_descriptor": options.get("statement_descriptor"),
        "statement_descriptor_suffix": options.get("statement_descriptor_suffix"),
        "status": value.status,
        "transfer_data": None,
        "transfer_group": None,
    }


def intent_for_buyer(value: Intent) -> Json:
    """The fields of an intent that Stripe shows to a publishable key."""
    whole = intent(value)
    return {name: whole.get(name) for name in _BUYER_FIELDS}


def charge(value: Charge) -> Json:
    paid = value.failure is None
    failure = value.failure or {}
    return {
        "id": value.id,
        "object": "charge",
        "amount": value.amount,
        "amount_captured": value.amount if paid else 0,
        "amount_refunded": value.amount_refunded,
        "application": None,
        "application_fee": None,
        "application_fee_amount": None,
        "balance_transaction": None,
        "billing_details": _NOBODY,
        "calculated_statement_descriptor": "STAMPEDE SANDBOX",
        "captured": paid,
        "created": value.created,
        "currency": value.currency,
        "customer": None,
        "description": value.description,
        "disputed": False,
        "failure_balance_transaction": None,
        "failure_code": failure.get("code"),
        "failure_message": failure.get("message"),
        "fraud_details": {},
        "livemode": False,
        "metadata": value.metadata,
        "on_behalf_of": None,
        "outcome": _outcome(failure),
        "paid": paid,
        "payment_intent": value.intent,
        "payment_method": value.payment_method,
        "payment_method_details": _method_details(value),
        "radar_options": {},
        "receipt_email": None,
        "receipt_number": None,
        "receipt_url": None,
        "refunded": value.amount_refunded == value.amount,
        "review": None,
        "shipping": None,
        "source": None,
        "source_transfer": None,
        "statement_descriptor": None,
        "statement_descriptor_suffix": None,
        "status": "succeeded" if paid else "failed",
        "transfer_data": None,
        "transfer_group": None,
    }


def refund(value: Refund) -> Json:
    return {
        "id": value.id,
        "object": "refund",
        "amount": value.amount,
        "balance_transaction": None,
        "charge": value.charge,
        "created": value.created,
        "currency": value.currency,
        "destination_details": {
            "card": {
                "reference_status": "pending",
                "reference_type": "acquirer_reference_number",
                "type": "refund",
            },
            "type": "card",
        },
        "metadata": value.metadata,
        "payment_intent": value.intent,
        "reason": value.reason,
        "receipt_number": None,
        "source_transfer_reversal": None,
        "status": value.status,
        "transfer_reversal": None,
        **({"failure_reason": value.failure_reason} if value.failure_reason else {}),
    }


def subject(value: Subject) -> Json:
    if isinstance(value, Intent):
        return intent(value)
    return charge(value) if isinstance(value, Charge) else refund(value)


def event(value: Event) -> Json:
    return {
        "id": value.id,
        "object": "event",
        "api_version": API_VERSION,
        "created": value.created,
        "data": {"object": subject(value.subject)},
        "livemode": False,
        "pending_webhooks": int(value.pending),
        "request": {"id": value.request_id, "idempotency_key": value.idempotency_key},
        "type": value.type,
    }


def error(problem: ApiError, request_id: str, *, for_buyer: bool = False) -> Json:
    body = dict(problem.body)
    if (code := body.get("code")) is not None:
        body["doc_url"] = f"https://stripe.com/docs/error-codes/{str(code).replace('_', '-')}"
    if problem.intent is not None:
        body["payment_intent"] = (intent_for_buyer if for_buyer else intent)(problem.intent)
        if problem.status == 402:
            body["payment_method"] = body["payment_intent"]["last_payment_error"]["payment_method"]
    body["request_log_url"] = f"https://dashboard.stripe.com/test/logs/{request_id}"
    return {"error": body}


def page(items: list[Json], *, has_more: bool, url: str) -> Json:
    return {"object": "list", "data": items, "has_more": has_more, "url": url}


def _last_error(stored: Json | None) -> Json | None:
    if stored is None:
        return None
    identifier, name = stored["payment_method"]
    return {**stored, "payment_method": _method(identifier, name)}


def _method(identifier: str, name: str) -> Json:
    return {
        "id": identifier,
        "object": "payment_method",
        "billing_details": _NOBODY,
        "customer": None,
        "livemode": False,
        "metadata": {},
        "type": CARDS[name].kind,
        CARDS[name].kind: _plastic(name),
    }


def _plastic(name: str) -> Json:
    card = CARDS[name]
    if card.kind != "card":
        return {"bank_name": "STRIPE TEST BANK", "last4": card.last4, "account_type": "checking"}
    return {
        "brand": card.brand,
        "checks": {"address_line1_check": None, "address_postal_code_check": None, "cvc_check": "pass"},
        "country": "US",
        "exp_month": 12,
        "exp_year": 2034,
        "funding": "credit",
        "last4": card.last4,
        "network": card.brand,
    }


def _method_details(value: Charge) -> Json:
    kind = CARDS[value.card].kind
    details = _plastic(value.card)
    if kind == "card":
        details["three_d_secure"] = (
            {"authentication_flow": "challenge", "result": "authenticated", "version": "2.2.0"}
            if value.authenticated
            else None
        )
    return {"type": kind, kind: details}


def _outcome(failure: Json) -> dict[str, Any]:
    if not failure:
        return {
            "network_status": "approved_by_network",
            "reason": None,
            "risk_level": "normal",
            "seller_message": "Payment complete.",
            "type": "authorized",
        }
    return {
        "network_status": "declined_by_network",
        "reason": failure.get("decline_code") or failure.get("code"),
        "risk_level": "normal",
        "seller_message": "The bank did not return any further details with this decline.",
        "type": "issuer_declined",
    }
