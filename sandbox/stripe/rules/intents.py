"""The life of a PaymentIntent: each rule takes the intent and the request, and returns the new intent.

Rules write to `Work` only. An error that is `saved` (a decline, a wrong state) keeps these changes; any other error
discards them.
"""

from __future__ import annotations

import re
import secrets
from typing import Any, NoReturn

from sandbox.rows import Json, Work
from sandbox.stripe.errors import ApiError, invalid, missing_param, no_such
from sandbox.stripe.forms import Params
from sandbox.stripe.rows import Charge, Intent
from sandbox.stripe.rules.cards import CARDS, Card
from sandbox.stripe.rules.currencies import AMOUNT_STEP, CURRENCIES, readable

AMOUNT_MAX = 99_999_999
_URL = re.compile(r"[a-zA-Z][a-zA-Z0-9+.-]*://[!-~]+")

_CREATE = (
    "amount currency confirm payment_method payment_method_types off_session return_url "
    "capture_method automatic_payment_methods metadata description receipt_email "
    "statement_descriptor customer statement_descriptor_suffix confirmation_method expand"
)
CREATE = frozenset(_CREATE.split())
CONFIRM = frozenset(["payment_method", "off_session", "return_url", "receipt_email", "use_stripe_sdk", "expand"])
CONFIRM_BY_BUYER = CONFIRM - {"off_session"} | {"client_secret", "key", "expected_payment_method_type"}
CANCEL = frozenset(("cancellation_reason", "expand"))
ECHOED = ("receipt_email", "statement_descriptor", "statement_descriptor_suffix", "customer")
CANCELLATION_REASONS = ("duplicate", "fraudulent", "requested_by_customer", "abandoned")
CONFIRMABLE = ("requires_payment_method", "requires_confirmation", "requires_action")


def create(work: Work, params: Params) -> Intent:
    """Creates an intent and, with `confirm`, confirms it. A decline raises an error with the intent inside."""
    params.only(CREATE)
    amount, currency = _price(params)
    options = _options(params)
    confirm_now = params.boolean("confirm") or False
    off_session = params.boolean("off_session") or False
    return_url = _return_url(params)
    for only in ("off_session", "return_url"):
        if only in params and not confirm_now:
            raise invalid(
                f"You can only pass `{only}` when creating a PaymentIntent with `confirm` set to true.",
                param=only,
            )
    name = params.text("payment_method")
    if name is not None:
        _card(name)
    if confirm_now and name is not None:
        _require_return_url(options, return_url)
    identifier = work.new_id("pi")
    intent = Intent(
        id=identifier,
        amount=amount,
        currency=currency,
        created=work.now,
        status="requires_payment_method" if name is None else "requires_confirmation",
        client_secret=f"{identifier}_secret_{secrets.token_hex(12)}",
        metadata=params.metadata(),
        options=options,
        description=params.text("description"),
        card=name,
        payment_method=None if name is None else work.new_id("pm"),
    )
    if confirm_now and name is None:
        raise invalid(
            "You cannot confirm this PaymentIntent because it's missing a payment method.",
            code="payment_intent_unexpected_state",
        )
    work.put(intent, "payment_intent.created")
    return _attempt(work, intent, off_session, return_url) if confirm_now else intent


def confirm(work: Work, intent: Intent, params: Params, *, by_buyer: bool = False) -> Intent:
    """Tries to take the money. `by_buyer` is the browser's call, which needs the client secret."""
    params.only(CONFIRM_BY_BUYER if by_buyer else CONFIRM)
    if by_buyer:
        check_client_secret(intent, params)
    if intent.status == "succeeded":
        _wrong_state(
            intent,
            "You cannot confirm this PaymentIntent because it has already succeeded after being previously confirmed.",
        )
    if intent.status not in CONFIRMABLE:
        _wrong_state(
            intent,
            f"You cannot confirm this PaymentIntent because it has a status of {intent.status}. Only a "
            "PaymentIntent with one of the following statuses may be confirmed: "
            "requires_confirmation, requires_action.",
        )
    name = params.text("payment_method")
    off_session = params.boolean("off_session") or False
    return_url = _return_url(params)
    if name is not None and name != intent.payment_method:
        _card(name)
        intent = intent._replace(card=name, payment_method=work.new_id("pm"))
    if intent.card is None:
        _wrong_state(
            intent,
            "You cannot confirm this PaymentIntent because it's missing a payment method. You can either "
            "update the PaymentIntent with a payment method and then confirm it again, or confirm it again "
            "directly with a payment method or ConfirmationToken.",
        )
    if not by_buyer:
        _require_return_url(intent.options, return_url)
    return _attempt(work, intent._replace(next_action=None), off_session, return_url)


