"""Stripe's test payment methods by name, and how the bank answers each."""

from __future__ import annotations

from typing import NamedTuple

DECLINED = "Your card was declined."


class Card(NamedTuple):
    """How one test method behaves; `behaviour` is approve, decline, authenticate or settle_later."""

    brand: str
    last4: str
    behaviour: str = "approve"
    code: str | None = None
    decline_code: str | None = None
    message: str = DECLINED
    param: str | None = None
    kind: str = "card"


CARDS: dict[str, Card] = {
    "pm_card_visa": Card("visa", "4242"),
    "pm_card_visa_debit": Card("visa", "5556"),
    "pm_card_mastercard": Card("mastercard", "4444"),
    "pm_card_amex": Card("amex", "8431"),
    "pm_card_chargeDeclined": Card("visa", "0002", "decline", "card_declined", "generic_decline"),
    "pm_card_visa_chargeDeclined": Card("visa", "0002", "decline", "card_declined", "generic_decline"),
    "pm_card_chargeDeclinedInsufficientFunds": Card(
        "visa", "9995", "decline", "card_declined", "insufficient_funds", "Your card has insufficient funds."
    ),
    "pm_card_chargeDeclinedLostCard": Card("visa", "9987", "decline", "card_declined", "lost_card"),
    "pm_card_chargeDeclinedStolenCard": Card("visa", "9979", "decline", "card_declined", "stolen_card"),
    "pm_card_chargeDeclinedFraudulent": Card("visa", "0019", "decline", "card_declined", "fraudulent"),
    "pm_card_chargeDeclinedExpiredCard": Card(
        "visa", "0069", "decline", "expired_card", None, "Your card has expired.", "exp_month"
    ),
    "pm_card_chargeDeclinedIncorrectCvc": Card(
        "visa", "0127", "decline", "incorrect_cvc", None, "Your card's security code is incorrect.", "cvc"
    ),
    "pm_card_chargeDeclinedProcessingError": Card(
        "visa",
        "0119",
        "decline",
        "processing_error",
        None,
        "An error occurred while processing your card. Try again in a little bit.",
    ),
    "pm_card_authenticationRequired": Card("visa", "3184", "authenticate"),
    "pm_card_threeDSecureRequired": Card("visa", "3063", "authenticate"),
    "pm_card_threeDSecure2Required": Card("visa", "3220", "authenticate"),
    "pm_usBankAccount_processing": Card("", "6789", "settle_later", kind="us_bank_account"),
}
