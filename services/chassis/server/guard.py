"""What happens around every method of a service, however the call came in: see `rpc` and `http`."""

import asyncio
import contextlib
import time
import uuid
from collections.abc import AsyncGenerator, Awaitable, Callable, Iterator, Mapping
from functools import lru_cache
from typing import Any

import protovalidate
import structlog
from google.protobuf.message import DecodeError, Message
from prometheus_client import Counter, Histogram

from services.chassis import request_context, telemetry
from services.chassis.errors import InvalidFields, RateLimited, TooSlow
from services.chassis.request_context import Metadata
from services.chassis.server import access, statuses
from services.chassis.server.access import Gatekeeper, Rule
from services.chassis.server.statuses import Answer

log = structlog.get_logger()

_SECONDS = Histogram(
    "stampede_rpc_seconds", "Time to answer a call.", ["method"],
    buckets=(0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1, 3, 10),
)  # fmt: skip
_ANSWERS = Counter("stampede_rpc_total", "Calls answered.", ["method", "code", "reason"])
# More than may wait for a change at once (see `watch`), so that waiting locks nobody out.
_IN_FLIGHT_MOST = 8192
_IDEMPOTENCY_KEY_MOST = 255
# Of a batch it is the ids of all its items.
_REQUEST_ID_MOST = 4096
# Names the UUIDs that stand for idempotency keys which are not UUIDs themselves.
_KEY_NAMESPACE = uuid.UUID("6f1c1f0e-6f5b-4c0e-9d7e-1f6c0d6f7a52")
_NO_NUL = "must not contain the character U+0000"

Unary = Callable[[Message | None, Metadata, float | None], Awaitable[Message | Answer]]
"""Answers a call: its request (None where it cannot be decoded), its metadata, and how many seconds it may take."""
Stream = Callable[[Message | None, Metadata], AsyncGenerator[Message | Answer, None]]
"""As `Unary`, answer by answer. Where it fails, the last one is an `Answer`."""


class Guard:
    """Gives each call its identity and deadline, lets in whom the contract names, checks the request against the
    contract's rules, and turns what a handler raises into an `Answer`. Handlers never touch status codes, and no
    traceback, SQL or secret in an unforeseen exception reaches a client.
    """

    def __init__(self, service: str, gatekeeper: Gatekeeper) -> None:
        self._domain = f"{service}.stampede"
        self._gatekeeper = gatekeeper
        self._validator = protovalidate.Validator()
        self._in_flight = 0

    def unary(self, method: str, behavior: Callable[..., Awaitable[Any]]) -> Unary:
        """Puts itself around `behavior`, which gets the request, and None in place of gRPC's context."""
        behavior = telemetry.traced(method, behavior)
        rule, seconds = access.rule_of(method), _SECONDS.labels(method)
        count_ok = _ANSWERS.labels(method, "OK", "")

        async def guarded(request: Message | None, metadata: Metadata, left: float | None) -> Message | Answer:
            started = time.perf_counter()
            if self._in_flight >= _IN_FLIGHT_MOST:
                return statuses.answer(RateLimited(what=method), self._domain)
            self._in_flight += 1
            code = "OK"
            try:
                admitted = await self._enter(method, rule, request, metadata, left)
                response: Message = await behavior(admitted, None)
                count_ok.inc()
                return response
            except (Exception, asyncio.CancelledError) as error:
                if _is_cancelled(error):
                    code = "CANCELLED"
                    _counted(method, code, "").inc()
                    raise
                answer = self._answer(error, method)
                code = answer.code.name
                return answer
            finally:
                self._in_flight -= 1
                took = time.perf_counter() - started
                seconds.observe(took)
                if code != "FAILED_PRECONDITION":  # the everyday no: the gateway's log has it, and losers must be cheap
                    telemetry.log_info("answered", method=method, code=code, ms=round(took * 1000, 1))

        return guarded

    def stream(self, method: str, behavior: Callable[..., AsyncGenerator[Any, None]]) -> Stream:
        """As `unary`, for a method that answers many times."""
        rule = access.rule_of(method)
        count_ok = _ANSWERS.labels(method, "OK", "")

        async def guarded(request: Message | None, metadata: Metadata) -> AsyncGenerator[Message | Answer, None]:
            try:
                admitted = await self._enter(method, rule, request, metadata, None)
                # Closed here and now, not when it is found to be garbage.
                async with contextlib.aclosing(behavior(admitted, None)) as responses:
                    async for response in responses:
                        yield response
                count_ok.inc()
            except (Exception, asyncio.CancelledError) as error:
                if _is_cancelled(error):
                    raise
                yield self._answer(error, method)

        return guarded

    def too_slow(self, method: str) -> Answer:
        """For a stream that was cut off because its client does not read it."""
        return self._answer(TooSlow(), method)

    async def _enter(
        self, method: str, rule: Rule, request: Message | None, metadata: Metadata, left: float | None
    ) -> Message:
        call = request_context.Call(
            method=method,
            request_id=_passable(metadata.get("x-request-id", ""))[:_REQUEST_ID_MOST] or str(uuid.uuid4()),
            deadline=None if left is None else time.monotonic() + left,
            traceparent=_passable(metadata.get("traceparent", "")),
            metadata=metadata,
        )
        request_context.enter(call)
        if request is None:
            raise InvalidFields({"request": "is not a message of this method, or holds text that is not UTF-8"})
        call.caller = await self._gatekeeper.admit(rule, metadata)
        if key := metadata.get("idempotency-key"):
            _take_idempotency_key(request, str(key))
        if violations := self._validator.collect_violations(request):
            raise InvalidFields({_path(v.proto): v.proto.message for v in violations})
        # A quick look first: a zero byte may also be part of a number.
        if b"\0" in request.SerializeToString() and (with_nul := dict.fromkeys(_with_nul(request), _NO_NUL)):
            raise InvalidFields(with_nul)
        return request

    def _answer(self, error: BaseException, method: str) -> Answer:
        refusal = statuses.as_app_error(error)
        if refusal is None:
            log.exception("unforeseen failure", method=method)
            _ANSWERS.labels(method, "INTERNAL", "").inc()
            return statuses.INTERNAL
        if refusal.code == "UNAVAILABLE":
            log.warning(
                "a part is away",
                method=method,
                **refusal.metadata,
                cause=repr(error.__cause__ or error)[:300],
            )
        _counted(method, refusal.code, refusal.reason).inc()
        answer = statuses.answer(refusal, self._domain)
        log.debug("refused", method=method, code=answer.code.name, message=answer.message)
        return answer


