"""Answers requests of Stripe's protocol: checks API keys and parameters, applies idempotency keys and faults."""

from __future__ import annotations

import asyncio
import base64
import binascii
import hashlib
import logging
import secrets
from collections.abc import Mapping

import orjson
from aiohttp import web
from multidict import CIMultiDict

from sandbox.rows import random_hex
from sandbox.service import Sandbox
from sandbox.state.journal import KeyRecord
from sandbox.state.keys import KeyInUse, KeyReused, fingerprint
from sandbox.stripe import render, routes
from sandbox.stripe.errors import (
    ApiError,
    invalid,
    key_in_use,
    key_reused,
    rate_limited,
    server_error,
    unauthorised,
)  # fmt: skip
from sandbox.stripe.forms import Params, Tree, parse
from sandbox.stripe.routes.call import Call, Operation
from sandbox.wire.bodies import lose, read
from sandbox.wire.errors import Refusal

log = logging.getLogger(__name__)

BODY_BYTES_MAX = 128 * 1024
KEY_LENGTH_MAX = 255
FORM = "application/x-www-form-urlencoded"
# Any page may call Stripe; the client secret protects an intent.
CORS = {
    "Access-Control-Allow-Origin": "*",
    "Access-Control-Allow-Methods": "GET, HEAD, PUT, PATCH, POST, DELETE",
    "Access-Control-Allow-Headers": "Authorization, Content-Type, Idempotency-Key, Stripe-Version",
    "Access-Control-Expose-Headers": "Request-Id, Idempotent-Replayed, Stripe-Should-Retry",
    "Access-Control-Max-Age": "300",
}
_JSON = CORS | {"Content-Type": "application/json", "Cache-Control": "no-cache, no-store"}


