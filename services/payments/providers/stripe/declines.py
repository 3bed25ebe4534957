"""The reasons of declined cards, from Stripe's codes."""

_REASONS = {
    "insufficient_funds": "INSUFFICIENT_FUNDS",
    "expired_card": "EXPIRED_CARD",
    "invalid_expiry_month": "EXPIRED_CARD",
    "invalid_expiry_year": "EXPIRED_CARD",
    "incorrect_cvc": "INCORRECT_CVC",
    "invalid_cvc": "INCORRECT_CVC",
    "incorrect_number": "INCORRECT_NUMBER",
    "invalid_number": "INCORRECT_NUMBER",
    "processing_error": "PROCESSING_ERROR",
    "issuer_not_available": "PROCESSING_ERROR",
    "try_again_later": "PROCESSING_ERROR",
    "authentication_required": "AUTHENTICATION_REQUIRED",
    "payment_intent_authentication_failure": "AUTHENTICATION_FAILED",
    "card_velocity_exceeded": "CARD_LIMIT_EXCEEDED",
    "withdrawal_count_limit_exceeded": "CARD_LIMIT_EXCEEDED",
    "card_not_supported": "CARD_NOT_SUPPORTED",
    "currency_not_supported": "CURRENCY_NOT_SUPPORTED",
    "payment_method_provider_decline": "DECLINED_BY_BANK",
}


def decline_reason(code: str | None, decline_code: str | None) -> str:
    """Return our reason for Stripe's decline codes.

    Suspicions (stolen, lost, fraud) become a plain CARD_DECLINED: the buyer must not learn of them.
    """
    return _REASONS.get(decline_code or "") or _REASONS.get(code or "") or "CARD_DECLINED"
