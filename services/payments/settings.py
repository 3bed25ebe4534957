"""Settings of payments, beside those of every service."""

from typing import Literal

from pydantic import Field, SecretStr

from services.chassis.settings import ExternalUrl, ServiceSettings


class Settings(ServiceSettings):
    """See README.md."""

    payment_provider: Literal["stripe"] = "stripe"
    """The provider at which new payments begin. A payment stays at the one that it began at."""
    stripe_api_key: SecretStr
    stripe_webhook_secret: SecretStr
    stripe_account: str = ""
    """The id of the account, `acct_…`, if its events name it; events of other accounts are refused."""
    stripe_api_base: ExternalUrl = "https://api.stripe.com"
    provider_calls_per_second: float = Field(default=100, ge=0)
    """Stripe's limit for a live account. All replicas share it: divide it by their number. 0 means no limit."""
    provider_concurrency: int = Field(default=64, ge=1, le=1000)
