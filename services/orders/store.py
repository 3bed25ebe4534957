"""Orders and sagas in PostgreSQL. Each function is one transaction; those on the hot path take a whole batch."""

import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime

import orjson
from prometheus_client import Counter
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncSession

from services.chassis import ids
from services.chassis.data.db import Database, run_autocommit
from services.chassis.events import outbox
from services.chassis.money import Money
from services.orders import domain, rows
from services.orders.domain import Address, Line, Mover, Order, OrderNotFound, State
from services.orders.saga import Kind

SAGAS_STARTED = Counter("stampede_sagas_started_total", "Sagas that began here.", ["kind"])
# One document instead of a dozen arrays: it is made in C, where psycopg makes arrays in Python.
_INSERT = text("""
    WITH w AS (
        SELECT * FROM jsonb_to_recordset(CAST(:orders AS jsonb)) AS w (
            id uuid, customer_id uuid, request_id uuid, digest bytea, lines jsonb, currency text, total_minor bigint,
            hold_expire_time timestamptz, address jsonb, payment_method text, lease double precision, trace text,
            event_id uuid, event bytea)
    ), placed AS (
        INSERT INTO orders (id, customer_id, request_id, digest, state, lines, currency, total_minor, hold_expire_time,
            shipping_address, create_time, update_time)
        SELECT id, customer_id, request_id, digest, 'PENDING', lines, currency, total_minor, hold_expire_time, address,
            clock_timestamp(), clock_timestamp()
        FROM w ORDER BY id
        ON CONFLICT DO NOTHING
        RETURNING id, create_time
    ), listed AS (
        INSERT INTO order_products (product_id, create_time, order_id)
        SELECT (line->>'product_id')::uuid, create_time, id
        FROM w JOIN placed USING (id) CROSS JOIN jsonb_array_elements(w.lines) AS line
    ), begun AS (
        INSERT INTO sagas (order_id, phase, applied, payment_method, request_id, next_time, look_time)
        SELECT id, 'FORWARD', 1, payment_method, trace, clock_timestamp() + make_interval(secs => lease),
            -- Early enough for a slow charge, a process that dies, and its lease.
            hold_expire_time - least(interval '30 seconds', (hold_expire_time - clock_timestamp()) / 2)
        FROM w JOIN placed USING (id)
    ), logged AS (
        INSERT INTO order_log (order_id, version, state, reason, actor, cause, request_id)
        SELECT id, 1, 'PENDING', '', 'customer', 'PlaceOrder', trace FROM w JOIN placed USING (id)
    ), told AS (
        INSERT INTO outbox (event_id, subject, key, payload)
        SELECT event_id, 'stampede.orders.order.placed', id::text, event FROM w JOIN placed USING (id)
    )
    SELECT id, create_time FROM placed
""")
_MOVE = text("""
    WITH moved AS (
        UPDATE orders SET state = :state, state_reason = '', version = version + 1, update_time = clock_timestamp(),
            shipment = coalesce(shipment, '{}') || CAST(:parcel AS jsonb)
                || jsonb_build_object(CAST(:time AS text), clock_timestamp())
        WHERE id = :id
        RETURNING id, customer_id, state, state_reason, currency, total_minor, refunded_minor, version, update_time
    ), logged AS (
        INSERT INTO order_log (order_id, version, state, reason, actor, cause, note, request_id, refunded_minor)
        SELECT id, version, state, state_reason, :actor, :cause, :note, :request, refunded_minor FROM moved
    )
    SELECT * FROM moved
""")
_PAID_BACK = text("""
    WITH w AS (
        SELECT id, least(units, total_minor) AS units,
            CASE WHEN units < total_minor THEN 'PARTIALLY_REFUNDED' ELSE 'REFUNDED' END AS state
        FROM unnest(CAST(:ids AS uuid[]), CAST(:units AS bigint[])) AS w (id, units) JOIN orders USING (id)
        ORDER BY id FOR UPDATE OF orders
    ), changed AS (
        -- One that has ended otherwise, because it was not paid in time or was taken back, stays what it is.
        UPDATE orders o SET refunded_minor = w.units,
            state = CASE WHEN o.state = ANY(:refundable) THEN w.state ELSE o.state END,
            state_reason = CASE WHEN o.state = ANY(:refundable) THEN '' ELSE o.state_reason END,
            version = o.version + 1, update_time = clock_timestamp(),
            payment = CASE WHEN w.state = 'REFUNDED'
                THEN jsonb_set(o.payment, '{state}', '"REFUNDED"') ELSE o.payment END
        FROM w WHERE o.id = w.id AND o.refunded_minor < w.units AND NOT o.refunding AND o.state <> 'PENDING'
        RETURNING o.id, o.customer_id, o.state, o.state_reason, o.currency, o.total_minor, o.refunded_minor, o.version,
            o.update_time, old.state AS state_before
    ), logged AS (
        INSERT INTO order_log (order_id, version, state, reason, actor, cause, request_id, refunded_minor)
        SELECT id, version, state, state_reason, 'payments', 'refunded at payments', '', refunded_minor FROM changed
    )
    SELECT * FROM changed
""")


