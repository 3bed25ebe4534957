"""Stripe's endpoints: maps each URL to an operation, and renders the object that it returns."""

from __future__ import annotations

from sandbox.rows import Event, Json
from sandbox.stripe import render
from sandbox.stripe.book import StripeBook
from sandbox.stripe.errors import ApiError
from sandbox.stripe.render import payments as render_payments
from sandbox.stripe.render.disputes import transaction as render_transaction
from sandbox.stripe.routes import buyers, disputes, payments
from sandbox.stripe.routes.call import Call, Operation
from sandbox.stripe.routes.expanding import expand
from sandbox.stripe.rows import Intent
from sandbox.stripe.rules.balance import Transaction

# Operations by method and URL; "*" stands for an id.
ROUTES: dict[tuple[str, str], Operation] = {
    ("POST", "payment_intents"): payments.create_intent,
    ("GET", "payment_intents"): payments.list_intents,
    ("GET", "payment_intents/*"): payments.retrieve_intent,
    ("POST", "payment_intents/*/confirm"): payments.confirm_intent,
    ("POST", "payment_intents/*/capture"): payments.capture_intent,
    ("POST", "payment_intents/*/cancel"): payments.cancel_intent,
    ("GET", "charges"): payments.list_charges,
    ("GET", "charges/*"): payments.retrieve_charge,
    ("POST", "refunds"): payments.create_refund,
    ("GET", "refunds"): payments.list_refunds,
    ("GET", "refunds/*"): payments.retrieve_refund,
    ("GET", "events"): payments.list_events,
    ("GET", "events/*"): payments.retrieve_event,
    ("POST", "customers"): buyers.create_customer,
    ("GET", "customers"): buyers.list_customers,
    ("GET", "customers/*"): buyers.retrieve_customer,
    ("POST", "customers/*"): buyers.update_customer,
    ("DELETE", "customers/*"): buyers.delete_customer,
    ("GET", "customers/*/payment_methods"): buyers.list_methods_of_customer,
    ("GET", "payment_methods"): buyers.list_methods,
    ("GET", "payment_methods/*"): buyers.retrieve_method,
    ("POST", "payment_methods/*/attach"): buyers.attach_method,
    ("POST", "payment_methods/*/detach"): buyers.detach_method,
    ("POST", "checkout/sessions"): buyers.create_session,
    ("GET", "checkout/sessions"): buyers.list_sessions,
    ("GET", "checkout/sessions/*"): buyers.retrieve_session,
    ("POST", "checkout/sessions/*/expire"): buyers.expire_session,
    ("GET", "disputes"): disputes.list_disputes,
    ("GET", "disputes/*"): disputes.retrieve_dispute,
    ("POST", "disputes/*"): disputes.update_dispute,
    ("POST", "disputes/*/close"): disputes.close_dispute,
    ("GET", "balance_transactions"): disputes.list_transactions,
    ("GET", "balance_transactions/*"): disputes.retrieve_transaction,
}
NAMES: dict[Operation, str] = {operation: " ".join(url) for url, operation in ROUTES.items()}
# The operations that a publishable key may call.
FOR_BUYERS: frozenset[Operation] = frozenset((payments.retrieve_intent, payments.confirm_intent))


def perform(book: StripeBook, operation: Operation, call: Call) -> Json:
    """Collects the changes in `call.work`, and renders the answer with the requested expansions."""
    expansions = call.params.strings("expand")
    answer = operation(book, call)
    if isinstance(answer, dict):
        for item in answer["data"]:
            expand(book, call.work, item, [name.removeprefix("data.") for name in expansions])
        return answer
    if isinstance(answer, Intent) and call.buyer:
        return render_payments.intent_for_buyer(answer)
    if isinstance(answer, Event):
        body = render.event(answer)
    elif isinstance(answer, Transaction):
        body = render_transaction(answer)
    else:
        body = render.subject(answer)
    expand(book, call.work, body, expansions)
    return body


def route(method: str, path: str) -> tuple[Operation, str]:
    """The operation of a URL, and the id in the URL. Raises Stripe's 404 if there is no such operation."""
    parts = path.removeprefix("/v1/").split("/")
    identifier = ""
    place = 2 if parts[0] == "checkout" else 1
    if len(parts) > place:
        identifier, parts[place] = parts[place], "*"
    operation = ROUTES.get((method, "/".join(parts)))
    if operation is None or (len(parts) > place and not identifier):
        raise ApiError(
            404,
            f"Unrecognized request URL ({method}: {path[:200]}). Please see https://stripe.com/docs or "
            "we can help at https://support.stripe.com/.",
        )
    return operation, identifier
