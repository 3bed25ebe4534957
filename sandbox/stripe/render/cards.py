"""The cards of payment methods as JSON; nobody's billing details."""

from __future__ import annotations

from collections.abc import Callable

from sandbox.rows import Json
from sandbox.stripe.rules.cards import CARDS

NOBODY: Json = {
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


_NETWORKS: dict[str, Callable[[str], Json]] = {
    "card": lambda card: {"networks": {"available": [CARDS[card].brand], "preferred": None}},
    "us_bank_account": lambda _card: {},
}


def method_type(card: str) -> str:
    return CARDS[card].kind


def used_method(identifier: str, card: str) -> Json:
    """A payment method that was used once."""
    return {
        "id": identifier,
        "object": "payment_method",
        "allow_redisplay": "unspecified",
        "billing_details": NOBODY,
        "created": 0,
        "customer": None,
        "livemode": False,
        "metadata": {},
        "type": CARDS[card].kind,
        CARDS[card].kind: plastic(card) | _NETWORKS[CARDS[card].kind](card),
    }


def plastic(name: str) -> Json:
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
    }
