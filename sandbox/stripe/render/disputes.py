"""Disputes and balance transactions as JSON."""

from __future__ import annotations

from sandbox.rows import Json
from sandbox.stripe.render.cards import method_type
from sandbox.stripe.rows import Dispute
from sandbox.stripe.rules import balance
from sandbox.stripe.rules.cards import CARDS
from sandbox.stripe.rules.disputes import shown_evidence

_NETWORK_CODES = {"fraudulent": "10.4", "product_not_received": "13.1"}


def dispute(value: Dispute) -> Json:
    kind = method_type(value.card)
    code = _NETWORK_CODES.get(value.reason, "13.2")
    inquiry = value.withdrawn_at is None
    return {
        "id": value.id,
        "object": "dispute",
        "amount": value.amount,
        "balance_transactions": [transaction(found) for found in balance.of_dispute(value)],
        "charge": value.charge,
        "created": value.created,
        "currency": value.currency,
        "enhanced_eligibility_types": [],
        "evidence": shown_evidence(value),
        "evidence_details": {
            "due_by": value.due_by,
            "enhanced_eligibility": {},
            "has_evidence": bool(value.evidence),
            "past_due": False,
            "submission_count": value.submissions,
            "submission_method": "manual" if value.submissions else "not_submitted",
        },
        "is_charge_refundable": inquiry and value.status != "warning_closed",
        "livemode": False,
        "metadata": value.metadata,
        "network_reason_code": code,
        "payment_intent": value.intent,
        "payment_method_details": {
            "type": kind,
            "card": {
                "brand": CARDS[value.card].brand,
                "case_type": "inquiry" if inquiry else "chargeback",
                "network": CARDS[value.card].brand,
                "network_reason_code": code,
            },
        },
        "reason": value.reason,
        "status": value.status,
    }


def transaction(value: balance.Transaction) -> Json:
    fees = (
        [
            {
                "amount": value.fee,
                "application": None,
                "currency": value.currency,
                "description": "Dispute fee" if value.type == "adjustment" else "Stripe processing fees",
                "type": "stripe_fee",
            }
        ]
        if value.fee
        else []
    )
    return {
        "id": value.id,
        "object": "balance_transaction",
        "amount": value.amount,
        "available_on": value.created,
        "balance_type": "payments",
        "created": value.created,
        "currency": value.currency,
        "description": value.description,
        "exchange_rate": None,
        "fee": value.fee,
        "fee_details": fees,
        "net": value.amount - value.fee,
        "reporting_category": value.category,
        "source": value.source,
        "status": "available",
        "type": value.type,
    }
