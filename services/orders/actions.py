"""Reads and mutations of orders that were placed. `placing` places them, `saga/operators` helps stuck sagas.

A mutation is one transaction that recognises a repeat by its request id. Effects in other services are left to the
order's saga, so that the order comes to one end whatever dies in between.
"""

import asyncio
import uuid
from collections.abc import AsyncGenerator, Callable, Mapping, Sequence
from contextlib import aclosing
from dataclasses import dataclass, replace
from functools import partial

from sqlalchemy.ext.asyncio import AsyncSession

from services.chassis import ids
from services.chassis.batcher import Batcher
from services.chassis.data import db as database
from services.chassis.data import idempotency
from services.chassis.data.db import Database
from services.chassis.errors import RateLimited, WrongState, check_etag
from services.chassis.events.outbox import Relay
from services.chassis.money import Money
from services.chassis.request_context import RequestKey
from services.chassis.server.watch import Watch
from services.orders.domain import (
    WATCHERS_MOST,
    Actor,
    LogEntry,
    Order,
    OrderFilter,
    OrderNotFound,
    Refund,
    RefundRefused,
    SagaNotFound,
    State,
)
from services.orders.saga import operators
from services.orders.saga.comparer import Comparer
from services.orders.saga.plan import CANCELLED, Kind, Phase, Saga, SagaView
from services.orders.saga.worker import STARTED, Worker
from services.orders.sql import combined, order_lists, order_log, orders, sagas
from services.orders.sql.order_lists import Position

_WATCH_SECONDS = 1.0
# How long an answer may wait for the provider. The mutation is carried out in any case.
_SETTLE_SECONDS = 6.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Mutation:
    """A change of one order: by which actor, and how a repeat is recognised."""

    order_id: uuid.UUID
    customer_id: uuid.UUID | None
    """The customer whose order it must be; None for staff, who may change every order."""
    by: Actor
    etag: str = ""
    key: RequestKey | None = None


def order_watch(db: Database, *, watchers_per_user: int = 0) -> Watch[uuid.UUID, Order]:
    """The live view of orders."""
    return Watch(
        partial(orders.get_many, db),
        interval_seconds=_WATCH_SECONDS,
        watchers_max=WATCHERS_MOST,
        watchers_each_max=watchers_per_user,
    )


