"""Stripe's Checkout: pages on which customers pay. A page makes its PaymentIntent once its customer pays."""

import uuid
from collections.abc import Sequence
from dataclasses import replace
from typing import Any
from urllib.parse import quote, urlencode, urlsplit, urlunsplit

import stripe
import structlog

from services.payments.domain import Capture, Payment, Terms
from services.payments.providers import Check
from services.payments.providers.limits import Turn
from services.payments.providers.limits.pacer import Endpoint
from services.payments.providers.results import ChargeRecord, ChargeResult, ChargeStatus, own_id
from services.payments.providers.stripe import reading
from services.payments.providers.stripe.transport import NOT_FOUND, Object, Transport, no_answer

log = structlog.get_logger()

_SESSIONS, _INTENTS = "/v1/checkout/sessions", "/v1/payment_intents"
_WITH_INTENT = {"expand": ["payment_intent"]}
_PAGES_MOST = 500
_CHECK = Turn(Endpoint.CHECK)
SAVED_FOR = "on_session"
"""A saved card is charged only while its customer is there, who can then authenticate."""


def is_page(reference: str) -> bool:
    """Whether a reference is of a page: Stripe's ids say what they are of."""
    return reference.startswith("cs_")


class Checkout:
    """The pages of one Stripe account."""

    def __init__(self, api: Transport) -> None:
        self._api = api

    async def create(self, payment: Payment, key: str, check: Check, customer: str) -> ChargeResult:
        """Make the page on which the customer pays. Raises what Stripe refuses."""
        assert payment.terms
        turn = Turn(Endpoint.OPEN, payment.customer_id, payment.hold_expire_time, check)
        params = _params(payment, payment.terms, customer)
        session = await self._api.post("create_page", _SESSIONS, turn, params, key)
        return result_of(payment.id, session)

    async def end(self, payment: Payment, key: str) -> ChargeResult:
        """End the page, so that nobody can pay on it any more. Return its current result if it has ended before."""
        try:
            session = await self._api.post(
                "end_page", f"{_path(payment)}/expire", _end_turn(payment), _WITH_INTENT, key
            )
            result = result_of(payment.id, session)
        except stripe.InvalidRequestError:
            result = await self.retrieve(payment)  # it is paid, or has ended already
        return await self._void_rest(payment, result, key)

    async def _void_rest(self, payment: Payment, result: ChargeResult, key: str) -> ChargeResult:
        """Void the charge that an ended page has made and nobody has paid, as after a bank debit that failed.

        Stripe cancels no charge of a page, and ends no page that a debit has completed. Nobody can pay there again:
        its customer has neither the page nor the secret of its charge.
        """
        if not _is_unpaid(result) or result.reference is None or result.checkout_url is not None:
            return result
        path = f"{_INTENTS}/{quote(result.reference, safe='')}/cancel"
        try:
            await self._api.post("void", path, _end_turn(payment), {}, f"{key}/charge")
        except stripe.InvalidRequestError:
            log.info("the charge of an ended page stays unpaid", payment_id=payment.id)
        now = await self.retrieve(payment)
        return replace(now, status=ChargeStatus.CANCELLED, reason="") if _is_unpaid(now) else now

    async def retrieve(self, payment: Payment) -> ChargeResult:
        """Return the current result of a page."""
        try:
            return result_of(payment.id, await self._api.get("retrieve_page", _path(payment), _CHECK, _WITH_INTENT))
        except stripe.InvalidRequestError as error:
            if error.http_status == NOT_FOUND:
                log.error("the provider has no such page", payment_id=payment.id)
                return ChargeResult(payment_id=payment.id, status=ChargeStatus.MISSING)
            raise no_answer("retrieve_page", error) from error

    async def look_up(self, payment: Payment, reference: str) -> ChargeRecord | None:
        """Return the record of a page, as a result of `payment`; None if there is none."""
        path = f"{_SESSIONS}/{quote(reference, safe='')}"
        try:
            session = await self._api.get("look_up_page", path, _CHECK, _WITH_INTENT)
        except stripe.InvalidRequestError as error:
            if error.http_status == NOT_FOUND:
                return None
            raise no_answer("look_up_page", error) from error
        return ChargeRecord(payment_id=_owner(session), result=result_of(payment.id, session))

    async def find(self, payments: Sequence[Payment], *, since: int) -> dict[uuid.UUID, ChargeResult]:
        """Search the account's pages for payments, in one walk."""
        wanted = {payment.id for payment in payments}
        former = {reference for payment in payments for reference in payment.former_references}
        found = dict[uuid.UUID, ChargeResult]()
        params = {"created": {"gte": since}, "expand": ["data.payment_intent"]}
        async for session in self._api.list("list_pages", _SESSIONS, params, pages_most=_PAGES_MOST):
            id_ = _owner(session)
            if id_ in wanted and session["id"] not in former:
                wanted.discard(id_)
                found[id_] = result_of(id_, session)
                if not wanted:
                    break
        return found


