"""What becomes of held units: confirmed, released, expired, or held for longer.

Each function is one transaction over a whole batch.
"""

import uuid
from collections.abc import Sequence
from dataclasses import replace

from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncSession

from services.chassis.data.db import Database
from services.chassis.errors import WrongState
from services.chassis.events import outbox
from services.chassis.events.outbox import Event
from services.inventory import domain
from services.inventory.domain import Line, Reservation, State
from services.inventory.reservations import (
    LOCK,
    LOCK_EXPIRED,
    Outcome,
    from_row,
    give_back_to_sales,
    lock_pools,
    recount_customers,
    uncount_customers,
    units_by_pool,
)
from stampede.inventory.v1 import events_pb2

EXPIRE_MOST = 500

_MOVE = text("""
    UPDATE reservations SET state = :state, update_time = clock_timestamp() WHERE id = ANY(CAST(:ids AS uuid[]))
""")
# As long again as at first, and once: who extends twice finds it done.
_EXTEND = text("""
    UPDATE reservations SET extended = true, update_time = clock_timestamp(),
        expire_time = expire_time + least(date_trunc('second', expire_time - create_time), make_interval(secs => :most))
    WHERE id = ANY(CAST(:ids AS uuid[])) AND NOT extended
    RETURNING id, expire_time
""")


async def confirm(db: Database, ids: Sequence[uuid.UUID]) -> list[Outcome]:
    """Makes held units sold ones; one outcome per id, in order. See `ReservationService.BatchConfirm`."""
    async with db.begin() as tx:
        found = {r.id: r for r in map(from_row, await tx.execute(LOCK, {"ids": list(ids)}))}
        held = [r for r in found.values() if r.state is State.HELD]
        expired = [r for r in found.values() if r.state is State.EXPIRED]
        if expired:
            await lock_pools(tx, (line for r in (*held, *expired) for line in r.lines))
        retaken = await _retake(tx, expired)
        done = [*held, *retaken]
        lost = [r.id for r in expired if r not in retaken]
        if lost:
            # A verdict for good: whoever hears it pays the money back, and no late repeat may take units after that.
            await tx.execute(_MOVE, {"state": State.RELEASED, "ids": lost})
        if done:
            await _sell(tx, done)
            await tx.execute(_MOVE, {"state": State.CONFIRMED, "ids": [r.id for r in done]})
    confirmed = {r.id: r for r in done} | {r.id: r for r in found.values() if r.state is State.CONFIRMED}
    outcomes: list[Outcome] = []
    for id_ in ids:
        if id_ in confirmed:
            outcomes.append(replace(confirmed[id_], state=State.CONFIRMED))
        elif id_ in found:
            outcomes.append(domain.ReservationLost(reservationId=id_))
        else:
            outcomes.append(domain.ReservationNotFound(reservationId=id_))
    return outcomes


async def _retake(tx: AsyncSession, expired: Sequence[Reservation]) -> list[Reservation]:
    """Holds the units of expired reservations once more, each all or nothing, if they are there.

    The customer has paid, so neither the sale's end nor the limit is asked again.
    """
    retaken = []
    for reservation in expired:
        savepoint = await tx.begin_nested()
        taken = all([await _take_again(tx, line) for line in reservation.lines])
        if taken:
            await savepoint.commit()
            retaken.append(reservation)
        else:
            await savepoint.rollback()
    if retaken:
        await recount_customers(tx, [(r.customer_id, r.lines) for r in retaken])
    return retaken


async def _take_again(tx: AsyncSession, line: Line) -> bool:
    """Takes a line's units from its sale; where that is over or empty, from the product's ordinary stock."""
    if line.sale_id:
        query = text("""
            UPDATE flash_sales SET held = held + :units, update_time = clock_timestamp()
            WHERE id = :id AND allocation - held - sold - returned >= :units RETURNING id
        """)
        if await tx.scalar(query, {"id": line.sale_id, "units": line.quantity}):
            return True
        # The sale has given its units back to stock: let it take as many in again, so that its books still close.
        query = text("""
            WITH taken AS (
                UPDATE stock SET on_hand = on_hand - :units, update_time = clock_timestamp()
                WHERE product_id = :product AND on_hand - held >= :units
                    AND EXISTS (SELECT FROM flash_sales WHERE id = :id AND returned >= :units)
                RETURNING product_id
            ), moved AS (
                INSERT INTO stock_movements (product_id, delta, kind, reference_id)
                SELECT product_id, -:units, 'ALLOCATED', :id FROM taken
            )
            UPDATE flash_sales SET held = held + :units, returned = returned - :units
            WHERE id = :id AND EXISTS (SELECT FROM taken) RETURNING id
        """)
        arguments = {"id": line.sale_id, "product": line.product_id, "units": line.quantity}
        return await tx.scalar(query, arguments) is not None
    query = text("""
        UPDATE stock SET held = held + :units WHERE product_id = :product AND on_hand - held >= :units
        RETURNING product_id
    """)
    return await tx.scalar(query, {"product": line.product_id, "units": line.quantity}) is not None


