"""The tables `reservations` and `returns`: units held for orders, and sold units that came back."""

import uuid
from collections.abc import AsyncIterator, Mapping, Sequence
from datetime import datetime
from typing import Any, NamedTuple

import orjson
from sqlalchemy import TextClause, text
from sqlalchemy.exc import IntegrityError
from sqlalchemy.ext.asyncio import AsyncSession

from services.chassis.data.db import Database, run_autocommit, violated_constraint
from services.chassis.money import Money
from services.inventory.domain import (
    GRACE_SECONDS,
    Hold,
    HoldBounds,
    Line,
    Reservation,
    Return,
    Returned,
    SlotTaken,
    State,
)
from services.inventory.sql import hold_slots
from services.inventory.sql.schema import SLOT_KEY

_COLUMNS = "SELECT id, customer_id, state, lines, expire_time, reholds FROM reservations"
_FIND = text(f"{_COLUMNS} WHERE id = ANY(CAST(:ids AS uuid[]))")
_LOCK = text(f"{_COLUMNS} WHERE id = ANY(CAST(:ids AS uuid[])) ORDER BY id FOR UPDATE")
_GRACE_OVER = f"(expire_time + least(make_interval(secs => {GRACE_SECONDS}), expire_time - create_time))"
# The clock stands in a query of its own, which runs once: an index cannot be searched for a moving value. The index
# finds the holds that have ended; those in their grace are few, because orders settles them.
_LOCK_EXPIRED = text(
    f"{_COLUMNS} WHERE state = 'HELD' AND expire_time <= (SELECT clock_timestamp())"
    f" AND {_GRACE_OVER} <= (SELECT clock_timestamp())"
    " ORDER BY expire_time LIMIT :most FOR UPDATE SKIP LOCKED"
)
# In the order of customers, because that is the order in which slots are waited for. Known ids take none.
_INSERT = text(f"""
    WITH w AS MATERIALIZED (
        SELECT * FROM jsonb_to_recordset(CAST(:holds AS jsonb))
            AS w (n integer, id uuid, customer_id uuid, lines jsonb, sale_id uuid, seconds integer, units integer)
        WHERE NOT EXISTS (SELECT FROM reservations r WHERE r.id = w.id)
    ), {hold_slots.slots_from("w")}
    INSERT INTO reservations (id, customer_id, state, lines, sale_id, expire_time, slot, units)
    SELECT w.id, w.customer_id, 'HELD', w.lines, w.sale_id, clock_timestamp() + make_interval(secs => w.seconds),
        slots.slot, w.units
    FROM w JOIN slots USING (id)
    ORDER BY w.customer_id, w.id
    ON CONFLICT (id) DO NOTHING
    RETURNING id, expire_time
""")  # noqa: S608
_IN_TIME = text("""
    SELECT id FROM reservations WHERE id = ANY(CAST(:ids AS uuid[])) AND expire_time > clock_timestamp()
""")
_REHOLD = text(f"""
    WITH w AS MATERIALIZED (
        SELECT * FROM jsonb_to_recordset(CAST(:holds AS jsonb))
            AS w (n integer, id uuid, customer_id uuid, units integer, reholds integer)
    ), {hold_slots.slots_from("w")}
    UPDATE reservations r
    SET state = 'HELD', slot = slots.slot, units = w.units, reholds = w.reholds, update_time = clock_timestamp()
    FROM w JOIN slots USING (id) WHERE r.id = w.id
    RETURNING r.id
""")  # noqa: S608
_MOVE = text("""
    UPDATE reservations SET state = :state, update_time = clock_timestamp() WHERE id = ANY(CAST(:ids AS uuid[]))
""")
# As long again as at first, and once: a second extension finds `extended` set.
_EXTEND = text("""
    UPDATE reservations SET extended = true, update_time = clock_timestamp(),
        expire_time = expire_time + least(date_trunc('second', expire_time - create_time), make_interval(secs => :most))
    WHERE id = ANY(CAST(:ids AS uuid[])) AND NOT extended
    RETURNING id, expire_time
""")
_OVERDUE = text(f"""
    SELECT coalesce(extract(epoch FROM max(clock_timestamp() - {_GRACE_OVER})), 0)::double precision AS seconds
    FROM (
        SELECT expire_time, create_time FROM reservations
        WHERE state = 'HELD' AND expire_time <= clock_timestamp() AND {_GRACE_OVER} <= clock_timestamp()
        ORDER BY expire_time LIMIT 1
    ) oldest
""")  # noqa: S608
_NEWEST_HOLDS = text("""
    SELECT r.id, r.expire_time, r.customer_id, (line->>'sale_id')::uuid AS sale_id,
        (line->>'quantity')::integer AS units
    FROM (
        SELECT id, expire_time, customer_id, lines FROM reservations
        WHERE state = 'HELD' AND (expire_time, id) < (CAST(:time AS timestamptz), CAST(:id AS uuid))
        ORDER BY expire_time DESC, id DESC LIMIT :most
    ) r LEFT JOIN LATERAL jsonb_array_elements(r.lines) AS line ON line->>'sale_id' IS NOT NULL
    ORDER BY r.expire_time DESC, r.id DESC
""")
_RETURNS = text("""
    SELECT id, reservation_id, asked, lines FROM returns
    WHERE id = ANY(CAST(:ids AS uuid[])) OR reservation_id = ANY(CAST(:reservations AS uuid[]))
""")
_INSERT_RETURNS = text("""
    INSERT INTO returns (id, reservation_id, asked, lines)
    SELECT id, reservation_id, asked, lines FROM jsonb_to_recordset(CAST(:returns AS jsonb))
        AS w (id uuid, reservation_id uuid, asked jsonb, lines jsonb)
    ORDER BY id
    ON CONFLICT (id) DO NOTHING
    RETURNING id
""")
_END_OF_TIME: tuple[Any, uuid.UUID] = ("infinity", uuid.UUID(int=2**128 - 1))


