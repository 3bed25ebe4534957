"""The acts of customers, banks and people at the dashboard, below `/_sandbox/razorpay/`."""

from __future__ import annotations

from collections.abc import Callable
from itertools import islice
from typing import Any

from aiohttp import web

from sandbox.razorpay import render, routes
from sandbox.razorpay.errors import invalid
from sandbox.razorpay.notices import signature
from sandbox.razorpay.parameters import Params
from sandbox.razorpay.rows import Order, Payment
from sandbox.razorpay.rules import orders, refunds
from sandbox.rows import Json, Work
from sandbox.service import Sandbox
from sandbox.wire.bodies import json_answer, json_body

SHOWN = 25
_OUTCOMES = ("begin", "authorize", "capture", "fail")


async def handle(sandbox: Sandbox, request: web.BaseRequest, parts: list[str]) -> web.StreamResponse | None:
    """Answers `/_sandbox/` and `parts`; None if there is no such command."""
    if request.method != "POST" or parts[:1] != ["razorpay"] or len(parts) != 4:
        return None
    _, kind, identifier, action = parts
    command = _COMMANDS.get((kind, action))
    if command is None:
        return None
    wanted = await json_body(request) if request.can_read_body else {}
    if not isinstance(wanted, dict):
        raise invalid("The body is a JSON object.")
    work = sandbox.work("razorpay")
    answer = command(sandbox, work, identifier, wanted)
    sandbox.commit(work)
    await sandbox.durable()
    return json_answer(answer)


def overview(sandbox: Sandbox) -> list[Json]:
    """The newest orders and payments for the sandbox's page, with the commands that apply to each."""
    book = sandbox.razorpay
    orders_shown = [_shown(row, "orders") for row in islice(book.orders.newest_first(), SHOWN)]
    payments_shown = [_shown(row, "payments") for row in islice(book.payments.newest_first(), SHOWN)]
    return [
        {"title": "Razorpay: orders", "objects": orders_shown},
        {"title": "Razorpay: payments", "objects": payments_shown},
    ]


def _shown(row: Order | Payment, kind: str) -> Json:
    base = f"razorpay/{kind}/{row.id}"
    pay = {"Pay": (f"{base}/pay", {"outcome": "authorize"})}
    actions: dict[tuple[str, str], dict[str, tuple[str, Json]]] = {
        ("orders", "created"): pay,
        ("orders", "attempted"): pay,
        ("payments", "created"): {"Authorize": (f"{base}/authorize", {}), "Fail": (f"{base}/fail", {})},
        ("payments", "authorized"): {"Capture": (f"{base}/capture", {}), "Expire": (f"{base}/expire", {})},
    }
    return {
        "id": row.id,
        "amount": f"{row.amount} {row.currency}",
        "status": row.status,
        "created": row.created,
        "url": None,
        "actions": [
            {"label": label, "path": path, "body": body}
            for label, (path, body) in actions.get((kind, row.status), {}).items()
        ],
    }


def _pay(sandbox: Sandbox, work: Work, identifier: str, wanted: dict[str, Any]) -> Json:
    """Has a customer pay an order in Checkout; returns what Checkout hands to the shop's page."""
    order = routes.find_order(sandbox.razorpay, identifier)
    outcome, method = wanted.get("outcome", "authorize"), wanted.get("method", "card")
    if outcome not in _OUTCOMES:
        raise invalid(f"The outcome must be one of {', '.join(_OUTCOMES)}.", "outcome")
    payment = orders.begin(work, order, method=method)
    order = order._replace(status="attempted", attempts=order.attempts + 1)
    if outcome in ("authorize", "capture"):
        payment = orders.authorise(work, order, payment, captures=outcome == "capture")
    elif outcome == "fail":
        payment = orders.fail(work, payment, reason=wanted.get("reason", "payment_failed"))
    return callback(sandbox, payment)


def callback(sandbox: Sandbox, payment: Payment) -> Json:
    """Returns what Checkout hands to the shop's page, and the payment."""
    message = f"{payment.order}|{payment.id}".encode()
    return {
        "razorpay_order_id": payment.order,
        "razorpay_payment_id": payment.id,
        "razorpay_signature": signature(sandbox.settings.razorpay_key_secret, message),
        "payment": render.payment(payment),
    }


def _of_payment(rule: Callable[[Sandbox, Work, Payment, dict[str, Any]], Payment]) -> Any:
    def command(sandbox: Sandbox, work: Work, identifier: str, wanted: dict[str, Any]) -> Json:
        payment = routes.find_payment(sandbox.razorpay, identifier)
        return callback(sandbox, rule(sandbox, work, payment, wanted))

    return command


def _authorise(sandbox: Sandbox, work: Work, payment: Payment, wanted: dict[str, Any]) -> Payment:
    order = routes.find_order(sandbox.razorpay, payment.order)
    return orders.authorise(work, order, payment, captures=wanted.get("capture") is True)


def _fail(_sandbox: Sandbox, work: Work, payment: Payment, wanted: dict[str, Any]) -> Payment:
    return orders.fail(work, payment, reason=wanted.get("reason", "payment_failed"))


def _expire(_sandbox: Sandbox, work: Work, payment: Payment, _wanted: dict[str, Any]) -> Payment:
    return orders.expire(work, payment)


def _capture(sandbox: Sandbox, work: Work, payment: Payment, _wanted: dict[str, Any]) -> Payment:
    """As people can at the dashboard."""
    order = routes.find_order(sandbox.razorpay, payment.order)
    params = Params({"amount": payment.amount, "currency": payment.currency})
    captured = orders.capture(work, order, payment, params)
    work.effects.clear()
    return captured


def _refund(sandbox: Sandbox, work: Work, identifier: str, wanted: dict[str, Any]) -> Json:
    """As people can at the dashboard."""
    made = refunds.create(work, routes.find_payment(sandbox.razorpay, identifier), Params(wanted), pending=False)
    work.effects.clear()
    return render.refund(made)


def _process_refund(sandbox: Sandbox, work: Work, identifier: str, _wanted: dict[str, Any]) -> Json:
    return render.refund(refunds.process(work, routes.find_refund(sandbox.razorpay, identifier)))


def _fail_refund(sandbox: Sandbox, work: Work, identifier: str, _wanted: dict[str, Any]) -> Json:
    refund = routes.find_refund(sandbox.razorpay, identifier)
    return render.refund(refunds.fail(work, routes.find_payment(sandbox.razorpay, refund.payment), refund))


def _dispute(sandbox: Sandbox, work: Work, identifier: str, wanted: dict[str, Any]) -> Json:
    payment = routes.find_payment(sandbox.razorpay, identifier)
    return render.dispute(refunds.dispute(work, payment, reason=wanted.get("reason", refunds.REASONS[0])))


def _decide(sandbox: Sandbox, work: Work, identifier: str, wanted: dict[str, Any]) -> Json:
    opened = routes.find_dispute(sandbox.razorpay, identifier)
    return render.dispute(refunds.decide(work, opened, outcome=wanted.get("outcome", "won")))


_COMMANDS: dict[tuple[str, str], Callable[[Sandbox, Work, str, dict[str, Any]], Json]] = {
    ("orders", "pay"): _pay,
    ("payments", "authorize"): _of_payment(_authorise),
    ("payments", "fail"): _of_payment(_fail),
    ("payments", "expire"): _of_payment(_expire),
    ("payments", "capture"): _of_payment(_capture),
    ("payments", "refund"): _refund,
    ("payments", "dispute"): _dispute,
    ("refunds", "process"): _process_refund,
    ("refunds", "fail"): _fail_refund,
    ("disputes", "decide"): _decide,
}
