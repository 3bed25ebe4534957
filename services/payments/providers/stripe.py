"""Stripe, through its official SDK."""

import asyncio
import logging
import time
import uuid
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from datetime import datetime, timedelta
from typing import Any
from urllib.parse import quote

import aiohttp
import stripe
import structlog
from prometheus_client import Counter, Histogram

from services.payments.domain import (
    ChargeRecord,
    ChargeResult,
    ChargeStatus,
    Payment,
    ProviderRefund,
    Refund,
    RefundResult,
    RefundState,
    own_id,
)
from services.payments.providers import Check, OutcomeUnknown, TooManyObjects, Withdrawn
from services.payments.providers.pacer import Pacer
from services.payments.providers.stripe_declines import decline_reason

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

_INTENTS, _REFUNDS, _EVENTS = "/v1/payment_intents", "/v1/refunds", "/v1/events"
_CALL_SECONDS = 10
_RETRY_SECONDS = 0.5  # once, under the same key; the reconciler handles outcomes that are still unknown
_ENDED_STATUSES = frozenset((429, 500))  # a proxy that answers 502 to 504 may have passed the request on
_NOT_FOUND = 404
_PAGE = 100
_PAGES_MOST, _INTENT_PAGES_MOST = 50, 500
_EVENT_PAGES_MOST = 300
_EARLIER_SECONDS = 600  # the provider's clock may be behind ours by this much

# Without redirects, so that the server can confirm a card without a return address.
_METHODS: Any = {"enabled": True, "allow_redirects": "never"}
_STATUSES = {
    "succeeded": ChargeStatus.SUCCEEDED,
    "processing": ChargeStatus.PROCESSING,
    "canceled": ChargeStatus.CANCELLED,
    "requires_action": ChargeStatus.AWAITING_CUSTOMER,
    "requires_payment_method": ChargeStatus.AWAITING_CUSTOMER,
    "requires_confirmation": ChargeStatus.AWAITING_CUSTOMER,
}
_REFUND_STATES = {
    "succeeded": RefundState.SUCCEEDED,
    "failed": RefundState.FAILED,
    "canceled": RefundState.FAILED,
}
REFUND_EVENTS = frozenset((
    "charge.refunded", "charge.refund.updated", "refund.created", "refund.updated", "refund.failed",
))  # fmt: skip
DISPUTE_EVENTS = frozenset((
    "charge.dispute.created", "charge.dispute.updated", "charge.dispute.closed", "charge.dispute.funds_withdrawn",
    "charge.dispute.funds_reinstated",
))  # fmt: skip
WALKED_EVENTS = (REFUND_EVENTS | DISPUTE_EVENTS) - {"refund.created"}
"""The types that report what no answer of a call does. They are listed again, so that a lost one is found.

`charge.refunded` is sent for each refund that is created.
"""


