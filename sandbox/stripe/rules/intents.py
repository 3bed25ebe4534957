"""The life of a PaymentIntent: each rule takes the intent and the request, and returns the new intent."""

from __future__ import annotations

import re
import secrets

from sandbox.rows import Json, Work, random_hex
from sandbox.stripe.book import StripeBook
from sandbox.stripe.errors import invalid, missing_param
from sandbox.stripe.forms import Params
from sandbox.stripe.rows import Intent
from sandbox.stripe.rules import customers, methods
from sandbox.stripe.rules.charging import CONFIRMABLE, Terms, attempt, capture, release, wrong_state
from sandbox.stripe.rules.currencies import check_amount, check_currency

_URL = re.compile(r"[a-zA-Z][a-zA-Z0-9+.-]*://[!-~]+")

_CREATE = (
    "amount currency confirm payment_method payment_method_types off_session return_url "
    "capture_method automatic_payment_methods metadata description receipt_email "
    "statement_descriptor customer statement_descriptor_suffix confirmation_method expand "
    "setup_future_usage error_on_requires_action payment_method_options use_stripe_sdk"
)
CREATE = frozenset(_CREATE.split())
_CONFIRM_TEXT = (
    "payment_method off_session return_url receipt_email use_stripe_sdk expand setup_future_usage capture_method "
    "error_on_requires_action payment_method_options"
)
CONFIRM = frozenset(_CONFIRM_TEXT.split())
CONFIRM_BY_BUYER = CONFIRM - {"off_session", "error_on_requires_action", "capture_method"} | {
    "client_secret", "key", "expected_payment_method_type",
}  # fmt: skip
CANCEL = frozenset(("cancellation_reason", "expand"))
CAPTURE = frozenset(("amount_to_capture", "final_capture", "metadata", "statement_descriptor_suffix", "expand"))
ECHOED = ("receipt_email", "statement_descriptor", "statement_descriptor_suffix")
CANCELLATION_REASONS = ("duplicate", "fraudulent", "requested_by_customer", "abandoned")
CAPTURE_METHODS = ("automatic", "automatic_async", "manual")
USAGES = ("off_session", "on_session")


def create(work: Work, book: StripeBook, params: Params) -> Intent:
    """Creates an intent and, with `confirm`, confirms it. A decline raises an error with the intent inside."""
    params.only(CREATE)
    amount, currency = _price(params)
    options = _options(book, params)
    confirm_now = params.boolean("confirm") or False
    terms = _terms(params)
    for only in ("off_session", "return_url", "error_on_requires_action"):
        if only in params and not confirm_now:
            raise invalid(
                f"You can only pass `{only}` when creating a PaymentIntent with `confirm` set to true.",
                param=only,
            )
    name = params.text("payment_method")
    method, card = (None, None) if name is None else methods.resolve(work, book, name, options.get("customer"))
    if confirm_now and name is not None:
        _require_return_url(options, terms.return_url)
    identifier = work.new_id("pi")
    intent = Intent(
        id=identifier,
        amount=amount,
        currency=currency,
        created=work.now,
        status="requires_payment_method" if name is None else "requires_confirmation",
        client_secret=f"{identifier}_secret_{random_hex(24)}",
        metadata=params.metadata(),
        options=options,
        description=params.text("description"),
        card=card,
        payment_method=method,
    )
    if confirm_now and name is None:
        raise invalid(
            "You cannot confirm this PaymentIntent because it's missing a payment method.",
            code="payment_intent_unexpected_state",
        )
    work.put(intent, "payment_intent.created")
    return attempt(work, book, intent, terms) if confirm_now else intent


def confirm(work: Work, book: StripeBook, intent: Intent, params: Params, *, by_buyer: bool = False) -> Intent:
    """Tries to take the money. `by_buyer` is the browser's call, which needs the client secret."""
    params.only(CONFIRM_BY_BUYER if by_buyer else CONFIRM)
    if by_buyer:
        check_client_secret(intent, params)
    if intent.status == "succeeded":
        wrong_state(
            intent,
            "You cannot confirm this PaymentIntent because it has already succeeded after being previously confirmed.",
        )
    if intent.status not in CONFIRMABLE:
        wrong_state(
            intent,
            f"You cannot confirm this PaymentIntent because it has a status of {intent.status}. Only a "
            "PaymentIntent with one of the following statuses may be confirmed: "
            "requires_confirmation, requires_action.",
        )
    _not_of_checkout(intent, "confirm")
    name = params.text("payment_method")
    terms = _terms(params)
    changed = {
        option: value
        for option, values in (("setup_future_usage", USAGES), ("capture_method", CAPTURE_METHODS))
        if (value := params.choice(option, values)) is not None
    }
    if changed:
        intent = intent._replace(options={**intent.options, **changed})
    if name is not None and name != intent.payment_method:
        method, card = methods.resolve(work, book, name, intent.customer)
        intent = intent._replace(card=card, payment_method=method)
    if intent.card is None:
        wrong_state(
            intent,
            "You cannot confirm this PaymentIntent because it's missing a payment method. You can either "
            "update the PaymentIntent with a payment method and then confirm it again, or confirm it again "
            "directly with a payment method or ConfirmationToken.",
        )
    if not by_buyer:
        _require_return_url(intent.options, terms.return_url)
    return attempt(work, book, intent._replace(next_action=None), terms)


