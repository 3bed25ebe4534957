"""Captures and voids of authorised payments, as staff decide them."""

import uuid

from services.chassis.data import idempotency
from services.chassis.data.db import Database
from services.chassis.errors import AppError, WrongState
from services.chassis.request_context import RequestKey
from services.payments.dispatch.dispatcher import ChargeDispatcher, Deadline
from services.payments.domain import AUTHORIZATION_ENDED, Capture, Payment, State
from services.payments.providers import Providers
from services.payments.sql import leases, payments

_CAPTURED = (State.SUCCEEDED, State.REFUNDED)


class AuthorizationEnded(AppError):
    code = "FAILED_PRECONDITION"
    template = "The authorisation of the payment {paymentId} has ended at the provider; its money cannot be taken."


class CaptureInProgress(AppError):
    code = "FAILED_PRECONDITION"
    template = "The payment {paymentId} is being captured; refund it afterwards."


class VoidInProgress(AppError):
    code = "FAILED_PRECONDITION"
    template = "The payment {paymentId} is being voided."


class VoidNotSupported(AppError):
    code = "FAILED_PRECONDITION"
    template = "{provider} cannot void; cancel the order: its money is captured and refunded."


class Captures:
    """The actions of staff: commit the decision, call the provider, return the known state in time."""

    def __init__(self, db: Database, dispatcher: ChargeDispatcher, providers: Providers) -> None:
        self._db, self._dispatcher, self._providers = db, dispatcher, providers

    async def capture(self, payment_id: uuid.UUID, request: RequestKey | None) -> Payment:
        """Take the money of an authorised payment; `PaymentService.CapturePayment` has the refusals."""
        deadline = Deadline()
        async with self._db.begin() as tx:
            payment = await payments.read_one(tx, payment_id, lock=True)
            await idempotency.find_repeat(tx, request, payment_id)
            if _may_capture(payment):
                await payments.request_capture(tx, payment_id)
            elif payment.state is State.AUTHORIZED:
                await leases.hasten(tx, "payments", [payment_id])
        now = await self._dispatch(payment, deadline)
        _check_captured(now)
        return now

    async def void(self, payment_id: uuid.UUID, request: RequestKey | None) -> Payment:
        """Give the money of an authorised payment back; `PaymentService.VoidPayment` has the refusals."""
        deadline = Deadline()
        async with self._db.begin() as tx:
            payment = await payments.read_one(tx, payment_id, lock=True)
            await idempotency.find_repeat(tx, request, payment_id)
            if self._may_void(payment):
                await payments.request_cancel(tx, [payment_id], void=True)
            elif payment.state is State.AUTHORIZED:
                await leases.hasten(tx, "payments", [payment_id])
        self._dispatcher.withdraw([payment_id])
        now = await self._dispatch(payment, deadline)
        if now.state in _CAPTURED:  # at the provider, by people
            raise WrongState(resource="payment", state=now.state, wanted=State.CANCELLED)
        return now

    async def _dispatch(self, before: Payment, deadline: Deadline) -> Payment:
        """Call the provider if the payment `before` waited for staff; return it as it is then."""
        async with self._db() as tx:
            payment = await payments.read_one(tx, before.id, lock=False)
        if before.waits_for_staff and payment.state is State.AUTHORIZED:
            self._dispatcher.advance(payment)  # a call in progress goes on with what was decided
        (now,) = await self._dispatcher.wait([payment], seconds=deadline.seconds_left())
        return now

    def _may_void(self, payment: Payment) -> bool:
        """Whether a void is to be requested; False if nothing is left to do. Raises if it may not be voided."""
        if payment.state is State.CANCELLED or payment.capture is Capture.VOID:
            return False
        if payment.state is not State.AUTHORIZED:
            raise WrongState(resource="payment", state=payment.state, wanted=State.CANCELLED)
        if payment.capture is Capture.REQUESTED:
            raise CaptureInProgress(paymentId=payment.id)
        provider = self._providers.get(payment.provider)
        if provider is None or not provider.can.voids:
            raise VoidNotSupported(provider=payment.provider)
        return True


def _may_capture(payment: Payment) -> bool:
    """Whether a capture is to be requested; False if it was before. Raises if the payment may not be captured."""
    if payment.state in _CAPTURED and payment.authorize_time is not None:
        return False
    _check_captured(payment)
    if payment.state is not State.AUTHORIZED:
        raise WrongState(resource="payment", state=payment.state, wanted=State.SUCCEEDED)
    if payment.capture is Capture.VOID:
        raise VoidInProgress(paymentId=payment.id)
    return payment.capture is Capture.MANUAL


def _check_captured(payment: Payment) -> None:
    if payment.state is State.CANCELLED and payment.failure_reason == AUTHORIZATION_ENDED:
        raise AuthorizationEnded(paymentId=payment.id)
    if payment.state is State.CANCELLED:
        raise WrongState(resource="payment", state=payment.state, wanted=State.SUCCEEDED)