class Stripe:
    """The `PaymentProvider` of one Stripe account, bounded in concurrent calls and in calls a second."""

    name = "stripe"
    # Stripe keeps a key for 24 hours. A repeat after that would be a second charge.
    key_lifetime = timedelta(hours=20)

    def __init__(self, key: str, *, api_base: str, calls_per_second: float, concurrency: int) -> None:
        """`calls_per_second` of 0 means no limit."""
        self._pacer = Pacer(calls_per_second=calls_per_second, concurrency=concurrency)
        self._http = stripe.AIOHTTPClient(timeout=aiohttp.ClientTimeout(total=_CALL_SECONDS))
        self._client = stripe.StripeClient(
            key, base_addresses={"api": api_base}, http_client=self._http, max_network_retries=0
        )

    async def aclose(self) -> None:
        await self._http.close_async()  # type: ignore[no-untyped-call]

    async def create(self, payment: Payment, check: Check) -> ChargeResult:
        # Stripe refuses a known key with other parameters, so repeats must not change any of these.
        params: Any = {
            "amount": payment.amount_minor,
            "currency": payment.currency.lower(),
            "automatic_payment_methods": _METHODS,
            "metadata": {"order_id": str(payment.order_id), "payment_id": str(payment.id)},
        }
        if payment.payment_method:
            params |= {"confirm": True, "payment_method": payment.payment_method}
        try:
            # Without a card nobody's money waits for the answer, only the page that will ask for a card.
            turn = self._pacer.turn(payment.customer_id, patient=not payment.payment_method)
            intent = await self._post("create", _INTENTS, params, _key(payment, "create"), turn, check)
        except stripe.CardError as error:
            return _declined(payment, error)
        except stripe.InvalidRequestError as error:
            return _refused(payment, error)
        return _charge_result(payment.id, intent)

    async def confirm(self, payment: Payment, check: Check) -> ChargeResult:
        params = {"payment_method": payment.payment_method}
        try:
            turn = self._pacer.turn(payment.customer_id)
            key = _key(payment, "confirm")
            intent = await self._post("confirm", _path(payment, "confirm"), params, key, turn, check)
        except stripe.CardError as error:
            return _declined(payment, error)
        except stripe.InvalidRequestError as error:
            if error.code == "payment_intent_unexpected_state":
                return await self.retrieve(payment)
            return _refused(payment, error)
        return _charge_result(payment.id, intent)

    async def cancel(self, payment: Payment) -> ChargeResult:
        try:
            turn = self._pacer.turn(payment.customer_id)
            # A key for each try: a repeated void does no harm, and a key may answer 500 for ever.
            key = _key(payment, f"cancel/{payment.checks}")
            intent = await self._post("cancel", _path(payment, "cancel"), {}, key, turn)
        except stripe.InvalidRequestError:
            return await self.retrieve(payment)  # it is paid or cancelled already
        return _charge_result(payment.id, intent)

    async def retrieve(self, payment: Payment) -> ChargeResult:
        try:
            intent = await self._get("retrieve", _path(payment))
        except stripe.InvalidRequestError as error:
            if error.http_status == _NOT_FOUND:
                log.error("the provider has no such charge", payment_id=payment.id)
                return ChargeResult(payment_id=payment.id, status=ChargeStatus.MISSING)
            raise self._unknown("retrieve", error) from error
        return _charge_result(payment.id, intent)

    async def find(self, payments: Sequence[Payment]) -> dict[uuid.UUID, ChargeResult]:
        since = int(min(payment.create_time for payment in payments).timestamp()) - _EARLIER_SECONDS
        missing, found = {payment.id for payment in payments}, dict[uuid.UUID, ChargeResult]()
        async for intent in self._list("list", _INTENTS, {"created": {"gte": since}}, pages_most=_INTENT_PAGES_MOST):
            id_ = own_id((intent.get("metadata") or {}).get("payment_id"))
            if id_ in missing:
                missing.discard(id_)
                found[id_] = _charge_result(id_, intent)
                if not missing:
                    break
        return found

    async def look_up(self, payment: Payment, reference: str) -> ChargeRecord | None:
        path = f"{_INTENTS}/{quote(reference, safe='')}"
        try:
            intent = await self._get("look_up", path)
        except stripe.InvalidRequestError as error:
            if error.http_status == _NOT_FOUND:
                return None
            raise self._unknown("look_up", error) from error
        return ChargeRecord(
            payment_id=own_id((intent.get("metadata") or {}).get("payment_id")),
            result=_charge_result(payment.id, intent),
        )

    async def refund(self, refund: Refund) -> RefundResult:
        try:
            if refund.provider_reference is not None:
                path = f"{_REFUNDS}/{quote(refund.provider_reference, safe='')}"
                return _refund_result(refund, await self._get("retrieve_refund", path))
            return await self._create_refund(refund)
        except stripe.InvalidRequestError as error:
            raise self._unknown("refund", error) from error

    async def _create_refund(self, refund: Refund) -> RefundResult:
        params = {
            "payment_intent": refund.charge_reference,
            "amount": refund.amount_minor,
            "metadata": {"refund_id": str(refund.id), "payment_id": str(refund.payment_id)}
            | ({"attempt": str(refund.attempt)} if refund.attempt > 1 else {}),
        }
        key = f"{refund.payment_id}/{refund.id}/refund" + (f"/{refund.attempt}" if refund.attempt > 1 else "")
        try:
            return _refund_result(refund, await self._post("refund", _REFUNDS, params, key))
        except stripe.InvalidRequestError as error:
            reason = (error.code or "refused_by_provider").upper()
        # The refusal may mean that an earlier call has refunded it already.
        return await self._find_refund(refund) or RefundResult(
            refund_id=refund.id, payment_id=refund.payment_id, state=RefundState.FAILED, reason=reason
        )

    async def _find_refund(self, refund: Refund) -> RefundResult | None:
        listed = await self.list_refunds(refund.charge_reference)
        return next((made.result(refund) for made in listed if made.is_of(refund)), None)

    async def list_refunds(self, charge_reference: str) -> list[ProviderRefund]:
        params = {"payment_intent": charge_reference}
        try:
            return [
                _provider_refund(charge_reference, made) async for made in self._list("list_refunds", _REFUNDS, params)
            ]
        except stripe.InvalidRequestError as error:
            raise self._unknown("list_refunds", error) from error

    async def list_events(self, since: datetime, until: datetime) -> list[Object]:
        span = {"gte": int(since.timestamp()), "lte": int(until.timestamp())}
        params = {"created": span, "types": sorted(WALKED_EVENTS)}
        return [event async for event in self._list("list_events", _EVENTS, params, pages_most=_EVENT_PAGES_MOST)]

    async def _list(
        self, operation: str, path: str, params: Object, *, pages_most: int = _PAGES_MOST
    ) -> AsyncIterator[Object]:
        """Yield the objects of a list, newest first."""
        after: dict[str, str] = {}
        for _ in range(pages_most):
            page = await self._get(operation, path, {**params, **after, "limit": _PAGE})
            for found in page["data"]:
                yield found
            if not page["has_more"]:
                return
            after = {"starting_after": page["data"][-1]["id"]}
        raise TooManyObjects(operation)

    async def _get(self, operation: str, path: str, params: Object | None = None) -> Object:
        return await self._call(operation, "get", path, params or {})

    async def _post(
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

        Raise Stripe's decisions as they are, all else as `OutcomeUnknown`.
        """
        async with turn or self._pacer.turn():
            try:
                return await self._send(operation, method, path, params, check)
            except OutcomeUnknown as first:
                if isinstance(first.__cause__, stripe.RateLimitError):
                    raise
                await asyncio.sleep(_RETRY_SECONDS)
                try:
                    return await self._send(operation, method, path, params, check)
                except OutcomeUnknown as second:
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
            raise self._unknown(operation, error) from error
        finally:
            _SECONDS.labels(operation).observe(time.perf_counter() - started)

    def _unknown(self, operation: str, error: Exception) -> OutcomeUnknown:
        cause = type(error).__name__
        _UNKNOWN.labels(operation, cause).inc()
        status = getattr(error, "http_status", None)
        log.warning("the outcome of a provider call is unknown", operation=operation, cause=cause, status=status)
        return OutcomeUnknown(operation, has_ended=status in _ENDED_STATUSES)


def is_live(key: str) -> bool:
    """Whether an API key moves real money: its prefix says so, as in `sk_live_…` and `rk_test_…`."""
    return "_live_" in key[:8]


def charge_status(status: str) -> ChargeStatus:
    """Return the meaning of a PaymentIntent's status. A status that Stripe adds later is unknown, and asked again."""
    return _STATUSES.get(status, ChargeStatus.UNKNOWN)


def refund_state(status: str) -> RefundState:
    """Return the meaning of a Refund's status. A status that Stripe adds later is one without an end."""
    return _REFUND_STATES.get(status, RefundState.PENDING)


def _key(payment: Payment, operation: str) -> str:
    return f"{payment.id}/{payment.attempt}/{operation}"


def _path(payment: Payment, *action: str) -> str:
    """Return the path of a payment's intent, or of an action on it."""
    assert payment.provider_reference is not None
    return "/".join((_INTENTS, quote(payment.provider_reference, safe=""), *action))


def _charge_result(payment_id: uuid.UUID, intent: Object) -> ChargeResult:
    error: Object = intent.get("last_payment_error") or {}
    declined = bool(error) and intent["status"] == "requires_payment_method"
    return ChargeResult(
        payment_id=payment_id,
        status=ChargeStatus.DECLINED if declined else charge_status(intent["status"]),
        reference=intent["id"],
        client_secret=intent["client_secret"],
        amount_minor=intent["amount"],
        currency=intent["currency"],
        reason=decline_reason(error.get("code"), error.get("decline_code")) if declined else "",
        authenticating=intent["status"] == "requires_action",
    )


def _declined(payment: Payment, error: stripe.CardError) -> ChargeResult:
    body = error.json_body if isinstance(error.json_body, dict) else {}
    details = body.get("error") or {}
    intent = details.get("payment_intent") or {}
    return ChargeResult(
        payment_id=payment.id,
        status=ChargeStatus.DECLINED,
        reference=intent.get("id"),
        client_secret=intent.get("client_secret"),
        amount_minor=intent.get("amount"),
        currency=intent.get("currency"),
        reason=decline_reason(error.code, details.get("decline_code")),
    )


def _refused(payment: Payment, error: stripe.InvalidRequestError) -> ChargeResult:
    reason = "INVALID_PAYMENT_METHOD" if error.param == "payment_method" else "REFUSED_BY_PROVIDER"
    log.warning("the provider refused a charge", payment_id=payment.id, code=error.code, param=error.param)
    status, reference = ChargeStatus.REFUSED, payment.provider_reference
    return ChargeResult(payment_id=payment.id, status=status, reference=reference, reason=reason)


def _attempt(value: object) -> int:
    return int(value) if isinstance(value, str) and value.isascii() and value.isdigit() else 1


def _provider_refund(charge_reference: str, made: Object) -> ProviderRefund:
    return ProviderRefund(
        reference=made["id"],
        charge_reference=charge_reference,
        amount_minor=made["amount"],
        state=refund_state(made["status"]),
        refund_id=own_id((made.get("metadata") or {}).get("refund_id")),
        attempt=_attempt((made.get("metadata") or {}).get("attempt")),
        reason=str(made.get("failure_reason") or "").upper(),
    )


def _refund_result(refund: Refund, made: Object) -> RefundResult:
    return _provider_refund(refund.charge_reference, made).result(refund)