def cancel(work: Work, intent: Intent, params: Params) -> Intent:
    """Cancels an intent that has not taken money; it never takes any afterwards."""
    params.only(CANCEL)
    reason = params.choice("cancellation_reason", CANCELLATION_REASONS)
    if intent.status not in CONFIRMABLE:
        _wrong_state(
            intent,
            f"You cannot cancel this PaymentIntent because it has a status of {intent.status}. Only a "
            "PaymentIntent with one of the following statuses may be canceled: requires_payment_method, "
            "requires_capture, requires_confirmation, requires_action.",
        )
    canceled = intent._replace(status="canceled", next_action=None, canceled_at=work.now, cancellation_reason=reason)
    work.put(canceled, "payment_intent.canceled")
    return canceled


def authenticate(work: Work, intent: Intent, *, succeed: bool) -> Intent:
    """Applies the bank's decision after 3-D Secure. A helper of the sandbox, not part of Stripe's API."""
    if intent.status != "requires_action":
        _wrong_state(intent, f"This PaymentIntent needs no authentication: it is {intent.status}.")
    waiting = intent._replace(next_action=None)
    if succeed:
        return _take_money(work, waiting, authenticated=True)
    failure = {
        "type": "invalid_request_error",
        "code": "payment_intent_authentication_failure",
        "message": "The provided PaymentMethod has failed authentication. You can provide "
        "payment_method_data or a new PaymentMethod to attempt to fulfill this PaymentIntent again.",
    }
    failed = _refused(waiting, failure)
    work.put(failed, "payment_intent.payment_failed")
    return failed


def settle(work: Work, intent: Intent, *, succeed: bool) -> Intent:
    """Applies the bank's decision about a debit that is `processing`. A helper of the sandbox."""
    if intent.status != "processing":
        _wrong_state(intent, f"This PaymentIntent needs no decision of a bank: it is {intent.status}.")
    if succeed:
        return _take_money(work, intent)
    refusal = Card("", "6789", code="payment_method_provider_decline", message="The bank refused the debit.")
    try:
        return _decline(work, intent, refusal)
    except ApiError:
        return next(c for c in reversed(work.changes) if isinstance(c, Intent))


def check_client_secret(intent: Intent, params: Params) -> None:
    """Refuses a publishable key without this intent's client secret."""
    given = params.required("client_secret")
    if not secrets.compare_digest(given.encode(), intent.client_secret.encode()):
        raise invalid(
            "The client_secret provided does not match the client_secret associated with the PaymentIntent.",
            param="client_secret",
            code="payment_intent_invalid_parameter",
        )


def _price(params: Params) -> tuple[int, str]:
    amount = params.integer("amount", least=1, most=10**17)
    if amount is None:
        raise missing_param("amount")
    currency = params.required("currency")
    if currency not in CURRENCIES:
        raise invalid(
            f"Invalid currency: {currency[:20]}. Stripe currently supports these currencies: "
            f"{', '.join(sorted(CURRENCIES))}",
            param="currency",
        )
    if amount > AMOUNT_MAX:
        raise invalid(
            f"Amount must be no more than {readable(AMOUNT_MAX, currency)}",
            param="amount",
            code="amount_too_large",
        )
    step = AMOUNT_STEP.get(currency, 1)
    if amount % step:
        raise invalid(f"Invalid amount: amounts in {currency} must be evenly divisible by {step}.", param="amount")
    return amount, currency


