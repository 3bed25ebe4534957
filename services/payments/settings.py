"""Settings of payments, beside those of every service."""

from typing import Any, Literal, Self

from pydantic import Field, SecretStr, field_validator, model_validator

from services.chassis.settings import ExternalUrl, Secrets, ServiceSettings


class Settings(ServiceSettings):
    """See README.md."""

    payment_provider: Literal["stripe", "razorpay"] = "stripe"
    """The provider at which new payments begin. A payment stays at the one that it began at."""

    capture: Literal["automatic", "manual"] = "automatic"
    """Whether new payments are captured at once, or authorised and captured by staff."""

    stripe_api_key: SecretStr
    stripe_webhook_secret: Secrets
    stripe_account: str = ""
    """The id of the account, `acct_…`, if its events name it; events of other accounts are refused."""
    stripe_api_base: ExternalUrl = "https://api.stripe.com"
    return_hosts: str = ""
    """The hosts of the shop, separated by commas, to which a provider's page may send customers back."""
    provider_calls_per_second: float = Field(default=100, ge=0)
    """Stripe's limit for a live account. All replicas share it: divide it by their number. 0 means no limit."""
    provider_concurrency: int = Field(default=64, ge=1, le=1000)

    razorpay_key_id: str = ""
    """`rzp_live_…`; without it, the shop takes no payments through Razorpay, and its secrets are not used."""
    razorpay_key_secret: Secrets | None = None
    """The first one calls the API; all of them verify callbacks."""
    razorpay_webhook_secret: Secrets | None = None
    razorpay_account: str = ""
    """The id of the account, `acc_…`; events of other accounts are refused."""
    razorpay_api_base: ExternalUrl = "https://api.razorpay.com"
    razorpay_calls_per_second: float = Field(default=25, ge=0)
    """As for Stripe. Razorpay publishes no limit."""
    razorpay_concurrency: int = Field(default=16, ge=1, le=200)
    """Concurrent calls, each in a thread: Razorpay's SDK is synchronous."""

    @field_validator("razorpay_key_secret", "razorpay_webhook_secret", mode="before")
    @classmethod
    def _empty_is_not_set(cls, value: Any) -> Any:
        return value or None

    @model_validator(mode="after")
    def _razorpay_is_complete(self) -> Self:
        if self.razorpay_key_id and not (self.razorpay_key_secret and self.razorpay_webhook_secret):
            raise ValueError("RAZORPAY_KEY_ID needs RAZORPAY_KEY_SECRET and RAZORPAY_WEBHOOK_SECRET")
        if self.payment_provider == "razorpay" and not self.razorpay_key_id:
            raise ValueError("PAYMENT_PROVIDER=razorpay needs RAZORPAY_KEY_ID")
        return self
