"""Orders and sagas in PostgreSQL. Each function is one transaction; those on the hot path take a whole batch."""

import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime

import orjson
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncSession

from services.chassis import ids, outbox
from services.chassis.db import Database, run_alone
from services.chassis.money import Money
from services.orders import domain, rows
from services.orders.domain import Address, Line, Order, OrderNotFound, State
from services.orders.saga import Saga

LEASE_SECONDS = 10.0
"""For how long a saga is a process's own. Longer than the slowest step, or two work on it for nothing; no longer,
because it is also how long the orders of a process that died stand still."""

_ORDER = """
    SELECT id, customer_id, request_id, digest, state, state_reason, lines, currency, total_minor, hold_expire_time,
        payment, shipping_address, version, create_time, update_time
    FROM orders
"""
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
    ), begun AS (
        INSERT INTO sagas (order_id, phase, applied, payment_method, next_time, look_time)
        SELECT id, 'FORWARD', 1, payment_method, clock_timestamp() + make_interval(secs => lease),
            -- Early enough for a slow charge, a process that dies, and its lease.
            hold_expire_time - least(interval '30 seconds', (hold_expire_time - clock_timestamp()) / 2)
        FROM w JOIN placed USING (id)
    ), logged AS (
        INSERT INTO order_log (order_id, version, state, reason, actor, request_id)
        SELECT id, 1, 'PENDING', '', 'customer', trace FROM w JOIN placed USING (id)
    ), told AS (
        INSERT INTO outbox (event_id, subject, payload)
        SELECT event_id, 'stampede.orders.order.placed', event FROM w JOIN placed USING (id)
    )
    SELECT id, create_time FROM placed
""")
# The fence decides: a process whose saga was taken over finds no row here, and changes nothing.
_FINISH = text("""
    WITH w AS (
        SELECT * FROM unnest(
            CAST(:ids AS uuid[]), CAST(:fences AS integer[]), CAST(:states AS text[]), CAST(:reasons AS text[]),
            CAST(:payments AS jsonb[])
        ) AS w (id, fence, state, reason, payment)
    ), mine AS (
        DELETE FROM sagas s USING w WHERE s.order_id = w.id AND s.fence = w.fence
        RETURNING s.order_id, s.refunded_minor
    ), moved AS (
        UPDATE orders o SET state = w.state, state_reason = w.reason, payment = coalesce(w.payment, o.payment),
            version = o.version + 1, update_time = clock_timestamp()
        FROM w JOIN mine ON mine.order_id = w.id WHERE o.id = w.id AND o.state = 'PENDING'
        RETURNING o.id, o.customer_id, o.state, o.state_reason, o.currency, o.total_minor, o.version, o.update_time,
            mine.refunded_minor
    ), logged AS (
        INSERT INTO order_log (order_id, version, state, reason, actor, request_id)
        SELECT id, version, state, state_reason, 'saga', '' FROM moved
    )
    SELECT * FROM moved
""")
_SAVE = text("""
    WITH w AS (
        SELECT * FROM unnest(
            CAST(:ids AS uuid[]), CAST(:fences AS integer[]), CAST(:phases AS text[]), CAST(:applied AS integer[]),
            CAST(:reasons AS text[]), CAST(:waiting AS boolean[]), CAST(:attempts AS integer[]),
            CAST(:seconds AS double precision[]), CAST(:payments AS jsonb[]), CAST(:asked AS text[]),
            CAST(:extended AS boolean[]), CAST(:holds AS timestamptz[])
        ) AS w (id, fence, phase, applied, reason, waiting, attempts, seconds, payment, asked, extended, hold)
    ), mine AS (
        UPDATE sagas s SET phase = w.phase, applied = w.applied, reason = w.reason, waiting = w.waiting,
            attempts = w.attempts, extended = w.extended,
            -- What was asked, or came in, while a process had the saga, it does not know yet.
            next_time = CASE WHEN w.waiting AND (s.woken OR s.asked <> w.asked) THEN clock_timestamp()
                ELSE least(clock_timestamp() + make_interval(secs => w.seconds),
                    CASE WHEN w.waiting AND NOT w.extended THEN s.look_time END) END
        FROM w WHERE s.order_id = w.id AND s.fence = w.fence
        RETURNING s.order_id
    ), shown AS (
        UPDATE orders o SET payment = coalesce(w.payment, o.payment), hold_expire_time = w.hold,
            version = o.version + 1, update_time = clock_timestamp()
        FROM w JOIN mine ON mine.order_id = w.id
        WHERE o.id = w.id
            AND (o.payment IS DISTINCT FROM coalesce(w.payment, o.payment) OR o.hold_expire_time <> w.hold)
    )
    SELECT order_id FROM mine
