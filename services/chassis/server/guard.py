"""The guard, which every call passes before its handler: identity, access, validation, limits, error mapping."""

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

from services.chassis import errors, request_context, telemetry
from services.chassis.errors import InvalidFields, RateLimited, TooSlow
from services.chassis.request_context import Metadata
from services.chassis.server import access, bounds, card_numbers, inputs, statuses
from services.chassis.server.access import Gatekeeper, Rule
from services.chassis.server.masks import json_name
from services.chassis.server.statuses import Answer
from stampede.access.v1 import access_pb2

log = structlog.get_logger()

_SECONDS = Histogram(
    "stampede_rpc_seconds", "Time to answer a call.", ["method"],
    buckets=(0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1, 3, 10),
)  # fmt: skip
_ANSWERS = Counter("stampede_rpc_total", "Calls answered.", ["method", "code", "reason"])
# More than the calls that may wait for a change at once (see `watch`), so that these leave room for others.
_IN_FLIGHT_MAX = 8192
_LOG_OVERLOAD_SECONDS = 1.0
# That of a batch contains the ids of all its items.
_REQUEST_ID_MAX = 4096
_NO_NUL = "must not contain the character U+0000"
_NO_CARD = "must not contain the number of a card; send a token of the payment provider"

Unary = Callable[[Message | None, Metadata, float | None], Awaitable[Message | Answer]]
"""Answers a call: (request, None if it cannot be decoded; metadata; seconds until its deadline)."""
Stream = Callable[[Message | None, Metadata], AsyncGenerator[Message | Answer, None]]
"""As `Unary`, for many responses. If it fails, the last one is an `Answer`."""


class Guard:
    """Gives each call its identity and deadline, admits the callers that the contract names, validates the request by
    the contract's rules, and turns what a handler raises into an `Answer`. So handlers contain no status codes, and no
    traceback, SQL or secret of an unexpected exception reaches a client.
    """

    def __init__(self, service: str, gatekeeper: Gatekeeper) -> None:
        self._domain = f"{service}.stampede"
        self._gatekeeper = gatekeeper
        self._validator = protovalidate.Validator()
        self._in_flight = 0
        self._turned_away, self._log_overload_at = 0, 0.0

    def unary(self, method: str, behavior: Callable[..., Awaitable[Any]]) -> Unary:
        """Wraps `behavior`, which receives the request, and None in place of gRPC's context."""
        behavior = telemetry.traced(method, behavior)
        rule, seconds = access.rule_of(method), _SECONDS.labels(method)
        count_ok = _ANSWERS.labels(method, "OK", "")

        async def guarded(request: Message | None, metadata: Metadata, left: float | None) -> Message | Answer:
            started = time.perf_counter()
            if self._in_flight >= _IN_FLIGHT_MAX:
                return self._overloaded(method)
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
                if code != "FAILED_PRECONDITION":  # the usual refusal, which must be cheap; the gateway logs it
                    telemetry.log_info("answered", method=method, code=code, ms=round(took * 1000, 1))

        return guarded

    def stream(self, method: str, behavior: Callable[..., AsyncGenerator[Any, None]]) -> Stream:
        """As `unary`, for a method with many responses."""
        rule = access.rule_of(method)
        count_ok = _ANSWERS.labels(method, "OK", "")

        async def guarded(request: Message | None, metadata: Metadata) -> AsyncGenerator[Message | Answer, None]:
            try:
                admitted = await self._enter(method, rule, request, metadata, None)
                # Closed here, not at some later garbage collection.
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
        """Returns the answer for a stream that was ended because its client does not read it."""
        return self._answer(TooSlow(), method)

    async def _enter(
        self, method: str, rule: Rule, request: Message | None, metadata: Metadata, left: float | None
    ) -> Message:
        call = request_context.Call(
            method=method,
            request_id=_forwardable(metadata.get("x-request-id", ""))[:_REQUEST_ID_MAX] or str(uuid.uuid4()),
            deadline=None if left is None else time.monotonic() + left,
            traceparent=_forwardable(metadata.get("traceparent", "")),
            metadata=metadata,
        )
        request_context.enter(call)
        if request is None:
            raise InvalidFields({"request": "is not a message of this method, or contains text that is not UTF-8"})
        call.caller = await self._gatekeeper.admit(rule, metadata)
        bounds.check_lists(request)
        if rule.access != access_pb2.ACCESS_MESH:  # services send ids as values
            inputs.take_headers(request, metadata, reads=rule.reads)
            inputs.normalize_ids(request)
        try:
            violations = self._validator.collect_violations(request)
        except protovalidate.EvaluationError as error:  # for example of a time that does not exist
            log.info("a rule cannot be evaluated", method=method, cause=type(error).__name__)
            raise InvalidFields({"request": "has a value that its rules cannot be applied to"}) from None
        if violations:
            raise InvalidFields({_path(v.proto): v.proto.message for v in violations})
        # Fast tests first; a zero byte may also be part of a number.
        data = request.SerializeToString()
        if b"\0" in data and (with_nul := dict.fromkeys(_with_nul(request), _NO_NUL)):
            raise InvalidFields(with_nul)
        # Services pass on what was checked here before.
        if rule.access != access_pb2.ACCESS_MESH and card_numbers.may_contain(request, data):
            _refuse_card_numbers(request)
        return request

    def _overloaded(self, method: str) -> Answer:
        """Counts and logs a call that is refused because too many are in flight; logs at most once a second."""
        refusal = RateLimited(what=method)
        _counted(method, refusal.code, refusal.reason).inc()
        self._turned_away += 1
        now = time.monotonic()
        if now >= self._log_overload_at:
            log.warning("overloaded", method=method, in_flight=self._in_flight, refused=self._turned_away)
            self._turned_away, self._log_overload_at = 0, now + _LOG_OVERLOAD_SECONDS
        return statuses.answer(refusal, self._domain)

    def _answer(self, error: BaseException, method: str) -> Answer:
        refusal = errors.as_app_error(error)
        if refusal is None:
            log.exception("unexpected failure", method=method)
            _ANSWERS.labels(method, "INTERNAL", "").inc()
            return statuses.INTERNAL
        if refusal.code == "UNAVAILABLE":
            cause = repr(error.__cause__ or error)[:300]
            log.warning("dependency unavailable", method=method, **refusal.metadata, cause=cause)
        _counted(method, refusal.code, refusal.reason).inc()
        answer = statuses.answer(refusal, self._domain)
        log.debug("refused", method=method, code=answer.code.name, message=answer.message)
        return answer


