"""The port for Razorpay: an order is a charge, which customers pay in Checkout; captures and refunds are ours."""

import uuid
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from datetime import datetime, timedelta
from typing import Any, TypeVar
from urllib.parse import quote

import structlog
from pydantic import ValidationError

from services.payments.domain import Payment, Refund, RefundState
from services.payments.providers import Capabilities, Check
from services.payments.providers.border import NoAnswer, Refused, returns, returns_charge, returns_refund
from services.payments.providers.events import ProviderEvent
from services.payments.providers.limits import Turn
from services.payments.providers.limits.pacer import Endpoint
from services.payments.providers.razorpay import reading
from services.payments.providers.razorpay.listed import LOOKS, listed_event
from services.payments.providers.razorpay.objects import (
    Collection,
    Order,
    RazorpayDispute,
    RazorpayPayment,
    RazorpayRefund,
)
from services.payments.providers.razorpay.signatures import Signatures
from services.payments.providers.razorpay.transport import Transport
from services.payments.providers.razorpay.webhook import RazorpayWebhook
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
from services.payments.providers.typed import Typed

log = structlog.get_logger()

_PAGE, _PAGES_MOST, _WALK_PAGES_MOST = 100, 500, 50
_SINGLE_LOOK_UPS_MOST = 5
_EARLIER = timedelta(minutes=10)  # the provider's clock may be behind ours by this much
# Money that is authorised is taken by `capture`, once it is certain that it is still wanted. Razorpay gives back what
# nobody has captured after this long, its longest time.
_AUTHORISED = timedelta(days=5)
_CAPTURE = {
    "capture": "manual",
    "capture_options": {
        "manual_expiry_period": int(_AUTHORISED.total_seconds() // 60), "refund_speed": "normal",
    },
}  # fmt: skip
_CHECK, _REFUND, _LIST = Turn(Endpoint.CHECK), Turn(Endpoint.REFUND), Turn(Endpoint.LIST)
_NOTHING_CAPTURED = "NOTHING_CAPTURED"

T = TypeVar("T", bound=Typed)


class Razorpay:
    """The `PaymentProvider` of one Razorpay account."""

    name = "razorpay"
    can = Capabilities(
        charges_tokens=False, voids=False, charged_once=False, hosts_pages=False, signs_callbacks=True,
        authorises_for=_AUTHORISED,
    )  # fmt: skip
    vault = None  # it keeps nothing for customers without a page of its own
    # Only refunds have keys there. Razorpay does not say for how long it keeps them.
    key_lifetime = timedelta(hours=20)

    def __init__(self, transport: Transport, *, webhook: RazorpayWebhook, callbacks: Signatures) -> None:
        """`callbacks` are the secrets of the API key, which sign what Checkout hands to browsers."""
        self._api, self._webhook, self._callbacks = transport, webhook, callbacks
        self.limits = transport.limits

    async def aclose(self) -> None:
        await self._api.aclose()

    @returns_charge
    async def create(self, payment: Payment, check: Check, customer: str = "") -> ChargeResult:
        assert not customer, "without a vault, nobody has one"
        # Razorpay makes another order for the same receipt, so a repeat looks first. A superfluous order does no harm:
        # its id is given to nobody.
        if payment.checks and (found := await self._order_of(payment)):
            return await self._result(payment, found)
        wanted = {
            "amount": payment.amount_minor,
            "currency": payment.currency,
            "receipt": str(payment.id),
            "notes": {"payment_id": str(payment.id), "order_id": str(payment.order_id)},
            "payment": _CAPTURE,
        }
        try:
            turn = Turn(Endpoint.OPEN, payment.customer_id, payment.hold_expire_time, check)
            made = await self._api.call("create", turn, self._api.sdk.order.create, wanted, repeats=False)
        except Refused as refused:
            log.warning(
                "the provider refused a charge", payment_id=payment.id, reason=refused.reason, field=refused.field
            )
            return ChargeResult(
                payment_id=payment.id, status=ChargeStatus.DECLINED, reference=payment.provider_reference,
                reason="REFUSED_BY_PROVIDER",
            )  # fmt: skip
        return reading.result_of_new_order(payment, _read(Order, made))

    @returns_charge
    async def confirm(self, payment: Payment, check: Check) -> ChargeResult:
        return await self._retrieve(payment)  # the server cannot pay for a customer; see `can`

    @returns_charge
    async def capture(self, payment: Payment, amount_minor: int, check: Check) -> ChargeResult:
        assert payment.provider_reference is not None
        assert payment.capture_reference is not None
        wanted = {"currency": payment.currency}  # a dict of its own: the SDK puts the amount into its default one
        try:
            turn = Turn(Endpoint.CHARGE, payment.customer_id, payment.hold_expire_time, check)
            capture, reference = self._api.sdk.payment.capture, _part(payment.capture_reference)
            captured = await self._api.call("capture", turn, capture, reference, amount_minor, wanted)
        except Refused:
            return await self._retrieve(payment)  # it is captured, or the bank took it back
        return reading.result_of_payment(payment, payment.provider_reference, _read(RazorpayPayment, captured))

    @returns_charge
    async def void(self, payment: Payment) -> ChargeResult:
        result = await self._retrieve(payment)
        if result.status in (ChargeStatus.REQUIRES_ACTION, ChargeStatus.DECLINED):
            return ChargeResult(payment_id=payment.id, status=ChargeStatus.CANCELLED, reference=result.reference)
        return result

    @returns_charge
    async def retrieve(self, payment: Payment) -> ChargeResult:
        return await self._retrieve(payment)

    async def _retrieve(self, payment: Payment) -> ChargeResult:
        assert payment.provider_reference is not None
        try:
            found = await self._payments_of(payment.provider_reference)
        except Refused as refused:
            if not refused.is_missing:
                raise
            log.error("the provider has no such charge", payment_id=payment.id)
            return ChargeResult(payment_id=payment.id, status=ChargeStatus.MISSING)
        return reading.result_of_order(payment, payment.provider_reference, found)

    @returns
    async def find(self, payments: Sequence[Payment]) -> dict[uuid.UUID, ChargeResult]:
        if len(payments) <= _SINGLE_LOOK_UPS_MOST:
            orders = {payment.id: await self._order_of(payment) for payment in payments}
        else:
            orders = await self._walk_orders(payments)
        return {
            payment.id: await self._result(payment, order)
            for payment in payments
            if (order := orders.get(payment.id)) is not None
        }

    async def _walk_orders(self, payments: Sequence[Payment]) -> dict[uuid.UUID, Order | None]:
        """Search all orders since the oldest of `payments`. Of several with one receipt, the first one is taken."""
        wanted, found = {payment.id for payment in payments}, dict[uuid.UUID, Order | None]()
        former = {reference for payment in payments for reference in payment.former_references}
        since = min(payment.create_time for payment in payments) - _EARLIER
        async for order in self._list("list", Order, self._api.sdk.order.all, {"from": int(since.timestamp())}):
            id_ = own_id(order.receipt)
            if id_ in wanted and order.id not in former:
                found[id_] = order  # newest first, so the oldest one stays
        return found

    async def _order_of(self, payment: Payment) -> Order | None:
        """Return the payment's oldest order, except for those of earlier attempts."""
        page = self._list("list", Order, self._api.sdk.order.all, {"receipt": str(payment.id)})
        found = [order async for order in page if order.id not in payment.former_references]
        return min(found, key=lambda order: (order.created_at, order.id), default=None)

    async def _result(self, payment: Payment, order: Order) -> ChargeResult:
        if order.status == "created":
            return reading.result_of_new_order(payment, order)
        return reading.result_of_order(payment, order.id, await self._payments_of(order.id))

    async def _payments_of(self, order_id: str) -> list[RazorpayPayment]:
        page = await self._api.call("retrieve", _CHECK, self._api.sdk.order.payments, _part(order_id), {})
        return [_read(RazorpayPayment, item) for item in _read(Collection, page).items]

    @returns
    async def look_up(self, payment: Payment, reference: str) -> ChargeRecord | None:
        try:
            found = await self._payment("look_up", reference)
            if found.order_id is None:
                return None
            owner: uuid.UUID | None = payment.id
            if found.order_id != payment.provider_reference:
                order = await self._api.call("look_up", _CHECK, self._api.sdk.order.fetch, _part(found.order_id), {})
                owner = own_id(_read(Order, order).receipt)
        except Refused as refused:
            if refused.is_missing:
                return None
            raise
        return ChargeRecord(payment_id=owner, result=reading.result_of_payment(payment, found.order_id, found))

    async def _payment(self, operation: str, reference: str) -> RazorpayPayment:
        found = await self._api.call(operation, _CHECK, self._api.sdk.payment.fetch, _part(reference), {})
        return _read(RazorpayPayment, found)

    @returns_refund
    async def refund(self, refund: Refund) -> RefundResult:
        if refund.provider_reference is not None:
            fetch = self._api.sdk.refund.fetch
            made = await self._api.call("retrieve_refund", _CHECK, fetch, _part(refund.provider_reference), {})
            return reading.refund_result(refund, _read(RazorpayRefund, made))
        if refund.stray and (ended := await self._make_refundable(refund)):
            return ended
        return await self._create_refund(refund)

    async def _make_refundable(self, refund: Refund) -> RefundResult | None:
        """Capture a stray payment, because only captured money can be refunded. Return a result if it has gone back."""
        found = await self._payment("look_up", refund.charge_reference)
        if found.status == "authorized":
            capture = self._api.sdk.payment.capture
            wanted = {"currency": found.currency}
            try:
                captured = await self._api.call("capture", _REFUND, capture, _part(found.id), found.amount, wanted)
                found = _read(RazorpayPayment, captured)
            except Refused:
                found = await self._payment("look_up", refund.charge_reference)
        if found.is_paid:
            return None
        if found.status == "refunded":  # by itself: it was not captured in time, or its order was paid already
            listed = await self._list_refunds(found.id)
            return listed[0].result(refund) if listed else None
        if found.status == "authorized":
            raise NoAnswer("capture", has_ended=True)
        return _failed(refund, _NOTHING_CAPTURED)

    async def _create_refund(self, refund: Refund) -> RefundResult:
        wanted = {
            "amount": refund.amount_minor,
            "speed": "normal",
            "receipt": str(refund.id),
            "notes": {
                "refund_id": str(refund.id), "payment_id": str(refund.payment_id), "attempt": str(refund.attempt)
            },
        }  # fmt: skip
        headers = {"X-Refund-Idempotency": f"{refund.id}-{refund.attempt}"}
        try:
            create = self._api.sdk.payment.refund
            reference = _part(refund.charge_reference)
            made = await self._api.call("refund", _REFUND, create, reference, wanted, headers=headers)
            return reading.refund_result(refund, _read(RazorpayRefund, made))
        except Refused as refused:
            reason = refused.reason
        # The refusal may mean that an earlier call has refunded it already.
        listed = await self._list_refunds(refund.charge_reference)
        if own := next((made.result(refund) for made in listed if made.is_of(refund)), None):
            return own
        return _failed(refund, "REFUSED_BY_PROVIDER" if reason in ("", "NA") else reason.upper())

    @returns
    async def list_refunds(self, charge_reference: str) -> list[ProviderRefund]:
        return await self._list_refunds(charge_reference)

    async def _list_refunds(self, reference: str) -> list[ProviderRefund]:
        def page(data: Mapping[str, Any]) -> Any:
            return self._api.sdk.payment.fetch_multiple_refund(_part(reference), data)

        return [reading.provider_refund(made) async for made in self._list("list_refunds", RazorpayRefund, page, {})]

    @returns
    async def list_events(self, since: datetime, until: datetime) -> list[ProviderEvent]:
        """Razorpay lists no events: what was made in this span, and at the same times earlier, is read as such.

        A payment may be authorised, a refund fail and a dispute end long after they were made.
        """
        kinds: tuple[tuple[type[Typed], Callable[..., Any]], ...] = (
            (RazorpayPayment, self._api.sdk.payment.all),
            (RazorpayRefund, self._api.sdk.refund.all),
            (RazorpayDispute, self._api.sdk.dispute.all),
        )
        found = list[ProviderEvent]()
        for earlier in LOOKS:
            span = {"from": int((since - earlier).timestamp()), "to": int((until - earlier).timestamp())}
            for kind, method in kinds:
                listed = self._list("list_events", kind, method, span, pages_most=_WALK_PAGES_MOST)
                async for one in listed:
                    if (event := listed_event(one, await self._order_id_of(one))) is not None:
                        found.append(event)
        return found

    @returns
    async def list_charges(self, since: datetime, until: datetime) -> list[ProviderCharge]:
        span = {"from": int(since.timestamp()), "to": int(until.timestamp()) - 1}
        method = self._api.sdk.payment.all
        listed = self._list("list_charges", RazorpayPayment, method, span, pages_most=_WALK_PAGES_MOST)
        # New payments shift the pages, so some are listed twice.
        return list({made.id: reading.provider_charge(made) async for made in listed if made.is_paid}.values())

    @returns
    async def look_up_dispute(self, reference: str) -> ProviderDispute | None:
        try:
            found = await self._api.call("dispute", _CHECK, self._api.sdk.dispute.fetch, _part(reference))
        except Refused as refused:
            if refused.is_missing:
                return None
            raise
        return reading.provider_dispute(_read(RazorpayDispute, found))

    async def _order_id_of(self, listed: Typed) -> str:
        """Return the order of a listed refund or dispute. Our refunds name their payment themselves."""
        if isinstance(listed, RazorpayPayment) or (isinstance(listed, RazorpayRefund) and listed.note("payment_id")):
            return ""
        assert isinstance(listed, RazorpayRefund | RazorpayDispute)
        return (await self._payment("list_events", listed.payment_id)).order_id or ""

    async def _list(
        self,
        operation: str,
        kind: type[T],
        method: Callable[..., Any],
        wanted: Mapping[str, Any],
        *,
        pages_most: int = _PAGES_MOST,
    ) -> AsyncIterator[T]:
        """Yield the objects of a list, newest first. New objects shift the pages, so some are yielded twice."""
        for number in range(pages_most):
            page = await self._api.call(operation, _LIST, method, {**wanted, "count": _PAGE, "skip": number * _PAGE})
            items = _read(Collection, page).items
            for item in items:
                yield _read(kind, item)
            if len(items) < _PAGE:
                return
        raise NoAnswer(operation, too_many=True)

    def verify_webhook(self, body: bytes, headers: Mapping[str, Any]) -> ProviderEvent | None:
        return self._webhook.verify(body, headers)

    def verify_callback(self, fields: Mapping[str, str]) -> str:
        order_id, payment_id = fields["razorpay_order_id"], fields["razorpay_payment_id"]
        self._callbacks.verify(f"{order_id}|{payment_id}".encode(), fields["razorpay_signature"])
        return order_id


def _read(kind: type[T], value: object) -> T:
    """Read an object of an answer. One that is not readable is no answer."""
    try:
        return kind.model_validate(value)
    except ValidationError:
        log.error("an answer of the provider cannot be read", object=kind.__name__)
        raise NoAnswer("read") from None


def _part(reference: str) -> str:
    """Return an id as a part of a path."""
    return quote(reference, safe="")


def _failed(refund: Refund, reason: str) -> RefundResult:
    return RefundResult(refund_id=refund.id, payment_id=refund.payment_id, state=RefundState.FAILED, reason=reason)
