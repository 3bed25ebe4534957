"""The sandbox's own API, `/_sandbox/`: faults, the ledger, and the commands of each protocol."""

from __future__ import annotations

import orjson
from aiohttp import web

from sandbox import page
from sandbox.faults import Faults
from sandbox.razorpay import commands as razorpay_commands
from sandbox.razorpay.book import RazorpayBook
from sandbox.rows import Json
from sandbox.service import Sandbox
from sandbox.stripe import commands as stripe_commands
from sandbox.stripe import pages as stripe_pages
from sandbox.stripe.book import StripeBook
from sandbox.wire.bodies import json_answer, json_body
from sandbox.wire.errors import Refusal

LINES_AT_ONCE = 500


async def handle(sandbox: Sandbox, request: web.BaseRequest) -> web.StreamResponse:
    """Answers every request that belongs to no protocol."""
    try:
        _refuse_other_pages(request)
        return await _dispatch(sandbox, request)
    except Refusal as error:
        return json_answer({"error": {"type": "invalid_request_error", "message": error.message}}, error.status)


async def _dispatch(sandbox: Sandbox, request: web.BaseRequest) -> web.StreamResponse:
    method, path = request.method, request.path
    if path == "/healthz" and method == "GET":
        return json_answer(_health(sandbox))
    if (shown := await _page(sandbox, request)) is not None:
        return shown
    if path == "/_sandbox/faults":
        return await _faults(sandbox, request)
    if path in ("/_sandbox/ledger", "/_sandbox/razorpay/ledger") and method == "GET":
        book = sandbox.razorpay if "razorpay" in path else sandbox.stripe
        if detail := request.rel_url.query.get("detail"):
            return await _detail(sandbox, request, book, detail)
        ledger = book.ledger()
        await sandbox.durable()
        return json_answer(ledger)
    if path.startswith("/_sandbox/"):
        parts = path.removeprefix("/_sandbox/").split("/")
        for commands in (stripe_commands, razorpay_commands):
            answer: web.StreamResponse | None = await commands.handle(sandbox, request, parts)
            if answer is not None:
                return answer
    raise Refusal(404, f"The sandbox has no {method} {path[:200]}.")


async def _page(sandbox: Sandbox, request: web.BaseRequest) -> web.Response | None:
    """Answers a request for a page, its script, its style or its data; None for any other."""
    match request.method, *request.path.split("/")[1:]:
        case "GET", "":
            return page.html("overview")
        case "GET", "page", name:
            return page.static(name)
        case (("GET" | "POST"), "c", "pay", identifier):
            return await stripe_pages.show_checkout(sandbox, request, identifier)
        case "GET", "_sandbox", "overview":
            groups = [*stripe_pages.overview(sandbox), *razorpay_commands.overview(sandbox)]
            await sandbox.durable()
            return json_answer({"totals": _totals(sandbox), "groups": groups})
    return None


def _totals(sandbox: Sandbox) -> list[Json]:
    waiting = sandbox.webhooks.counts() if sandbox.webhooks else {"waiting": 0, "delivered": 0, "given_up": 0}
    sums = [
        {"name": f"{currency} {word}", "value": totals[word]}
        for currency, totals in sandbox.stripe.ledger().items()
        for word in ("captured", "refunded")
    ]
    hooks = [{"name": f"webhooks {word}", "value": waiting[word]} for word in ("delivered", "waiting", "given_up")]
    return sums + hooks


def _refuse_other_pages(request: web.BaseRequest) -> None:
    """Commands need no key, so a page from elsewhere in the same browser may not send them."""
    origin = request.headers.get("Origin")
    if request.method != "GET" and origin is not None and origin.partition("://")[2] != request.headers.get("Host"):
        raise Refusal(403, "Only a page of the sandbox may do this.")


async def _faults(sandbox: Sandbox, request: web.BaseRequest) -> web.StreamResponse:
    if request.method == "POST":
        wanted = await json_body(request)
        # Tried on a copy first, so that an invalid fault changes none of the others.
        Faults().change(wanted)
        sandbox.faults.change(wanted)
    elif request.method == "DELETE":
        sandbox.faults.clear(latency_ms=sandbox.settings.latency_ms)
    elif request.method != "GET":
        raise Refusal(405, "Faults are read with GET, changed with POST and cleared with DELETE.")
    return json_answer(sandbox.faults.shown())


async def _detail(
    sandbox: Sandbox, request: web.BaseRequest, book: StripeBook | RazorpayBook, detail: str
) -> web.StreamResponse:
    """Sends one JSON line for each successful payment, in pieces, so that payments are not blocked meanwhile.

    With the detail `records`, one for each intent; of Razorpay, one for each order.
    """
    await sandbox.durable()
    response = web.StreamResponse(headers={"Content-Type": "application/x-ndjson"})
    await response.prepare(request)
    lines: list[bytes] = []
    for entry in book.records() if detail == "records" else book.paid():
        lines.append(orjson.dumps(entry) + b"\n")
        if len(lines) == LINES_AT_ONCE:
            await response.write(b"".join(lines))
            lines.clear()
    if lines:
        await response.write(b"".join(lines))
    await response.write_eof()
    return response


def _health(sandbox: Sandbox) -> Json:
    book = sandbox.stripe
    return {
        "status": "ok",
        "payment_intents": len(book.intents.rows),
        "charges": len(book.charges.rows),
        "refunds": len(book.refunds.rows),
        "razorpay_orders": len(sandbox.razorpay.orders.rows),
        "events": len(book.events.rows),
        "state_bytes": sandbox.journal.size,
        "webhooks": sandbox.webhooks.counts() if sandbox.webhooks else None,
    }
