"""Calls to Razorpay through its SDK, which is synchronous and has no timeout: in threads, with deadlines of ours."""

import asyncio
import json
import threading
import time
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NoReturn

import razorpay
import requests
import structlog

from services.payments.providers.border import NoAnswer, Refused
from services.payments.providers.limits import ProviderLimits, Turn
from services.payments.providers.metrics import SECONDS, UNKNOWN

log = structlog.get_logger()

Object = Mapping[str, Any]

_CONNECT_SECONDS, _READ_SECONDS, _CALL_SECONDS = 3.0, 5.0, 10.0
_STUCK_SECONDS = 15.0
"""A thread that does not end by itself, for example in the resolver, is left alone after this long."""
_BYTES_MOST = 8 * 1024 * 1024
_REFUSALS = frozenset((400, 404, 422))
_ENDED_STATUSES = frozenset((401, 403, 429, 500))  # a proxy that answers 502 to 504 may have passed the request on


class _Failed(Exception):
    """There is no usable answer. `status` is 0 if none came at all."""

    def __init__(self, cause: str, status: int = 0) -> None:
        super().__init__(cause)
        self.cause, self.status = cause, status


class _Answer:
    """The parts of a response that the SDK uses."""

    def __init__(self, status_code: int, body: bytes) -> None:
        self.status_code, self._body = status_code, body

    def json(self) -> Any:
        # The SDK has checked the status; `_Http` has refused all but 2xx before.
        return json.loads(self._body)


class _Http:
    """The session of the SDK: one of `requests` for each thread, timeouts, and errors that the SDK does not print.

    The SDK prints connection errors to stdout, which is our log, and drops the status and the fields of error answers.
    """

    def __init__(self) -> None:
        self._local = threading.local()
        self._opened: list[requests.Session] = []

    def get(self, url: str, **options: Any) -> _Answer:
        return self._send("GET", url, options)

    def post(self, url: str, **options: Any) -> _Answer:
        return self._send("POST", url, options)

    def close(self) -> None:
        for session in self._opened:
            session.close()

    def _send(self, method: str, url: str, options: dict[str, Any]) -> _Answer:
        until = time.monotonic() + _CALL_SECONDS
        try:
            with self._session().request(
                method, url, timeout=(_CONNECT_SECONDS, _READ_SECONDS), stream=True, allow_redirects=False, **options
            ) as response:
                body = _read(response, until)
                if 200 <= response.status_code < 300:
                    return _Answer(response.status_code, body)
                _raise_error(response.status_code, body)
        except (requests.RequestException, OSError) as error:
            raise _Failed(type(error).__name__) from error

    def _session(self) -> requests.Session:
        session: requests.Session | None = getattr(self._local, "session", None)
        if session is None:
            session = requests.Session()
            session.trust_env = False  # neither a proxy nor a .netrc of the environment
            self._local.session = session
            self._opened.append(session)
        return session


def _read(response: requests.Response, until: float) -> bytes:
    """Read a body. Each piece has a timeout of its own; `until` bounds all of them, and the size is bounded too."""
    body = bytearray()
    for piece in response.iter_content(64 * 1024):
        body += piece
        if len(body) > _BYTES_MOST or time.monotonic() > until:
            raise _Failed("AnswerTooLong", response.status_code)
    return bytes(body)


def _raise_error(status: int, body: bytes) -> NoReturn:
    try:
        error = json.loads(body)["error"]
        code, reason, field, text = (str(error.get(key) or "") for key in ("code", "reason", "field", "description"))
    except (ValueError, KeyError, TypeError, AttributeError):
        raise _Failed("UnreadableError", status) from None
    if status in _REFUSALS and code == "BAD_REQUEST_ERROR":
        raise Refused(reason, field, is_missing="does not exist" in text)
    raise _Failed(code or "HttpError", status)


class _Client(razorpay.Client):  # type: ignore[misc]  # untyped
    """The SDK, without its search for its own version in each call."""

    def _get_version(self) -> str:
        return "2"


class Transport:
    """The connections to one Razorpay account, each in a thread."""

    def __init__(self, key_id: str, key_secret: str, *, api_base: str, limits: ProviderLimits, threads: int) -> None:
        self.limits = limits
        self._threads = ThreadPoolExecutor(threads, thread_name_prefix="razorpay")
        self._http = _Http()
        self.sdk = _Client(session=self._http, auth=(key_id, key_secret), base_url=api_base.rstrip("/"))

    async def aclose(self) -> None:
        """Close the connections. Threads in a call end with it."""
        self._threads.shutdown(wait=False, cancel_futures=True)
        self._http.close()

    async def call(
        self,
        operation: str,
        turn: Turn,
        method: Callable[..., Any],
        *arguments: Any,
        repeats: bool = True,
        headers: Mapping[str, str] | None = None,
    ) -> Object:
        """Call a method of the SDK within the limits; again if it fails, if a repeat has no second effect.

        Raises `Refused` for Razorpay's decisions, else `NoAnswer`.
        """
        named = {"headers": dict(headers)} if headers else {}
        return await self.limits.run(
            turn, lambda: self._send(operation, lambda: method(*arguments, **named)), repeats=repeats
        )

    async def _send(self, operation: str, work: Callable[[], Any]) -> Object:
        started = time.perf_counter()
        try:
            answer = await self._in_thread(work)
        except _Failed as failed:
            raise _no_answer(operation, failed) from failed
        except (TypeError, ValueError, razorpay.errors.ServerError) as error:
            raise _no_answer(operation, _Failed(type(error).__name__)) from error
        finally:
            SECONDS.labels(operation).observe(time.perf_counter() - started)
        if not isinstance(answer, Mapping):
            raise _no_answer(operation, _Failed("UnreadableAnswer"))
        return answer

    async def _in_thread(self, work: Callable[[], Any]) -> Any:
        future = self._threads.submit(work)
        try:
            async with asyncio.timeout(_STUCK_SECONDS):
                return await asyncio.shield(asyncio.wrap_future(future))
        except TimeoutError:
            # One that no thread has begun can take no effect.
            raise _Failed("ThreadStuck", 500 if future.cancel() else 0) from None


def _no_answer(operation: str, failed: _Failed) -> NoAnswer:
    """Count and log a call without a final answer, and return it as an exception."""
    UNKNOWN.labels(operation, failed.cause).inc()
    log.warning(
        "the outcome of a provider call is unknown", operation=operation, cause=failed.cause, status=failed.status
    )
    return NoAnswer(operation, has_ended=failed.status in _ENDED_STATUSES, is_limit=failed.status == 429)
