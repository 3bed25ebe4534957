"""Calls to Stripe through its SDK: their turns, their timeouts, and one repeat under the same key."""

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Mapping
from contextlib import AbstractAsyncContextManager
from typing import Any

import aiohttp
import stripe
import structlog
from prometheus_client import Counter, Histogram

from services.payments.providers import Check, Withdrawn
from services.payments.providers.border import NoAnswer
from services.payments.providers.pacer import Pacer

log = structlog.get_logger()
# The SDK logs each request and answer. Failures are logged here, and the rest is in metrics.
logging.getLogger("stripe").setLevel(logging.WARNING)
# Otherwise each call reports our platform and the duration of the previous call to Stripe.
stripe.enable_telemetry = False

Object = Mapping[str, Any]
"""An object of Stripe's API, as its JSON contains it."""
Turn = AbstractAsyncContextManager[None]
"""The turn of a call; see `Pacer.turn`."""

_SECONDS = Histogram("stampede_provider_seconds", "Time of one call to the provider, without waiting.", ["operation"])
_UNKNOWN = Counter("stampede_provider_unknown_total", "Calls whose outcome is not known.", ["operation", "cause"])

NOT_FOUND = 404
_CALL_SECONDS = 10
_RETRY_SECONDS = 0.5  # once, under the same key; the reconciler handles outcomes that are still unknown
_ENDED_STATUSES = frozenset((429, 500))  # a proxy that answers 502 to 504 may have passed the request on
_PAGE = 100
_PAGES_MOST = 50


class Transport:
    """The connections to one Stripe account, bounded in concurrent calls and in calls a second."""

    def __init__(self, key: str, *, api_base: str, calls_per_second: float, concurrency: int) -> None:
        """`calls_per_second` of 0 means no limit."""
        self.pacer = Pacer(calls_per_second=calls_per_second, concurrency=concurrency)
        self._http = stripe.AIOHTTPClient(timeout=aiohttp.ClientTimeout(total=_CALL_SECONDS))
        self._client = stripe.StripeClient(
            key, base_addresses={"api": api_base}, http_client=self._http, max_network_retries=0
        )

    async def aclose(self) -> None:
        await self._http.close_async()  # type: ignore[no-untyped-call]

    async def list(
        self, operation: str, path: str, params: Object, *, pages_most: int = _PAGES_MOST
    ) -> AsyncIterator[Object]:
        """Yield the objects of a list, newest first."""
        after: dict[str, str] = {}
        for _ in range(pages_most):
            page = await self.get(operation, path, {**params, **after, "limit": _PAGE})
            for found in page["data"]:
                yield found
            if not page["has_more"]:
                return
            after = {"starting_after": page["data"][-1]["id"]}
        raise NoAnswer(operation, too_many=True)

    async def get(self, operation: str, path: str, params: Object | None = None) -> Object:
        return await self._call(operation, "get", path, params or {})

    async def post(
        self, operation: str, path: str, params: Object, key: str, turn: Turn | None = None, check: Check | None = None
    ) -> Object:
        return await self._call(operation, "post", path, {**params, "idempotency_key": key}, turn, check)

    async def _call(
        self,
        operation: str,
        method: str,
        path: str,
        params: Object,
        turn: Turn | None = None,
        check: Check | None = None,
    ) -> Object:
        """Send one request within the limits, again if it fails. `check` is awaited directly before each try.

        Raise Stripe's decisions as they are, all else as `NoAnswer`.
        """
        async with turn or self.pacer.turn():
            try:
                return await self._send(operation, method, path, params, check)
            except NoAnswer as first:
                if isinstance(first.__cause__, stripe.RateLimitError):
                    raise
                await asyncio.sleep(_RETRY_SECONDS)
                try:
                    return await self._send(operation, method, path, params, check)
                except NoAnswer as second:
                    second.has_ended = second.has_ended and first.has_ended
                    raise
                except Withdrawn:
                    raise first from None

    async def _send(self, operation: str, method: str, path: str, params: Object, check: Check | None) -> Object:
        """Send one request. It is a raw one: the SDK's typed objects cost as much as the call itself."""
        if check is not None:
            await check()
        started = time.perf_counter()
        try:
            response: Any = await self._client.raw_request_async(method, path, **params)
            answer: Object = response.data
            return answer
        except (stripe.CardError, stripe.InvalidRequestError):
            raise
        except (stripe.StripeError, aiohttp.ClientError, TimeoutError, OSError) as error:
            raise no_answer(operation, error) from error
        finally:
            _SECONDS.labels(operation).observe(time.perf_counter() - started)


def no_answer(operation: str, error: Exception) -> NoAnswer:
    """Count and log a call without a final answer, and return it as an exception."""
    cause = type(error).__name__
    _UNKNOWN.labels(operation, cause).inc()
    status = getattr(error, "http_status", None)
    log.warning("the outcome of a provider call is unknown", operation=operation, cause=cause, status=status)
    return NoAnswer(operation, has_ended=status in _ENDED_STATUSES)
