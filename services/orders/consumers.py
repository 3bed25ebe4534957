"""The events of other services. They decide nothing: they wake sagas, which ask the owner, or move refunded orders."""

import asyncio
import uuid
from collections.abc import Callable, Sequence

from sqlalchemy.ext.asyncio import AsyncSession

from services.chassis.data.db import Database
from services.chassis.events.subscriber import Consumer
from services.chassis.server.watch import Watch
from services.orders.domain import Actor, Order
from services.orders.saga.plan import HOLD_EXPIRED
from services.orders.sql import orders, sagas
from stampede.inventory.v1.events_pb2 import ReservationExpired
from stampede.orders.v1.events_pb2 import OrderChanged
from stampede.payments.v1.events_pb2 import PaymentChanged


def consumers(db: Database) -> tuple[Consumer, ...]:
    """The durable consumers of orders."""
    return (
        Consumer(
            "orders-reservations", stream="inventory", subject="stampede.inventory.reservation.expired", db=db,
            act=cancel_expired,
        ),
        Consumer("orders-payments", stream="payments", subject="stampede.payments.payment.*", db=db, act=note_payments),
    )  # fmt: skip


async def cancel_expired(tx: AsyncSession, payloads: Sequence[bytes]) -> None:
    """Has the sagas of expired holds turn back, unless the money has moved meanwhile."""
    order_ids = [uuid.UUID(ReservationExpired.FromString(payload).reservation_id) for payload in payloads]
    await sagas.request_cancel(tx, order_ids, HOLD_EXPIRED, Actor("inventory"))


async def note_payments(tx: AsyncSession, payloads: Sequence[bytes]) -> None:
    """Wakes the sagas that wait for these payments; moves orders that staff refunded at payments."""
    events = [PaymentChanged.FromString(payload) for payload in payloads]
    await sagas.note_payments(tx, [uuid.UUID(event.order_id) for event in events])
    refunded: dict[uuid.UUID, int] = {}
    for event in events:  # a repeated one may come out of order
        order_id = uuid.UUID(event.order_id)
        refunded[order_id] = max(refunded.get(order_id, 0), event.refunded_minor_units)
    if refunded := {order_id: units for order_id, units in refunded.items() if units}:
        await sagas.note_refunds(tx, refunded)
        await orders.apply_refunds(tx, refunded)
        # A refund that began while this waited for its order has a saga now, and the order was left to it.
        await sagas.note_refunds(tx, refunded)


def order_changed(watch: Watch[uuid.UUID, Order]) -> Callable[[bytes], None]:
    """The receiver of changes of orders in any process: watchers of the order look again."""

    def receive(payload: bytes) -> None:
        event = OrderChanged.FromString(payload)
        watch.nudge(uuid.UUID(event.order_id), unless=lambda order: order.version >= event.version)

    return receive


class Withdrawals:
    """Receives the cancellations that other processes accepted: this one begins no charge of these orders.

    Implements `broadcast.Listener`. A missed event delays nothing for long: see `clients.Payments`.
    """

    live = False

    def __init__(self, withdraw: Callable[[uuid.UUID], None]) -> None:
        self._withdraw, self.watched = withdraw, asyncio.Event()
        self.watched.set()  # events are wanted at all times

    def receive(self, payload: bytes) -> None:
        """Withdraws the order of one event `cancelling`."""
        self._withdraw(uuid.UUID(OrderChanged.FromString(payload).order_id))