""")
_CLAIM = """
    WITH due AS (
        SELECT order_id FROM sagas WHERE {which} ORDER BY next_time LIMIT :most FOR UPDATE SKIP LOCKED
    ), mine AS (
        UPDATE sagas s SET fence = s.fence + 1, waiting = false, woken = false,
            next_time = clock_timestamp() + make_interval(secs => :lease),
            -- The timer of the hold: inventory's event may be late, or lost on its way.
            asked = CASE WHEN s.asked = '' AND o.hold_expire_time + interval '2 seconds' < clock_timestamp()
                THEN 'HOLD_EXPIRED' ELSE s.asked END,
            -- Money that does not move yet may do so on the next look, after three quarters of the time that is left.
            look_time = CASE WHEN s.look_time IS NULL OR s.look_time > clock_timestamp() THEN s.look_time
                WHEN o.hold_expire_time > clock_timestamp() + interval '2 seconds'
                THEN o.hold_expire_time - (o.hold_expire_time - clock_timestamp()) / 4 END
        FROM due JOIN orders o ON o.id = due.order_id WHERE s.order_id = due.order_id
        RETURNING s.*, o.customer_id, o.currency, o.total_minor, o.hold_expire_time, o.payment,
            old.look_time IS DISTINCT FROM new.look_time AS hold_ends
    )
    SELECT * FROM mine
