"""One request to an endpoint, and what endpoints share: look-ups and pages of lists."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import islice
from typing import Any, TypeVar

from sandbox.rows import Event, Json, Subject, Work
from sandbox.state.store import Table
from sandbox.stripe import render
from sandbox.stripe.book import StripeBook
from sandbox.stripe.errors import no_such
from sandbox.stripe.forms import Params
from sandbox.stripe.rows import Subject as StripeSubject
from sandbox.stripe.rules.balance import Transaction

PAGE_DEFAULT = 10
PAGE_MAX = 100
SECOND_MAX = 2**40

Row = TypeVar("Row", bound=Subject)


@dataclass(slots=True)
class Call:
    """One parsed and authorised request. `id` is the id in its URL; `buyer` means a publishable key."""

    operation: Operation
    id: str
    params: Params
    buyer: bool
    work: Work


Answer = StripeSubject | Event | Transaction | Json
Operation = Callable[[StripeBook, Call], Answer]


def find(table: Table[Row], noun: str, identifier: str, *, param: str = "id", status: int = 404) -> Row:
    """A row by its id. Raises Stripe's error for one that does not exist."""
    row = table.rows.get(identifier)
    if row is None:
        raise no_such(noun, identifier[:100], param=param, status=status)
    return row


def page(
    call: Call,
    table: Table[Row],
    url: str,
    noun: str,
    *,
    show: Callable[[Row], Json] | None = None,
    rows: Iterator[Row] | None = None,
    extra: tuple[str, ...] = (),
    matches: Callable[[Row], bool] = lambda _row: True,
) -> Json:
    """One page, newest first, of the table or of `rows`, which a filter's index has found."""
    params = call.params
    params.only(("limit", "starting_after", "created", "expand", *extra))
    after = params.text("starting_after")
    if after is not None:
        find(table, noun, after, param="starting_after", status=400)
    least, most = _created(params)
    if rows is None:
        found = table.newest_first(after=after, until=None if after is not None else most)
    else:
        found = _behind(rows, after)
    kept: list[Row] = []
    limit = _limit(params)
    for row in found:
        if least is not None and row.created < least:
            break
        if (most is None or row.created <= most) and matches(row):
            kept.append(row)
            if len(kept) > limit:
                break
    return shown(kept, limit, url, show or render.subject)


def shown(rows: list[Any], limit: int, url: str, show: Callable[[Any], Json]) -> Json:
    """A page of the first `limit` rows; one more of them shows that there is another page."""
    return render.page([show(row) for row in rows[:limit]], has_more=len(rows) > limit, url=url)


def limited(call: Call, rows: Iterator[Any], url: str, show: Callable[[Any], Json]) -> Json:
    """One page of rows that no table holds."""
    limit = _limit(call.params)
    found = _behind(rows, call.params.text("starting_after"))
    return shown(list(islice(found, limit + 1)), limit, url, show)


def _limit(params: Params) -> int:
    return params.integer("limit", least=1, most=PAGE_MAX) or PAGE_DEFAULT


def _behind(rows: Iterator[Row], after: str | None) -> Iterator[Row]:
    if after is not None:
        for row in rows:
            if row.id == after:
                break
    return rows


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
