"""The webhooks of Razorpay's protocol: signed over the body alone, so the time is not protected."""

from __future__ import annotations

import hashlib
import hmac

import orjson

from sandbox.razorpay import render
from sandbox.rows import Event


def write(event: Event, secret: str, _now: int) -> tuple[bytes, dict[str, str]]:
    """Returns the body and the headers of a webhook."""
    body = orjson.dumps(render.event(event))
    return body, {
        "Content-Type": "application/json",
        "User-Agent": "Razorpay-Webhook/v1",
        "X-Razorpay-Signature": signature(secret, body),
        "x-razorpay-event-id": event.id.removeprefix("evt_"),
    }


def signature(secret: str, message: bytes) -> str:
    return hmac.new(secret.encode(), message, hashlib.sha256).hexdigest()
