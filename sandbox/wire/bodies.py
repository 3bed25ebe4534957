"""Bodies of requests and answers of the sandbox's own API, and answers that get lost."""

from __future__ import annotations

import json
from typing import Any

import orjson
from aiohttp import web

from sandbox.rows import Json
from sandbox.wire.errors import Refusal, invalid

BODY_BYTES_MAX = 64 * 1024
TOO_LARGE = "The request body is too large."


async def read(request: web.BaseRequest, most: int) -> bytes:
    """Returns a body of at most `most` bytes. Raises `Refusal` for a larger one, before it is read."""
    if (request.content_length or 0) > most:
        raise Refusal(413, TOO_LARGE)
    try:
        return await request.read()
    except web.HTTPRequestEntityTooLarge:
        raise Refusal(413, TOO_LARGE) from None


async def json_body(request: web.BaseRequest) -> Any:
    raw = await read(request, BODY_BYTES_MAX)
    if raw.startswith(b"outcome="):
        # From the bank's page. The content type does not help: curl sends JSON as a form, too.
        return {"outcome": raw.removeprefix(b"outcome=").decode("ascii", "replace")}
    try:
        return json.loads(raw or b"{}")
    except (ValueError, RecursionError):
        raise invalid("The body is not JSON.") from None


def json_answer(body: Json, status: int = 200) -> web.Response:
    return web.Response(body=orjson.dumps(body), status=status, content_type="application/json")


def lose(request: web.BaseRequest) -> web.Response:
    """Ends the connection instead of an answer; the returned one reaches nobody."""
    if request.transport is not None:
        request.transport.abort()
    return web.Response(status=503)
