"""Intents, charges and refunds as JSON."""

from __future__ import annotations

from typing import Any

from sandbox.rows import Json
from sandbox.stripe.render.cards import NOBODY, method_type, plastic, used_method
from sandbox.stripe.rows import Charge, Intent, Refund
from sandbox.stripe.rules import balance

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
        "amount_capturable": value.amount_capturable,
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
        "customer_account": None,
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
        "setup_future_usage": options.get("setup_future_usage"),
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
    captured = paid and value.captured_at is not None
    gone = value.amount_refunded + value.released
    return {
        "id": value.id,
        "object": "charge",
        "amount": value.amount,
        "amount_captured": value.taken,
        "amount_refunded": gone,
        "application": None,
        "application_fee": None,
        "application_fee_amount": None,
        "balance_transaction": balance.id_of_charge(value),
        "billing_details": NOBODY,
        "calculated_statement_descriptor": "STAMPEDE SANDBOX",
        "captured": captured,
        "created": value.created,
        "currency": value.currency,
        "customer": value.customer,
        "description": value.description,
        "disputed": value.dispute is not None,
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
        "refunded": gone == value.amount,
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
        "balance_transaction": balance.of_refund(value).id,
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
        **_failure(value),
    }


def _failure(value: Refund) -> Json:
    returned = balance.of_failed_refund(value)
    if returned is None:
        return {}
    return {"failure_reason": value.failure_reason, "failure_balance_transaction": returned.id}


def _last_error(stored: Json | None) -> Json | None:
    if stored is None:
        return None
    identifier, name = stored["payment_method"]
    return {**stored, "payment_method": used_method(identifier, name)}


def _method_details(value: Charge) -> Json:
    kind = method_type(value.card)
    details = plastic(value.card)
    if kind == "card":
        details["network"] = details["brand"]
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