class HeldUnits(NamedTuple):
    """Units of a sale that a customer holds."""

    sale_id: uuid.UUID
    customer_id: uuid.UUID
    units: int


async def find(tx: AsyncSession, ids: Sequence[uuid.UUID]) -> dict[uuid.UUID, Reservation]:
    """Return the reservations that exist, by id."""
    return {row.id: _reservation(row) for row in await tx.execute(_FIND, {"ids": list(ids)})}


async def lock(tx: AsyncSession, ids: Sequence[uuid.UUID]) -> dict[uuid.UUID, Reservation]:
    """Lock the reservations that exist, in order, and return them by id."""
    return {row.id: _reservation(row) for row in await tx.execute(_LOCK, {"ids": list(ids)})}


async def lock_expired(tx: AsyncSession, *, most: int) -> list[Reservation]:
    """Lock holds whose time and grace are over, those that no other transaction has locked."""
    return [_reservation(row) for row in await tx.execute(_LOCK_EXPIRED, {"most": most})]


async def insert(tx: AsyncSession, holds: Sequence[Hold], bounds: HoldBounds) -> dict[uuid.UUID, Reservation]:
    """Insert holds, and return those whose ids were new and that the customer's bounds allow, by id.

    Raises `SlotTaken` if another transaction has taken a slot meanwhile.
    """
    if not holds:
        return {}
    documents = [
        {
            "n": n,
            "id": h.id,
            "customer_id": h.customer_id,
            "lines": _to_json(h.lines),
            "sale_id": next((line.sale_id for line in h.lines if line.sale_id), None),
            "seconds": h.seconds,
            "units": h.units,
        }
        for n, h in enumerate(holds)
    ]
    expires = {row.id: row.expire_time for row in await _write_holds(tx, _INSERT, documents, bounds)}
    return {
        hold.id: Reservation(hold.id, hold.customer_id, State.HELD, hold.lines, expires[hold.id])
        for hold in holds
        if hold.id in expires
    }


async def in_time(tx: AsyncSession, ids: Sequence[uuid.UUID]) -> set[uuid.UUID]:
    """Return the ids of those reservations whose time is not over."""
    return set(await tx.scalars(_IN_TIME, {"ids": list(ids)}))


async def rehold(
    tx: AsyncSession, holds: Sequence[Hold], bounds: HoldBounds, numbers: Mapping[uuid.UUID, int]
) -> set[uuid.UUID]:
    """Make locked reservations `HELD` again; return the ids of those that the customer's bounds allow.

    Raises `SlotTaken` as `insert` does.
    """
    if not holds:
        return set()
    documents = [
        {"n": n, "id": h.id, "customer_id": h.customer_id, "units": h.units, "reholds": numbers[h.id]}
        for n, h in enumerate(holds)
    ]
    return {row.id for row in await _write_holds(tx, _REHOLD, documents, bounds)}


