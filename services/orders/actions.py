"""What customers do with orders they have placed. Placing is in `placing`."""

import asyncio
import uuid
from collections.abc import AsyncIterator, Sequence

from services.chassis import db as database
from services.chassis.db import Database
from services.chassis.errors import WrongState, check_etag
from services.chassis.watch import Watch
from services.orders import store
from services.orders.domain import WATCHERS_MOST, Order, State
from services.orders.saga import CANCELLED
from services.orders.worker import Worker

_LOOK_SECONDS = 1.0
# How long a cancellation may wait for a charge that is just being made.
_SETTLE_SECONDS = 6.0


def order_watch(db: Database) -> Watch[uuid.UUID, Order]:
    """Looks at all watched orders once a second; what this process changes is told at once."""

    async def fetch(order_ids: Sequence[uuid.UUID]) -> dict[uuid.UUID, Order]:
        return {order.id: order for order in await store.get_many(db, order_ids)}

    return Watch(fetch, seconds=_LOOK_SECONDS, most=WATCHERS_MOST)


async def changes(
    watch: Watch[uuid.UUID, Order], db: Database, order_id: uuid.UUID, *, customer_id: uuid.UUID | None
) -> AsyncIterator[Order]:
    """The order as it is, then at each change, until it is no longer `PENDING`; raises `OrderNotFound`."""
    with watch.subscribed(order_id) as looks:
        order = await store.get(db, order_id, customer_id=customer_id)
        yield order
        if order.state is not State.PENDING:
            return
        async for latest in looks:
            if latest.version != order.version:
                order = latest
                yield order
            if order.state is not State.PENDING:
                return


async def settled(watch: Watch[uuid.UUID, Order], db: Database, order: Order, *, seconds: float) -> Order:
    """The order once it is no longer `PENDING`, or as it is after `seconds`."""
    try:
        async with asyncio.timeout(seconds):
            async for latest in changes(watch, db, order.id, customer_id=None):
                order = latest
    except TimeoutError:
        pass
    return order


async def cancel(
    db: Database, worker: Worker, order_id: uuid.UUID, *, customer_id: uuid.UUID | None, etag: str
) -> Order:
    """Cancels a `PENDING` order; see `OrderService.CancelOrder` for the refusals.

    The wish is stored first, then its saga carries it out: whatever dies in between, the order ends as one thing.
    """
    order = await store.get(db, order_id, customer_id=customer_id)
    if order.state is State.CANCELLED:
        return order
    if order.state is State.PENDING:
        check_etag(etag, database.etag(order.version))
        async with db.begin() as tx:
            await store.ask(tx, [order_id], CANCELLED)
        saga = await store.claim_one(db, order_id)
        if saga:
            await asyncio.wait({worker.start(saga)}, timeout=_SETTLE_SECONDS)
        order = await store.get(db, order_id, customer_id=customer_id)
    if order.state not in (State.CANCELLED, State.PENDING):
        raise WrongState(resource="order", state=order.state, wanted=State.CANCELLED)
    return order
