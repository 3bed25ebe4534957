"""What customers and staff do with orders that were placed. Placing is in `placing`, sagas' console in `console`.

A mutation is one transaction that knows a repeat by its request id; what takes other services is written down as a wish
that the order's saga carries out, so that whatever dies in between, the order ends as one thing.
"""

import asyncio
import uuid
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass, replace

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
from services.orders import console, journal, refunds, store
from services.orders.console import SagaView
from services.orders.domain import WATCHERS_MOST, Mover, Order, OrderNotFound, Refund, SagaNotFound, State
from services.orders.saga import CANCELLED, Kind, Saga
from services.orders.worker import Worker

_LOOK_SECONDS = 1.0
# How long an answer may wait for the provider. What was asked for is carried out all the same.
_SETTLE_SECONDS = 6.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Act:
    """Who moves which order, and how a repeat is known."""

    order_id: uuid.UUID
    customer_id: uuid.UUID | None
    """Whose order it must be; None for staff, who may move anybody's."""
    by: Mover
    etag: str = ""
    key: RequestKey | None = None


def order_watch(db: Database) -> Watch[uuid.UUID, Order]:
    """Looks at orders of which it hears that they changed."""

    async def fetch(order_ids: Sequence[uuid.UUID]) -> dict[uuid.UUID, Order]:
        return {order.id: order for order in await store.get_many(db, order_ids)}

    return Watch(fetch, interval_seconds=_LOOK_SECONDS, watchers_max=WATCHERS_MOST)


