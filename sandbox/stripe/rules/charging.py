"""Taking the money of an intent: the bank's answers, the charge, and all that follows from it.

Rules write to `Work` only. An error that is `saved` (a decline, a wrong state) keeps these changes; any other error
discards them.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NoReturn

from sandbox.rows import Json, Work
from sandbox.stripe.book import StripeBook
from sandbox.stripe.errors import ApiError
from sandbox.stripe.rows import Charge, Intent
from sandbox.stripe.rules import disputes, methods, sessions
from sandbox.stripe.rules.cards import CARDS, Card

CONFIRMABLE = ("requires_payment_method", "requires_confirmation", "requires_action")
_AUTHENTICATION_FAILED = {
    "type": "invalid_request_error",
    "code": "payment_intent_authentication_failure",
    "message": "The provided PaymentMethod has failed authentication. You can provide "
    "payment_method_data or a new PaymentMethod to attempt to fulfill this PaymentIntent again.",
}
_NEEDS_BUYER = "Your card was declined. This transaction requires authentication."


@dataclass(frozen=True, slots=True)
class Terms:
    """How an intent is confirmed. `off_session`: the buyer is away. `challenge`: the seller asks for 3-D Secure."""

    off_session: bool = False
    return_url: str | None = None
    decline_action: bool = False
    challenge: bool = False


def attempt(work: Work, book: StripeBook, intent: Intent, terms: Terms) -> Intent:
    """Asks the bank for the money. Raises a saved error for a decline."""
    assert intent.card is not None
    card = CARDS[intent.card]
    if card.behaviour == "decline":
        _decline(work, intent, card)
    if card.behaviour == "settle_later":
        processing = intent._replace(status="processing", last_error=None)
        work.put(processing, "payment_intent.processing")
        sessions.follow(work, book, processing)
        return processing
    if _must_authenticate(book, intent, card, terms):
        if terms.off_session or terms.decline_action:
            # The buyer is not there to authenticate, so the bank declines.
            _decline(work, intent, card._replace(code="authentication_required", message=_NEEDS_BUYER))
        return _wait_for_buyer(work, intent, terms.return_url)
    return _take_money(work, book, intent)


def authenticate(work: Work, book: StripeBook, intent: Intent, *, succeed: bool) -> Intent:
    """Applies the bank's decision after 3-D Secure. A helper of the sandbox, not part of Stripe's API."""
    if intent.status != "requires_action":
        wrong_state(intent, f"This PaymentIntent needs no authentication: it is {intent.status}.")
    waiting = intent._replace(next_action=None)
    assert waiting.card is not None
    card = CARDS[waiting.card]
    if succeed and card.code is None:
        return _take_money(work, book, waiting, authenticated=True)
    if succeed:
        return _declined_quietly(work, waiting, card)
    failed = _refused(waiting, _AUTHENTICATION_FAILED)
    work.put(failed, "payment_intent.payment_failed")
    return failed


def settle(work: Work, book: StripeBook, intent: Intent, *, succeed: bool) -> Intent:
    """Applies the bank's decision about a debit that is `processing`. A helper of the sandbox."""
    if intent.status != "processing":
        wrong_state(intent, f"This PaymentIntent needs no decision of a bank: it is {intent.status}.")
    if succeed:
        return _take_money(work, book, intent)
    refusal = Card("", "6789", code="payment_method_provider_decline", message="The bank refused the debit.")
    failed = _declined_quietly(work, intent, refusal)
    sessions.follow(work, book, failed)
    return failed


def capture(work: Work, book: StripeBook, intent: Intent, amount: int) -> Intent:
    """Takes `amount` of an authorised intent, and releases the rest."""
    assert intent.latest_charge is not None
    charge = book.charges.rows[intent.latest_charge]
    captured = charge._replace(captured_at=work.now, released=charge.amount - amount)
    paid = intent._replace(status="succeeded", amount_received=amount, amount_capturable=0)
    work.put(captured, "charge.captured")
    _succeed(work, book, paid, captured)
    return paid


def release(work: Work, book: StripeBook, intent: Intent, reason: str | None, event: str) -> Intent:
    """Ends an authorisation that was not captured. Stripe reports its amount as refunded."""
    assert intent.latest_charge is not None
    charge = book.charges.rows[intent.latest_charge]
    ended = intent._replace(
        status="canceled", amount_capturable=0, canceled_at=work.now, cancellation_reason=reason
    )  # fmt: skip
    work.put(charge._replace(released=charge.amount), event)
    work.put(ended, "payment_intent.canceled")
    return ended


def wrong_state(intent: Intent, message: str) -> NoReturn:
    raise ApiError(400, message, code="payment_intent_unexpected_state", saved=True, intent=intent)


def _must_authenticate(book: StripeBook, intent: Intent, card: Card, terms: Terms) -> bool:
    if card.behaviour != "authenticate":
        return terms.challenge and not terms.off_session
    if card.authenticates == "on_session":
        return not terms.off_session
    if card.authenticates == "unless_set_up":
        method = book.methods.rows.get(intent.payment_method or "")
        return not (terms.off_session and method is not None and method.set_up)
    return True


def _wait_for_buyer(work: Work, intent: Intent, return_url: str | None) -> Intent:
    action: Json = {"type": "use_stripe_sdk", "use_stripe_sdk": {"type": "three_d_secure_redirect"}}
    if return_url is not None:
        page = f"{work.base_url}/_sandbox/payment_intents/{intent.id}/authenticate"
        action = {"type": "redirect_to_url", "redirect_to_url": {"return_url": return_url, "url": page}}
    waiting = intent._replace(status="requires_action", next_action=action, last_error=None)
    work.put(waiting, "payment_intent.requires_action")
    return waiting


def _take_money(work: Work, book: StripeBook, intent: Intent, *, authenticated: bool = False) -> Intent:
    charge = _charge(work, intent, authenticated=authenticated)
    if intent.options.get("capture_method") == "manual":
        charge = charge._replace(captured_at=None)
        held = intent._replace(
            status="requires_capture", latest_charge=charge.id, amount_capturable=intent.amount, last_error=None
        )
        work.put(charge, "charge.succeeded")
        work.put(held, "payment_intent.amount_capturable_updated")
        work.effects.add("charge")
        methods.save_used(work, book, held)
        sessions.follow(work, book, held)
        return held
    paid = intent._replace(status="succeeded", latest_charge=charge.id, amount_received=intent.amount, last_error=None)
    work.put(charge, "charge.succeeded")
    methods.save_used(work, book, paid)
    _succeed(work, book, paid, charge)
    return paid


def _succeed(work: Work, book: StripeBook, paid: Intent, charge: Charge) -> None:
    work.put(paid, "payment_intent.succeeded")
    work.effects.add("charge")
    sessions.follow(work, book, paid)
    card = CARDS[charge.card]
    if card.dispute is not None:
        disputes.open_dispute(work, charge, card.dispute, charge.taken, inquiry=card.inquiry)


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


def _declined_quietly(work: Work, intent: Intent, card: Card) -> Intent:
    """A decline that no request waits for."""
    try:
        _decline(work, intent, card)
    except ApiError:
        return work.newest(intent)


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
        customer=intent.customer,
        fee_known=failure is not None or not work.fee_later(),
    )


def _refused(intent: Intent, error: Json) -> Intent:
    """The intent without its payment method, which only the error still shows; another one may be tried."""
    error = {**error, "payment_method": [intent.payment_method, intent.card]}
    return intent._replace(status="requires_payment_method", last_error=error, card=None, payment_method=None)
