"""What other services tell orders: facts that wake sagas or move orders. They decide nothing; the saga asks again."""

import uuid
from collections.abc import Callable, Sequence

from sqlalchemy.ext.asyncio import AsyncSession

from services.chassis.data.db import Database
from services.chassis.events.subscriber import Consumer
from services.chassis.server.watch import Watch
from services.orders import journal, store
from services.orders.domain import Order
from services.orders.saga import HOLD_EXPIRED
from stampede.inventory.v1.events_pb2 import ReservationExpired
from stampede.orders.v1.events_pb2 import OrderChanged
from stampede.payments.v1.events_pb2 import PaymentChanged


def consumers(db: Database) -> tuple[Consumer, ...]:
    """The durable consumers of orders."""
    return (
        Consumer(
            "orders-reservations", stream="inventory", subject="stampede.inventory.reservation.expired", db=db,
            act=hold_expired,
        ),
        Consumer("orders-payments", stream="payments", subject="stampede.payments.payment.*", db=db, act=paid_or_not),
    )  # fmt: skip


async def hold_expired(tx: AsyncSession, payloads: Sequence[bytes]) -> None:
    """Has the sagas of expired holds turn back, unless the money has moved meanwhile."""
    order_ids = [uuid.UUID(ReservationExpired.FromString(payload).reservation_id) for payload in payloads]
    await journal.ask(tx, order_ids, HOLD_EXPIRED)


async def paid_or_not(tx: AsyncSession, payloads: Sequence[bytes]) -> None:
    """Wakes the sagas that wait for these payments; moves orders that staff paid back."""
    events = [PaymentChanged.FromString(payload) for payload in payloads]
    await journal.wake(tx, [uuid.UUID(event.order_id) for event in events])
    back: dict[uuid.UUID, int] = {}
    for event in events:  # told again, they may come out of order
        order_id = uuid.UUID(event.order_id)
        back[order_id] = max(back.get(order_id, 0), event.refunded_minor_units)
    if back := {order_id: units for order_id, units in back.items() if units}:
        await store.paid_back(tx, back)


def changed(watch: Watch[uuid.UUID, Order]) -> Callable[[bytes], None]:
    """What to do when an order has changed, here or in another process: those who watch it look again."""

    def heard(payload: bytes) -> None:
        event = OrderChanged.FromString(payload)
        watch.nudge(uuid.UUID(event.order_id), unless=lambda order: order.version >= event.version)

    return heard