async def _sell(tx: AsyncSession, reservations: Sequence[Reservation]) -> None:
    sales, stock = units_by_pool(line for r in reservations for line in r.lines)
    if sales:
        await tx.execute(
            text("""
                WITH w AS (
                    SELECT * FROM unnest(CAST(:pools AS uuid[]), CAST(:units AS integer[])) AS w (id, units)
                ), locked AS (
                    SELECT s.id FROM flash_sales s JOIN w USING (id) ORDER BY s.product_id, s.id FOR UPDATE OF s
                )
                UPDATE flash_sales s
                SET held = s.held - w.units, sold = s.sold + w.units, update_time = clock_timestamp()
                FROM w JOIN locked USING (id) WHERE s.id = w.id
            """),
            {"pools": list(sales), "units": list(sales.values())},
        )
    if stock:
        lines = [(r.id, line) for r in reservations for line in r.lines if not line.sale_id]
        await tx.execute(
            text("""
                WITH w AS (
                    SELECT * FROM unnest(CAST(:pools AS uuid[]), CAST(:units AS integer[])) AS w (product_id, units)
                ), locked AS (
                    SELECT s.product_id FROM stock s JOIN w USING (product_id) ORDER BY s.product_id FOR UPDATE OF s
                ), moved AS (
                    INSERT INTO stock_movements (product_id, delta, kind, reference_id)
                    SELECT product_id, -units, 'SOLD', reference_id FROM unnest(
                        CAST(:products AS uuid[]), CAST(:quantities AS integer[]), CAST(:references AS uuid[])
                    ) AS m (product_id, units, reference_id)
                )
                UPDATE stock s
                SET on_hand = s.on_hand - w.units, held = s.held - w.units, update_time = clock_timestamp()
                FROM w JOIN locked USING (product_id) WHERE s.product_id = w.product_id
            """),
            {
                "pools": list(stock),
                "units": list(stock.values()),
                "products": [line.product_id for _, line in lines],
                "quantities": [line.quantity for _, line in lines],
                "references": [id_ for id_, _ in lines],
            },
        )


async def release(db: Database, ids: Sequence[uuid.UUID]) -> list[Outcome]:
    """Gives held units back; one outcome per id, in order. See `ReservationService.BatchRelease`."""
    async with db.begin() as tx:
        found = {r.id: r for r in map(from_row, await tx.execute(LOCK, {"ids": list(ids)}))}
        held = [r for r in found.values() if r.state is State.HELD]
        await _return_units(tx, held, State.RELEASED)
    released = {r.id for r in held}
    outcomes: list[Outcome] = []
    for id_ in ids:
        r = found.get(id_)
        if r is None:
            outcomes.append(domain.ReservationNotFound(reservationId=id_))
        elif r.state is State.CONFIRMED:
            outcomes.append(WrongState(resource="reservation", state=r.state, wanted=State.RELEASED))
        else:
            outcomes.append(replace(r, state=State.RELEASED) if id_ in released else replace(r, repeated=True))
    return outcomes


async def extend(db: Database, ids: Sequence[uuid.UUID]) -> list[Outcome]:
    """Lets held units be held for longer, once; one outcome per id, in order. See `ReservationService.BatchExtend`."""
    async with db.begin() as tx:
        found = {r.id: r for r in map(from_row, await tx.execute(LOCK, {"ids": list(ids)}))}
        held = [r.id for r in found.values() if r.state is State.HELD]
        if held:
            # Whose time is up, but who still holds the units, may keep them: expiry has not come by yet.
            arguments = {"ids": held, "most": domain.EXTENSION_SECONDS_MOST}
            for row in await tx.execute(_EXTEND, arguments):
                found[row.id] = replace(found[row.id], expire_time=row.expire_time)
    return [found.get(id_) or domain.ReservationNotFound(reservationId=id_) for id_ in ids]


async def expire(db: Database) -> list[Reservation]:
    """Gives back what was held for too long, up to `EXPIRE_MOST` reservations, and tells orders. Returns them."""
    async with db.begin() as tx:
        expired = list(map(from_row, await tx.execute(LOCK_EXPIRED, {"most": EXPIRE_MOST})))
        await _return_units(tx, expired, State.EXPIRED)
        subject = "stampede.inventory.reservation.expired"
        ids = [str(r.id) for r in expired]
        await outbox.publish(
            tx, [Event(subject, id_, events_pb2.ReservationExpired(reservation_id=id_)) for id_ in ids]
        )
    return expired


async def overdue_seconds(db: Database) -> float:
    """How late the oldest hold is that should have expired; 0 where none is late."""
    query = text("""
        SELECT coalesce(extract(epoch FROM max(clock_timestamp() - expire_time)), 0)::double precision
        FROM (
            SELECT expire_time FROM reservations WHERE state = 'HELD' AND expire_time <= clock_timestamp()
            ORDER BY expire_time LIMIT 1
        ) oldest
    """)
    async with db() as tx:
        return (await tx.execute(query)).scalar_one()  # type: ignore[no-any-return]


async def _return_units(tx: AsyncSession, reservations: Sequence[Reservation], state: State) -> None:
    if not reservations:
        return
    sales, stock = units_by_pool(line for r in reservations for line in r.lines)
    if sales and stock:
        await lock_pools(tx, (line for r in reservations for line in r.lines))
    if sales:
        await give_back_to_sales(tx, sales, counted_as="held")
    if stock:
        await tx.execute(
            text("""
                WITH w AS (
                    SELECT * FROM unnest(CAST(:pools AS uuid[]), CAST(:units AS integer[])) AS w (product_id, units)
                ), locked AS (
                    SELECT s.product_id FROM stock s JOIN w USING (product_id) ORDER BY s.product_id FOR UPDATE OF s
                )
                UPDATE stock s SET held = s.held - w.units, update_time = clock_timestamp()
                FROM w JOIN locked USING (product_id) WHERE s.product_id = w.product_id
            """),
            {"pools": list(stock), "units": list(stock.values())},
        )
    await uncount_customers(tx, [(r.customer_id, r.lines) for r in reservations])
    await tx.execute(_MOVE, {"state": state, "ids": [r.id for r in reservations]})
