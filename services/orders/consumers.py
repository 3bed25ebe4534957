"""The events of other services. They decide nothing: they wake sagas or request checks, which ask the owner."""

import asyncio
import uuid
from collections.abc import Callable, Sequence

from sqlalchemy.ext.asyncio import AsyncSession

from services.chassis.data.db import Database
from services.chassis.events.subscriber import Consumer
from services.chassis.server.watch import Watch
from services.orders.domain import Order
from services.orders.sql import payment_checks, sagas
from stampede.inventory.v1.events_pb2 import ReservationExpired
from stampede.orders.v1.events_pb2 import OrderChanged
from stampede.payments.v1.events_pb2 import PaymentChanged, PaymentDisputed


def consumers(db: Database) -> tuple[Consumer, ...]:
    """The durable consumers of orders."""
    return (
        Consumer(
            "orders-reservations", stream="inventory", subject="stampede.inventory.reservation.expired", db=db,
            act=note_expired,
        ),
        Consumer("orders-payments", stream="payments", subject="stampede.payments.payment.*", db=db, act=note_payments),
        Consumer("orders-disputes", stream="payments", subject="stampede.payments.dispute.*", db=db, act=note_disputes),
    )  # fmt: skip


async def note_expired(tx: AsyncSession, payloads: Sequence[bytes]) -> None:
    """Wakes the sagas whose holds inventory has given up. Their own timers decide whether the holds have ended."""
    order_ids = [uuid.UUID(ReservationExpired.FromString(payload).reservation_id) for payload in payloads]
    await sagas.wake(tx, order_ids)


async def note_payments(tx: AsyncSession, payloads: Sequence[bytes]) -> None:
    """Wakes the sagas that wait for these payments; has orders compared with payments whose refunds may have changed.

    The sum in an event is a hint: only payments knows what was refunded.
    """
    events = [PaymentChanged.FromString(payload) for payload in payloads]
    order_ids = [uuid.UUID(event.order_id) for event in events]
    await sagas.note_payments(tx, order_ids)
    refunded = [id_ for id_, event in zip(order_ids, events, strict=True) if event.refunded_minor_units]
    await payment_checks.request(tx, order_ids, wanted=refunded)


async def note_disputes(tx: AsyncSession, payloads: Sequence[bytes]) -> None:
    """Has orders compared with payments, because a dispute of their payment has changed."""
    order_ids = [uuid.UUID(PaymentDisputed.FromString(payload).order_id) for payload in payloads]
    await payment_checks.request(tx, order_ids, wanted=order_ids)


def order_changed(watch: Watch[uuid.UUID, Order]) -> Callable[[bytes], None]:
    """The receiver of changes of orders in any process: watchers of the order look again."""

    def receive(payload: bytes) -> None:
        event = OrderChanged.FromString(payload)
        watch.nudge(uuid.UUID(event.order_id), unless=lambda order: order.version >= event.version)

    return receive


class Withdrawals:
    """Receives the cancellations that other processes accepted: this one begins no charge of these orders.

    Implements `broadcast.Listener`. While events may be missed, `clients.Payments` reads each order before its charge.
    """

    live = False

    def __init__(self, withdraw: Callable[[uuid.UUID], None]) -> None:
        self._withdraw, self.watched = withdraw, asyncio.Event()
        self.watched.set()  # events are wanted at all times

    def receive(self, payload: bytes) -> None:
        """Withdraws the order of one event `cancelling`."""
        self._withdraw(uuid.UUID(OrderChanged.FromString(payload).order_id))
