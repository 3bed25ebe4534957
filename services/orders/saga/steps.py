"""The steps of `plan.PLANS`, taken by inventory and payments."""

from dataclasses import replace

import structlog

from services.chassis.errors import Refused
from services.chassis.server import wire
from services.orders.clients import Catalog, Hold, Inventory, Payments, Return
from services.orders.domain import PaymentState, State
from services.orders.saga import plan
from services.orders.saga.plan import RESERVATION_LOST, Saga, StepPending, StepRefused
from stampede.payments.v1 import charge_service_pb2 as payments_pb

log = structlog.get_logger()

_PAID = (PaymentState.SUCCEEDED, PaymentState.AUTHORIZED)
_NOT_CAPTURED = ("PAYMENT_NOT_CAPTURED", "WRONG_STATE")
"""The refusals of a refund whose payment is only authorised, or was voided before."""
_WITHOUT_MONEY = (PaymentState.CANCELLED, PaymentState.FAILED, PaymentState.REFUNDED)


class MeshSteps:
    """Implements `plan.SagaSteps` with the clients of catalog, inventory and payments."""

    def __init__(self, catalog: Catalog, inventory: Inventory, payments: Payments) -> None:
        self._catalog, self._inventory, self._payments = catalog, inventory, payments

    async def charge(self, saga: Saga) -> None:
        """Begins or continues the payment; raises `Withdrawn` if the order was cancelled meanwhile."""
        if not saga.total.minor:
            return  # a free order is confirmed without a payment
        if not (saga.payment_method or saga.secret_wanted):
            raise StepPending(for_customer=True)  # a payment that nobody asks for costs the provider no call
        begin = self._payments.charge if saga.payment_method else self._payments.open
        charge = begin if saga.provider_bound else self._payments.charge_changed
        saga.payment = await charge(saga)
        if saga.payment.state in _WITHOUT_MONEY:
            raise StepRefused(saga.payment.failure_reason or f"PAYMENT_{saga.payment.state}")
        if saga.payment.state not in _PAID:
            for_customer = saga.payment.state is PaymentState.AWAITING_CUSTOMER
            raise StepPending(for_customer=for_customer, for_provider=saga.payment.in_process)

    async def cancel_payment(self, saga: Saga) -> None:
        """Cancels the payment of an expired hold; returns if the money has moved already."""
        if not saga.total.minor:
            raise StepRefused(saga.progress.cancel_reason)
        saga.payment = await self._payments.cancel(saga)
        if saga.payment.state in _WITHOUT_MONEY:
            raise StepRefused(saga.progress.cancel_reason)
        if saga.payment.state not in _PAID:
            raise StepPending(for_provider=saga.payment.in_process)

    async def reverse_charge(self, saga: Saga) -> None:
        """Reverses the whole charge."""
        if not saga.total.minor:
            return
        saga.payment = await self._payments.reverse(saga)
        saga.refunded_minor = saga.payment.refunded_minor
        if saga.payment.state not in _WITHOUT_MONEY:
            raise StepPending(for_provider=saga.payment.in_process)

    async def confirm(self, saga: Saga) -> None:
        """Makes the held units sold ones."""
        try:
            await self._inventory.confirm(_hold(saga))
        except Refused as refusal:
            if refusal.reason == "RESERVATION_EXPIRED":
                await self._retake(saga)
            elif refusal.code in ("FAILED_PRECONDITION", "NOT_FOUND"):
                raise StepRefused(RESERVATION_LOST) from refusal
            else:
                raise

    async def _retake(self, saga: Saga) -> None:
        """Takes the units of an expired hold again, by the rules of a new order; the money came late."""
        products = await self._catalog.products(saga.products)
        if not all(id_ in products and products[id_].active for id_ in saga.products):
            raise StepRefused(RESERVATION_LOST)
        try:
            await self._inventory.retake(_hold(saga))
        except Refused as refusal:
            if refusal.code in ("FAILED_PRECONDITION", "NOT_FOUND"):
                raise StepRefused(RESERVATION_LOST) from refusal
            raise

    async def extend_hold(self, saga: Saga) -> None:
        """Extends the hold, once. If the units are not held any more, nothing changes."""
        reservation = await self._inventory.extend(_hold(saga))
        saga.hold_expire_time = wire.datetime_of(reservation.expire_time)
        log.info("hold extended", order_id=saga.order_id, hold_expire_time=saga.hold_expire_time)

    async def release(self, saga: Saga) -> None:
        """Gives the units back, held or sold."""
        try:
            await self._inventory.release(replace(_hold(saga), abandoned=plan.was_abandoned(saga)))
        except Refused as refusal:
            if refusal.reason == "WRONG_STATE":  # confirmed, and compensated by an operator
                await self._inventory.restock(Return(saga.order_id, _hold(saga)))
            elif refusal.code != "NOT_FOUND":  # then nothing is held under the id
                raise

    async def refund(self, saga: Saga) -> None:
        """Makes the saga's refund."""
        if not saga.total.minor:
            return  # a free order has no money to refund
        try:
            status = await self._payments.refund(saga)
        except Refused as refusal:
            cancels = saga.refund is not None and saga.refund.wanted is State.CANCELLED
            if cancels and refusal.reason in _NOT_CAPTURED:
                await self.reverse_charge(saga)
                return
            if refusal.code in ("FAILED_PRECONDITION", "NOT_FOUND", "INVALID_ARGUMENT"):
                await self._note_other_refunds(saga)
                if cancels and saga.refunded_minor == saga.total.minor:
                    return  # another call has reversed the payment
                raise StepRefused(refusal.reason) from refusal
            raise
        saga.refunded_minor = max(saga.refunded_minor, status.refunded.minor_units)
        if status.state == payments_pb.RefundStatus.FAILED:
            raise StepRefused(status.failure_reason or "REFUND_FAILED")
        if status.state != payments_pb.RefundStatus.SUCCEEDED:
            raise StepPending(for_provider=status.in_process)

    async def _note_other_refunds(self, saga: Saga) -> None:
        """Reads what was refunded beside this refund, for the order. Raises `StepPending` while more may follow."""
        payment = (await self._payments.read([saga.order_id])).get(saga.order_id)
        if payment and payment.refunding_minor:
            raise StepPending
        if payment:
            saga.refunded_minor = payment.refunded_minor

    async def restock(self, saga: Saga) -> None:
        """Takes the units of the saga's refund back into stock."""
        assert saga.refund
        if not (saga.refund.restock or saga.refund.lines):
            return
        try:
            await self._inventory.restock(Return(saga.refund.id, _hold(saga), saga.refund.lines))
        except Refused as refusal:
            if refusal.code not in ("FAILED_PRECONDITION", "NOT_FOUND"):
                raise
            log.warning("units do not come back", order_id=saga.order_id, reason=refusal.reason)
            raise StepRefused(refusal.reason) from refusal


def _hold(saga: Saga) -> Hold:
    return Hold(saga.order_id, saga.pools, reholds=saga.reholds)
