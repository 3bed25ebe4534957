"""Sold units that come back after a refund. A whole batch is one transaction, of eight statements at most."""

import uuid
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import orjson
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncSession

from services.chassis.data.db import Database
from services.chassis.errors import AppError, RequestIdReused, WrongState
from services.inventory import domain
from services.inventory.domain import Line, Pool, Reservation, Returned, State, UnitsBack
from services.inventory.reservations import (
    LOCK,
    from_row,
    give_back_to_sales,
    lines_from_json,
    lines_to_json,
    lock_pools,
    uncount_customers,
    units_by_pool,
)

_BEFORE = text("""
    SELECT id, reservation_id, asked, lines FROM returns
    WHERE id = ANY(CAST(:ids AS uuid[])) OR reservation_id = ANY(CAST(:reservations AS uuid[]))
""")
_WRITE = text("""
    INSERT INTO returns (id, reservation_id, asked, lines)
    SELECT id, reservation_id, asked, lines FROM jsonb_to_recordset(CAST(:returns AS jsonb))
        AS w (id uuid, reservation_id uuid, asked jsonb, lines jsonb)
    ORDER BY id
    ON CONFLICT (id) DO NOTHING
    RETURNING id
""")
_RESTOCK = text("""
    WITH w AS (
        SELECT * FROM unnest(CAST(:pools AS uuid[]), CAST(:units AS integer[])) AS w (product_id, units)
    ), locked AS (
        SELECT s.product_id FROM stock s JOIN w USING (product_id) ORDER BY s.product_id FOR UPDATE OF s
    ), moved AS (
        INSERT INTO stock_movements (product_id, delta, kind, reference_id)
        SELECT product_id, units, 'RESTOCKED', reference_id FROM unnest(
            CAST(:products AS uuid[]), CAST(:quantities AS integer[]), CAST(:references AS uuid[])
        ) AS m (product_id, units, reference_id)
    )
    UPDATE stock s SET on_hand = s.on_hand + w.units, update_time = clock_timestamp()
    FROM w JOIN locked USING (product_id) WHERE s.product_id = w.product_id
""")

ReturnOutcome = Returned | AppError
"""What became of one item of a batch."""


async def take_back(db: Database, wishes: Sequence[UnitsBack]) -> list[ReturnOutcome]:
    """Takes sold units back; one outcome per wish, in order. See `ReservationService.BatchCreateReturns`."""
    reservation_ids = list({wish.reservation_id for wish in wishes})
    async with db.begin() as tx:
        # Whoever has the lock on the reservation decides what is still out; the next one sees what came back.
        found = {r.id: r for r in map(from_row, await tx.execute(LOCK, {"ids": reservation_ids}))}
        arguments = {"ids": [wish.id for wish in wishes], "reservations": reservation_ids}
        outcomes, new = _judge(wishes, found, await tx.execute(_BEFORE, arguments))
        written = await _write(tx, new)
        await _move(tx, [(found[r.wish.reservation_id], r.lines) for r in new if r.wish.id in written])
    # Others may have used an id for another reservation at this very moment; what is not written came to nothing.
    lost = {r.wish.id for r in new} - written
    return [
        RequestIdReused(requestId=wish.id) if wish.id in lost else outcome
        for wish, outcome in zip(wishes, outcomes, strict=True)
    ]


def _judge(
    wishes: Sequence[UnitsBack], found: Mapping[uuid.UUID, Reservation], rows: Iterable[Any]
) -> tuple[list[ReturnOutcome], list[Returned]]:
    """An outcome for each of `wishes`, and those that are new; `rows` are returns from before."""
    known: dict[uuid.UUID, Returned] = {}
    back: dict[uuid.UUID, Counter[Pool]] = defaultdict(Counter)

    def know(returned: Returned) -> None:
        known[returned.wish.id] = returned
        back[returned.wish.reservation_id].update({line.pool: line.quantity for line in returned.lines})

    for row in rows:
        know(_from_row(row))
    outcomes: list[ReturnOutcome] = []
    new: list[Returned] = []
    for wish in wishes:
        reservation = found.get(wish.reservation_id)
        if wish.id in known:
            same = known[wish.id].wish == wish
            outcomes.append(known[wish.id] if same else RequestIdReused(requestId=wish.id))
        elif reservation is None:
            outcomes.append(domain.ReservationNotFound(reservationId=wish.reservation_id))
        elif reservation.state is not State.CONFIRMED:
            outcomes.append(WrongState(resource="reservation", state=reservation.state, wanted="RETURNED"))
        elif isinstance(lines := domain.coming_back(wish, reservation, back[reservation.id]), AppError):
            outcomes.append(lines)
        else:
            know(Returned(wish, lines))
            new.append(known[wish.id])
            outcomes.append(known[wish.id])
    return outcomes, new


async def _write(tx: AsyncSession, new: Sequence[Returned]) -> set[uuid.UUID]:
    """Writes returns; answers the ids of those that are now there."""
    if not new:
        return set()
    documents = [
        {
            "id": r.wish.id,
            "reservation_id": r.wish.reservation_id,
            "asked": {str(product_id): units for product_id, units in r.wish.quantities.items()},
            "lines": lines_to_json(r.lines),
        }
        for r in new
    ]
    return set(await tx.scalars(_WRITE, {"returns": orjson.dumps(documents).decode()}))


async def _move(tx: AsyncSession, returned: Sequence[tuple[Reservation, tuple[Line, ...]]]) -> None:
    """Gives the units of `returned` back to where they came from, and customers their allowance."""
    lines = [(reservation.id, line) for reservation, lines in returned for line in lines]
    sales, stock = units_by_pool(line for _, line in lines)
    if sales and stock:
        await lock_pools(tx, (line for _, line in lines))
    if sales:
        await give_back_to_sales(tx, sales, counted_as="sold")
    if stock:
        ordinary = [(id_, line) for id_, line in lines if not line.sale_id]
        await tx.execute(
            _RESTOCK,
            {
                "pools": list(stock),
                "units": list(stock.values()),
                "products": [line.product_id for _, line in ordinary],
                "quantities": [line.quantity for _, line in ordinary],
                "references": [id_ for id_, _ in ordinary],
            },
        )
    await uncount_customers(tx, [(reservation.customer_id, lines) for reservation, lines in returned])


def _from_row(row: Any) -> Returned:
    asked = {uuid.UUID(product_id): units for product_id, units in row.asked.items()}
    return Returned(UnitsBack(row.id, row.reservation_id, asked), lines_from_json(row.lines))
