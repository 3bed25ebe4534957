"""Orders as rows and events: the mapping between `domain` values and what is stored or told."""

import uuid
from dataclasses import asdict
from typing import Any

import orjson

from services.chassis import wire
from services.chassis.money import Money
from services.orders.domain import Address, Line, Order, Payment, PaymentState, State
from services.orders.saga import Phase, Progress, Saga
from stampede.orders.v1 import events_pb2


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
        progress=Progress(Phase(row.phase), row.applied, row.reason, row.asked, row.extended),
        fence=row.fence,
        attempts=row.attempts,
        payment=payment(row.payment),
        hold_ends=row.hold_ends,
    )


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


def moved(row: Any) -> tuple[str, events_pb2.OrderChanged]:
    """The event that an order moved to the state in `row`, and its subject."""
    state = State(row.state)
    total = Money(row.currency, row.total_minor)
    message = _event(row.id, row.customer_id, state, row.state_reason, total, row.version)
    message.change_time.FromDatetime(row.update_time)
    return f"stampede.orders.order.{state.lower()}", message


def _event(
    order_id: uuid.UUID, customer_id: uuid.UUID, state: State, reason: str, total: Money, version: int
) -> events_pb2.OrderChanged:
    return events_pb2.OrderChanged(
        order_id=str(order_id), customer_id=str(customer_id), state=state, state_reason=reason,
        total=wire.money(total), version=version,
    )  # fmt: skip
