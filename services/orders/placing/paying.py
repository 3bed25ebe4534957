"""Paying an order once more: in another way, or after a decline, while its stock is held or can be held again."""

import asyncio
import time
from dataclasses import dataclass, replace

from services.chassis.data import idempotency
from services.chassis.data.db import Database
from services.chassis.errors import Refused, WrongState
from services.orders.actions import Mutation, Orders
from services.orders.clients import Catalog, Hold, Inventory, Payments
from services.orders.domain import HoldEnded, Order, PaymentState, State
from services.orders.placing import pricing
from services.orders.saga import attempts
from services.orders.saga.attempts import PaymentInProgress, PaymentTerms
from services.orders.saga.plan import Kind, Phase, Saga
from services.orders.saga.worker import STARTED, Worker
from services.orders.sql import combined, orders, sagas
from stampede.inventory.v1.reservation_service_pb2 import Reservation

_ANSWER_SECONDS = 6.0
"""How long an answer may wait for the provider. The attempt is made in any case."""
_TRIES_MOST = 3
_EXPIRED = "RESERVATION_EXPIRED"
"""By the clock of inventory's database, the time of the hold is over."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Asked:
    """The way in which a customer wants to pay an order."""

    terms: PaymentTerms
    payment_method: str = ""

    def is_like(self, terms: PaymentTerms, order: Order) -> bool:
        """Whether the customer only wants to go on with an attempt that has `terms`."""
        at = order.payment.provider if order.payment else ""
        charges = self.payment_method or self.terms.saved_method_id
        return not charges and self.terms.at(at) == terms.at(at)


class _TurningBack(Exception):
    """The order's payment was declined a moment ago, and its units are about to be released."""


class Payer:
    """Begins attempts to pay orders that were placed."""

    def __init__(
        self,
        db: Database,
        orders: Orders,
        worker: Worker,
        *,
        catalog: Catalog,
        inventory: Inventory,
        payments: Payments,
    ) -> None:
        self._db, self._orders, self._worker = db, orders, worker
        self._catalog, self._inventory, self._payments = catalog, inventory, payments

    async def pay(self, mutation: Mutation, asked: Asked) -> Order:
        """Begins another attempt to pay an order; `OrderService.PayOrder` has the refusals.

        Returns the order once the attempt has an outcome, or as it is after some seconds.
        """
        order = await self._orders.get(mutation.order_id, customer_id=mutation.customer_id)
        if asked != Asked(terms=PaymentTerms()):
            if not asked.terms.saved_method_id:  # such a method is at its own provider
                asked = replace(asked, terms=asked.terms.at(order.payment.provider if order.payment else ""))
            await self._payments.check_terms(order.customer_id, asked.terms, with_card=bool(asked.payment_method))
        saga = await self._begin(mutation, order, asked)
        return await self._outcome(mutation, saga)

    async def _begin(self, mutation: Mutation, order: Order, asked: Asked) -> Saga | None:
        """Writes the attempt and claims its saga; None if this is a repeat, or if no attempt is needed."""
        for _ in range(_TRIES_MOST):
            try:
                if order.state is State.FAILED:
                    return await self._reopen(mutation, order, asked)
                return await self._attempt(mutation, asked)
            except _TurningBack:
                order = await self._orders.settled(order, seconds=_ANSWER_SECONDS)
        raise WrongState(resource="order", state=order.state, wanted=State.PAID)

    async def _attempt(self, mutation: Mutation, asked: Asked) -> Saga | None:
        """Has the purchase of a `PENDING` order pay it in another way."""
        async with self._db.begin() as tx:
            if await idempotency.find_repeat(tx, mutation.key, mutation.order_id):
                return None
            # In the order of all locks: the saga's row before its order's.
            purchase = await sagas.lock_purchase(tx, mutation.order_id)
            order = await orders.read(tx, mutation.order_id, lock=True)
            if order.state is State.FAILED:
                raise _TurningBack()
            attempts.check_state(order, hold_is_over=await orders.hold_is_over(tx, order.id))
            if purchase is None or purchase.progress.must_turn_back or purchase.progress.steps_done > 1:
                raise WrongState(resource="order", state=order.state, wanted=State.PAID)
            if purchase.progress.phase is Phase.BACKWARD:
                raise _TurningBack()
            if asked.is_like(purchase.terms, order):
                is_new = await combined.want_secret(tx, order.id)
                return await sagas.claim_one(tx, order.id, holder=self._worker.holder) if is_new else None
            attempts.check_limit(order)
            await combined.begin_attempt(tx, order, asked.terms, asked.payment_method, mutation.by)
            return await sagas.claim_one(tx, order.id, holder=self._worker.holder)

    async def _reopen(self, mutation: Mutation, order: Order, asked: Asked) -> Saga | None:
        """Holds the units of a `FAILED` order again, and moves it back, with a saga that pays it.

        If this process dies in between, the hold ends by itself; a repeat of the request finds it before that.
        """
        async with self._db() as tx:
            if await idempotency.is_known(tx, mutation.key):
                return None
            hold_is_over = await orders.hold_is_over(tx, order.id)
        attempts.check_state(order, hold_is_over=hold_is_over)
        attempts.check_limit(order)
        products = await self._catalog.products([line.product_id for line in order.lines])
        pricing.check_products(order.lines, products)
        try:
            reservation = await self._inventory.rehold(Hold(order.id, order.pools, reholds=order.reopened + 1))
        except Refused as refused:
            if refused.reason == _EXPIRED:
                raise HoldEnded(requestId=order.request_id) from None
            raise
        if reservation.state != Reservation.HELD:
            raise HoldEnded(requestId=order.request_id)
        async with self._db.begin() as tx:
            if await idempotency.find_repeat(tx, mutation.key, mutation.order_id):
                return None
            now = await orders.read(tx, order.id, lock=True)
            if now.state is not State.FAILED:  # another request was faster
                raise PaymentInProgress(orderId=order.id)
            await combined.reopen(tx, now, asked.terms, asked.payment_method, mutation.by)
            saga = await sagas.claim_one(tx, order.id, holder=self._worker.holder)
        STARTED.labels(Kind.PURCHASE).inc()
        return saga

    async def _outcome(self, mutation: Mutation, saga: Saga | None) -> Order:
        """The order once its attempt has an outcome, or after some seconds. Raises `PaymentInProgress`."""
        until = time.monotonic() + _ANSWER_SECONDS
        if saga:
            self._orders.announce(saga.order_id)
            await asyncio.wait({self._worker.start(saga)}, timeout=_ANSWER_SECONDS)
            if saga.was_not_made:
                async with self._db.begin() as tx:  # a repeat tries again
                    await idempotency.forget(tx, mutation.key)
                raise PaymentInProgress(orderId=saga.order_id)
        order = await self._orders.get(mutation.order_id, customer_id=None)
        return await self._orders.until(order, _has_outcome, seconds=max(until - time.monotonic(), 0))


def _has_outcome(order: Order) -> bool:
    return order.state is not State.PENDING or (
        order.payment is not None and order.payment.state is not PaymentState.PROCESSING
    )