"""
_CLAIM_DUE = text(_CLAIM.format(which="next_time <= clock_timestamp()"))
_CLAIM_ONE = text(_CLAIM.format(which="order_id = :order"))


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
    placed = {row.id: row.create_time for row in await run_alone(db, _INSERT, arguments)}
    missing = [(o.customer_id, o.request_id) for o in new if o.id not in placed]
    known = {(o.customer_id, o.request_id): o for o in await _by_request(db, missing)}
    known |= {(o.customer_id, o.request_id): _as_placed(o, placed[o.id]) for o in first.values() if o.id in placed}
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


async def find(db: Database, customer_id: uuid.UUID, request_id: uuid.UUID) -> Order | None:
    """The order that a customer placed under a request id, if any."""
    found = await _by_request(db, [(customer_id, request_id)])
    return found[0] if found else None


async def _by_request(db: Database, requests: Sequence[tuple[uuid.UUID, uuid.UUID]]) -> list[Order]:
    if not requests:
        return []
    query = text(f"""
        {_ORDER} JOIN unnest(CAST(:customers AS uuid[]), CAST(:requests AS uuid[])) AS w (customer, request)
            ON customer_id = w.customer AND request_id = w.request
    """)
    customers, request_ids = zip(*requests, strict=True)
    arguments = {"customers": list(customers), "requests": list(request_ids)}
    return [rows.order(row) for row in await run_alone(db, query, arguments)]


def _as_placed(new: NewOrder, create_time: datetime) -> Order:
    return Order(
        id=new.id, customer_id=new.customer_id, request_id=new.request_id, digest=new.digest, state=State.PENDING,
        state_reason="", lines=new.lines, total=new.total, hold_expire_time=new.hold_expire_time, payment=None,
        shipping_address=new.shipping_address, version=1, create_time=create_time, update_time=create_time,
    )  # fmt: skip


@dataclass(frozen=True, slots=True)
class Ending:
    """A saga that has finished, and what becomes of its order."""

    saga: Saga
    state: State
    reason: str


async def finish(db: Database, endings: Sequence[Ending]) -> list[bool]:
    """Moves orders to the states their sagas ended in. False for each saga that somebody else had taken over."""
    for ending in endings:
        domain.move(State.PENDING, ending.state)
    arguments = {
        "ids": [e.saga.order_id for e in endings],
        "fences": [e.saga.fence for e in endings],
        "states": [e.state for e in endings],
        "reasons": [e.reason for e in endings],
        "payments": [rows.payment_to_json(e.saga.payment) for e in endings],
    }
    async with db.begin() as tx:
        moved = (await tx.execute(_FINISH, arguments)).all()
        await outbox.tell(tx, [rows.moved(row) for row in moved])
        # Staff may be faster than the saga: what they paid back meanwhile counts from here on.
        await refunded(tx, {row.id: row.refunded_minor for row in moved if row.refunded_minor})
    ids = {row.id for row in moved}
    return [e.saga.order_id in ids for e in endings]


@dataclass(frozen=True, slots=True)
class Pause:
    """A saga that goes on later."""

    saga: Saga
    waiting: bool
    """Whether an event about its payment shall wake it before its time."""
    seconds: float


async def save(db: Database, pauses: Sequence[Pause]) -> list[bool]:
    """Stores how far sagas have come and when they go on. False for each that somebody else had taken over."""
    arguments = {
        "ids": [p.saga.order_id for p in pauses],
        "fences": [p.saga.fence for p in pauses],
        "phases": [p.saga.progress.phase for p in pauses],
        "applied": [p.saga.progress.applied for p in pauses],
        "reasons": [p.saga.progress.reason for p in pauses],
        "waiting": [p.waiting for p in pauses],
        "attempts": [p.saga.attempts for p in pauses],
        "seconds": [p.seconds for p in pauses],
        "asked": [p.saga.progress.asked for p in pauses],
        "extended": [p.saga.progress.extended for p in pauses],
        "holds": [p.saga.hold_expire_time for p in pauses],
        "payments": [rows.payment_to_json(p.saga.payment) for p in pauses],
    }
    async with db.begin() as tx:
        mine = set(await tx.scalars(_SAVE, arguments))
    return [p.saga.order_id in mine for p in pauses]


async def claim_due(db: Database, most: int) -> list[Saga]:
    """Takes over up to `most` sagas whose time has come: woken, paused, or left by a process that died."""
    async with db.begin() as tx:
        return [rows.saga(row) for row in await tx.execute(_CLAIM_DUE, {"most": most, "lease": LEASE_SECONDS})]


async def claim_one(db: Database, order_id: uuid.UUID) -> Saga | None:
    """Takes over one order's saga, whoever had it; None where the order is settled, or just being claimed."""
    async with db.begin() as tx:
        arguments = {"order": order_id, "most": 1, "lease": LEASE_SECONDS}
        row = (await tx.execute(_CLAIM_ONE, arguments)).one_or_none()
        return rows.saga(row) if row else None


async def ask(tx: AsyncSession, order_ids: Sequence[uuid.UUID], why: str) -> None:
    """Asks sagas to turn back, unless something else was asked before; they are looked after at once."""
    await tx.execute(
        text("""
            UPDATE sagas SET asked = :why, next_time = CASE WHEN waiting THEN clock_timestamp() ELSE next_time END
            WHERE order_id = ANY(CAST(:ids AS uuid[])) AND asked = ''
        """),
        {"why": why, "ids": list(order_ids)},
    )


async def wake(tx: AsyncSession, order_ids: Sequence[uuid.UUID]) -> None:
    """Has sagas that wait for their payment look again now; those under way, when they would lie down to wait."""
    await tx.execute(
        text("""
            UPDATE sagas SET woken = true, next_time = CASE WHEN waiting THEN clock_timestamp() ELSE next_time END
            WHERE order_id = ANY(CAST(:ids AS uuid[]))
        """),
        {"ids": list(order_ids)},
    )


