"""The URLs of Razorpay's protocol: each is one operation on the book."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

from sandbox.razorpay import render
from sandbox.razorpay.book import RazorpayBook
from sandbox.razorpay.errors import ApiError, invalid, unknown_id
from sandbox.razorpay.parameters import COUNT_MAX, Params
from sandbox.razorpay.rows import Dispute, Order, Payment, Refund, Subject
from sandbox.razorpay.rules import orders, refunds
from sandbox.rows import Json, Work
from sandbox.state.store import Row, Table

_COUNT, _YEAR_5138 = 10, 10**11


@dataclass(frozen=True, slots=True, kw_only=True)
class Call:
    """One request, after authentication. `pending`: refunds wait for the bank."""

    ids: tuple[str, ...]
    params: Params
    work: Work
    pending: bool = False


Operation = Callable[[RazorpayBook, Call], Json]


def route(method: str, path: str) -> tuple[str, Operation, tuple[str, ...]]:
    """Finds the operation of a request, its name and its ids. Raises `ApiError` if there is none."""
    parts = path.removeprefix("/v1/").split("/")
    shape = tuple("*" if index % 2 and part not in _ACTIONS else part for index, part in enumerate(parts))
    found = _ROUTES.get((method, shape))
    if found is None:
        raise ApiError(404, "The requested URL was not found on the server.")
    return f"{method} {shape[-1] if shape[-1] != '*' else shape[-2]}", found, tuple(parts[1::2])


def find_order(book: RazorpayBook, identifier: str) -> Order:
    return _find(book.orders, identifier)


def find_payment(book: RazorpayBook, identifier: str) -> Payment:
    return _find(book.payments, identifier)


def find_refund(book: RazorpayBook, identifier: str) -> Refund:
    return _find(book.refunds, identifier)


def find_dispute(book: RazorpayBook, identifier: str) -> Dispute:
    return _find(book.disputes, identifier)


def _find(table: Table[Row], identifier: str) -> Row:
    row = table.rows.get(identifier)
    if row is None:
        raise unknown_id()
    return row


def _create_order(_book: RazorpayBook, call: Call) -> Json:
    return render.order(orders.create(call.work, call.params))


def _list_orders(book: RazorpayBook, call: Call) -> Json:
    receipt = call.params.text("receipt")
    if receipt is None:
        return _page(book.orders, call.params)
    found = [book.orders.rows[key] for key in reversed(book.by_receipt.get(receipt, ()))]
    return render.collection(_sliced(found, call.params))


def _payments_of_order(book: RazorpayBook, call: Call) -> Json:
    order = find_order(book, call.ids[0])
    return render.collection([book.payments.rows[key] for key in reversed(book.payments_of.get(order.id, ()))])


def _capture(book: RazorpayBook, call: Call) -> Json:
    payment = find_payment(book, call.ids[0])
    return render.payment(orders.capture(call.work, find_order(book, payment.order), payment, call.params))


def _refund(book: RazorpayBook, call: Call) -> Json:
    made = refunds.create(call.work, find_payment(book, call.ids[0]), call.params, pending=call.pending)
    return render.refund(made)


def _refunds_of_payment(book: RazorpayBook, call: Call) -> Json:
    payment = find_payment(book, call.ids[0])
    found = [book.refunds.rows[key] for key in reversed(book.refunds_of.get(payment.id, ()))]
    return render.collection(_sliced(found, call.params))


def _page(table: Table[Row], params: Params) -> Json:
    """A page of a list, newest first: Razorpay counts with `skip`, so new rows shift the pages."""
    since = params.integer("from", most=_YEAR_5138, default=0)
    until = params.integer("to", most=_YEAR_5138, default=_YEAR_5138)
    if since > until:
        raise invalid("from must be less than or equal to to", "from")
    rows: list[Row] = []
    for row in table.newest_first(until=until):
        if row.created < since:
            break
        rows.append(row)
    return render.collection(_sliced(rows, params))


def _sliced(rows: list[Row], params: Params) -> list[Row]:
    count = params.integer("count", least=1, most=COUNT_MAX, default=_COUNT)
    skip = params.integer("skip", default=0)
    params.end()
    return rows[skip : skip + count]


def _show(table: Callable[[RazorpayBook], Table[Row]]) -> Operation:
    def show(book: RazorpayBook, call: Call) -> Json:
        return render.render(_as_subject(_find(table(book), call.ids[-1])))

    return show


def _list(table: Callable[[RazorpayBook], Table[Row]]) -> Operation:
    return lambda book, call: _page(table(book), call.params)


def _as_subject(row: object) -> Subject:
    assert isinstance(row, Order | Payment | Refund | Dispute)
    return row


_ACTIONS = frozenset(["capture", "refund", "refunds", "payments"])
_ROUTES: dict[tuple[str, tuple[str, ...]], Operation] = {
    ("POST", ("orders",)): _create_order,
    ("GET", ("orders",)): _list_orders,
    ("GET", ("orders", "*")): _show(lambda book: book.orders),
    ("GET", ("orders", "*", "payments")): _payments_of_order,
    ("GET", ("payments",)): _list(lambda book: book.payments),
    ("GET", ("payments", "*")): _show(lambda book: book.payments),
    ("POST", ("payments", "*", "capture")): _capture,
    ("POST", ("payments", "*", "refund")): _refund,
    ("GET", ("payments", "*", "refunds")): _refunds_of_payment,
    ("GET", ("payments", "*", "refunds", "*")): _show(lambda book: book.refunds),
    ("GET", ("refunds",)): _list(lambda book: book.refunds),
    ("GET", ("refunds", "*")): _show(lambda book: book.refunds),
    ("GET", ("disputes",)): _list(lambda book: book.disputes),
    ("GET", ("disputes", "*")): _show(lambda book: book.disputes),
}


def names() -> Iterable[str]:
    """The operations that a fault can name, such as `POST orders`."""
    return sorted({f"{method} {shape[-1] if shape[-1] != '*' else shape[-2]}" for method, shape in _ROUTES})
