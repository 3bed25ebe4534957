"""The bank's decisions about Stripe's payments, below `/_sandbox/`: Stripe has no URLs for them."""

from __future__ import annotations

from html import escape
from urllib.parse import urlencode

from aiohttp import web

from sandbox.bodies import json_answer, json_body
from sandbox.rows import Json
from sandbox.service import Sandbox
from sandbox.stripe import render, routes
from sandbox.stripe.errors import invalid
from sandbox.stripe.rules import intents, refunds
from sandbox.stripe.rules.currencies import readable

_PAGE = """<!doctype html><meta charset="utf-8"><title>Sandbox bank</title>
<h1>Pay {amount}?</h1><p>This page replaces the buyer's bank. No money moves.</p>
<form method="post"><button name="outcome" value="succeed">Approve</button>
<button name="outcome" value="fail">Refuse</button></form>"""


async def handle(sandbox: Sandbox, request: web.BaseRequest, parts: list[str]) -> web.StreamResponse | None:
    """Answers `/_sandbox/` and `parts`; None if there is no such command."""
    match request.method, *parts:
        case "POST", "payment_intents", identifier, ("authenticate" | "settle") as question:
            return await _decide(sandbox, request, identifier, question)
        case "GET", "payment_intents", identifier, "authenticate":
            intent = routes.find_intent(sandbox.stripe, identifier)
            page = _PAGE.format(amount=escape(readable(intent.amount, intent.currency)))
            return web.Response(text=page, content_type="text/html")
        case "POST", "refunds", identifier, "fail":
            return json_answer(await _fail_refund(sandbox, identifier))
    return None


async def _decide(sandbox: Sandbox, request: web.BaseRequest, identifier: str, question: str) -> web.StreamResponse:
    """Applies the bank's decision about a payment, from a test or from the bank's page."""
    wanted = await json_body(request)
    outcome = wanted.get("outcome") if isinstance(wanted, dict) else None
    if outcome not in ("succeed", "fail"):
        raise invalid('outcome must be "succeed" or "fail"', param="outcome")
    intent = routes.find_intent(sandbox.stripe, identifier)
    work = sandbox.work("stripe")
    rule = intents.authenticate if question == "authenticate" else intents.settle
    decided = rule(work, intent, succeed=outcome == "succeed")
    sandbox.commit(work)
    await sandbox.durable()
    back = (intent.next_action or {}).get("redirect_to_url")
    if back is None or "text/html" not in request.headers.get("Accept", ""):
        return json_answer(render.intent(decided))
    status = "succeeded" if outcome == "succeed" else "failed"
    query = {"payment_intent": intent.id, "payment_intent_client_secret": intent.client_secret}
    joint = "&" if "?" in back["return_url"] else "?"
    where = f"{back['return_url']}{joint}{urlencode({**query, 'redirect_status': status})}"
    return web.Response(status=303, headers={"Location": where})


async def _fail_refund(sandbox: Sandbox, identifier: str) -> Json:
    refund = routes.find_refund(sandbox.stripe, identifier)
    work = sandbox.work("stripe")
    failed = refunds.fail(work, sandbox.stripe.charges.rows[refund.charge], refund)
    sandbox.commit(work)
    await sandbox.durable()
    return render.refund(failed)
