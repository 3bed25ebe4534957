"""Calls to Stripe through its SDK: their turns, their timeouts, and one repeat under the same key."""

import logging
import time
from collections.abc import AsyncIterator, Mapping
from typing import Any

import aiohttp
import stripe
import structlog
from stripe import _api_requestor

from services.payments.providers.border import NoAnswer
from services.payments.providers.limits import ProviderLimits, Turn
from services.payments.providers.limits.pacer import Endpoint
from services.payments.providers.metrics import SECONDS, UNKNOWN

log = structlog.get_logger()
# The SDK logs each request and answer. Failures are logged here, and the rest is in metrics.
logging.getLogger("stripe").setLevel(logging.WARNING)
# It formats these texts, with the whole answer, before anybody asks for them: a fifth of the CPU time of a call.
_api_requestor.log_info = _api_requestor.log_debug = lambda *_, **__: None  # type: ignore[attr-defined]
# Otherwise each call reports our platform and the duration of the previous call to Stripe.
stripe.enable_telemetry = False

Object = Mapping[str, Any]
"""An object of Stripe's API, as its JSON contains it."""
_LIST = Turn(Endpoint.LIST)

NOT_FOUND = 404
_CALL_SECONDS = 10
_ENDED_STATUSES = frozenset((429, 500))  # a proxy that answers 502 to 504 may have passed the request on
_PAGE = 100
_PAGES_MOST = 50


class Transport:
    """The connections to one Stripe account."""

    def __init__(self, key: str, *, api_base: str, limits: ProviderLimits) -> None:
        self._limits = limits
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
            page = await self.get(operation, path, _LIST, {**params, **after, "limit": _PAGE})
            for found in page["data"]:
                yield found
            if not page["has_more"]:
                return
            after = {"starting_after": page["data"][-1]["id"]}
        raise NoAnswer(operation, too_many=True)

    async def get(self, operation: str, path: str, turn: Turn, params: Object | None = None) -> Object:
        return await self._limits.run(turn, lambda: self._send(operation, "get", path, params or {}))

    async def post(self, operation: str, path: str, turn: Turn, params: Object, key: str) -> Object:
        """Send a call with an effect, under an idempotency key. Raises Stripe's decisions as they are."""
        keyed = {**params, "idempotency_key": key}
        return await self._limits.run(turn, lambda: self._send(operation, "post", path, keyed))

    async def _send(self, operation: str, method: str, path: str, params: Object) -> Object:
        """Send one request. It is a raw one: the SDK's typed objects cost as much as the call itself."""
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
            SECONDS.labels(operation).observe(time.perf_counter() - started)


def no_answer(operation: str, error: Exception) -> NoAnswer:
    """Count and log a call without a final answer, and return it as an exception."""
    cause = type(error).__name__
    UNKNOWN.labels(operation, cause).inc()
    status = getattr(error, "http_status", None)
    log.warning("the outcome of a provider call is unknown", operation=operation, cause=cause, status=status)
    is_limit = isinstance(error, stripe.RateLimitError)
    return NoAnswer(operation, has_ended=status in _ENDED_STATUSES, is_limit=is_limit)
