"""Checkout Sessions as JSON."""

from __future__ import annotations

from sandbox.rows import Json
from sandbox.stripe.rows import Session

_BASE = "https://checkout.stripe.com"
# The fields that are the same in each session, because the sandbox has nothing that would change them.
_FIXED: Json = {
    "object": "checkout.session",
    "adaptive_pricing": {"enabled": False},
    "after_expiration": None,
    "allow_promotion_codes": None,
    "automatic_tax": {"enabled": False, "liability": None, "provider": None, "status": None},
    "client_secret": None,
    "collected_information": None,
    "consent": None,
    "consent_collection": None,
    "currency_conversion": None,
    "custom_fields": [],
    "custom_text": {
        "after_submit": None,
        "shipping_address": None,
        "submit": None,
        "terms_of_service_acceptance": None,
    },
    "customer_account": None,
    "discounts": [],
    "invoice": None,
    "invoice_creation": None,
    "livemode": False,
    "mode": "payment",
    "origin_context": None,
    "payment_link": None,
    "payment_method_collection": "if_required",
    "payment_method_configuration_details": None,
    "payment_method_options": {},
    "permissions": None,
    "phone_number_collection": {"enabled": False},
    "recovered_from": None,
    "setup_intent": None,
    "shipping_address_collection": None,
    "shipping_cost": None,
    "shipping_options": [],
    "subscription": None,
    "total_details": {"amount_discount": 0, "amount_shipping": 0, "amount_tax": 0},
    "ui_mode": "hosted_page",
    "wallet_options": None,
}


def session(value: Session) -> Json:
    options = value.options
    is_open = value.status == "open"
    return {
        **_FIXED,
        "id": value.id,
        "amount_subtotal": value.amount,
        "amount_total": value.amount,
        "billing_address_collection": options.get("billing_address_collection"),
        "cancel_url": options.get("cancel_url"),
        "client_reference_id": options.get("client_reference_id"),
        "created": value.created,
        "currency": value.currency,
        "customer": value.customer,
        "customer_creation": None if value.customer else options.get("customer_creation", "if_required"),
        "customer_details": _details(value),
        "customer_email": value.email if is_open and value.customer is None else None,
        "expires_at": value.expires_at,
        "locale": options.get("locale"),
        "metadata": value.metadata,
        "payment_intent": None if is_open else value.intent,
        "payment_method_types": options["types"],
        "payment_status": "paid" if value.paid else "unpaid",
        "saved_payment_method_options": options.get("saved"),
        "status": value.status,
        "submit_type": options.get("submit_type"),
        "success_url": options["success_url"],
        "url": f"{options.get('base', _BASE)}/c/pay/{value.id}" if is_open else None,
    }


def _details(value: Session) -> Json | None:
    if value.email is None:
        return None
    return {
        "address": None,
        "business_name": None,
        "email": value.email,
        "individual_name": None,
        "name": None,
        "phone": None,
        "tax_exempt": "none",
        "tax_ids": [] if value.status == "complete" else None,
    }
