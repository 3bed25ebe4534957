"""Stripe's endpoints: maps each URL to a rule, and renders the object that the rule returns."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import islice
from typing import TypeVar

from sandbox.rows import Event, Json, Work
from sandbox.state.store import Table
from sandbox.stripe import render
from sandbox.stripe.book import StripeBook
from sandbox.stripe.errors import ApiError, invalid, missing_param, no_such
from sandbox.stripe.forms import Params
from sandbox.stripe.rows import Charge, Intent, Refund, Subject
from sandbox.stripe.rules import intents, refunds

PAGE_DEFAULT = 10
PAGE_MAX = 100
SECOND_MAX = 2**40

EXPANDABLE = {
    "payment_intent": ("latest_charge",),
    "charge": ("payment_intent", "refunds"),
    "refund": ("charge", "payment_intent"),
    "event": (),
}

Row = TypeVar("Row", Intent, Charge, Refund, Event)


@dataclass(slots=True)
class Call:
    """One parsed and authorised request. `id` is the id in its URL; `buyer` means a publishable key."""

    id: str
    params: Params
    buyer: bool
    work: Work


Operation = Callable[[StripeBook, Call], Subject | Event | Json]


def perform(book: StripeBook, operation: Operation, call: Call) -> Json:
    """Collects the changes in `call.work`, and renders the answer with the requested expansions.

    The store does not have these changes yet, so expansions look into `call.work` first.
    """
    expansions = call.params.strings("expand")
    answer = operation(book, call)
    if isinstance(answer, dict):
        for item in answer["data"]:
            expand(book, call.work, item, [name.removeprefix("data.") for name in expansions])
        return answer
    if isinstance(answer, Event):
        body = render.event(answer)
    elif isinstance(answer, Intent) and call.buyer:
        return render.intent_for_buyer(answer)
    else:
        body = render.subject(answer)
    expand(book, call.work, body, expansions)
    return body


def expand(book: StripeBook, work: Work, body: Json, expansions: list[str]) -> None:
    """Replaces ids with the objects that they name, one level deep."""
    if not expansions:
        return
    fresh = {change.id: change for change in work.changes if not isinstance(change, Event)}
    for name in expansions:
        if name not in EXPANDABLE[body["object"]]:
            raise invalid(f"This property cannot be expanded ({name}).", param="expand")
        if name == "refunds":
            found = [render.refund(book.refunds.rows[r]) for r in _refunds_of(book, body["id"])]
            url = f"/v1/charges/{body['id']}/refunds"
            body[name] = render.page(found[:PAGE_DEFAULT], has_more=len(found) > PAGE_DEFAULT, url=url)
            continue
        identifier = body[name]
        if not isinstance(identifier, str):
            continue
        table: Table[Intent] | Table[Charge] = book.intents if name == "payment_intent" else book.charges
        subject = fresh.get(identifier) or table.rows[identifier]
        body[name] = render.subject(subject)


def find_intent(book: StripeBook, identifier: str, *, param: str = "intent", status: int = 404) -> Intent:
    intent = book.intents.rows.get(identifier)
    if intent is None:
        raise no_such("payment_intent", identifier[:100], param=param, status=status)
    return intent


def find_refund(book: StripeBook, identifier: str) -> Refund:
    refund = book.refunds.rows.get(identifier)
    if refund is None:
        raise no_such("refund", identifier[:100])
    return refund


def _create_intent(_book: StripeBook, call: Call) -> Intent:
    return intents.create(call.work, call.params)


def _retrieve_intent(book: StripeBook, call: Call) -> Intent:
    intent = find_intent(book, call.id)
    call.params.only(("client_secret", "expand", "key") if call.buyer else ("client_secret", "expand"))
    if call.buyer or "client_secret" in call.params:
        intents.check_client_secret(intent, call.params)
    return intent


def _confirm_intent(book: StripeBook, call: Call) -> Intent:
    return intents.confirm(call.work, find_intent(book, call.id), call.params, by_buyer=call.buyer)


def _cancel_intent(book: StripeBook, call: Call) -> Intent:
    return intents.cancel(call.work, find_intent(book, call.id), call.params)


def _list_intents(book: StripeBook, call: Call) -> Json:
    return _page(call, book.intents, "/v1/payment_intents", "payment_intent", render.intent)


def _retrieve_charge(book: StripeBook, call: Call) -> Charge:
    call.params.only(("expand",))
    charge = book.charges.rows.get(call.id)
    if charge is None:
        raise no_such("charge", call.id[:100])
    return charge


def _list_charges(book: StripeBook, call: Call) -> Json:
    rows = None
    if (intent := call.params.text("payment_intent")) is not None:
        find_intent(book, intent, param="payment_intent")
        rows = (book.charges.rows[key] for key in reversed(book.charges_of.get(intent, ())))
    return _page(call, book.charges, "/v1/charges", "charge", render.charge, rows, ("payment_intent",))


def _create_refund(book: StripeBook, call: Call) -> Refund:
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
        found = book.charges.rows.get(charge_id or "")
        if found is None:
            raise no_such("charge", str(charge_id)[:100], param="charge")
        charge = found
    return refunds.create(call.work, charge, params)


def _retrieve_refund(book: StripeBook, call: Call) -> Refund:
    call.params.only(("expand",))
    return find_refund(book, call.id)


def _list_refunds(book: StripeBook, call: Call) -> Json:
    intent, charge = call.params.text("payment_intent"), call.params.text("charge")
    rows = None
    if intent is not None:
        find_intent(book, intent, param="payment_intent")
        rows = (book.refunds.rows[key] for key in reversed(book.refunds_of.get(intent, ())))
    elif charge is not None:
        if charge not in book.charges.rows:
            raise no_such("charge", charge[:100], param="charge")
        rows = (book.refunds.rows[key] for key in _refunds_of(book, charge))
    extra = ("payment_intent", "charge")
    return _page(call, book.refunds, "/v1/refunds", "refund", render.refund, rows, extra)


def _retrieve_event(book: StripeBook, call: Call) -> Event:
    call.params.only(("expand",))
    event = book.events.rows.get(call.id)
    if event is None:
        raise no_such("event", call.id[:100])
    return event


def _list_events(book: StripeBook, call: Call) -> Json:
    kinds = set(call.params.strings("types"))
    if (kind := call.params.text("type")) is not None:
        kinds.add(kind)
    return _page(
        call, book.events, "/v1/events", "event", render.event, None, ("type", "types"),
        lambda event: not kinds or event.type in kinds,
    )  # fmt: skip


def _refunds_of(book: StripeBook, charge: str) -> list[str]:
    """The ids of a charge's refunds, newest first."""
    intent = book.charges.rows[charge].intent
    mine = reversed(book.refunds_of.get(intent, ()))
    return [key for key in mine if book.refunds.rows[key].charge == charge]