def _is_unpaid(result: ChargeResult) -> bool:
    return result.status in (ChargeStatus.REQUIRES_ACTION, ChargeStatus.DECLINED)


def result_of(payment_id: uuid.UUID, session: Object) -> ChargeResult:
    """Read a Checkout Session with its PaymentIntent."""
    intent: Object | None = session.get("payment_intent") or None
    is_open, ended = session["status"] == "open", session["status"] == "expired"
    result = ChargeResult(
        payment_id=payment_id,
        status=ChargeStatus.CANCELLED if ended else ChargeStatus.REQUIRES_ACTION if is_open else ChargeStatus.UNKNOWN,
        amount_minor=session["amount_total"],
        currency=session["currency"],
        checkout_reference=session["id"],
        checkout_url=session.get("url") if is_open else None,
    )
    if intent is None:
        return result
    charge = reading.charge_result(payment_id, intent)
    if is_open and charge.status in (ChargeStatus.CANCELLED, ChargeStatus.REQUIRES_ACTION):
        charge = replace(charge, status=ChargeStatus.REQUIRES_ACTION)
    return replace(
        charge, client_secret=None, checkout_reference=result.checkout_reference, checkout_url=result.checkout_url
    )


def _end_turn(payment: Payment) -> Turn:
    return Turn(Endpoint.CHARGE, payment.customer_id, payment.hold_expire_time)


def _owner(session: Object) -> uuid.UUID | None:
    return own_id((session.get("metadata") or {}).get("payment_id"))


def _path(payment: Payment) -> str:
    assert payment.checkout_reference is not None
    return f"{_SESSIONS}/{quote(payment.checkout_reference, safe='')}"


def _params(payment: Payment, terms: Terms, customer: str) -> Any:
    """Return the parameters of a page. Each repeat sends the same ones, because Stripe binds the key to them."""
    metadata = {"order_id": str(payment.order_id), "payment_id": str(payment.id)}
    price = {
        "currency": payment.currency.lower(),
        "unit_amount": payment.amount_minor,
        "product_data": {"name": f"Order {payment.order_id}"},
    }
    charge: dict[str, Any] = {"metadata": metadata}
    if payment.capture is not Capture.AUTOMATIC:
        charge["capture_method"] = "manual"
    if terms.saves_method:
        charge["setup_future_usage"] = SAVED_FOR
    return {
        **({"customer": customer} if customer else {}),
        "mode": "payment",
        "line_items": [{"quantity": 1, "price_data": price}],
        "client_reference_id": str(payment.order_id),
        "metadata": metadata,
        "payment_intent_data": charge,
        "success_url": _with_result(terms.return_url, "paid"),
        "cancel_url": _with_result(terms.return_url, "cancelled"),
        "expires_at": terms.page_end,
        **_WITH_INTENT,
    }


def _with_result(url: str, result: str) -> str:
    parts = urlsplit(url)
    return urlunsplit(parts._replace(query="&".join(filter(None, (parts.query, urlencode({"result": result}))))))
