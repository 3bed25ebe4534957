"""Pages for people: Checkout, the bank's challenge, and what the overview shows of Stripe's objects."""

from __future__ import annotations

from collections.abc import Callable
from html import escape
from itertools import islice
from typing import Any
from urllib.parse import parse_qs, urlencode

from aiohttp import web

from sandbox import page
from sandbox.rows import Json
from sandbox.service import Sandbox
from sandbox.stripe.errors import ApiError
from sandbox.stripe.routes.buyers import find_session
from sandbox.stripe.routes.payments import find_intent
from sandbox.stripe.rows import Charge, Dispute, Intent, Session
from sandbox.stripe.rules import checkout, disputes
from sandbox.stripe.rules.cards import CARDS
from sandbox.stripe.rules.currencies import readable
from sandbox.wire import bodies
from sandbox.wire.errors import Refusal

SHOWN = 25
_FORM_BYTES_MAX = 8 * 1024
_CANCEL = '<button name="do" value="cancel" formnovalidate>Back to the shop</button>'
_METHODS = {
    "pm_card_visa": "Visa 4242: succeeds",
    "pm_card_authenticationRequired": "Visa 3184: the bank asks the buyer",
    "pm_card_chargeDeclined": "Visa 0002: declined",
    "pm_card_chargeDeclinedInsufficientFunds": "Visa 9995: insufficient funds",
    "pm_card_createDispute": "Visa 0259: succeeds, and is disputed",
    "pm_usBankAccount_processing": "Bank account 6789: is decided later",
}


async def show_checkout(sandbox: Sandbox, request: web.BaseRequest, identifier: str) -> web.Response:
    """The page to which a session's `url` leads."""
    session = find_session(sandbox.stripe, identifier)
    problem = ""
    if request.method == "POST":
        form = await _form(request)
        try:
            return await _pay(sandbox, session, form)
        except ApiError as error:
            problem = error.message
        session = find_session(sandbox.stripe, identifier)
    if session.status == "complete":
        return page.go(_success_url(session))
    if session.status == "expired":
        return page.html("closed", status=410, title="This page has expired", text="Go back to the shop to pay anew.")
    intent = sandbox.stripe.intents.rows.get(session.intent or "")
    if not problem and intent is not None and intent.last_error is not None:
        problem = str(intent.last_error["message"])
    return _checkout_page(session, problem)


def challenge(sandbox: Sandbox, identifier: str) -> web.Response:
    """The bank's page of a payment that waits for its buyer."""
    intent = find_intent(sandbox.stripe, identifier)
    if intent.status != "requires_action":
        return page.html("closed", status=410, title="Nothing to approve", text=f"This payment is {intent.status}.")
    back = (intent.next_action or {}).get("redirect_to_url", {}).get("return_url")
    return page.html("challenge", leads_to=_targets(sandbox, intent, back), amount=_amount(intent))


def back_from_challenge(sandbox: Sandbox, identifier: str) -> str | None:
    """The address to which the bank's page sends the buyer, without the outcome at its end."""
    intent = find_intent(sandbox.stripe, identifier)
    action = (intent.next_action or {}).get("redirect_to_url")
    if action is None:
        return None
    query = urlencode({"payment_intent": intent.id, "payment_intent_client_secret": intent.client_secret})
    joint = "&" if "?" in action["return_url"] else "?"
    return f"{action['return_url']}{joint}{query}&redirect_status="


def overview(sandbox: Sandbox) -> list[Json]:
    """The newest sessions, intents and disputes, with the commands that apply to each."""
    book = sandbox.stripe
    kinds: tuple[tuple[str, Any, Callable[[Any], Json]], ...] = (
        ("Stripe: Checkout Sessions", book.sessions, _session),
        ("Stripe: PaymentIntents", book.intents, lambda row: _intent(row, book.charge_of(row))),
        ("Stripe: disputes", book.disputes, _dispute),
    )
    return [
        {"title": title, "objects": [show(row) for row in islice(table.newest_first(), SHOWN)]}
        for title, table, show in kinds
    ]