class Desk:
    """Where customers and staff bring what they want of an order."""

    def __init__(self, db: Database, worker: Worker, watch: Watch[uuid.UUID, Order], relay: Relay) -> None:
        self._db, self._worker, self._watch, self._relay = db, worker, watch, relay
        # Thousands may come to look at once, as after a restart; the database sees some statements.
        self._read: Batcher[uuid.UUID, Order] = Batcher("read", self._read_batch)

    async def _read_batch(self, order_ids: Sequence[uuid.UUID]) -> list[Order | Exception]:
        found = {order.id: order for order in await store.get_many(self._db, order_ids)}
        return [found.get(order_id) or OrderNotFound(orderId=order_id) for order_id in order_ids]

    async def get(self, order_id: uuid.UUID, *, customer_id: uuid.UUID | None) -> Order:
        """The order; `OrderNotFound` where there is none, or it is not `customer_id`'s. None sees everybody's."""
        order = await self._read(order_id)
        if customer_id not in (None, order.customer_id):
            raise OrderNotFound(orderId=order_id)
        return order

    async def changes(self, order_id: uuid.UUID, *, customer_id: uuid.UUID | None) -> AsyncIterator[Order]:
        """The order as it is, then at each change, until nothing is under way for it; raises `OrderNotFound`."""
        with self._watch.subscribe(order_id) as looks:
            order = await self.get(order_id, customer_id=customer_id)
            yield order
            if order.settled:
                return
            async for latest in looks:
                if latest.version > order.version:
                    order = latest
                    yield order
                if order.settled:
                    return

    async def settled(self, order: Order, *, seconds: float) -> Order:
        """The order once nothing is under way for it, or as it is after `seconds`; or now, where too many watch."""
        try:
            async with asyncio.timeout(seconds):
                async for latest in self.changes(order.id, customer_id=None):
                    order = latest
        except (TimeoutError, RateLimited):
            pass  # what was asked for is done all the same
        return order

    async def cancel(self, act: Act) -> Order:
        """Cancels a `PENDING` order or, for staff, a `PAID` one; see `OrderService.CancelOrder` for the refusals."""
        order = await self.get(act.order_id, customer_id=act.customer_id)
        saga = None
        async with self._db.begin() as tx:
            repeat = await idempotency.find_repeat(tx, act.key, order.id)
            if not repeat:
                if order.state is State.PENDING:
                    # Its row is not locked, for the saga locks its own first; whichever comes first, wins.
                    check_etag(act.etag, database.etag(order.version))
                    await journal.ask(tx, [order.id], CANCELLED, act.by)
                    saga = await journal.claim_one(tx, order.id)
                    order = order if saga else await store.read(tx, order.id)  # it has just come to its end
                if order.state is State.CANCELLED:
                    return order
                if saga is None and act.customer_id is not None:
                    raise WrongState(resource="order", state=order.state, wanted=State.CANCELLED)
                if saga is None:
                    await self._begin_refund(tx, act, Refund(ids.new(), None, State.CANCELLED, restock=True))
                    saga = await journal.claim_one(tx, order.id)
        order = await self._carried_out(order, saga)
        under_way = order.state is State.PENDING or (order.refunding and act.customer_id is None)
        if order.state is not State.CANCELLED and not under_way:
            raise WrongState(resource="order", state=order.state, wanted=State.CANCELLED)
        return order

    async def refund(
        self, act: Act, *, amount: Money | None, restock: bool, lines: Sequence[tuple[uuid.UUID, int]]
    ) -> Order:
        """Pays an order back, in full or in part; see `OrderService.RefundOrder` for the refusals."""
        async with self._db.begin() as tx:
            repeat = await idempotency.find_repeat(tx, act.key, act.order_id)
            if not repeat:
                refund = Refund(ids.new(), amount, State.REFUNDED, restock=restock, lines=tuple(lines))
                await self._begin_refund(tx, act, refund)
            saga = None if repeat else await journal.claim_one(tx, act.order_id)
        return await self._carried_out(await self.get(act.order_id, customer_id=None), saga)

    async def _begin_refund(self, tx: AsyncSession, act: Act, refund: Refund) -> None:
        order = await store.read(tx, act.order_id, lock=True)
        check_etag(act.etag, database.etag(order.version))
        order.check_move(refund.wanted)
        order.check_refund(refund)
        await refunds.begin(tx, order, refund, act.by)

    async def _carried_out(self, order: Order, saga: Saga | None) -> Order:
        """The order once its saga has done what was asked for; or as it is by then.

        This process carries `saga` on; None where another one does, or another call.
        """
        if saga is None:
            return await self.settled(order, seconds=_SETTLE_SECONDS)
        if saga.progress.kind is Kind.REFUND:
            store.SAGAS_STARTED.labels(Kind.REFUND).inc()
        self._tell(order.id)
        await asyncio.wait({self._worker.start(saga)}, timeout=_SETTLE_SECONDS)
        return await self.get(order.id, customer_id=None)

    async def saga_carried_on(self, view: SagaView) -> SagaView:
        """A saga after this process has carried it on, as it is at its end or after some seconds."""
        async with self._db.begin() as tx:
            saga = await journal.claim_one(tx, view.order_id)
        if saga:
            await asyncio.wait({self._worker.start(saga)}, timeout=_SETTLE_SECONDS)
        try:
            return await console.get(self._db, view.order_id)
        except SagaNotFound:
            order = await self.get(view.order_id, customer_id=None)
            progress = saga.progress if saga and saga.progress.finished else view.progress
            return replace(view, progress=progress, order_state=order.state, stuck=False, cause="")

    async def ship(self, act: Act, *, carrier: str, tracking_number: str) -> Order:
        """Says that an order is on its way; see `OrderService.ShipOrder` for the refusals."""
        parcel = {"carrier": carrier, "tracking_number": tracking_number}
        return await self._move(act, State.SHIPPED, parcel, cause="ShipOrder")

    async def deliver(self, act: Act) -> Order:
        """Says that an order has arrived; see `OrderService.DeliverOrder` for the refusals."""
        return await self._move(act, State.DELIVERED, {}, cause="DeliverOrder")

    async def _move(self, act: Act, wanted: State, parcel: Mapping[str, str], *, cause: str) -> Order:
        async with self._db.begin() as tx:
            if await idempotency.find_repeat(tx, act.key, act.order_id):
                return await store.read(tx, act.order_id)
            order = await store.read(tx, act.order_id, lock=True)
            check_etag(act.etag, database.etag(order.version))
            order.check_move(wanted)
            order = await store.move(tx, order, wanted, parcel, act.by, cause=cause)
        self._tell(order.id)
        return order

    def _tell(self, order_id: uuid.UUID) -> None:
        self._relay.nudge()
        self._watch.nudge(order_id)