def _is_cancelled(error: BaseException) -> bool:
    """Whether the client has gone or the process ends, and it is not just something that a handler waited for."""
    task = asyncio.current_task()
    return isinstance(error, asyncio.CancelledError) and task is not None and task.cancelling() > 0


def _passable(value: str | bytes) -> str:
    """`value` where gRPC passes it on to other services; empty where it would fail them, and all of their batch."""
    return value if isinstance(value, str) and value.isascii() and value.isprintable() else ""


def decoder(decode: Callable[[bytes], Message]) -> Callable[[bytes], Message | None]:
    """`decode`, but None for what cannot be decoded: gRPC would tell the client what Python thinks of it."""

    def decoded(data: bytes) -> Message | None:
        try:
            return decode(data)
        except DecodeError:
            return None

    return decoded


@lru_cache(maxsize=4096)
def _counted(method: str, code: str, reason: str) -> Counter:
    return _ANSWERS.labels(method, code, reason)


def _take_idempotency_key(request: Message, key: str) -> None:
    """Fills an empty `request_id` from the header. A key that is no UUID stands for one that is made from it."""
    if "request_id" not in request.DESCRIPTOR.fields_by_name or request.request_id:  # type: ignore[attr-defined]
        return
    if len(key) > _IDEMPOTENCY_KEY_MOST:
        raise InvalidFields({"Idempotency-Key": f"must have at most {_IDEMPOTENCY_KEY_MOST} characters"})
    try:
        request.request_id = str(uuid.UUID(key))  # type: ignore[attr-defined]
    except ValueError:
        request.request_id = str(uuid.uuid5(_KEY_NAMESPACE, key))  # type: ignore[attr-defined]


def _with_nul(message: Message, prefix: str = "") -> Iterator[str]:
    """The fields whose text holds a NUL, which PostgreSQL cannot store."""
    for field, value in message.ListFields():
        values = value if field.is_repeated else [value]
        for part in (*values.keys(), *values.values()) if isinstance(values, Mapping) else values:
            if isinstance(part, str) and "\0" in part:
                yield prefix + field.json_name
            elif isinstance(part, Message):
                yield from _with_nul(part, f"{prefix}{field.json_name}.")


def _path(violation: Any) -> str:
    """The field as a client wrote it; for example `lines[0].productId`. Empty for a rule over the whole message."""
    path = ""
    for element in violation.field.elements if violation.field else ():
        head, *rest = element.field_name.split("_")
        name = head + "".join(word.capitalize() for word in rest)
        path += f".{name}" if path else name
        if (subscript := element.subscript) is not None:
            path += f"[{subscript.value}]"
    return path or str(violation.rule_id)
