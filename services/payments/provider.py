"""Stripe, through its official SDK: each call answers with a fact, and an unknown outcome is one of them."""

import asyncio
import contextlib
import logging
import time
import uuid
from collections.abc import Awaitable, Callable, Mapping
from typing import Any
from urllib.parse import quote

import aiohttp
import stripe
import structlog
from prometheus_client import Counter, Histogram

from services.payments.domain import (
    NOT_FOUND,
    Fact,
    Kind,
    Payment,
    Refund,
    RefundFact,
    RefundState,
    Step,
    decline_reason,
)

log = structlog.get_logger()
# The SDK notes each request and answer; what goes wrong is logged here, and the rest is in metrics.
logging.getLogger("stripe").setLevel(logging.WARNING)
# Nor do we tell Stripe with each call on what platform we run, and how long the call before it took.
stripe.enable_telemetry = False

Said = Mapping[str, Any]
"""An object of Stripe's, as its JSON says it."""

_SECONDS = Histogram("stampede_provider_seconds", "Time of one call to the provider, without waiting.", ["operation"])
_UNKNOWN = Counter("stampede_provider_unknown_total", "Calls whose outcome is not known.", ["operation", "cause"])

_INTENTS, _REFUNDS = "/v1/payment_intents", "/v1/refunds"
_CALL_SECONDS = 10
_RETRIES = 1  # under the same key; whatever is still unknown then is the reconciler's
_PAGE = 100
_PAGES_MOST = 50
_EARLIER_SECONDS = 600  # how far the provider's clock may be behind ours

# Cards are asked for without redirects, so that no return address is needed to confirm on the server.
_METHODS: Any = {"enabled": True, "allow_redirects": "never"}
_SAID = {
    "succeeded": Kind.SUCCEEDED,
    "processing": Kind.PROCESSING,
    "canceled": Kind.CANCELLED,
    "requires_action": Kind.AWAITING,
    "requires_payment_method": Kind.AWAITING,
    "requires_confirmation": Kind.AWAITING,
}
_REFUND_SAID = {
    "succeeded": RefundState.SUCCEEDED,
    "failed": RefundState.FAILED,
    "canceled": RefundState.FAILED,
}


class Pace:
    """A token bucket: so many calls a second, a tenth of a second's worth at once."""

    def __init__(self, per_second: float) -> None:
        self._interval = 1 / per_second if per_second else 0.0
        self._slack = 0.1
        self._next = 0.0

    async def turn(self) -> None:
        """Returns when the caller may go."""
        if not self._interval:
            return
        now = time.monotonic()
        self._next = max(self._next + self._interval, now - self._slack)
        if self._next > now:
            await asyncio.sleep(self._next - now)


class Unknown(Exception):
    """The provider did not say what happened: the call must be repeated under its key, or looked up."""