def _page(
    call: Call,
    table: Table[Row],
    url: str,
    noun: str,
    show: Callable[[Row], Json],
    rows: Iterator[Row] | None = None,
    extra: tuple[str, ...] = (),
    matches: Callable[[Row], bool] = lambda _row: True,
) -> Json:
    """One page, newest first, of the table or of `rows`, which a filter's index has found."""
    params = call.params
    params.only(("limit", "starting_after", "created", "expand", *extra))
    limit = params.integer("limit", least=1, most=PAGE_MAX) or PAGE_DEFAULT
    after = params.text("starting_after")
    if after is not None and after not in table.rows:
        raise no_such(noun, after[:100], param="starting_after", status=400)
    least, most = _created(params)
    if rows is None:
        found = table.newest_first(after=after, until=None if after is not None else most)
    else:
        found = _behind(rows, after)
    kept: list[Json] = []
    for row in found:
        if least is not None and row.created < least:
            break
        if (most is None or row.created <= most) and matches(row):
            if len(kept) == limit:
                return render.page(kept, has_more=True, url=url)
            kept.append(show(row))
    return render.page(kept, has_more=False, url=url)


def _behind(rows: Iterator[Row], after: str | None) -> Iterator[Row]:
    if after is not None:
        for row in rows:
            if row.id == after:
                break
    return islice(rows, None)


def _created(params: Params) -> tuple[int | None, int | None]:
    """The first and the last second that the parameter `created` allows."""
    bounds = params.nested("created")
    if bounds is None:
        return None, None
    bounds.only(("gt", "gte", "lt", "lte"))
    read = {name: bounds.integer(name, least=0, most=SECOND_MAX) for name in ("gt", "gte", "lt", "lte")}
    gt, gte, lt, lte = read["gt"], read["gte"], read["lt"], read["lte"]
    least = gte if gt is None else gt + 1
    most = lte if lt is None else lt - 1
    return least, most


# Operations by method and URL; "*" stands for an id.
ROUTES: dict[tuple[str, str], Operation] = {
    ("POST", "payment_intents"): _create_intent,
    ("GET", "payment_intents"): _list_intents,
    ("GET", "payment_intents/*"): _retrieve_intent,
    ("POST", "payment_intents/*/confirm"): _confirm_intent,
    ("POST", "payment_intents/*/cancel"): _cancel_intent,
    ("GET", "charges"): _list_charges,
    ("GET", "charges/*"): _retrieve_charge,
    ("POST", "refunds"): _create_refund,
    ("GET", "refunds"): _list_refunds,
    ("GET", "refunds/*"): _retrieve_refund,
    ("GET", "events"): _list_events,
    ("GET", "events/*"): _retrieve_event,
}
NAMES: dict[Operation, str] = {operation: " ".join(url) for url, operation in ROUTES.items()}
# The operations that a publishable key may call.
FOR_BUYERS: frozenset[Operation] = frozenset((_retrieve_intent, _confirm_intent))


def route(method: str, path: str) -> tuple[Operation, str]:
    """The operation of a URL, and the id in the URL. Raises Stripe's 404 if there is no such operation."""
    parts = path.removeprefix("/v1/").split("/")
    identifier = ""
    if len(parts) > 1:
        identifier, parts[1] = parts[1], "*"
    operation = ROUTES.get((method, "/".join(parts)))
    if operation is None or (len(parts) > 1 and not identifier):
        raise ApiError(
            404,
            f"Unrecognized request URL ({method}: {path[:200]}). Please see https://stripe.com/docs or "
            "we can help at https://support.stripe.com/.",
        )
    return operation, identifier
