"""The port for Stripe: PaymentIntents and refunds."""

import uuid
from collections.abc import Mapping, Sequence
from datetime import datetime, timedelta
from typing import Any
from urllib.parse import quote

import stripe
import structlog

from services.chassis.errors import AppError
from services.payments.domain import BadSignature, Capture, Payment, Refund, RefundState, State
from services.payments.providers import Capabilities, Check
from services.payments.providers.border import returns, returns_charge, returns_refund
from services.payments.providers.events import ProviderEvent
from services.payments.providers.limits import ProviderLimits, Turn
from services.payments.providers.limits.pacer import Endpoint
from services.payments.providers.results import (
    ChargeRecord,
    ChargeResult,
    ChargeStatus,
    ProviderCharge,
    ProviderDispute,
    ProviderRefund,
    RefundResult,
    own_id,
)
from services.payments.providers.stripe import reading
from services.payments.providers.stripe.checkout import SAVED_FOR, Checkout, is_page
from services.payments.providers.stripe.transport import NOT_FOUND, Object, Transport, no_answer
from services.payments.providers.stripe.vault import StripeVault
from services.payments.providers.stripe.webhook import WALKED_EVENTS, StripeWebhook

log = structlog.get_logger()

_INTENTS, _REFUNDS, _DISPUTES = "/v1/payment_intents", "/v1/refunds", "/v1/disputes"
_CHARGES, _EVENTS = "/v1/charges", "/v1/events"
_INTENT_PAGES_MOST, _EVENT_PAGES_MOST, _CHARGE_PAGES_MOST = 500, 300, 300
_EARLIER_SECONDS = 600  # the provider's clock may be behind ours by this much
_CHECKS_PER_KEY = 12
_CHECK, _REFUND = Turn(Endpoint.CHECK), Turn(Endpoint.REFUND)
# Without redirects, so that the server can confirm a card without a return address.
_METHODS: Any = {"enabled": True, "allow_redirects": "never"}


