"""The registry of providers: all that exist are named here, and only here."""

from services.payments.providers import PaymentProvider, Providers
from services.payments.providers.limits import ProviderLimits
from services.payments.providers.razorpay.adapter import Razorpay
from services.payments.providers.razorpay.signatures import Signatures
from services.payments.providers.razorpay.transport import Transport
from services.payments.providers.razorpay.webhook import RazorpayWebhook
from services.payments.providers.stripe.adapter import Stripe
from services.payments.providers.stripe.webhook import StripeWebhook
from services.payments.settings import Settings


def open_providers(config: Settings) -> Providers:
    """Open the accounts that the settings name."""
    opened: list[PaymentProvider] = [_stripe(config)]
    if razorpay := _razorpay(config):
        opened.append(razorpay)
    return Providers(*opened, default=config.payment_provider)


def _stripe(config: Settings) -> Stripe:
    key = config.stripe_api_key.get_secret_value()
    return Stripe(
        key,
        webhook=StripeWebhook(config.stripe_webhook_secret.values(), api_key=key, account=config.stripe_account),
        api_base=config.stripe_api_base,
        calls_per_second=config.provider_calls_per_second,
        concurrency=config.provider_concurrency,
    )


def _razorpay(config: Settings) -> Razorpay | None:
    if not config.razorpay_key_id:
        return None
    assert config.razorpay_key_secret
    assert config.razorpay_webhook_secret
    keys = config.razorpay_key_secret.values()
    transport = Transport(
        config.razorpay_key_id,
        keys[0],
        api_base=config.razorpay_api_base,
        limits=ProviderLimits(
            Razorpay.name, calls_per_second=config.razorpay_calls_per_second, concurrency=config.razorpay_concurrency
        ),
        threads=config.razorpay_concurrency,
    )
    webhook = RazorpayWebhook(
        Signatures(config.razorpay_webhook_secret.values()), account=config.razorpay_account
    )  # fmt: skip
    return Razorpay(transport, webhook=webhook, callbacks=Signatures(keys))
