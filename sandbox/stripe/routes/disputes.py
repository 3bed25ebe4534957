"""The endpoints of disputes and balance transactions."""

from __future__ import annotations

from sandbox.rows import Json
from sandbox.stripe.book import StripeBook
from sandbox.stripe.errors import no_such
from sandbox.stripe.render.disputes import transaction as render_transaction
from sandbox.stripe.routes.call import Call, find, limited, page
from sandbox.stripe.routes.payments import find_intent
from sandbox.stripe.rows import Dispute
from sandbox.stripe.rules import balance, disputes


def retrieve_dispute(book: StripeBook, call: Call) -> Dispute:
    call.params.only(("expand",))
    return find_dispute(book, call.id)


def update_dispute(book: StripeBook, call: Call) -> Dispute:
    return disputes.update(call.work, find_dispute(book, call.id), call.params)


def close_dispute(book: StripeBook, call: Call) -> Dispute:
    return disputes.close(call.work, find_dispute(book, call.id), call.params)


def list_disputes(book: StripeBook, call: Call) -> Json:
    wanted = {name: call.params.text(name) for name in ("charge", "payment_intent")}
    if (intent := wanted["payment_intent"]) is not None:
        find_intent(book, intent, param="payment_intent")

    def matches(dispute: Dispute) -> bool:
        return wanted["charge"] in (None, dispute.charge) and wanted["payment_intent"] in (None, dispute.intent)

    return page(call, book.disputes, "/v1/disputes", "dispute", extra=tuple(wanted), matches=matches)


def find_dispute(book: StripeBook, identifier: str) -> Dispute:
    return find(book.disputes, "dispute", identifier)


def retrieve_transaction(book: StripeBook, call: Call) -> balance.Transaction:
    call.params.only(("expand",))
    found = balance.find(book, call.id)
    if found is None:
        raise no_such("balance_transaction", call.id[:100])
    return found


def list_transactions(book: StripeBook, call: Call) -> Json:
    params = call.params
    params.only(("limit", "starting_after", "source", "type", "currency", "expand"))
    wanted = {name: params.text(name) for name in ("source", "type", "currency")}
    found = (
        each
        for each in balance.newest_first(book)
        if wanted["source"] in (None, each.source)
        and wanted["type"] in (None, each.type)
        and wanted["currency"] in (None, each.currency)
    )
    return limited(call, found, "/v1/balance_transactions", render_transaction)