class StripeHandler:
    """Answers the requests below `/v1/`."""

    def __init__(self, sandbox: Sandbox) -> None:
        self._sandbox = sandbox
        self._secret = _digest(sandbox.settings.api_key)
        self._publishable = _digest(sandbox.settings.publishable_key)

    async def handle(self, request: web.BaseRequest) -> web.StreamResponse:
        if request.method == "OPTIONS":
            return web.Response(headers=CORS)
        path = request.path
        request_id = f"req_{random_hex(14)}"
        buyer = False
        try:
            tree = await _parameters(request)
            buyer = self._authorise(request.headers, tree)
            operation, identifier = routes.route(request.method, path)
            if buyer and operation not in routes.FOR_BUYERS:
                raise ApiError(
                    403,
                    "This API call cannot be made with a publishable API key. Please use a secret API key.",
                    code="secret_key_required",
                )
            name = routes.NAMES[operation]
            if self._sandbox.faults.fires("rate_limit_429", name):
                raise rate_limited()
            if self._sandbox.faults.fires("drop_request", name):
                return lose(request)
            key = request.headers.get("Idempotency-Key") if request.method == "POST" else None
            work = self._sandbox.work("stripe", request_id, key or None)
            call = Call(operation, identifier, Params(tree), buyer, work)
            if key:
                mark = fingerprint(request.method, path, tree)
                return await self._execute_once(request, operation, call, key, mark)
            await self._wait_latency(operation)
            status, body, _saved = self._execute(operation, call)
            self._sandbox.commit(work, body=body)
            await self._sandbox.durable()
            return self._answer(request, status, body, request_id, call)
        except ApiError as error:
            body = _encoded_error(error, request_id, buyer)
            return self._answer(request, error.status, body, request_id)

    async def _execute_once(
        self, request: web.BaseRequest, operation: Operation, call: Call, key: str, mark: str
    ) -> web.StreamResponse:
        """Executes a request under an idempotency key, or repeats the answer that is saved under it."""
        sandbox, work = self._sandbox, call.work
        request_id = work.request_id or ""
        found = self._begin(key, mark, work.now)
        if found is not None:
            body = sandbox.journal.body_at(found.offset)
            await sandbox.durable()
            return self._answer(request, found.status, body, request_id, replay_of=found)
        try:
            await self._wait_latency(operation)
            status, body, saved = self._execute(operation, call)
            record = KeyRecord(key, mark, work.now, status, request_id) if saved else None
            sandbox.commit(work, record, body)
        finally:
            # A key with a saved answer is no longer among the running ones.
            sandbox.keys.leave(key)
        await sandbox.durable()
        return self._answer(request, status, body, request_id, call)

    def _begin(self, key: str, mark: str, now: int) -> KeyRecord | None:
        """The saved answer of a key, or None: then the request is to be executed."""
        if len(key) > KEY_LENGTH_MAX:
            raise invalid(f"Idempotency keys can have up to {KEY_LENGTH_MAX} characters.")
        try:
            return self._sandbox.keys.begin(key, mark, now)
        except KeyInUse:
            raise key_in_use(key) from None
        except KeyReused:
            raise key_reused(key) from None

    async def _wait_latency(self, operation: Operation) -> None:
        wait_s = self._sandbox.faults.latency_s(routes.NAMES[operation])
        if wait_s:
            await asyncio.sleep(wait_s)

    def _execute(self, operation: Operation, call: Call) -> tuple[int, bytes, bool]:
        """Returns status, body, and whether the answer belongs to the idempotency key."""
        faults = self._sandbox.faults
        request_id = call.work.request_id or ""
        try:
            if faults.fires("error_500", routes.NAMES[operation]):
                raise server_error(saved=faults.error_500_saved)
            body = routes.perform(self._sandbox.stripe, operation, call)
            return 200, orjson.dumps(body), True
        except ApiError as error:
            if not error.saved:
                call.work.changes.clear()
                call.work.effects.clear()
            return error.status, _encoded_error(error, request_id, call.buyer), error.saved

    def _answer(
        self,
        request: web.BaseRequest,
        status: int,
        body: bytes,
        request_id: str,
        call: Call | None = None,
        *,
        replay_of: KeyRecord | None = None,
    ) -> web.StreamResponse:
        if call is not None and self._sandbox.faults.drops_answer(call.work.effects, routes.NAMES[call.operation]):
            # The money may have moved, but the client only sees that the connection ended.
            log.warning("answer dropped by a fault", extra={"request_id": request_id})
            return lose(request)
        headers: CIMultiDict[str] = CIMultiDict(_JSON)
        headers["Request-Id"] = request_id
        headers["Stripe-Version"] = request.headers.get("Stripe-Version", render.API_VERSION)
        if request.method == "POST" and (key := request.headers.get("Idempotency-Key")):
            headers["Idempotency-Key"] = key
            headers["Original-Request"] = replay_of.request_id if replay_of else request_id
        if replay_of is not None:
            headers["Idempotent-Replayed"] = "true"
        if status == 409:
            headers["Stripe-Should-Retry"] = "true"
        elif status == 401:
            headers["WWW-Authenticate"] = 'Basic realm="Stripe"'
        return web.Response(status=status, body=body, headers=headers)

    def _authorise(self, headers: Mapping[str, str], tree: Tree) -> bool:
        """Returns True for the publishable key, False for the secret key; raises 401 for any other."""
        given = _given_key(headers) or tree.get("key")
        if not isinstance(given, str) or not given:
            raise unauthorised(
                "You did not provide an API key. You need to provide your API key in the Authorization "
                "header, using Bearer auth (e.g. 'Authorization: Bearer YOUR_SECRET_KEY')."
            )
        # Digests have equal lengths, so the comparison takes constant time.
        digest = _digest(given)
        if secrets.compare_digest(digest, self._secret):
            return False
        if secrets.compare_digest(digest, self._publishable):
            return True
        shown = given[:8] + "*" * 12 + given[-4:] if len(given) > 16 else "*" * 12
        raise unauthorised(f"Invalid API Key provided: {shown}")


def _digest(text: str) -> bytes:
    return hashlib.blake2b(text.encode(errors="surrogateescape"), digest_size=16).digest()


def _encoded_error(error: ApiError, request_id: str, buyer: bool) -> bytes:
    return orjson.dumps(render.error(error, request_id, for_buyer=buyer))


def _given_key(headers: Mapping[str, str]) -> str | None:
    scheme, _, value = headers.get("Authorization", "").partition(" ")
    if scheme.lower() == "bearer":
        return value.strip()
    if scheme.lower() != "basic":
        return None
    try:
        return base64.b64decode(value, validate=True).decode().partition(":")[0]
    except (binascii.Error, UnicodeDecodeError):
        return None


async def _parameters(request: web.BaseRequest) -> Tree:
    if request.method != "POST":
        return parse(request.rel_url.raw_query_string)
    try:
        raw = await read(request, BODY_BYTES_MAX)
    except Refusal as error:
        raise ApiError(error.status, error.message) from None
    if not raw:
        return {}
    if request.headers.get("Content-Type", "").partition(";")[0].strip().lower() != FORM:
        raise invalid(f"Invalid request (check that your POST content type is {FORM}).")
    try:
        return parse(raw.decode("ascii"))
    except UnicodeDecodeError:
        raise invalid("Invalid request: the body has bytes that are not percent-encoded.") from None
