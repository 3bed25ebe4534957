"""The endpoints of intents, charges, refunds and events."""

from __future__ import annotations

from sandbox.rows import Event, Json
from sandbox.stripe import render
from sandbox.stripe.book import StripeBook
from sandbox.stripe.errors import ApiError, invalid, missing_param
from sandbox.stripe.routes.call import Call, find, page
from sandbox.stripe.rows import Charge, Intent, Refund
from sandbox.stripe.rules import intents, refunds


def find_intent(book: StripeBook, identifier: str, *, param: str = "intent", status: int = 404) -> Intent:
    return find(book.intents, "payment_intent", identifier, param=param, status=status)


def create_intent(book: StripeBook, call: Call) -> Intent:
    return intents.create(call.work, book, call.params)


def retrieve_intent(book: StripeBook, call: Call) -> Intent:
    intent = find_intent(book, call.id)
    call.params.only(("client_secret", "expand", "key") if call.buyer else ("client_secret", "expand"))
    if call.buyer or "client_secret" in call.params:
        intents.check_client_secret(intent, call.params)
    return intent


def confirm_intent(book: StripeBook, call: Call) -> Intent:
    return intents.confirm(call.work, book, find_intent(book, call.id), call.params, by_buyer=call.buyer)


def capture_intent(book: StripeBook, call: Call) -> Intent:
    return intents.capture_authorised(call.work, book, find_intent(book, call.id), call.params)


def cancel_intent(book: StripeBook, call: Call) -> Intent:
    return intents.cancel(call.work, book, find_intent(book, call.id), call.params)


def list_intents(book: StripeBook, call: Call) -> Json:
    customer = call.params.text("customer")
    return page(
        call, book.intents, "/v1/payment_intents", "payment_intent", extra=("customer",),
        matches=lambda intent: customer is None or intent.customer == customer,
    )  # fmt: skip


def retrieve_charge(book: StripeBook, call: Call) -> Charge:
    call.params.only(("expand",))
    return find(book.charges, "charge", call.id)


def list_charges(book: StripeBook, call: Call) -> Json:
    rows = None
    if (intent := call.params.text("payment_intent")) is not None:
        find_intent(book, intent, param="payment_intent")
        rows = (book.charges.rows[key] for key in reversed(book.charges_of.get(intent, ())))
    return page(call, book.charges, "/v1/charges", "charge", rows=rows, extra=("payment_intent",))


def create_refund(book: StripeBook, call: Call) -> Refund:
    params = call.params
    params.only(refunds.CREATE)
    charge_id, intent_id = params.text("charge"), params.text("payment_intent")
    if (charge_id is None) == (intent_id is None):
        if charge_id is None:
            raise missing_param("payment_intent")
        raise invalid("You may only specify one of these parameters: charge, payment_intent.")
    if intent_id is not None:
        intent = find_intent(book, intent_id, param="payment_intent")
        charge = book.charge_of(intent)
        if charge is None:
            message = f"This PaymentIntent ({intent.id}) does not have a successful charge to refund."
            raise ApiError(400, message, code="payment_intent_unexpected_state", saved=True, intent=intent)
    else:
        charge = find(book.charges, "charge", str(charge_id), param="charge")
    return refunds.create(call.work, book, charge, params)


def retrieve_refund(book: StripeBook, call: Call) -> Refund:
    call.params.only(("expand",))
    return find(book.refunds, "refund", call.id)


def list_refunds(book: StripeBook, call: Call) -> Json:
    intent, charge = call.params.text("payment_intent"), call.params.text("charge")
    rows = None
    if intent is not None:
        find_intent(book, intent, param="payment_intent")
        rows = (book.refunds.rows[key] for key in reversed(book.refunds_of.get(intent, ())))
    elif charge is not None:
        find(book.charges, "charge", charge, param="charge")
        rows = (book.refunds.rows[key] for key in refunds_of(book, charge))
    return page(call, book.refunds, "/v1/refunds", "refund", rows=rows, extra=("payment_intent", "charge"))


def refunds_of(book: StripeBook, charge: str) -> list[str]:
    """The ids of a charge's refunds, newest first."""
    intent = book.charges.rows[charge].intent
    mine = reversed(book.refunds_of.get(intent, ()))
    return [key for key in mine if book.refunds.rows[key].charge == charge]


def retrieve_event(book: StripeBook, call: Call) -> Event:
    call.params.only(("expand",))
    return find(book.events, "event", call.id)


def list_events(book: StripeBook, call: Call) -> Json:
    kinds = set(call.params.strings("types"))
    if (kind := call.params.text("type")) is not None:
        kinds.add(kind)
    return page(
        call, book.events, "/v1/events", "event", show=render.event, extra=("type", "types"),
        matches=lambda event: not kinds or event.type in kinds,
    )  # fmt: skip
