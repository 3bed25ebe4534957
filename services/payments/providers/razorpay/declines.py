"""The reasons of failed payments, from Razorpay's codes."""

_REASONS = {
    "insufficient_funds": "INSUFFICIENT_FUNDS",
    "insufficient_balance": "INSUFFICIENT_FUNDS",
    "card_expired": "EXPIRED_CARD",
    "card_number_invalid": "INCORRECT_NUMBER",
    "invalid_card_number": "INCORRECT_NUMBER",
    "incorrect_cvv": "INCORRECT_CVC",
    "invalid_cvv": "INCORRECT_CVC",
    "authentication_failed": "AUTHENTICATION_FAILED",
    "incorrect_otp": "AUTHENTICATION_FAILED",
    "payment_timed_out": "NOT_COMPLETED",
    "payment_cancelled": "NOT_COMPLETED",
    "transaction_limit_exceeded": "CARD_LIMIT_EXCEEDED",
    "card_not_supported": "CARD_NOT_SUPPORTED",
    "international_transaction_not_allowed": "CARD_NOT_SUPPORTED",
    "bank_technical_error": "PROCESSING_ERROR",
    "gateway_technical_error": "PROCESSING_ERROR",
    "issuer_technical_error": "PROCESSING_ERROR",
    "server_error": "PROCESSING_ERROR",
    "payment_declined": "DECLINED_BY_BANK",
}


def decline_reason(error_reason: str | None) -> str:
    """Return our reason for Razorpay's `error_reason`.

    Suspicions (risk checks) become a plain CARD_DECLINED: the buyer must not learn of them.
    """
    return _REASONS.get(error_reason or "", "CARD_DECLINED")