def _is_cancelled(error: BaseException) -> bool:
    """Whether the client disconnected or the process ends, and not just something that the handler waited for."""
    task = asyncio.current_task()
    return isinstance(error, asyncio.CancelledError) and task is not None and task.cancelling() > 0


def _forwardable(value: str | bytes) -> str:
    """Returns `value` if gRPC accepts it as metadata, else an empty text: it would fail the calls of a whole batch."""
    return value if isinstance(value, str) and value.isascii() and value.isprintable() else ""


def decoder(decode: Callable[[bytes], Message]) -> Callable[[bytes], Message | None]:
    """Wraps `decode` so that it returns None on failure; gRPC would send Python's error text to the client."""

    def decoded(data: bytes) -> Message | None:
        try:
            return decode(data)
        except DecodeError:
            return None

    return decoded


@lru_cache(maxsize=4096)
def _counted(method: str, code: str, reason: str) -> Counter:
    return _ANSWERS.labels(method, code, reason)


def _with_nul(message: Message, prefix: str = "") -> Iterator[str]:
    """Yields the fields whose text contains a NUL character, which PostgreSQL cannot store."""
    for field, value in message.ListFields():
        values = value if field.is_repeated else [value]
        for part in (*values.keys(), *values.values()) if isinstance(values, Mapping) else values:
            if isinstance(part, str) and "\0" in part:
                yield prefix + field.json_name
            elif isinstance(part, Message):
                yield from _with_nul(part, f"{prefix}{field.json_name}.")


def _refuse_card_numbers(request: Message) -> None:
    if found := dict.fromkeys(card_numbers.fields_with(request), _NO_CARD):
        raise InvalidFields(found, cause="CARD_NUMBER")


def _path(violation: Any) -> str:
    """Returns the field as a client writes it, for example `lines[0].productId`; for a rule of the message, its id."""
    path = ""
    for element in violation.field.elements if violation.field else ():
        name = json_name(element.field_name)
        path += f".{name}" if path else name
        if (subscript := element.subscript) is not None:
            path += f"[{subscript.value}]"
    return path or str(violation.rule_id)
