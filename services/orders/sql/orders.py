"""The tables `orders` and `order_products`.

The fragments here are composed in `combined` with those of other tables. Locks are taken in one order: a saga's row
before its order's, and several by their ids.
"""

import uuid
from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any

import orjson
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncSession

from services.chassis.data.db import Database, run_autocommit
from services.chassis.events import outbox
from services.chassis.money import Money
from services.orders.domain import (
    Actor,
    Address,
    Line,
    Order,
    OrderNotFound,
    Payment,
    PaymentState,
    Shipment,
    State,
)
from services.orders.events import cancelling_event, changed_event
from services.orders.saga.comparison import Comparison
from services.orders.sql import order_log
from services.orders.sql.schema import OrderRow, columns

CHANGED = """
    o.id, o.customer_id, o.state, o.state_reason, o.currency, o.total_minor, o.refunded_minor, o.cancel_requested,
    o.version, o.update_time
"""
"""The columns of an order `o` that `events.changed_event` and its log entry take."""
SELECT = f"SELECT {columns(OrderRow)} FROM orders"  # noqa: S608

_PAGE = ("checkout_url", "provider_order_id")
_PAYMENT = ("id", "provider", "state", "client_secret", "failure_reason", "authenticating")
_DRAFT = {
    "id": "uuid", "customer_id": "uuid", "request_id": "uuid", "digest": "bytea", "lines": "jsonb",
    "currency": "text", "total_minor": "bigint", "hold_expire_time": "timestamptz", "shipping_address": "jsonb",
    "note": "text",
}  # fmt: skip
DOCUMENT = ", ".join(f"{name} {kind}" for name, kind in _DRAFT.items())
"""The columns of a new order with their types, for `jsonb_to_recordset` over `document`."""

_IS_AMONG_FIRST = """secret_rank + (
    SELECT count(*) FROM orders AS p WHERE p.customer_id = w.customer_id
        AND p.create_time > clock_timestamp() - interval '1 hour' AND p.state = 'PENDING' AND p.secret_wanted
        AND coalesce(p.payment->>'state', 'AWAITING_CUSTOMER') = 'AWAITING_CUSTOMER'
) <= :unasked_most"""
"""Whether a new order `w` is one of the first unpaid ones of its customer, which get their secrets unasked."""


def insert_from(source: str) -> str:
    """SQL that writes a `PENDING` order for each row of `source`; and returns the new.

    Its columns are `DOCUMENT`, and `secret_rank`: 0 if its secret is wanted or not needed, else its number among the
    customer's orders of this batch.
    """
    return f"""
        INSERT INTO orders AS o ({", ".join(_DRAFT)}, secret_wanted, state, create_time, update_time)
        SELECT {", ".join(_DRAFT)}, secret_rank = 0 OR {_IS_AMONG_FIRST}, 'PENDING', clock_timestamp(),
            clock_timestamp()
        FROM {source} ORDER BY id
        ON CONFLICT DO NOTHING
        RETURNING o.id, o.version, o.state, o.state_reason, o.refunded_minor, o.create_time, o.secret_wanted
    """  # noqa: S608


def insert_products_from(source: str) -> str:
    """SQL that writes the products of each order in `source`."""
    return f"""
        INSERT INTO order_products (product_id, create_time, order_id)
        SELECT (line->>'product_id')::uuid, create_time, id FROM {source} CROSS JOIN jsonb_array_elements(lines) AS line
    """  # noqa: S608


def update(assignments: str) -> str:
    """SQL that begins the change of an order `o` to its next version."""
    return f"UPDATE orders o SET {assignments}, version = o.version + 1, update_time = clock_timestamp()"  # noqa: S608


_SHIPMENT = """
    state = :state, state_reason = '', shipment = coalesce(o.shipment, '{}') || CAST(:parcel AS jsonb)
        || jsonb_build_object(CAST(:time AS text), clock_timestamp())
"""
_MOVE = text(f"""
    WITH changed AS ({update(_SHIPMENT)} WHERE o.id = :id RETURNING {CHANGED}),
        logged AS ({order_log.insert_from("changed", **order_log.INSERT_BY_ACTOR)})
    SELECT * FROM changed
""")  # noqa: S608
_NOTE_CANCEL = text(f"""
    WITH changed AS ({update("cancel_requested = true")} WHERE o.id = :id RETURNING {CHANGED}),
        logged AS ({order_log.insert_from("changed", **order_log.INSERT_BY_ACTOR)})
    SELECT * FROM changed
""")  # noqa: S608
_APPLY_PAYMENT = text(f"""
    WITH changed AS ({
    update(
        "state = :state, state_reason = :reason, refunded_minor = :refunded, disputed = :disputed,"
        " payment = jsonb_set(o.payment, '{state}', to_jsonb(CAST(:payment_state AS text)))"
    )
} WHERE o.id = :id RETURNING {CHANGED}),
        logged AS ({order_log.insert_from("changed", **order_log.INSERT_BY_ACTOR)})
    SELECT * FROM changed
""")  # noqa: S608


def document(order: Order) -> dict[str, object]:
    """A new order with the columns of `DOCUMENT`."""
    return {
        "id": order.id,
        "customer_id": order.customer_id,
        "request_id": order.request_id,
        "digest": bytea(order.digest),
        "lines": order.lines,
        "currency": order.total.currency,
        "total_minor": order.total.minor,
        "hold_expire_time": order.hold_expire_time,
        "shipping_address": order.shipping_address,
        "note": order.note,
    }


def bytea(value: bytes) -> str:
    """Bytes as JSON carries them to a bytea column."""
    return f"\\x{value.hex()}"