class Stripe:
    """One Stripe account. Bounded in concurrency and pace; every call has a deadline and a key of ours."""

    def __init__(self, key: str, *, api_base: str, calls_per_second: float, concurrency: int) -> None:
        self._http = stripe.AIOHTTPClient(timeout=aiohttp.ClientTimeout(total=_CALL_SECONDS))
        self._client = stripe.StripeClient(
            key, base_addresses={"api": api_base}, http_client=self._http, max_network_retries=_RETRIES
        )
        self._pace, self._places = Pace(calls_per_second), asyncio.Semaphore(concurrency)

    async def aclose(self) -> None:
        await self._http.close_async()  # type: ignore[no-untyped-call]

    async def ask(self, payment: Payment, step: Step) -> Fact:
        """Takes one step for an open payment. An unknown outcome is a fact of its own, never an exception."""
        steps: dict[Step, Callable[[Payment], Awaitable[Fact]]] = {
            Step.CREATE: self._create,
            Step.FIND: self._find,
            Step.CONFIRM: self._confirm,
            Step.CANCEL: self._cancel,
            Step.RETRIEVE: self._retrieve,
        }
        try:
            return await steps[step](payment)
        except Unknown:
            return Fact(payment_id=payment.id, kind=Kind.UNKNOWN)

    async def close_intent(self, payment: Payment) -> None:
        """Cancels a declined payment's intent, if the provider can be reached just now."""
        with contextlib.suppress(Unknown, stripe.InvalidRequestError):
            await self._post("close", _intent(payment, "cancel"), {}, _key(payment, "cancel"))

    async def _create(self, payment: Payment) -> Fact:
        # The key belongs to these very parameters, so nothing in them may change between repeats.
        params: Any = {
            "amount": payment.amount_minor,
            "currency": payment.currency.lower(),
            "automatic_payment_methods": _METHODS,
            "metadata": {"order_id": str(payment.order_id), "payment_id": str(payment.id)},
        }
        if payment.payment_method:
            params |= {"confirm": True, "payment_method": payment.payment_method}
        try:
            intent = await self._post("create", _INTENTS, params, _key(payment, "create"))
        except stripe.CardError as error:
            return _declined(payment, error)
        except stripe.InvalidRequestError as error:
            return _refused(payment, error)
        return intent_fact(payment.id, intent)

    async def _confirm(self, payment: Payment) -> Fact:
        params = {"payment_method": payment.payment_method}
        try:
            intent = await self._post("confirm", _intent(payment, "confirm"), params, _key(payment, "confirm"))
        except stripe.CardError as error:
            return _declined(payment, error)
        except stripe.InvalidRequestError as error:
            if error.code == "payment_intent_unexpected_state":
                return await self._retrieve(payment)
            return _refused(payment, error)
        return intent_fact(payment.id, intent)

    async def _cancel(self, payment: Payment) -> Fact:
        try:
            intent = await self._post("cancel", _intent(payment, "cancel"), {}, _key(payment, "cancel"))
        except stripe.InvalidRequestError:
            return await self._retrieve(payment)  # paid, or cancelled already: what is it now?
        return intent_fact(payment.id, intent)

    async def _retrieve(self, payment: Payment) -> Fact:
        try:
            intent = await self._get("retrieve", _intent(payment))
        except stripe.InvalidRequestError as error:
            raise self._unknown("retrieve", error) from error
        return intent_fact(payment.id, intent)

    async def _find(self, payment: Payment) -> Fact:
        """Searches the provider's records for the payment; unknown, with reason NOT_FOUND, where it is in none."""
        params: Any = {"limit": _PAGE, "created": {"gte": int(payment.create_time.timestamp()) - _EARLIER_SECONDS}}
        for _ in range(_PAGES_MOST):
            page = await self._get("list", _INTENTS, params)
            for intent in page["data"]:
                if _metadata(intent).get("payment_id") == str(payment.id):
                    return intent_fact(payment.id, intent)
            if not page["has_more"]:
                return Fact(payment_id=payment.id, kind=Kind.UNKNOWN, reason=NOT_FOUND)
            params["starting_after"] = page["data"][-1]["id"]
        raise self._unknown("list", RuntimeError("too many intents to search"))

    async def refund(self, refund: Refund, *, key_expired: bool) -> RefundFact:
        """Pays back. Repeated under one key it pays once; without a known key it looks first."""
        try:
            if refund.provider_reference is not None:
                path = f"{_REFUNDS}/{quote(refund.provider_reference, safe='')}"
                return _refund_fact(refund, await self._get("retrieve_refund", path))
            if key_expired and (found := await self._find_refund(refund)):
                return found
            params = {
                "payment_intent": refund.charge_reference,
                "amount": refund.amount_minor,
                "metadata": {"refund_id": str(refund.id), "payment_id": str(refund.payment_id)},
            }
            key = f"{refund.payment_id}/{refund.id}/refund"
            try:
                return _refund_fact(refund, await self._post("refund", _REFUNDS, params, key))
            except stripe.InvalidRequestError as error:
                found = await self._find_refund(refund)
                return found or RefundFact(
                    refund_id=refund.id, payment_id=refund.payment_id, state=RefundState.FAILED,
                    reason=(error.code or "refused_by_provider").upper(),
                )  # fmt: skip
        except (Unknown, stripe.InvalidRequestError):
            return RefundFact(refund_id=refund.id, payment_id=refund.payment_id)

    async def _find_refund(self, refund: Refund) -> RefundFact | None:
        params: Any = {"payment_intent": refund.charge_reference, "limit": _PAGE}
        while True:
            page = await self._get("list_refunds", _REFUNDS, params)
            for made in page["data"]:
                if _metadata(made).get("refund_id") == str(refund.id):
                    return _refund_fact(refund, made)
            if not page["has_more"]:
                return None
            params["starting_after"] = page["data"][-1]["id"]

    async def _get(self, operation: str, path: str, params: Said | None = None) -> Said:
        return await self._call(operation, "get", path, params or {})

    async def _post(self, operation: str, path: str, params: Said, key: str) -> Said:
        return await self._call(operation, "post", path, {**params, "idempotency_key": key})

    async def _call(self, operation: str, method: str, path: str, params: Said) -> Said:
        """One call within the limits. Raises what the provider decided; anything undecided as `Unknown`.

        A raw request: the SDK's objects, one for each object within an answer, cost as much as the call itself.
        """
        async with self._places:
            await self._pace.turn()
            started = time.perf_counter()
            try:
                response: Any = await self._client.raw_request_async(method, path, **params)
                answer: Said = response.data
                return answer
            except (stripe.CardError, stripe.InvalidRequestError):
                raise
            except (stripe.StripeError, aiohttp.ClientError, TimeoutError, OSError) as error:
                raise self._unknown(operation, error) from error
            finally:
                _SECONDS.labels(operation).observe(time.perf_counter() - started)

    def _unknown(self, operation: str, error: Exception) -> Unknown:
        cause = type(error).__name__
        _UNKNOWN.labels(operation, cause).inc()
        status = getattr(error, "http_status", None)
        log.warning("the provider's answer is not known", operation=operation, cause=cause, status=status)
        return Unknown(operation)


