"""The sandbox's own API, `/_sandbox/`: faults, the bank's decisions and the ledger, which Stripe has no URLs for."""

from __future__ import annotations

import json
from html import escape
from typing import Any
from urllib.parse import urlencode

from aiohttp import web

from deploy.sandbox import routes
from deploy.sandbox.faults import Faults
from deploy.sandbox.protocol import render
from deploy.sandbox.protocol.errors import ApiError, invalid
from deploy.sandbox.protocol.forms import parse
from deploy.sandbox.rules import intents, refunds
from deploy.sandbox.rules.currencies import readable
from deploy.sandbox.rules.values import Intent, Json
from deploy.sandbox.service import Sandbox

BODY_BYTES_MAX = 64 * 1024
LINES_AT_ONCE = 500

_PAGE = """<!doctype html><meta charset="utf-8"><title>Sandbox bank</title>
<h1>Pay {amount}?</h1><p>This page replaces the buyer's bank. No money moves.</p>
<form method="post"><button name="outcome" value="succeed">Approve</button>
<button name="outcome" value="fail">Refuse</button></form>"""


async def handle(sandbox: Sandbox, request: web.BaseRequest) -> web.StreamResponse:
    """Answers every request outside `/v1/`."""
    try:
        return await _dispatch(sandbox, request)
    except ApiError as error:
        return _json(render.error(error, "none"), error.status)


async def _dispatch(sandbox: Sandbox, request: web.BaseRequest) -> web.StreamResponse:
    method, path = request.method, request.path
    if path == "/healthz" and method == "GET":
        return _json(_health(sandbox))
    if path == "/_sandbox/faults":
        return await _faults(sandbox, request)
    if path == "/_sandbox/ledger" and method == "GET":
        if detail := request.rel_url.query.get("detail"):
            return await _detail(sandbox, request, detail)
        ledger = sandbox.store.ledger()
        await sandbox.durable()
        return _json(ledger)
    parts = path.split("/")
    if parts[1:3] == ["_sandbox", "payment_intents"] and len(parts) == 5:
        intent = routes.find_intent(sandbox.store, parts[3])
        if method == "POST" and parts[4] in ("authenticate", "settle"):
            return await _decide(sandbox, request, intent, parts[4])
        if method == "GET" and parts[4] == "authenticate":
            page = _PAGE.format(amount=escape(readable(intent.amount, intent.currency)))
            return web.Response(text=page, content_type="text/html")
    if parts[1:3] == ["_sandbox", "refunds"] and parts[4:] == ["fail"] and method == "POST":
        return _json(await _fail_refund(sandbox, parts[3]))
    raise ApiError(404, f"The sandbox has no {method} {path[:200]}.")


async def _faults(sandbox: Sandbox, request: web.BaseRequest) -> web.StreamResponse:
    if request.method == "POST":
        wanted = await _body(request)
        # Tried on a copy first, so that an invalid fault changes none of the others.
        Faults().change(wanted)
        sandbox.faults.change(wanted)
    elif request.method == "DELETE":
        sandbox.faults.clear(latency_ms=sandbox.settings.latency_ms)
    elif request.method != "GET":
        raise ApiError(405, "Faults are read with GET, changed with POST and cleared with DELETE.")
    return _json(sandbox.faults.shown())


async def _decide(sandbox: Sandbox, request: web.BaseRequest, intent: Intent, question: str) -> web.StreamResponse:
    """Applies the bank's decision about a payment, from a test or from the bank's page."""
    wanted = await _body(request)
    outcome = wanted.get("outcome") if isinstance(wanted, dict) else None
    if outcome not in ("succeed", "fail"):
        raise invalid('outcome must be "succeed" or "fail"', param="outcome")
    # Read again: another request may have changed the intent while the body arrived.
    intent = routes.find_intent(sandbox.store, intent.id)
    work = sandbox.work("")
    work.request_id = None
    rule = intents.authenticate if question == "authenticate" else intents.settle
    decided = rule(work, intent, succeed=outcome == "succeed")
    sandbox.commit(work)
    await sandbox.durable()
    back = (intent.next_action or {}).get("redirect_to_url")
    if back is None or "text/html" not in request.headers.get("Accept", ""):
        return _json(render.intent(decided))
    status = "succeeded" if outcome == "succeed" else "failed"
    query = {"payment_intent": intent.id, "payment_intent_client_secret": intent.client_secret}
    joint = "&" if "?" in back["return_url"] else "?"
    where = f"{back['return_url']}{joint}{urlencode({**query, 'redirect_status': status})}"
    return web.Response(status=303, headers={"Location": where})


async def _fail_refund(sandbox: Sandbox, identifier: str) -> Json:
    refund = routes.find_refund(sandbox.store, identifier)
    work = sandbox.work("")
    work.request_id = None
    failed = refunds.fail(work, sandbox.store.charges.rows[refund.charge], refund)
    sandbox.commit(work)
    await sandbox.durable()
    return render.refund(failed)


async def _detail(sandbox: Sandbox, request: web.BaseRequest, detail: str) -> web.StreamResponse:
    """Sends one JSON line for each successful payment, in pieces, so that payments are not blocked meanwhile.

    With the detail `records`, one for each intent.
    """
    await sandbox.durable()
    response = web.StreamResponse(headers={"Content-Type": "application/x-ndjson"})
    await response.prepare(request)
    lines: list[str] = []
    for entry in sandbox.store.records() if detail == "records" else sandbox.store.paid():
        lines.append(render.dumps(entry) + "\n")
        if len(lines) == LINES_AT_ONCE:
            await response.write("".join(lines).encode())
            lines.clear()
    if lines:
        await response.write("".join(lines).encode())
    await response.write_eof()
    return response


def _health(sandbox: Sandbox) -> Json:
    store = sandbox.store
    return {
        "status": "ok",
        "payment_intents": len(store.intents.rows),
        "charges": len(store.charges.rows),
        "refunds": len(store.refunds.rows),
        "events": len(store.events.rows),
        "state_bytes": sandbox.journal.size,
        "webhooks": sandbox.webhooks.counts() if sandbox.webhooks else None,
    }


async def _body(request: web.BaseRequest) -> Any:
    if (request.content_length or 0) > BODY_BYTES_MAX:
        raise ApiError(413, "The request body is too large.")
    try:
        raw = await request.read()
    except web.HTTPRequestEntityTooLarge:
        raise ApiError(413, "The request body is too large.") from None
    if raw.startswith(b"outcome="):
        # From the bank's page. The content type does not help: curl sends JSON as a form, too.
        return parse(raw.decode("ascii", "replace"))
    try:
        return json.loads(raw)
    except (ValueError, RecursionError):
        raise invalid("The body is not JSON.") from None


def _json(body: Json, status: int = 200) -> web.Response:
    return web.Response(text=render.dumps(body), status=status, content_type="application/json")