@dataclass(frozen=True, slots=True, kw_only=True)
class NewOrder:
    """An order whose stock is held, about to be written."""

    id: uuid.UUID
    customer_id: uuid.UUID
    request_id: uuid.UUID
    digest: bytes
    lines: tuple[Line, ...]
    total: Money
    hold_expire_time: datetime
    shipping_address: Address | None
    payment_method: str
    lease_seconds: float
    """For how long nobody else looks after its saga; 0 where whoever has time shall."""
    trace: str


async def insert(db: Database, new: Sequence[NewOrder]) -> list[tuple[Order, bool]]:
    """Writes orders with their sagas, log entries and events; (order, whether it is new) per item, in order.

    Where the customer's request id is known, the order of the first time is returned in its place.
    """
    # Two items of one batch may be one request, sent twice: the first is the order, the second its repeat.
    first = {o.id: o for o in reversed(new)}
    arguments = {"orders": orjson.dumps([_document(o) for o in first.values()]).decode()}
    placed = {row.id: row.create_time for row in await run_autocommit(db, _INSERT, arguments)}
    SAGAS_STARTED.labels(Kind.PURCHASE).inc(len(placed))
    missing = [(o.customer_id, o.request_id) for o in new if o.id not in placed]
    known = {(o.customer_id, o.request_id): o for o in await _by_request(db, missing)}
    known |= {(o.customer_id, o.request_id): as_placed(o, placed[o.id]) for o in first.values() if o.id in placed}
    return [(known[o.customer_id, o.request_id], o.id in placed and first[o.id] is o) for o in new]


def _document(new: NewOrder) -> dict[str, object]:
    return {
        "id": new.id,
        "customer_id": new.customer_id,
        "request_id": new.request_id,
        "digest": _bytea(new.digest),
        "lines": new.lines,
        "currency": new.total.currency,
        "total_minor": new.total.minor,
        "hold_expire_time": new.hold_expire_time,
        "address": new.shipping_address,
        "payment_method": new.payment_method,
        "lease": new.lease_seconds,
        "trace": new.trace,
        "event_id": ids.new(),
        "event": _bytea(rows.placed(new).SerializeToString()),
    }


def _bytea(value: bytes) -> str:
    return f"\\x{value.hex()}"


async def find(db: Database, requests: Sequence[tuple[uuid.UUID, uuid.UUID]]) -> list[Order | None]:
    """The orders that were placed under these (customer id, request id), in their order; None where there is none."""
    found = {(order.customer_id, order.request_id): order for order in await _by_request(db, requests)}
    return [found.get(request) for request in requests]


