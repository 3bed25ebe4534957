"""Answers requests of Razorpay's protocol: checks keys and parameters, applies idempotency keys and faults."""

from __future__ import annotations

import asyncio
import base64
import binascii
import hashlib
import logging
import os
import re
import secrets

import orjson
from aiohttp import web

from sandbox.razorpay import routes
from sandbox.razorpay.errors import ApiError, key_in_use, key_reused, rate_limited, server_error, unauthorised
from sandbox.razorpay.parameters import Params, of_query, parse
from sandbox.rows import Json, Work
from sandbox.service import Sandbox
from sandbox.state.journal import KeyRecord
from sandbox.state.keys import KeyInUse, KeyReused, fingerprint
from sandbox.wire.bodies import lose, read
from sandbox.wire.errors import Refusal

log = logging.getLogger(__name__)

BODY_BYTES_MAX = 64 * 1024
PREFIX = "/razorpay"
_KEY = re.compile(r"[A-Za-z0-9_-]{10,255}")
_PREFIXED = "razorpay:"


class RazorpayHandler:
    """Answers the requests below `/razorpay/v1/`: the SDK takes an address with a path."""

    def __init__(self, sandbox: Sandbox) -> None:
        self._sandbox = sandbox
        settings = sandbox.settings
        self._account = _digest(f"{settings.razorpay_key_id}:{settings.razorpay_key_secret}")

    async def handle(self, request: web.BaseRequest) -> web.StreamResponse:
        try:
            self._authorise(request.headers.get("Authorization", ""))
            body = await _body(request)
            name, operation, ids = routes.route(request.method, request.path.removeprefix(PREFIX))
            if self._sandbox.faults.fires("rate_limit_429", name):
                raise rate_limited()
            if self._sandbox.faults.fires("drop_request", name):
                return lose(request)
            params = of_query(request.rel_url.query) if request.method == "GET" else Params(body)
            work = self._sandbox.work("razorpay", f"req_{os.urandom(7).hex()}")
            pending = self._sandbox.faults.pending_refund() if name == "POST refund" else False
            call = routes.Call(ids=ids, params=params, work=work, pending=pending)
            key = request.headers.get("X-Refund-Idempotency") if name == "POST refund" else None
            if key is not None:
                return await self._execute_once(request, name, operation, call, key, body)
            await self._wait_latency(name)
            status, answer, _ = self._execute(name, operation, call)
            self._sandbox.commit(work)
            await self._sandbox.durable()
            return self._answer(request, status, answer, name, work)
        except ApiError as error:
            return _response(error.status, orjson.dumps(error.body()))

    async def _execute_once(
        self, request: web.BaseRequest, name: str, operation: routes.Operation, call: routes.Call, key: str, body: Json
    ) -> web.StreamResponse:
        """Executes a refund under an idempotency key, or repeats the answer that is saved under it."""
        if not _KEY.fullmatch(key):
            raise ApiError(400, "The idempotency key must have at least 10 characters.")
        sandbox, saved_as = self._sandbox, _PREFIXED + key
        mark = fingerprint(request.method, request.path, body)
        try:
            found = sandbox.keys.begin(saved_as, mark, call.work.now)
        except KeyInUse:
            raise key_in_use() from None
        except KeyReused:
            raise key_reused() from None
        if found is not None:
            answer = sandbox.journal.body_at(found.offset)
            await sandbox.durable()
            return self._answer(request, found.status, answer)
        try:
            await self._wait_latency(name)
            status, answer, saved = self._execute(name, operation, call)
            record = KeyRecord(saved_as, mark, call.work.now, status, call.work.request_id or "") if saved else None
            sandbox.commit(call.work, record, answer)
        finally:
            sandbox.keys.leave(saved_as)
        await sandbox.durable()
        return self._answer(request, status, answer, name, call.work)

    def _execute(self, name: str, operation: routes.Operation, call: routes.Call) -> tuple[int, bytes, bool]:
        """Returns status, body, and whether the answer belongs to the idempotency key."""
        faults = self._sandbox.faults
        try:
            if faults.fires("error_500", name):
                raise server_error(saved=faults.error_500_saved)
            return 200, orjson.dumps(operation(self._sandbox.razorpay, call)), True
        except ApiError as error:
            call.work.changes.clear()
            call.work.effects.clear()
            return error.status, orjson.dumps(error.body()), error.saved

    def _answer(
        self, request: web.BaseRequest, status: int, body: bytes, name: str = "", work: Work | None = None
    ) -> web.StreamResponse:
        if work is not None and self._sandbox.faults.drops_answer(work.effects, name):
            log.warning("answer dropped by a fault", extra={"request_id": work.request_id})
            return lose(request)
        return _response(status, body)

    async def _wait_latency(self, name: str) -> None:
        if wait_s := self._sandbox.faults.latency_s(name):
            await asyncio.sleep(wait_s)

    def _authorise(self, header: str) -> None:
        scheme, _, value = header.partition(" ")
        try:
            given = base64.b64decode(value, validate=True).decode() if scheme.lower() == "basic" else ""
        except (binascii.Error, UnicodeDecodeError):
            given = ""
        # Digests have equal lengths, so the comparison takes constant time.
        if not secrets.compare_digest(_digest(given), self._account):
            raise unauthorised()


def _digest(text: str) -> bytes:
    return hashlib.blake2b(text.encode(errors="surrogateescape"), digest_size=16).digest()


def _response(status: int, body: bytes) -> web.Response:
    return web.Response(status=status, body=body, content_type="application/json")


async def _body(request: web.BaseRequest) -> Json:
    if request.method == "GET":
        return {}
    try:
        return parse(await read(request, BODY_BYTES_MAX))
    except Refusal as error:
        if isinstance(error, ApiError):
            raise
        raise ApiError(error.status, error.message) from None