class Stripe:
    """The `PaymentProvider` of one Stripe account."""

    name = "stripe"
    can = Capabilities(
        charges_tokens=True, voids=True, charged_once=True, hosts_pages=True, signs_callbacks=False,
        authorises_for=timedelta(days=7),
    )  # fmt: skip
    # Stripe keeps a key for 24 hours. A repeat after that would be a second charge.
    key_lifetime = timedelta(hours=20)

    def __init__(
        self, key: str, *, webhook: StripeWebhook, api_base: str, calls_per_second: float, concurrency: int
    ) -> None:
        """`calls_per_second` of 0 means no limit."""
        self._webhook = webhook
        self.limits = ProviderLimits(self.name, calls_per_second=calls_per_second, concurrency=concurrency)
        self._api = Transport(key, api_base=api_base, limits=self.limits)
        self._checkout = Checkout(self._api)
        self.vault = StripeVault(self._api)

    async def aclose(self) -> None:
        await self._api.aclose()

    @returns_charge
    async def create(self, payment: Payment, check: Check, customer: str = "") -> ChargeResult:
        # Stripe refuses a known key with other parameters, so repeats must not change any of these.
        params: Any = {
            "amount": payment.amount_minor,
            "currency": payment.currency.lower(),
            "automatic_payment_methods": _METHODS,
            "metadata": {"order_id": str(payment.order_id), "payment_id": str(payment.id)},
        }
        if payment.terms and payment.terms.checkout:
            return await self._create_page(payment, check, customer)
        if payment.capture is not Capture.AUTOMATIC:
            params["capture_method"] = "manual"
        if customer:
            params["customer"] = customer
        if payment.terms and payment.terms.saves_method:
            params["setup_future_usage"] = SAVED_FOR
        if payment.payment_method:
            params |= {"confirm": True, "payment_method": payment.payment_method}
        try:
            # Without a card nobody's money waits for the answer, only the page that will ask for a card.
            endpoint = Endpoint.CHARGE if payment.payment_method else Endpoint.OPEN
            turn = Turn(endpoint, payment.customer_id, payment.hold_expire_time, check)
            intent = await self._api.post("create", _INTENTS, turn, params, _key(payment, "create"))
        except stripe.CardError as error:
            return reading.declined(payment, error)
        except stripe.InvalidRequestError as error:
            return _refused(payment, error)
        return reading.charge_result(payment.id, intent)

    async def _create_page(self, payment: Payment, check: Check, customer: str) -> ChargeResult:
        try:
            return await self._checkout.create(payment, _key(payment, "create"), check, customer)
        except stripe.InvalidRequestError as error:
            return _refused(payment, error)

    @returns_charge
    async def confirm(self, payment: Payment, check: Check) -> ChargeResult:
        params = {"payment_method": payment.payment_method}
        try:
            turn, key = _charge_turn(payment, check), _key(payment, "confirm")
            intent = await self._api.post("confirm", _path(payment, "confirm"), turn, params, key)
        except stripe.CardError as error:
            return reading.declined(payment, error)
        except stripe.InvalidRequestError as error:
            if error.code == "payment_intent_unexpected_state":
                return await self._retrieve(payment)
            return _refused(payment, error)
        return reading.charge_result(payment.id, intent)

    @returns_charge
    async def capture(self, payment: Payment, amount_minor: int, check: Check) -> ChargeResult:
        try:
            # An intent is captured once, whatever the key: a key that answers 500 for ever is changed.
            key = _key(payment, f"capture/{payment.checks // _CHECKS_PER_KEY}")
            params = {"amount_to_capture": amount_minor}
            turn = _charge_turn(payment, check)
            intent = await self._api.post("capture", _path(payment, "capture"), turn, params, key)
        except stripe.InvalidRequestError:
            return await self._retrieve(payment)  # it is captured, voided, or not authorised
        return reading.charge_result(payment.id, intent)

    @returns_charge
    async def void(self, payment: Payment) -> ChargeResult:
        if payment.keeps_authorisation:
            result = await self._current(payment)
            if result.status is ChargeStatus.AUTHORISED:
                return result
        try:
            # A key for each try: a repeated void does no harm, and a key may answer 500 for ever.
            key = _key(payment, f"void/{payment.checks}")
            if payment.checkout_reference is not None and payment.state is not State.AUTHORIZED:
                return await self._checkout.end(payment, key)
            intent = await self._api.post("void", _path(payment, "cancel"), _charge_turn(payment), {}, key)
        except stripe.InvalidRequestError:
            return await self._retrieve(payment)  # it is paid or cancelled already
        return reading.charge_result(payment.id, intent)

    @returns_charge
    async def retrieve(self, payment: Payment) -> ChargeResult:
        return await self._current(payment)

    async def _current(self, payment: Payment) -> ChargeResult:
        # Of a page that was paid, the charge says more.
        if payment.checkout_reference is not None and payment.state is not State.AUTHORIZED:
            return await self._checkout.retrieve(payment)
        return await self._retrieve(payment)

    async def _retrieve(self, payment: Payment) -> ChargeResult:
        try:
            intent = await self._api.get("retrieve", _path(payment), _CHECK)
        except stripe.InvalidRequestError as error:
            if error.http_status == NOT_FOUND:
                log.error("the provider has no such charge", payment_id=payment.id)
                return ChargeResult(payment_id=payment.id, status=ChargeStatus.MISSING)
            raise no_answer("retrieve", error) from error
        return reading.charge_result(payment.id, intent)

    @returns
    async def find(self, payments: Sequence[Payment]) -> dict[uuid.UUID, ChargeResult]:
        since = int(min(payment.create_time for payment in payments).timestamp()) - _EARLIER_SECONDS
        on_pages = [payment for payment in payments if payment.terms and payment.terms.checkout]
        found = await self._checkout.find(on_pages, since=since) if on_pages else dict[uuid.UUID, ChargeResult]()
        missing = {payment.id for payment in payments if payment not in on_pages}
        former = {reference for payment in payments for reference in payment.former_references}
        pages = self._api.list("list", _INTENTS, {"created": {"gte": since}}, pages_most=_INTENT_PAGES_MOST)
        async for intent in pages:
            id_ = own_id((intent.get("metadata") or {}).get("payment_id"))
            if id_ in missing and intent["id"] not in former:
                missing.discard(id_)
                found[id_] = reading.charge_result(id_, intent)
            if not missing:
                break
        return found

    @returns
    async def look_up(self, payment: Payment, reference: str) -> ChargeRecord | None:
        if is_page(reference):
            return await self._checkout.look_up(payment, reference)
        path = f"{_INTENTS}/{quote(reference, safe='')}"
        try:
            intent = await self._api.get("look_up", path, _CHECK)
        except stripe.InvalidRequestError as error:
            if error.http_status == NOT_FOUND:
                return None
            raise no_answer("look_up", error) from error
        return ChargeRecord(
            payment_id=own_id((intent.get("metadata") or {}).get("payment_id")),
            result=reading.charge_result(payment.id, intent),
        )

    @returns_refund
    async def refund(self, refund: Refund) -> RefundResult:
        try:
            if refund.provider_reference is not None:
                path = f"{_REFUNDS}/{quote(refund.provider_reference, safe='')}"
                return reading.refund_result(refund, await self._api.get("retrieve_refund", path, _CHECK))
            return await self._create_refund(refund)
        except stripe.InvalidRequestError as error:
            raise no_answer("refund", error) from error

    async def _create_refund(self, refund: Refund) -> RefundResult:
        params = {
            "payment_intent": refund.charge_reference,
            "amount": refund.amount_minor,
            "metadata": {"refund_id": str(refund.id), "payment_id": str(refund.payment_id)}
            | ({"attempt": str(refund.attempt)} if refund.attempt > 1 else {}),
        }
        key = f"{refund.payment_id}/{refund.id}/refund" + (f"/{refund.attempt}" if refund.attempt > 1 else "")
        try:
            return reading.refund_result(refund, await self._api.post("refund", _REFUNDS, _REFUND, params, key))
        except stripe.InvalidRequestError as error:
            reason = (error.code or "refused_by_provider").upper()
        # The refusal may mean that an earlier call has refunded it already.
        return await self._find_refund(refund) or RefundResult(
            refund_id=refund.id, payment_id=refund.payment_id, state=RefundState.FAILED, reason=reason
        )

    async def _find_refund(self, refund: Refund) -> RefundResult | None:
        listed = await self._list_refunds(refund.charge_reference)
        return next((made.result(refund) for made in listed if made.is_of(refund)), None)

    @returns
    async def list_refunds(self, charge_reference: str) -> list[ProviderRefund]:
        return await self._list_refunds(charge_reference)

    async def _list_refunds(self, charge_reference: str) -> list[ProviderRefund]:
        try:
            pages = self._api.list("list_refunds", _REFUNDS, {"payment_intent": charge_reference})
            return [reading.provider_refund(charge_reference, made) async for made in pages]
        except stripe.InvalidRequestError as error:
            raise no_answer("list_refunds", error) from error

    @returns
    async def list_events(self, since: datetime, until: datetime) -> list[ProviderEvent]:
        span = {"gte": int(since.timestamp()), "lte": int(until.timestamp())}
        params = {"created": span, "types": sorted(WALKED_EVENTS)}
        pages = self._api.list("list_events", _EVENTS, params, pages_most=_EVENT_PAGES_MOST)
        return [event async for listed in pages if (event := self._read(listed)) is not None]

    @returns
    async def list_charges(self, since: datetime, until: datetime) -> list[ProviderCharge]:
        params = {"created": {"gte": int(since.timestamp()), "lt": int(until.timestamp())}}
        pages = self._api.list("list_charges", _CHARGES, params, pages_most=_CHARGE_PAGES_MOST)
        return [reading.provider_charge(made) async for made in pages if made["paid"] and made["captured"]]

    @returns
    async def look_up_dispute(self, reference: str) -> ProviderDispute | None:
        try:
            found = await self._api.get("dispute", f"{_DISPUTES}/{quote(reference, safe='')}", _CHECK)
            return reading.provider_dispute(found)
        except stripe.InvalidRequestError as error:
            if error.http_status == NOT_FOUND:
                return None
            raise no_answer("dispute", error) from error

    def _read(self, listed: Object) -> ProviderEvent | None:
        try:
            return self._webhook.reduce(listed)
        except AppError as error:
            log.warning("a listed event cannot be read", fields=getattr(error, "violations", None))
            return None

    def verify_webhook(self, body: bytes, headers: Mapping[str, Any]) -> ProviderEvent | None:
        return self._webhook.verify(body, headers)

    def verify_callback(self, fields: Mapping[str, str]) -> str:
        raise BadSignature()


def _charge_turn(payment: Payment, check: Check | None = None) -> Turn:
    return Turn(Endpoint.CHARGE, payment.customer_id, payment.hold_expire_time, check)


def _key(payment: Payment, operation: str) -> str:
    return f"{payment.id}/{payment.attempt}/{operation}"


def _path(payment: Payment, *action: str) -> str:
    """Return the path of a payment's intent, or of an action on it."""
    assert payment.provider_reference is not None
    return "/".join((_INTENTS, quote(payment.provider_reference, safe=""), *action))


def _refused(payment: Payment, error: stripe.InvalidRequestError) -> ChargeResult:
    log.warning("the provider refused a charge", payment_id=payment.id, code=error.code, param=error.param)
    return reading.refused(payment, error)
