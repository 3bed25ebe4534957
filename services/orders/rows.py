"""Orders as rows and events: the mapping between `domain` values and what is stored or told."""

import uuid
from dataclasses import asdict
from datetime import datetime
from typing import Any

import orjson

from services.chassis.events.outbox import Event
from services.chassis.money import Money
from services.chassis.server import wire
from services.orders.domain import Address, Line, LogEntry, Order, Payment, PaymentState, Refund, Shipment, State
from services.orders.saga import Kind, Phase, Progress, Saga
from stampede.orders.v1 import events_pb2

ORDER = """
    SELECT id, customer_id, request_id, digest, state, state_reason, lines, currency, total_minor, hold_expire_time,
        payment, shipping_address, refunded_minor, refunding, shipment, version, create_time, update_time
    FROM orders
"""


def order(row: Any) -> Order:
    """A row of `orders` as the value it stands for."""
    return Order(
        id=row.id,
        customer_id=row.customer_id,
        request_id=row.request_id,
        digest=bytes(row.digest),
        state=State(row.state),
        state_reason=row.state_reason,
        lines=tuple(_line(line) for line in row.lines),
        total=Money(row.currency, row.total_minor),
        hold_expire_time=row.hold_expire_time,
        payment=payment(row.payment),
        shipping_address=Address(**row.shipping_address) if row.shipping_address else None,
        refunded_minor=row.refunded_minor,
        refunding=row.refunding,
        shipment=_shipment(row.shipment) if row.shipment else None,
        version=row.version,
        create_time=row.create_time,
        update_time=row.update_time,
    )


def saga(row: Any) -> Saga:
    """A row of a claim as a saga to carry on."""
    return Saga(
        order_id=row.order_id,
        customer_id=row.customer_id,
        total=Money(row.currency, row.total_minor),
        payment_method=row.payment_method,
        hold_expire_time=row.hold_expire_time,
        progress=progress(row),
        fence=row.fence,
        pools=tuple(row.pools),
        attempts=row.attempts,
        payment=payment(row.payment),
        hold_ends=row.hold_ends,
        woken=row.was_woken,
        refund=refund(row.refund) if row.refund else None,
        refunded_minor=row.refunded_minor,
        cause=row.cause,
    )


def log_entry(row: Any, currency: str) -> LogEntry:
    """A row of `order_log`, whose order is paid in `currency`."""
    return LogEntry(
        id=row.id, version=row.version, state=State(row.state), state_reason=row.reason, actor=row.actor,
        cause=row.cause, note=row.note, request_id=row.request_id, refunded=Money(currency, row.refunded_minor),
        create_time=row.create_time,
    )  # fmt: skip


def payment(column: dict[str, Any] | None) -> Payment | None:
    if column is None:
        return None
    return Payment(
        uuid.UUID(column["id"]),
        column["provider"],
        PaymentState(column["state"]),
        column["client_secret"],
        column["failure_reason"],
        column.get("authenticating", False),
    )


def payment_to_json(value: Payment | None) -> str | None:
    return orjson.dumps(asdict(value)).decode() if value else None


def progress(row: Any) -> Progress:
    """How far the saga in a row of `sagas` has come."""
    return Progress(Phase(row.phase), row.applied, row.reason, row.asked, row.extended, Kind(row.kind))


def refund(column: dict[str, Any]) -> Refund:
    return Refund(
        uuid.UUID(column["id"]),
        Money(**column["amount"]) if column["amount"] else None,
        State(column["wanted"]),
        column["restock"],
        tuple((uuid.UUID(product_id), quantity) for product_id, quantity in column["lines"]),
    )


def _shipment(column: dict[str, Any]) -> Shipment:
    arrived = column.get("deliver_time")
    return Shipment(
        column["carrier"],
        column["tracking_number"],
        datetime.fromisoformat(column["ship_time"]),
        datetime.fromisoformat(arrived) if arrived else None,
    )


def _line(column: dict[str, Any]) -> Line:
    return Line(
        uuid.UUID(column["product_id"]),
        column["sku"],
        column["name"],
        Money(**column["unit_price"]),
        column["quantity"],
        uuid.UUID(column["sale_id"]) if column["sale_id"] else None,
    )


def placed(new: Any) -> events_pb2.OrderChanged:
    """The event that an order was placed, a `store.NewOrder`."""
    message = _event(new.id, new.customer_id, State.PENDING, "", new.total, 1)
    message.change_time.GetCurrentTime()
    return message


def moved(row: Any) -> Event:
    """The event that an order moved to the state in `row`."""
    return Event(f"stampede.orders.order.{row.state.lower()}", str(row.id), _changed(row))


def updated(row: Any) -> Event:
    """The event that an order changed as it is in `row`, but not its state."""
    return Event("stampede.orders.order.updated", str(row.id), _changed(row))


def _changed(row: Any) -> events_pb2.OrderChanged:
    total = Money(row.currency, row.total_minor)
    message = _event(row.id, row.customer_id, State(row.state), row.state_reason, total, row.version)
    message.change_time.FromDatetime(row.update_time)
    if row.refunded_minor:
        message.refunded.CopyFrom(wire.money(Money(row.currency, row.refunded_minor)))
    return message


def _event(
    order_id: uuid.UUID, customer_id: uuid.UUID, state: State, reason: str, total: Money, version: int
) -> events_pb2.OrderChanged:
    return events_pb2.OrderChanged(
        order_id=str(order_id), customer_id=str(customer_id), state=state, state_reason=reason,
        total=wire.money(total), version=version,
    )  # fmt: skip
