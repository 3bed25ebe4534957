"""Replaces ids in an answer with the objects that they name (`expand[]=latest_charge.balance_transaction`)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from sandbox.rows import Event, Json, Work
from sandbox.stripe import render
from sandbox.stripe.book import StripeBook
from sandbox.stripe.errors import invalid
from sandbox.stripe.render.cards import used_method
from sandbox.stripe.render.disputes import transaction
from sandbox.stripe.routes.call import PAGE_DEFAULT
from sandbox.stripe.routes.payments import refunds_of
from sandbox.stripe.rows import Charge, Dispute, Intent, Refund, Session
from sandbox.stripe.rules import balance

DEPTH_MAX = 4
# The properties of each object that can be expanded.
EXPANDABLE = {
    "payment_intent": ("latest_charge", "customer", "payment_method"),
    "charge": ("payment_intent", "refunds", "balance_transaction", "customer"),
    "refund": ("charge", "payment_intent", "balance_transaction", "failure_balance_transaction"),
    "checkout.session": ("payment_intent", "customer", "line_items"),
    "dispute": ("charge", "payment_intent"),
    "payment_method": ("customer",),
    "balance_transaction": ("source",),
}
Found = dict[str, Any]


def expand(book: StripeBook, work: Work, body: Json, names: list[str]) -> None:
    """Expands the properties in place.

    The store does not have the changes of `work` yet, so these are looked at first.
    """
    if not names:
        return
    fresh = {change.id: change for change in work.changes if not isinstance(change, Event)}
    for name in names:
        _expand(book, fresh, body, name.split("."), name)


def _expand(book: StripeBook, fresh: Found, body: Json, path: list[str], whole: str) -> None:
    name, rest = path[0], path[1:]
    if name not in EXPANDABLE.get(body.get("object", ""), ()) or len(path) > DEPTH_MAX:
        raise invalid(f"This property cannot be expanded ({whole}).", param="expand")
    if name in _LISTS:
        body[name] = _LISTS[name](book, fresh, body)
    elif isinstance(body.get(name), str):
        body[name] = _named(book, fresh, body[name])
    if rest and isinstance(body.get(name), dict):
        _expand(book, fresh, body[name], rest, whole)


def _named(book: StripeBook, fresh: Found, identifier: str) -> Json | str:
    """The object of an id; the id itself if the object was dropped from memory."""
    if identifier in fresh:
        return render.subject(fresh[identifier])
    prefix = identifier.partition("_")[0]
    if prefix == "txn":
        found = _transaction(book, fresh, identifier)
        assert found is not None
        return transaction(found)
    if prefix == "pm":
        return _method(book, fresh, identifier)
    tables: dict[str, Any] = {
        "pi": book.intents, "ch": book.charges, "re": book.refunds, "cus": book.customers, "dp": book.disputes,
    }  # fmt: skip
    row = tables[prefix].rows.get(identifier)
    return identifier if row is None else render.subject(row)


def _method(book: StripeBook, fresh: Found, identifier: str) -> Json:
    """A saved method; or one that was used once, which only its intent knows."""
    saved = book.methods.rows.get(identifier)
    if saved is not None:
        return render.subject(saved)
    intents = [row for row in fresh.values() if isinstance(row, Intent) and row.payment_method == identifier]
    card = intents[-1].card if intents else None
    if card is None:
        card = next(row.card for row in book.intents.rows.values() if row.payment_method == identifier)
    assert card is not None
    return used_method(identifier, card)


def _transaction(book: StripeBook, fresh: Found, identifier: str) -> balance.Transaction | None:
    views: list[balance.Transaction | None] = []
    for row in fresh.values():
        if isinstance(row, Charge):
            views.append(balance.of_charge(row))
        elif isinstance(row, Refund):
            views += (balance.of_refund(row), balance.of_failed_refund(row))
        elif isinstance(row, Dispute):
            views += balance.of_dispute(row)
    return next((each for each in views if each and each.id == identifier), None) or balance.find(book, identifier)


def _refunds(book: StripeBook, _fresh: Found, body: Json) -> Json:
    known = refunds_of(book, body["id"]) if body["id"] in book.charges.rows else []
    found = [render.subject(book.refunds.rows[key]) for key in known]
    url = f"/v1/charges/{body['id']}/refunds"
    return render.page(found[:PAGE_DEFAULT], has_more=len(found) > PAGE_DEFAULT, url=url)


def _line_items(book: StripeBook, fresh: Found, body: Json) -> Json:
    session = fresh.get(body["id"]) or book.sessions.rows[body["id"]]
    assert isinstance(session, Session)
    shown = [_line_item(session, index, item) for index, item in enumerate(session.items)]
    url = f"/v1/checkout/sessions/{session.id}/line_items"
    return render.page(shown[:PAGE_DEFAULT], has_more=len(shown) > PAGE_DEFAULT, url=url)


def _line_item(session: Session, index: int, item: Json) -> Json:
    total = item["unit_amount"] * item["quantity"]
    return {
        "id": f"li_{session.id[-20:]}{index}",
        "object": "item",
        "amount_discount": 0,
        "amount_subtotal": total,
        "amount_tax": 0,
        "amount_total": total,
        "currency": item["currency"],
        "description": item["name"],
        "metadata": {},
        "price": None,
        "quantity": item["quantity"],
    }


_LISTS: dict[str, Callable[[StripeBook, Found, Json], Json]] = {"refunds": _refunds, "line_items": _line_items}