async def _by_request(db: Database, requests: Sequence[tuple[uuid.UUID, uuid.UUID]]) -> list[Order]:
    if not requests:
        return []
    query = text(f"""
        {rows.ORDER} JOIN unnest(CAST(:customers AS uuid[]), CAST(:requests AS uuid[])) AS w (customer, request)
            ON customer_id = w.customer AND request_id = w.request
    """)
    customers, request_ids = zip(*requests, strict=True)
    arguments = {"customers": list(customers), "requests": list(request_ids)}
    return [rows.order(row) for row in await run_autocommit(db, query, arguments)]


def as_placed(new: NewOrder, create_time: datetime) -> Order:
    """An order as it is once it is written."""
    return Order(
        id=new.id, customer_id=new.customer_id, request_id=new.request_id, digest=new.digest, state=State.PENDING,
        state_reason="", lines=new.lines, total=new.total, hold_expire_time=new.hold_expire_time, payment=None,
        shipping_address=new.shipping_address, version=1, create_time=create_time, update_time=create_time,
    )  # fmt: skip


async def move(
    tx: AsyncSession, order: Order, wanted: State, parcel: Mapping[str, str], by: Mover, *, cause: str
) -> Order:
    """Moves an order, whose row is locked and which may move so, by staff's hand; the order as it is then.

    `parcel` is what is new about its shipment.
    """
    arguments = {
        "id": order.id, "state": wanted, "parcel": orjson.dumps(parcel).decode(), "cause": cause,
        "time": "ship_time" if wanted is State.SHIPPED else "deliver_time",
        "actor": by.actor, "note": by.note, "request": by.request_id,
    }  # fmt: skip
    moved = (await tx.execute(_MOVE, arguments)).one()
    await outbox.publish(tx, [rows.moved(moved)])
    return await read(tx, order.id)


async def paid_back(tx: AsyncSession, minor_units: Mapping[uuid.UUID, int]) -> None:
    """Moves paid orders whose money went back by staff's hand at payments: to `REFUNDED` or `PARTIALLY_REFUNDED`.

    `minor_units` went back in all, by order. An order whose saga is under way moves when that has come to its end.
    """
    arguments = {"ids": list(minor_units), "units": list(minor_units.values())}
    note = text("""
        UPDATE sagas SET refunded_minor = w.units
        FROM unnest(CAST(:ids AS uuid[]), CAST(:units AS bigint[])) AS w (id, units)
        WHERE order_id = w.id AND refunded_minor < w.units
    """)
    await tx.execute(note, arguments)
    changed = await tx.execute(_PAID_BACK, {**arguments, "refundable": list(domain.REFUNDABLE)})
    await outbox.publish(tx, [rows.updated(r) if r.state == r.state_before else rows.moved(r) for r in changed])


async def get(db: Database, order_id: uuid.UUID, *, customer_id: uuid.UUID | None) -> Order:
    """An order; `OrderNotFound` where there is none, or it is not `customer_id`'s. None sees everybody's."""
    async with db() as tx:
        order = await read(tx, order_id)
    if customer_id not in (None, order.customer_id):
        raise OrderNotFound(orderId=order_id)
    return order


async def read(tx: AsyncSession, order_id: uuid.UUID, *, lock: bool = False) -> Order:
    """An order, which with `lock` nobody else moves before `tx` has ended; raises `OrderNotFound`.

    Whoever locks it, and also writes its saga's row, must do that first, as all do.
    """
    query = text(f"{rows.ORDER} WHERE id = :id {'FOR UPDATE' if lock else ''}")
    row = (await tx.execute(query, {"id": order_id})).one_or_none()
    if row is None:
        raise OrderNotFound(orderId=order_id)
    return rows.order(row)


async def get_many(db: Database, order_ids: Sequence[uuid.UUID]) -> list[Order]:
    """Those of `order_ids` that exist, in one statement."""
    query = text(f"{rows.ORDER} WHERE id = ANY(CAST(:ids AS uuid[]))")
    return [rows.order(row) for row in await run_autocommit(db, query, {"ids": list(order_ids)})]
