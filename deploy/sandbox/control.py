"""The sandbox's own surface, `/_sandbox/`: what a test or an operator does that Stripe has no URL for."""

from __future__ import annotations

import json
from html import escape
from typing import Any
from urllib.parse import urlencode

from aiohttp import web

from deploy.sandbox import api, intents, render
from deploy.sandbox.currencies import readable
from deploy.sandbox.errors import ApiError, invalid
from deploy.sandbox.faults import Faults
from deploy.sandbox.forms import parse
from deploy.sandbox.service import Sandbox
from deploy.sandbox.values import Intent, Json

BODY_BYTES_MAX = 64 * 1024
LINES_AT_ONCE = 500

_PAGE = """<!doctype html><meta charset="utf-8"><title>Sandbox bank</title>
<h1>Pay {amount}?</h1><p>This page stands for the buyer's bank. No money moves.</p>
<form method="post"><button name="outcome" value="succeed">Approve</button>
<button name="outcome" value="fail">Refuse</button></form>"""


async def handle(sandbox: Sandbox, request: web.BaseRequest) -> web.StreamResponse:
    """Answers everything that is not under `/v1/`."""
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
        if request.rel_url.query.get("detail") == "true":
            return await _detail(sandbox, request)
        return _json(sandbox.store.ledger())
    parts = path.split("/")
    if parts[1:3] == ["_sandbox", "payment_intents"] and len(parts) == 5:
        intent = api.find_intent(sandbox.store, parts[3])
        if method == "POST" and parts[4] in ("authenticate", "settle"):
            return await _decide(sandbox, request, intent, parts[4])
        if method == "GET" and parts[4] == "authenticate":
            page = _PAGE.format(amount=escape(readable(intent.amount, intent.currency)))
            return web.Response(text=page, content_type="text/html")
    raise ApiError(404, f"The sandbox has no {method} {path[:200]}.")


async def _faults(sandbox: Sandbox, request: web.BaseRequest) -> web.StreamResponse:
    if request.method == "POST":
        wanted = await _body(request)
        # Tried on a copy first: a wrong switch must not leave half of the others changed.
        Faults().change(wanted)
        sandbox.faults.change(wanted)
    elif request.method == "DELETE":
        sandbox.faults.clear(latency_ms=sandbox.settings.latency_ms)
    elif request.method != "GET":
        raise ApiError(405, "Faults are read with GET, changed with POST and cleared with DELETE.")
    return _json(sandbox.faults.shown())


async def _decide(sandbox: Sandbox, request: web.BaseRequest, intent: Intent, question: str) -> web.StreamResponse:
    """The bank's decision about a payment that waits for it, by a test or by a person at the page."""
    wanted = await _body(request)
    outcome = wanted.get("outcome") if isinstance(wanted, dict) else None
    if outcome not in ("succeed", "fail"):
        raise invalid('outcome must be "succeed" or "fail"', param="outcome")
    # Read again: the intent may have moved while the body was on its way.
    intent = api.find_intent(sandbox.store, intent.id)
    work = sandbox.work("")
    work.request_id = None
    rule = intents.authenticate if question == "authenticate" else intents.settle
    decided = rule(work, intent, succeed=outcome == "succeed")
    sandbox.commit(work)
    back = (intent.next_action or {}).get("redirect_to_url")
    if back is None or "text/html" not in request.headers.get("Accept", ""):
        return _json(render.intent(decided))
    status = "succeeded" if outcome == "succeed" else "failed"
    query = {"payment_intent": intent.id, "payment_intent_client_secret": intent.client_secret}
    joint = "&" if "?" in back["return_url"] else "?"
    where = f"{back['return_url']}{joint}{urlencode({**query, 'redirect_status': status})}"
    return web.Response(status=303, headers={"Location": where})


async def _detail(sandbox: Sandbox, request: web.BaseRequest) -> web.StreamResponse:
    """One JSON line for each succeeded payment; sent in pieces, so that payments go on meanwhile."""
    response = web.StreamResponse(headers={"Content-Type": "application/x-ndjson"})
    await response.prepare(request)
    lines: list[str] = []
    for entry in sandbox.store.paid():
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
        # The buttons of the bank's page; curl calls JSON a form as well, so the type says nothing.
        return parse(raw.decode("ascii", "replace"))
    try:
        return json.loads(raw)
    except (ValueError, RecursionError):
        raise invalid("The body is not JSON.") from None


def _json(body: Json, status: int = 200) -> web.Response:
    return web.Response(text=render.dumps(body), status=status, content_type="application/json")