def _options(params: Params) -> Json:
    """The settings that an intent keeps, without those at their default."""
    options: Json = {}
    for name in ECHOED:
        if (value := params.text(name, longest=500)) is not None:
            options[name] = value
    capture = params.choice("capture_method", ("automatic", "automatic_async", "manual"))
    if capture == "manual":
        raise invalid("The sandbox does not support capture_method=manual.", param="capture_method")
    if capture is not None:
        options["capture_method"] = capture
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


def _return_url(params: Params) -> str | None:
    url = params.text("return_url")
    if url is not None and not _URL.fullmatch(url):
        raise invalid("Not a valid URL", param="return_url", code="url_invalid")
    return url


def _card(name: str) -> Card:
    card = CARDS.get(name)
    if card is None:
        raise no_such("PaymentMethod", name[:100], param="payment_method", status=400)
    return card


def _attempt(work: Work, intent: Intent, off_session: bool, return_url: str | None) -> Intent:
    assert intent.card is not None
    card = CARDS[intent.card]
    if card.behaviour == "decline":
        _decline(work, intent, card)
    if card.behaviour == "settle_later":
        processing = intent._replace(status="processing", last_error=None)
        work.put(processing, "payment_intent.processing")
        return processing
    if card.behaviour == "authenticate":
        if off_session:
            # The buyer is not there to authenticate, so the bank declines.
            message = "Your card was declined. This transaction requires authentication."
            _decline(work, intent, card._replace(code="authentication_required", message=message))
        action: Json = {"type": "use_stripe_sdk", "use_stripe_sdk": {"type": "three_d_secure_redirect"}}
        if return_url is not None:
            page = f"{work.base_url}/_sandbox/payment_intents/{intent.id}/authenticate"
            action = {"type": "redirect_to_url", "redirect_to_url": {"return_url": return_url, "url": page}}
        waiting = intent._replace(status="requires_action", next_action=action, last_error=None)
        work.put(waiting, "payment_intent.requires_action")
        return waiting
    return _take_money(work, intent)


def _take_money(work: Work, intent: Intent, *, authenticated: bool = False) -> Intent:
    charge = _charge(work, intent, authenticated=authenticated)
    paid = intent._replace(status="succeeded", latest_charge=charge.id, amount_received=intent.amount, last_error=None)
    work.put(charge, "charge.succeeded")
    work.put(paid, "payment_intent.succeeded")
    work.effects.add("charge")
    return paid


def _decline(work: Work, intent: Intent, card: Card) -> NoReturn:
    failure: dict[str, Any] = {"code": card.code, "message": card.message}
    decline_code = "authentication_required" if card.code == "authentication_required" else card.decline_code
    if decline_code is not None:
        failure["decline_code"] = decline_code
    charge = _charge(work, intent, failure=failure)
    error: Json = {"type": "card_error", **failure, "charge": charge.id}
    if card.param is not None:
        error["param"] = card.param
    declined = _refused(intent._replace(latest_charge=charge.id), error)
    work.put(charge, "charge.failed")
    work.put(declined, "payment_intent.payment_failed")
    raise ApiError(
        402,
        card.message,
        kind="card_error",
        code=card.code,
        param=card.param,
        decline_code=decline_code,
        charge=charge.id,
        saved=True,
        intent=declined,
    )


def _charge(work: Work, intent: Intent, *, failure: Json | None = None, authenticated: bool = False) -> Charge:
    assert intent.card is not None
    assert intent.payment_method is not None
    return Charge(
        id=work.new_id("ch"),
        intent=intent.id,
        amount=intent.amount,
        currency=intent.currency,
        created=work.now,
        card=intent.card,
        payment_method=intent.payment_method,
        metadata=intent.metadata,
        description=intent.description,
        failure=failure,
        authenticated=authenticated,
    )


def _refused(intent: Intent, error: Json) -> Intent:
    """The intent without its payment method, which only the error still shows; another one may be tried."""
    error = {**error, "payment_method": [intent.payment_method, intent.card]}
    return intent._replace(status="requires_payment_method", last_error=error, card=None, payment_method=None)


def _wrong_state(intent: Intent, message: str) -> NoReturn:
    raise ApiError(400, message, code="payment_intent_unexpected_state", saved=True, intent=intent)
