"""The events that orders publishes: one for each version of an order."""

from typing import Any

from services.chassis.events.outbox import Event
from services.chassis.money import Money
from services.chassis.server import wire
from services.orders.domain import Order, State
from stampede.orders.v1.events_pb2 import OrderChanged

_SUBJECT = "stampede.orders.order."
PLACED, CANCELLING = f"{_SUBJECT}placed", f"{_SUBJECT}cancelling"


def placed_event(order: Order) -> Event:
    """An order was placed."""
    message = OrderChanged(
        order_id=str(order.id), customer_id=str(order.customer_id), state=State.PENDING, total=wire.money(order.total),
        version=order.version,
    )  # fmt: skip
    message.change_time.GetCurrentTime()
    return Event(PLACED, message.order_id, message)


def changed_event(row: Any, *, moved: bool) -> Event:
    """An order changed, as `row` with the columns `sql.orders.CHANGED` shows it; `moved` if its state did."""
    return _event(row, _SUBJECT + (row.state.lower() if moved else "updated"))


def cancelling_event(row: Any) -> Event:
    """The cancellation of a `PENDING` order was accepted."""
    return _event(row, CANCELLING)


def _event(row: Any, subject: str) -> Event:
    message = OrderChanged(
        order_id=str(row.id), customer_id=str(row.customer_id), state=row.state, state_reason=row.state_reason,
        total=wire.money(Money(row.currency, row.total_minor)), version=row.version,
        change_time=wire.timestamp(row.update_time), cancel_requested=row.cancel_requested,
    )  # fmt: skip
    if row.refunded_minor:
        message.refunded.CopyFrom(wire.money(Money(row.currency, row.refunded_minor)))
    return Event(subject, message.order_id, message)
