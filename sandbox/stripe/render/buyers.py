"""Customers and their saved payment methods as JSON."""

from __future__ import annotations

from sandbox.rows import Json
from sandbox.stripe.render.cards import used_method
from sandbox.stripe.rows import Customer, Method


def customer(value: Customer) -> Json:
    if value.deleted:
        return {"id": value.id, "object": "customer", "deleted": True}
    return {
        "id": value.id,
        "object": "customer",
        "address": None,
        "balance": 0,
        "created": value.created,
        "currency": None,
        "customer_account": None,
        "default_source": None,
        "delinquent": False,
        "description": value.description,
        "discount": None,
        "email": value.email,
        "invoice_prefix": value.id[-8:].upper(),
        "invoice_settings": {
            "custom_fields": None,
            "default_payment_method": None,
            "footer": None,
            "rendering_options": None,
        },
        "livemode": False,
        "metadata": value.metadata,
        "name": value.name,
        "next_invoice_sequence": 1,
        "phone": value.phone,
        "preferred_locales": [],
        "shipping": None,
        "tax_exempt": "none",
        "test_clock": None,
    }


def method(value: Method) -> Json:
    return {
        **used_method(value.id, value.card),
        "created": value.created,
        "customer": value.customer,
        "metadata": value.metadata,
    }
