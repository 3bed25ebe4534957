"""The decisions of banks and of time about Stripe's objects, below `/_sandbox/`: Stripe has no URLs for them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from aiohttp import web

from sandbox import page
from sandbox.rows import Json, Work
from sandbox.service import Sandbox
from sandbox.stripe import pages, render
from sandbox.stripe.book import StripeBook
from sandbox.stripe.routes.buyers import find_session
from sandbox.stripe.routes.call import find
from sandbox.stripe.routes.disputes import find_dispute
from sandbox.stripe.routes.payments import find_intent
from sandbox.stripe.rows import Charge, Subject
from sandbox.stripe.rules import charging, checkout, disputes, refunds
from sandbox.wire.bodies import json_answer, json_body
from sandbox.wire.errors import Refusal, invalid

Command = Callable[[Work, StripeBook, str, Json], Subject]


async def handle(sandbox: Sandbox, request: web.BaseRequest, parts: list[str]) -> web.StreamResponse | None:
    """Answers `/_sandbox/` and `parts`; None if there is no such command."""
    if len(parts) < 3:
        return None
    noun, identifier, verb = "/".join(parts[:-2]), parts[-2], parts[-1]
    if request.method == "GET" and (noun, verb) == ("payment_intents", "authenticate"):
        return pages.challenge(sandbox, identifier)
    command = COMMANDS.get((noun, verb))
    if command is None or request.method != "POST":
        return None
    wanted = await json_body(request)
    if not isinstance(wanted, dict):
        raise invalid("The body is a JSON object.")
    work = sandbox.work("stripe")
    back = pages.back_from_challenge(sandbox, identifier) if verb == "authenticate" else None
    changed = await sandbox.perform(work, lambda: command(work, sandbox.stripe, identifier, wanted))
    if back is None or "text/html" not in request.headers.get("Accept", ""):
        return json_answer(render.subject(changed))
    return page.go(f"{back}{_outcome(wanted, 'succeeded', 'failed')}")


def _outcome(wanted: Json, good: Any, bad: Any, words: tuple[str, str] = ("succeed", "fail")) -> Any:
    outcome = wanted.get("outcome")
    if outcome not in words:
        raise invalid(f'outcome must be "{words[0]}" or "{words[1]}"')
    return good if outcome == words[0] else bad


def _authenticate(work: Work, book: StripeBook, identifier: str, wanted: Json) -> Subject:
    succeed = _outcome(wanted, True, False)
    return charging.authenticate(work, book, find_intent(book, identifier), succeed=succeed)


def _settle(work: Work, book: StripeBook, identifier: str, wanted: Json) -> Subject:
    return charging.settle(work, book, find_intent(book, identifier), succeed=_outcome(wanted, True, False))


def _expire_intent(work: Work, book: StripeBook, identifier: str, _wanted: Json) -> Subject:
    """The days of an authorisation are over."""
    intent = find_intent(book, identifier)
    if intent.status != "requires_capture":
        raise Refusal(400, f"This PaymentIntent is {intent.status}, so no authorisation can expire.")
    return charging.release(work, book, intent, "automatic", "charge.expired")


def _fail_refund(work: Work, book: StripeBook, identifier: str, _wanted: Json) -> Subject:
    refund = find(book.refunds, "refund", identifier)
    return refunds.fail(work, book.charges.rows[refund.charge], refund)


def _settle_refund(work: Work, book: StripeBook, identifier: str, wanted: Json) -> Subject:
    refund = find(book.refunds, "refund", identifier)
    if _outcome(wanted, True, False):
        return refunds.settle(work, refund)
    return refunds.fail(work, book.charges.rows[refund.charge], refund)


def _dispute_charge(work: Work, book: StripeBook, identifier: str, wanted: Json) -> Subject:
    return _dispute(work, find(book.charges, "charge", identifier), wanted)


def _dispute_intent(work: Work, book: StripeBook, identifier: str, wanted: Json) -> Subject:
    charge = book.charge_of(find_intent(book, identifier))
    if charge is None:
        raise Refusal(400, "This PaymentIntent has taken no money, so nothing can be disputed.")
    return _dispute(work, charge, wanted)


def _dispute(work: Work, charge: Charge, wanted: Json) -> Subject:
    reason, amount = wanted.get("reason", "fraudulent"), wanted.get("amount", charge.taken)
    if reason not in disputes.REASONS or not isinstance(amount, int):
        raise invalid(f"A dispute has an amount and a reason: {', '.join(sorted(disputes.REASONS))}.")
    return disputes.open_dispute(work, charge, reason, amount, inquiry=wanted.get("inquiry") is True)


def _decide_dispute(work: Work, book: StripeBook, identifier: str, wanted: Json) -> Subject:
    won = _outcome(wanted, True, False, ("win", "lose"))
    return disputes.decide(work, find_dispute(book, identifier), won=won)


def _escalate(work: Work, book: StripeBook, identifier: str, _wanted: Json) -> Subject:
    return disputes.escalate(work, find_dispute(book, identifier))


def _know_fee(work: Work, book: StripeBook, identifier: str, _wanted: Json) -> Subject:
    """The provider says what the charge cost."""
    charge = find(book.charges, "charge", identifier)._replace(fee_known=True)
    work.put(charge, "charge.updated")
    return charge


def _pay_session(work: Work, book: StripeBook, identifier: str, wanted: Json) -> Subject:
    """A buyer pays on the page. The answer is the intent."""
    method, email = wanted.get("payment_method", "pm_card_visa"), wanted.get("email")
    return checkout.pay(work, book, find_session(book, identifier), str(method), email and str(email))


def _expire_session(work: Work, book: StripeBook, identifier: str, _wanted: Json) -> Subject:
    """The time of a session is over."""
    return checkout.expire(work, book, find_session(book, identifier))


COMMANDS: dict[tuple[str, str], Command] = {
    ("payment_intents", "authenticate"): _authenticate,
    ("payment_intents", "settle"): _settle,
    ("payment_intents", "expire"): _expire_intent,
    ("payment_intents", "dispute"): _dispute_intent,
    ("charges", "dispute"): _dispute_charge,
    ("charges", "fee"): _know_fee,
    ("refunds", "fail"): _fail_refund,
    ("refunds", "settle"): _settle_refund,
    ("disputes", "decide"): _decide_dispute,
    ("disputes", "escalate"): _escalate,
    ("checkout/sessions", "pay"): _pay_session,
    ("checkout/sessions", "expire"): _expire_session,
}