def cancel(work: Work, book: StripeBook, intent: Intent, params: Params) -> Intent:
    """Cancels an intent that has not taken money; it never takes any afterwards."""
    params.only(CANCEL)
    reason = params.choice("cancellation_reason", CANCELLATION_REASONS)
    if intent.status == "requires_capture":
        return release(work, book, intent, reason, "charge.refunded")
    if intent.status not in CONFIRMABLE:
        wrong_state(
            intent,
            f"You cannot cancel this PaymentIntent because it has a status of {intent.status}. Only a "
            "PaymentIntent with one of the following statuses may be canceled: requires_payment_method, "
            "requires_capture, requires_confirmation, requires_action.",
        )
    _not_of_checkout(intent, "cancel")
    return end(work, intent, reason)


def end(work: Work, intent: Intent, reason: str | None) -> Intent:
    canceled = intent._replace(status="canceled", next_action=None, canceled_at=work.now, cancellation_reason=reason)
    work.put(canceled, "payment_intent.canceled")
    return canceled


def capture_authorised(work: Work, book: StripeBook, intent: Intent, params: Params) -> Intent:
    """Takes authorised money, all or a part of it, once."""
    params.only(CAPTURE)
    if params.boolean("final_capture") is False:
        raise invalid("This PaymentIntent does not support multicapture.", param="final_capture")
    amount = params.integer("amount_to_capture", least=1, most=10**17)
    if intent.status == "succeeded":
        wrong_state(intent, "This PaymentIntent could not be captured because it has already been captured.")
    if intent.status != "requires_capture":
        wrong_state(
            intent,
            f"This PaymentIntent could not be captured because it has a status of {intent.status}. Only a "
            "PaymentIntent with one of the following statuses may be captured: requires_capture.",
        )
    if amount is not None and amount > intent.amount_capturable:
        raise invalid(
            "The amount_to_capture is greater than the amount that can be captured.",
            param="amount_to_capture",
            code="amount_too_large",
        )
    if "metadata" in params:
        intent = intent._replace(metadata={**intent.metadata, **params.metadata()})
    return capture(work, book, intent, amount or intent.amount_capturable)


def check_client_secret(intent: Intent, params: Params) -> None:
    """Refuses a publishable key without this intent's client secret."""
    given = params.required("client_secret")
    if not secrets.compare_digest(given.encode(), intent.client_secret.encode()):
        raise invalid(
            "The client_secret provided does not match the client_secret associated with the PaymentIntent.",
            param="client_secret",
            code="payment_intent_invalid_parameter",
        )


def url_param(params: Params, name: str) -> str | None:
    url = params.text(name, longest=2_048)
    if url is not None and not _URL.fullmatch(url):
        raise invalid("Not a valid URL", param=name, code="url_invalid")
    return url


def _not_of_checkout(intent: Intent, verb: str) -> None:
    if intent.checkout is not None:
        wrong_state(
            intent,
            f"You cannot {verb} a PaymentIntent that a Checkout Session has made. Expire the Checkout Session instead.",
        )


def _price(params: Params) -> tuple[int, str]:
    amount = params.integer("amount", least=1, most=10**17)
    if amount is None:
        raise missing_param("amount")
    currency = check_currency(params.required("currency"))
    check_amount(amount, currency)
    return amount, currency


def _terms(params: Params) -> Terms:
    secure = None
    if (options := params.nested("payment_method_options")) is not None:
        options.only(("card",))
        if (card := options.nested("card")) is not None:
            card.only(("request_three_d_secure",))
            secure = card.choice("request_three_d_secure", ("automatic", "any", "challenge"))
    return Terms(
        off_session=params.boolean("off_session") or False,
        return_url=url_param(params, "return_url"),
        decline_action=params.boolean("error_on_requires_action") or False,
        challenge=secure in ("any", "challenge"),
    )


def _options(book: StripeBook, params: Params) -> Json:
    """The settings that an intent keeps, without those at their default."""
    options: Json = {}
    for name in ECHOED:
        if (value := params.text(name, longest=500)) is not None:
            options[name] = value
    if (customer := params.text("customer")) is not None:
        options["customer"] = customers.find(book, customer, param="customer", status=400).id
    if (capture_method := params.choice("capture_method", CAPTURE_METHODS)) is not None:
        options["capture_method"] = capture_method
    if (usage := params.choice("setup_future_usage", USAGES)) is not None:
        options["setup_future_usage"] = usage
    if params.choice("confirmation_method", ("automatic", "manual")) == "manual":
        raise invalid("The sandbox supports confirmation_method=automatic only.", param="confirmation_method")
    types = params.strings("payment_method_types")
    automatic = params.nested("automatic_payment_methods")
    if types and automatic is not None:
        raise invalid("You may only specify one of these parameters: automatic_payment_methods, payment_method_types.")
    if types:
        options["payment_method_types"] = types
    elif automatic is not None:
        automatic.only(("enabled", "allow_redirects"))
        enabled = automatic.boolean("enabled")
        if enabled is None:
            raise missing_param("automatic_payment_methods[enabled]")
        redirects = automatic.choice("allow_redirects", ("always", "never")) or "always"
        options["automatic"] = {"enabled": enabled, "allow_redirects": redirects}
    return options


def _require_return_url(options: Json, return_url: str | None) -> None:
    """Requires a `return_url`, as Stripe does, unless redirects are excluded."""
    automatic = options.get("automatic") or {"enabled": True, "allow_redirects": "always"}
    redirects_possible = automatic["enabled"] and automatic["allow_redirects"] != "never"
    if return_url is None and redirects_possible and "payment_method_types" not in options:
        raise invalid(
            "This PaymentIntent is configured to accept payment methods enabled in your Dashboard. Because "
            "some of these payment methods might redirect your customer off of your page, you must provide a "
            "`return_url`. If you don't want to accept redirect-based payment methods, set "
            "`automatic_payment_methods[enabled]` to `true` and `automatic_payment_methods[allow_redirects]` "
            "to `never` when creating Setup Intents and Payment Intents.",
            param="return_url",
        )
