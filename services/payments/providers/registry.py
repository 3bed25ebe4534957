"""The registry of providers: all that exist are named here, and only here."""

from services.payments.providers import Providers
from services.payments.providers.stripe.adapter import Stripe
from services.payments.providers.stripe.webhook import StripeWebhook
from services.payments.settings import Settings


def open_providers(config: Settings) -> Providers:
    """Open the accounts that the settings name."""
    return Providers(_stripe(config), default=config.payment_provider)


def _stripe(config: Settings) -> Stripe:
    key = config.stripe_api_key.get_secret_value()
    return Stripe(
        key,
        webhook=StripeWebhook(
            config.stripe_webhook_secret.get_secret_value(), api_key=key, account=config.stripe_account
        ),
        api_base=config.stripe_api_base,
        calls_per_second=config.provider_calls_per_second,
        concurrency=config.provider_concurrency,
    )