class Orders:
    """Orders that were placed."""

    def __init__(
        self, db: Database, worker: Worker, comparer: Comparer, watch: Watch[uuid.UUID, Order], relay: Relay
    ) -> None:
        self._db, self._worker, self._comparer, self._watch, self._relay = db, worker, comparer, watch, relay
        # Thousands may read at once, as after a restart; the batcher makes a few statements of them.
        self._read: Batcher[uuid.UUID, Order] = Batcher("read", self._read_batch)
        # One customer may ask for hundreds at once: a transaction for each would take the database from everybody.
        self._queue_secret: Batcher[uuid.UUID, None] = Batcher("secrets", partial(combined.queue_secrets, db))

    async def _read_batch(self, order_ids: Sequence[uuid.UUID]) -> list[Order | Exception]:
        found = await orders.get_many(self._db, order_ids)
        return [found.get(order_id) or OrderNotFound(orderId=order_id) for order_id in order_ids]

    async def get(self, order_id: uuid.UUID, *, customer_id: uuid.UUID | None) -> Order:
        """The order; raises `OrderNotFound`, also for another customer's order. None reads every customer's."""
        order = await self._read(order_id)
        if customer_id not in (None, order.customer_id):
            raise OrderNotFound(orderId=order_id)
        return order

    async def show(self, order_id: uuid.UUID, *, customer_id: uuid.UUID | None, viewer: uuid.UUID) -> Order:
        """The order, as `get`. If `viewer` is its customer and can pay it, it has the client secret after this."""
        order = await self.get(order_id, customer_id=customer_id)
        if saga := await self.want_secret(order, viewer):
            await asyncio.wait({saga}, timeout=_SETTLE_SECONDS)
            order = await self.get(order_id, customer_id=customer_id)
        return order

    async def want_secret(self, order: Order, viewer: uuid.UUID) -> "asyncio.Task[None] | None":
        """Has the payment of an unpaid order begun, because its customer, as `viewer`, asks how to pay it.

        Returns the saga that does it; None if there is nothing to begin, if another call has done so, or if no slot is
        free: then the saga is due, and waits for one.
        """
        if order.secret_wanted or order.state is not State.PENDING or viewer != order.customer_id:
            return None
        with self._worker.slot(opening=True, customer_id=order.customer_id) as lease_seconds:
            if not lease_seconds:
                await self._queue_secret(order.id)
                return None
            async with self._db.begin() as tx:
                saga = await sagas.claim_one(tx, order.id) if await combined.want_secret(tx, order.id) else None
            return self._worker.start(saga) if saga else None

    async def page(
        self, query: OrderFilter, *, after: Position | None, most: int
    ) -> tuple[list[Order], Position | None]:
        """One page of orders, newest first, and its end; None on the last page."""
        return await order_lists.page(self._db, query, after=after, most=most)

    async def log_entries(self, order: Order, *, after: int, most: int) -> list[LogEntry]:
        """The entries of an order's log after the one with the id `after`, oldest first."""
        return await order_log.entries(self._db, order, after=after, most=most)

    async def changes(
        self, order_id: uuid.UUID, *, customer_id: uuid.UUID | None, viewer: uuid.UUID | None = None
    ) -> AsyncGenerator[Order]:
        """The order as it is, then at each change, until it is settled; raises `OrderNotFound`.

        If `viewer` is its customer and can pay it, a change brings the client secret.
        """
        with self._watch.subscribe(order_id, sent=lambda: order) as updates:
            order = await self.get(order_id, customer_id=customer_id)
            yield order
            if viewer:
                await self.want_secret(order, viewer)
            if order.settled:
                return
            async for latest in updates:
                if latest.version > order.version or latest is order:  # the same one keeps a quiet stream open
                    order = latest
                    yield order
                if order.settled:
                    return

    async def settled(self, order: Order, *, seconds: float) -> Order:
        """The order once it is settled, or as it is after `seconds`; or at once, if too many watch."""
        return await self.until(order, lambda latest: latest.settled, seconds=seconds)

    async def until(self, order: Order, condition: Callable[[Order], bool], *, seconds: float) -> Order:
        """The order once it is settled or meets `condition`, or as `settled`."""
        if condition(order):
            return order
        try:
            async with asyncio.timeout(seconds), aclosing(self.changes(order.id, customer_id=None)) as changes:
                async for latest in changes:
                    order = latest
                    if condition(order):
                        break
        except (TimeoutError, RateLimited):
            pass  # the order settles in any case
        return order

    async def cancel(self, mutation: Mutation) -> Order:
        """Cancels a `PENDING` order or, for staff, a `PAID` one; `OrderService.CancelOrder` has the refusals.

        A repeat only finds what the first request has brought about. If that was refused, it tries again.
        """
        order, saga = await self.get(mutation.order_id, customer_id=mutation.customer_id), None
        async with self._db.begin() as tx:
            repeat = await idempotency.find_repeat(tx, mutation.key, order.id)
            if order.state is State.PENDING:
                # Its row is not locked, for the saga locks its own first; the first of the two wins.
                if not repeat:
                    check_etag(mutation.etag, database.etag(order.version))
                saga = await self._cancel_purchase(tx, mutation)
            if saga is None:
                order = await orders.read(tx, order.id)
                if not order.is_cancelled:
                    saga = await self._cancel_paid(tx, mutation, order)
            # Before the commit: from then on nothing of the order may be charged.
            self._worker.withdraw(order.id)
        order = order if order.state is State.CANCELLED else await self._await_saga(order, saga)
        if not order.is_cancelled:
            raise WrongState(resource="order", state=order.state, wanted=State.CANCELLED)
        return order

    async def _cancel_purchase(self, tx: AsyncSession, mutation: Mutation) -> Saga | None:
        """Has an order's purchase turn back, and claims it; None if it is not running, or was cancelled before."""
        if not await combined.request_cancel(tx, mutation.order_id, CANCELLED, mutation.by, cause="CancelOrder begun"):
            return None
        return await sagas.claim_one(tx, mutation.order_id, holder=self._worker.holder)

    async def _cancel_paid(self, tx: AsyncSession, mutation: Mutation, order: Order) -> Saga | None:
        """Begins the refund with which staff cancel a paid order, and claims its saga."""
        if mutation.customer_id is not None:
            raise WrongState(resource="order", state=order.state, wanted=State.CANCELLED)
        await self._begin_refund(tx, mutation, Refund(ids.new(), None, State.CANCELLED, restock=True))
        return await sagas.claim_one(tx, order.id, holder=self._worker.holder)

    def withdraw(self, order_id: uuid.UUID) -> None:
        """Keeps this process from beginning a charge of an order that is being cancelled."""
        self._worker.withdraw(order_id)

    async def refund(
        self, mutation: Mutation, *, amount: Money | None, restock: bool, lines: Sequence[tuple[uuid.UUID, int]]
    ) -> Order:
        """Refunds an order, in full or in part; `OrderService.RefundOrder` has the refusals."""
        await self._read_capture(mutation.order_id)
        async with self._db.begin() as tx:
            repeat = await idempotency.find_repeat(tx, mutation.key, mutation.order_id)
            if not repeat:
                refund = Refund(ids.new(), amount, State.REFUNDED, restock=restock, lines=tuple(lines))
                await self._begin_refund(tx, mutation, refund)
            saga = None if repeat else await sagas.claim_one(tx, mutation.order_id, holder=self._worker.holder)
        try:
            return await self._await_saga(await self.get(mutation.order_id, customer_id=None), saga)
        except RefundRefused:
            async with self._db.begin() as tx:  # a repeat tries again
                await idempotency.forget(tx, mutation.key)
            raise

    async def _begin_refund(self, tx: AsyncSession, mutation: Mutation, refund: Refund) -> None:
        order = await orders.read(tx, mutation.order_id, lock=True)
        check_etag(mutation.etag, database.etag(order.version))
        order.check_move(refund.wanted)
        order.check_refund(refund)
        await combined.begin_refund(tx, order, refund, mutation.by)

    async def _await_saga(self, order: Order, saga: Saga | None) -> Order:
        """The order once its saga has paused or finished, or as it is after some seconds. Raises `RefundRefused`.

        This process carries `saga`; None if another process or call does.
        """
        if saga is None:
            return await self.settled(order, seconds=_SETTLE_SECONDS)
        if saga.progress.kind is Kind.REFUND:
            STARTED.labels(Kind.REFUND).inc()
        self.announce(order.id)
        await asyncio.wait({self._worker.start(saga)}, timeout=_SETTLE_SECONDS)
        if saga.progress.kind is Kind.REFUND and saga.progress.phase is Phase.UNDONE:
            raise RefundRefused(cause=saga.progress.reason)
        return await self.get(order.id, customer_id=None)

    async def carry_saga(self, view: SagaView) -> SagaView:
        """Carries a saga in this process; returns it as it is when it pauses or finishes, or after some seconds."""
        async with self._db.begin() as tx:
            saga = await sagas.claim_one(tx, view.order_id, holder=self._worker.holder)
        if saga:
            await asyncio.wait({self._worker.start(saga)}, timeout=_SETTLE_SECONDS)
        try:
            return await operators.get(self._db, view.order_id)
        except SagaNotFound:
            order = await self.get(view.order_id, customer_id=None)
            progress = saga.progress if saga and saga.progress.finished else view.progress
            return replace(view, progress=progress, order_state=order.state, stuck=False, cause="")

    async def ship(self, mutation: Mutation, *, carrier: str, tracking_number: str) -> Order:
        """Marks an order as shipped; `OrderService.ShipOrder` has the refusals."""
        await self._read_capture(mutation.order_id)
        parcel = {"carrier": carrier, "tracking_number": tracking_number}
        return await self._move(mutation, State.SHIPPED, parcel, cause="ShipOrder")

    async def _read_capture(self, order_id: uuid.UUID) -> None:
        """Asks payments about an order whose money was only set aside: it may have been captured just now."""
        if (await self.get(order_id, customer_id=None)).is_uncaptured:
            await self._comparer.compare([order_id])

    async def deliver(self, mutation: Mutation) -> Order:
        """Marks an order as delivered; `OrderService.DeliverOrder` has the refusals."""
        return await self._move(mutation, State.DELIVERED, {}, cause="DeliverOrder")

    async def _move(self, mutation: Mutation, wanted: State, parcel: Mapping[str, str], *, cause: str) -> Order:
        async with self._db.begin() as tx:
            if await idempotency.find_repeat(tx, mutation.key, mutation.order_id):
                return await orders.read(tx, mutation.order_id)
            order = await orders.read(tx, mutation.order_id, lock=True)
            check_etag(mutation.etag, database.etag(order.version))
            order.check_move(wanted)
            order = await orders.move(tx, order, wanted, parcel, mutation.by, cause=cause)
        self.announce(order.id)
        return order

    def announce(self, order_id: uuid.UUID) -> None:
        """Has the events and the live views of an order that was changed just now follow at once."""
        self._relay.nudge()
        self._watch.nudge(order_id)
