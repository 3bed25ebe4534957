"""The webhooks of Stripe's protocol: an event as JSON, with the header `Stripe-Signature`."""

from __future__ import annotations

import hashlib
import hmac

import orjson

from sandbox.rows import Event
from sandbox.stripe import render


def write(event: Event, secret: str, now: int) -> tuple[bytes, dict[str, str]]:
    """Returns the body and the headers of a webhook."""
    body = orjson.dumps(render.event(event))
    return body, {
        "Content-Type": "application/json; charset=utf-8",
        "User-Agent": "Stripe/1.0 (sandbox)",
        "Stripe-Signature": signature(secret, body, now),
    }


def signature(secret: str, body: bytes, now: int) -> str:
    """One HMAC over time and body, so that neither can be changed."""
    mac = hmac.new(secret.encode(), b"%d.%b" % (now, body), hashlib.sha256)
    return f"t={now},v1={mac.hexdigest()}"