async def _pay(sandbox: Sandbox, session: Session, form: dict[str, str]) -> web.Response:
    if form.get("do") == "cancel" and "cancel_url" in session.options:
        return page.go(session.options["cancel_url"])
    method, email = form.get("payment_method", ""), form.get("email", "")[:500]
    if method not in _METHODS:
        raise ApiError(400, "Choose one of the payment methods.")
    work = sandbox.work("stripe")
    book = sandbox.stripe
    intent = await sandbox.perform(work, lambda: checkout.pay(work, book, session, method, email or None))
    if intent.status == "requires_action":
        return page.go(f"/_sandbox/payment_intents/{intent.id}/authenticate")
    return page.go(_success_url(session))


def _checkout_page(session: Session, problem: str) -> web.Response:
    items = "".join(
        f"<tr><td>{escape(item['name'])}<td>{item['quantity']} × {readable(item['unit_amount'], session.currency)}"
        for item in session.items
    )
    options = "".join(
        f'<option value="{name}">{escape(text)}' for name, text in _METHODS.items() if _fits(session, name)
    )
    return page.html(
        "checkout",
        status=402 if problem else 200,
        leads_to=[url for name in ("success_url", "cancel_url") if (url := session.options.get(name))],
        amount=_amount(session),
        email=session.email or "",
        items=page.Html(items),
        methods=page.Html(options),
        problem=page.Html(f'<p role="alert">{escape(problem)}</p>' if problem else ""),
        cancel=page.Html(_CANCEL if "cancel_url" in session.options else ""),
    )


def _fits(session: Session, method: str) -> bool:
    return CARDS[method].kind in session.options["types"] or session.options["types"] == ["card"]


def _success_url(session: Session) -> str:
    return str(session.options["success_url"]).replace("{CHECKOUT_SESSION_ID}", session.id)


def _targets(sandbox: Sandbox, intent: Intent, back: str | None) -> list[str]:
    """The addresses after a challenge: the shop's, also by way of the Checkout page."""
    session = sandbox.stripe.sessions.rows.get(intent.checkout or "")
    return [url for url in (back, session and session.options["success_url"]) if url]


def _amount(row: Intent | Session | Dispute) -> str:
    return readable(row.amount, row.currency)


def _shown(row: Intent | Session | Dispute, actions: dict[str, tuple[str, Json]], url: str | None = None) -> Json:
    return {
        "id": row.id,
        "amount": _amount(row),
        "status": row.status,
        "created": row.created,
        "url": url,
        "actions": [{"label": label, "path": path, "body": body} for label, (path, body) in actions.items()],
    }


def _session(row: Session) -> Json:
    if row.status != "open":
        return _shown(row, {})
    return _shown(row, {"Expire": (f"checkout/sessions/{row.id}/expire", {})}, f"/c/pay/{row.id}")


def _intent(row: Intent, charge: Charge | None) -> Json:
    base, good, bad = f"payment_intents/{row.id}", {"outcome": "succeed"}, {"outcome": "fail"}
    actions: dict[str, dict[str, tuple[str, Json]]] = {
        "requires_action": {
            "Approve": (f"{base}/authenticate", good), "Refuse": (f"{base}/authenticate", bad),
        },
        "processing": {"Settle": (f"{base}/settle", good), "Fail": (f"{base}/settle", bad)},
        "requires_capture": {"Expire": (f"{base}/expire", {})},
        "succeeded": {} if charge is None or charge.dispute else {"Dispute": (f"{base}/dispute", {})},
    }  # fmt: skip
    challenged = row.status == "requires_action"
    return _shown(row, actions.get(row.status, {}), f"/_sandbox/{base}/authenticate" if challenged else None)


def _dispute(row: Dispute) -> Json:
    if row.status not in disputes.OPEN:
        return _shown(row, {})
    path = f"disputes/{row.id}/decide"
    return _shown(row, {"Win": (path, {"outcome": "win"}), "Lose": (path, {"outcome": "lose"})})


async def _form(request: web.BaseRequest) -> dict[str, str]:
    raw = await bodies.read(request, _FORM_BYTES_MAX)
    try:
        return {name: values[-1] for name, values in parse_qs(raw.decode(), max_num_fields=10).items()}
    except ValueError:
        raise Refusal(400, "The form cannot be read.") from None