async def _write_holds(
    tx: AsyncSession, statement: TextClause, documents: Sequence[object], bounds: HoldBounds
) -> Sequence[Any]:
    arguments = {"holds": orjson.dumps(documents).decode(), **hold_slots.arguments(bounds)}
    try:
        return (await tx.execute(statement, arguments)).all()
    except IntegrityError as error:
        raise SlotTaken() if violated_constraint(error) == SLOT_KEY else error from None


async def move(tx: AsyncSession, reservations: Sequence[Reservation], state: State) -> None:
    """Give reservations a new state."""
    if reservations:
        await tx.execute(_MOVE, {"state": state, "ids": [r.id for r in reservations]})


async def extend(tx: AsyncSession, ids: Sequence[uuid.UUID], *, seconds_most: int) -> dict[uuid.UUID, datetime]:
    """Extend holds that were not extended before; return their new expiry by id."""
    if not ids:
        return {}
    rows = await tx.execute(_EXTEND, {"ids": list(ids), "most": seconds_most})
    return {row.id: row.expire_time for row in rows}


async def overdue_seconds(db: Database) -> float:
    """Return how late the oldest hold is that should have expired; 0 if none is late."""
    (row,) = await run_autocommit(db, _OVERDUE, {})
    return float(row.seconds)


async def newest_holds(db: Database, *, most: int) -> AsyncIterator[list[HeldUnits]]:
    """Return the units held in sales, of `most` reservations a page; at least one page.

    The holds with the longest time to go come first. These are the newest, because a sale's holds last equally long.
    """
    time, id_ = _END_OF_TIME
    while True:
        rows = await run_autocommit(db, _NEWEST_HOLDS, {"time": time, "id": id_, "most": most})
        yield [HeldUnits(row.sale_id, row.customer_id, row.units) for row in rows if row.sale_id]
        if len({row.id for row in rows}) < most:
            return
        time, id_ = rows[-1].expire_time, rows[-1].id


async def find_returns(
    tx: AsyncSession, ids: Sequence[uuid.UUID], reservation_ids: Sequence[uuid.UUID]
) -> list[Returned]:
    """Return the returns with these ids, and all returns of these reservations."""
    rows = await tx.execute(_RETURNS, {"ids": list(ids), "reservations": list(reservation_ids)})
    return [
        Returned(
            Return(row.id, row.reservation_id, {uuid.UUID(product): units for product, units in row.asked.items()}),
            _from_json(row.lines),
        )
        for row in rows
    ]


async def insert_returns(tx: AsyncSession, returned: Sequence[Returned]) -> set[uuid.UUID]:
    """Insert returns, and return the ids that were new."""
    if not returned:
        return set()
    documents = [
        {
            "id": r.request.id,
            "reservation_id": r.request.reservation_id,
            "asked": {str(product_id): units for product_id, units in r.request.quantities.items()},
            "lines": _to_json(r.lines),
        }
        for r in returned
    ]
    return set(await tx.scalars(_INSERT_RETURNS, {"returns": orjson.dumps(documents).decode()}))


def _reservation(row: Any) -> Reservation:
    return Reservation(
        row.id, row.customer_id, State(row.state), _from_json(row.lines), row.expire_time, reholds=row.reholds
    )


def _to_json(lines: Sequence[Line]) -> list[dict[str, object]]:
    return [
        {
            "product_id": line.product_id,
            "sale_id": line.sale_id,
            "quantity": line.quantity,
            "price_minor": line.sale_price.minor if line.sale_price else None,
            "currency": line.sale_price.currency if line.sale_price else None,
        }
        for line in lines
    ]


def _from_json(lines: list[dict[str, Any]]) -> tuple[Line, ...]:
    return tuple(
        Line(
            uuid.UUID(line["product_id"]),
            uuid.UUID(line["sale_id"]) if line["sale_id"] else None,
            line["quantity"],
            Money(line["currency"], line["price_minor"]) if line["currency"] else None,
        )
        for line in lines
    )