def from_row(row: Any) -> Order:
    """The order in a row of `orders`."""
    return Order(
        id=row.id,
        customer_id=row.customer_id,
        request_id=row.request_id,
        digest=bytes(row.digest),
        state=State(row.state),
        state_reason=row.state_reason,
        lines=tuple(map(_line, row.lines)),
        total=Money(row.currency, row.total_minor),
        hold_expire_time=row.hold_expire_time,
        payment=payment_from_json(row.payment, row.payment_page),
        shipping_address=Address(**row.shipping_address) if row.shipping_address else None,
        note=row.note,
        refunded_minor=row.refunded_minor,
        returned={uuid.UUID(product_id): units for product_id, units in row.returned.items()},
        refunding=row.refunding,
        shipment=_shipment(row.shipment) if row.shipment else None,
        secret_wanted=row.secret_wanted,
        cancel_requested=row.cancel_requested,
        disputed=row.disputed,
        payment_attempts=row.payment_attempts,
        reopened=row.reopened,
        version=row.version,
        create_time=row.create_time,
        update_time=row.update_time,
    )


def payment_from_json(column: dict[str, Any] | None, page: dict[str, Any] | None = None) -> Payment | None:
    """The payment in the column `payment`, with that of `payment_page`."""
    if column is None:
        return None
    return Payment(**{**column, **(page or {}), "id": uuid.UUID(column["id"]), "state": PaymentState(column["state"])})


def payment_to_json(value: Payment | None) -> str | None:
    """A payment as the column `payment` stores it: with these fields, which earlier releases know."""
    return orjson.dumps({name: getattr(value, name) for name in _PAYMENT}).decode() if value else None


def page_to_json(value: Payment | None) -> str | None:
    """Returns the value of the column `payment_page` of a payment; None if a secret is all that its customer needs."""
    found = {name: part for name in _PAGE if (part := getattr(value, name, ""))}
    return orjson.dumps(found).decode() if found else None


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
        product_id=uuid.UUID(column["product_id"]),
        quantity=column["quantity"],
        sale_id=uuid.UUID(column["sale_id"]) if column["sale_id"] else None,
        sku=column["sku"],
        name=column["name"],
        unit_price=Money(**column["unit_price"]),
    )


async def find_by_requests(db: Database, requests: Sequence[tuple[uuid.UUID, uuid.UUID]]) -> list[Order | None]:
    """The orders that were placed under these (customer id, request id), in their order; None where there is none."""
    if not requests:
        return []
    query = text(f"""
        {SELECT} JOIN unnest(CAST(:customers AS uuid[]), CAST(:requests AS uuid[])) AS w (customer, request)
            ON customer_id = w.customer AND request_id = w.request
    """)
    customers, request_ids = zip(*requests, strict=True)
    rows = await run_autocommit(db, query, {"customers": list(customers), "requests": list(request_ids)})
    found = {(row.customer_id, row.request_id): from_row(row) for row in rows}
    return [found.get(request) for request in requests]


async def read(tx: AsyncSession, order_id: uuid.UUID, *, lock: bool = False) -> Order:
    """An order, which with `lock` nobody else changes before `tx` has ended; raises `OrderNotFound`.

    A transaction that also writes the saga's row must do that first.
    """
    query = text(f"{SELECT} WHERE id = :id {'FOR UPDATE' if lock else ''}")
    row = (await tx.execute(query, {"id": order_id})).one_or_none()
    if row is None:
        raise OrderNotFound(orderId=order_id)
    return from_row(row)


async def hold_is_over(tx: AsyncSession, order_id: uuid.UUID) -> bool:
    """Whether the time of an order's hold is over, by the database's clock."""
    query = text("SELECT hold_expire_time <= clock_timestamp() FROM orders WHERE id = :id")
    return bool((await tx.execute(query, {"id": order_id})).scalar_one())


async def get_many(db: Database, order_ids: Sequence[uuid.UUID]) -> dict[uuid.UUID, Order]:
    """Those of `order_ids` that exist, by id, in one statement."""
    query = text(f"{SELECT} WHERE id = ANY(CAST(:ids AS uuid[]))")
    return {row.id: from_row(row) for row in await run_autocommit(db, query, {"ids": list(order_ids)})}


async def move(
    tx: AsyncSession, order: Order, wanted: State, parcel: Mapping[str, str], by: Actor, *, cause: str
) -> Order:
    """Moves an order by staff and returns it. Its row must be locked, and the move allowed.

    `parcel` is what is new about its shipment.
    """
    values = {
        "id": order.id, "state": wanted, "parcel": orjson.dumps(parcel).decode(),
        "time": "ship_time" if wanted is State.SHIPPED else "deliver_time", **order_log.arguments(by, cause),
    }  # fmt: skip
    await outbox.publish(tx, [changed_event((await tx.execute(_MOVE, values)).one(), moved=True)])
    return await read(tx, order.id)


async def note_cancel(tx: AsyncSession, order_id: uuid.UUID, by: Actor, *, cause: str) -> None:
    """Notes on a `PENDING` order, whose saga is locked, that its cancellation was accepted."""
    row = (await tx.execute(_NOTE_CANCEL, {"id": order_id, **order_log.arguments(by, cause)})).one()
    await outbox.publish(tx, [cancelling_event(row)])


async def apply_payment(tx: AsyncSession, order: Order, found: Comparison) -> None:
    """Corrects a settled order, whose row is locked, by what payments knows about its payment."""
    values = {
        "id": order.id, "state": found.state, "reason": "" if found.state is not order.state else order.state_reason,
        "refunded": found.refunded_minor, "payment_state": found.payment_state, "disputed": found.disputed,
        **order_log.arguments(Actor("payments"), found.cause),
    }  # fmt: skip
    row = (await tx.execute(_APPLY_PAYMENT, values)).one()
    await outbox.publish(tx, [changed_event(row, moved=found.state is not order.state)])
