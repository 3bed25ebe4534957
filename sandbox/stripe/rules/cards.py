"""Stripe's test payment methods by name, and how the bank answers each."""

from __future__ import annotations

from typing import NamedTuple

DECLINED = "Your card was declined."


class Card(NamedTuple):
    """How one test method behaves.

    `behaviour` is approve, decline, settle_later, or authenticate: then `authenticates` says when the bank asks the
    buyer. `dispute` is the reason of the dispute that follows a payment. `refunds` is how a refund begins.
    """

    brand: str
    last4: str
    behaviour: str = "approve"
    code: str | None = None
    decline_code: str | None = None
    message: str = DECLINED
    param: str | None = None
    kind: str = "card"
    authenticates: str = "always"
    """`always`; `unless_set_up`: not for an absent buyer who has set it up; `on_session`: not for an absent buyer."""
    dispute: str | None = None
    inquiry: bool = False
    refunds: str = "succeeded"
    refunds_fail: bool = False
    """Whether a refund that has succeeded fails after a few seconds."""


def _declined(last4: str, decline_code: str, message: str = DECLINED) -> Card:
    return Card("visa", last4, "decline", "card_declined", decline_code, message)


def _refused(last4: str, code: str, message: str, param: str | None = None) -> Card:
    return Card("visa", last4, "decline", code, None, message, param)


_NO_FUNDS = "Your card has insufficient funds."
_LATER = "An error occurred while processing your card. Try again in a little bit."

CARDS: dict[str, Card] = {
    "pm_card_visa": Card("visa", "4242"),
    "pm_card_visa_debit": Card("visa", "5556"),
    "pm_card_mastercard": Card("mastercard", "4444"),
    "pm_card_amex": Card("amex", "8431"),
    "pm_card_chargeDeclined": _declined("0002", "generic_decline"),
    "pm_card_visa_chargeDeclined": _declined("0002", "generic_decline"),
    "pm_card_chargeDeclinedInsufficientFunds": _declined("9995", "insufficient_funds", _NO_FUNDS),
    "pm_card_chargeDeclinedLostCard": _declined("9987", "lost_card"),
    "pm_card_chargeDeclinedStolenCard": _declined("9979", "stolen_card"),
    "pm_card_chargeDeclinedFraudulent": _declined("0019", "fraudulent"),
    # It can be saved, and declines every charge.
    "pm_card_chargeCustomerFail": _declined("0341", "generic_decline"),
    "pm_card_chargeDeclinedExpiredCard": _refused("0069", "expired_card", "Your card has expired.", "exp_month"),
    "pm_card_chargeDeclinedIncorrectCvc": _refused(
        "0127", "incorrect_cvc", "Your card's security code is incorrect.", "cvc"
    ),
    "pm_card_chargeDeclinedProcessingError": _refused("0119", "processing_error", _LATER),
    "pm_card_authenticationRequired": Card("visa", "3184", "authenticate"),
    "pm_card_threeDSecureRequired": Card("visa", "3063", "authenticate"),
    "pm_card_threeDSecure2Required": Card("visa", "3220", "authenticate"),
    "pm_card_authenticationRequiredOnSetup": Card("visa", "3155", "authenticate", authenticates="unless_set_up"),
    "pm_card_authenticationRequiredSetupForOffSession": Card(
        "visa", "0446", "authenticate", authenticates="on_session"
    ),
    # The buyer authenticates, and the bank declines afterwards.
    "pm_card_authenticationRequiredChargeDeclinedInsufficientFunds": Card(
        "visa", "3178", "authenticate", "card_declined", "insufficient_funds", _NO_FUNDS
    ),
    "pm_card_createDispute": Card("visa", "0259", dispute="fraudulent"),
    "pm_card_createDisputeProductNotReceived": Card("visa", "2685", dispute="product_not_received"),
    "pm_card_createDisputeInquiry": Card("visa", "1976", dispute="fraudulent", inquiry=True),
    "pm_card_pendingRefund": Card("visa", "7726", refunds="pending"),
    "pm_card_refundFail": Card("visa", "5126", refunds_fail=True),
    "pm_usBankAccount_processing": Card("", "6789", "settle_later", kind="us_bank_account"),
}