async def refunded(tx: AsyncSession, minor_units: Mapping[uuid.UUID, int]) -> None:
    """Moves paid orders whose money went back, by staff's hand, to `REFUNDED` or `PARTIALLY_REFUNDED`.

    `minor_units` went back in all, by order. An order whose saga is still under way moves when that has paid it.
    """
    if not minor_units:
        return
    arguments = {"ids": list(minor_units), "units": list(minor_units.values())}
    await tx.execute(
        text("""
            UPDATE sagas SET refunded_minor = w.units
            FROM unnest(CAST(:ids AS uuid[]), CAST(:units AS bigint[])) AS w (id, units)
            WHERE order_id = w.id AND refunded_minor < w.units
        """),
        arguments,
    )
    changed = (
        await tx.execute(
            text("""
                WITH w AS (
                    SELECT id, CASE WHEN units < total_minor THEN 'PARTIALLY_REFUNDED' ELSE 'REFUNDED' END AS state
                    FROM unnest(CAST(:ids AS uuid[]), CAST(:units AS bigint[])) AS w (id, units) JOIN orders USING (id)
                ), moved AS (
                    UPDATE orders o SET state = w.state, version = o.version + 1, update_time = clock_timestamp(),
                        payment = CASE WHEN w.state = 'REFUNDED'
                            THEN jsonb_set(o.payment, '{state}', '"REFUNDED"') ELSE o.payment END
                    FROM w WHERE o.id = w.id AND o.state <> w.state
                        AND o.state IN ('PAID', 'SHIPPED', 'DELIVERED', 'PARTIALLY_REFUNDED')
                    RETURNING o.*
                ), logged AS (
                    INSERT INTO order_log (order_id, version, state, reason, actor, request_id)
                    SELECT id, version, state, state_reason, 'payments', '' FROM moved
                )
                SELECT * FROM moved
            """),
            arguments,
        )
    ).all()
    await outbox.tell(tx, [rows.moved(row) for row in changed])


async def get(db: Database, order_id: uuid.UUID, *, customer_id: uuid.UUID | None) -> Order:
    """An order; `OrderNotFound` where there is none, or it is not `customer_id`'s. None sees everybody's."""
    async with db() as tx:
        row = (await tx.execute(text(f"{_ORDER} WHERE id = :id"), {"id": order_id})).one_or_none()
    if row is None or customer_id not in (None, row.customer_id):
        raise OrderNotFound(orderId=order_id)
    return rows.order(row)


async def get_many(db: Database, order_ids: Sequence[uuid.UUID]) -> list[Order]:
    """Those of `order_ids` that exist, in one statement."""
    async with db() as tx:
        query = text(f"{_ORDER} WHERE id = ANY(CAST(:ids AS uuid[]))")
        return [rows.order(row) for row in await tx.execute(query, {"ids": list(order_ids)})]


async def recent_ids(db: Database, most: int) -> list[uuid.UUID]:
    """The ids of the latest orders, newest first."""
    async with db() as tx:
        query = text("SELECT id FROM orders ORDER BY create_time DESC LIMIT :most")
        return list(await tx.scalars(query, {"most": most}))


async def list_of(
    db: Database, customer_id: uuid.UUID, *, state: State | None, after: tuple[str, str] | None, limit: int
) -> list[Order]:
    """A customer's orders, newest first, from the one after (create time, id) on."""
    query = text(f"""
        {_ORDER} WHERE customer_id = :customer AND (CAST(:state AS text) IS NULL OR state = :state)
            AND (CAST(:id AS uuid) IS NULL OR (create_time, id) < (CAST(:time AS timestamptz), CAST(:id AS uuid)))
        ORDER BY create_time DESC, id DESC LIMIT :most
    """)
    time, id_ = after or (None, None)
    async with db() as tx:
        arguments = {"customer": customer_id, "state": state, "time": time, "id": id_, "most": limit}
        return [rows.order(row) for row in await tx.execute(query, arguments)]


async def unsettled(db: Database) -> tuple[int, float]:
    """How many sagas are under way, and the age of the oldest that waits for no customer, in seconds."""
    query = text("""
        SELECT count(*) AS sagas, coalesce(extract(epoch FROM
            clock_timestamp() - min(create_time) FILTER (WHERE NOT waiting)), 0)::float AS oldest
        FROM sagas
    """)
    async with db() as tx:
        row = (await tx.execute(query)).one()
        return row.sagas, row.oldest