def _key(payment: Payment, operation: str) -> str:
    return f"{payment.id}/{payment.attempt}/{operation}"


def _intent(payment: Payment, *verb: str) -> str:
    """The path of a payment's intent, and of what is to be done with it."""
    assert payment.provider_reference is not None
    return "/".join((_INTENTS, quote(payment.provider_reference, safe=""), *verb))


def _metadata(thing: Said) -> Mapping[str, str]:
    return thing.get("metadata") or {}


def intent_fact(payment_id: uuid.UUID, intent: Said) -> Fact:
    """What a PaymentIntent says."""
    error = intent.get("last_payment_error")
    return said(
        payment_id,
        status=intent["status"],
        reference=intent["id"],
        client_secret=intent["client_secret"],
        amount=intent["amount"],
        currency=intent["currency"],
        error=None if error is None else (error.get("code"), error.get("decline_code")),
    )


def said(
    payment_id: uuid.UUID,
    *,
    status: str,
    reference: str,
    client_secret: str | None,
    amount: int,
    currency: str,
    error: tuple[str | None, str | None] | None,
) -> Fact:
    """A PaymentIntent's status as a fact. One that Stripe adds later is unknown to us, and asked for again."""
    kind = _SAID.get(status, Kind.UNKNOWN)
    if status == "requires_payment_method" and error is not None:
        kind = Kind.DECLINED
    return Fact(
        payment_id=payment_id,
        kind=kind,
        reference=reference,
        client_secret=client_secret,
        amount_minor=amount,
        currency=currency,
        reason=decline_reason(*error) if kind is Kind.DECLINED and error else "",
        authenticating=status == "requires_action",
    )


def _declined(payment: Payment, error: stripe.CardError) -> Fact:
    body = error.json_body if isinstance(error.json_body, dict) else {}
    details = body.get("error") or {}
    intent = details.get("payment_intent") or {}
    return Fact(
        payment_id=payment.id,
        kind=Kind.DECLINED,
        reference=intent.get("id"),
        client_secret=intent.get("client_secret"),
        amount_minor=intent.get("amount"),
        currency=intent.get("currency"),
        reason=decline_reason(error.code, details.get("decline_code")),
    )


def _refused(payment: Payment, error: stripe.InvalidRequestError) -> Fact:
    reason = "INVALID_PAYMENT_METHOD" if error.param == "payment_method" else "REFUSED_BY_PROVIDER"
    log.warning("the provider refused", payment_id=payment.id, code=error.code, param=error.param)
    return Fact(payment_id=payment.id, kind=Kind.REFUSED, reference=payment.provider_reference, reason=reason)


def _refund_fact(refund: Refund, made: Said) -> RefundFact:
    return RefundFact(
        refund_id=refund.id,
        payment_id=refund.payment_id,
        state=_REFUND_SAID.get(made["status"], RefundState.PENDING),
        reference=made["id"],
        reason=str(made.get("failure_reason") or "").upper(),
    )
