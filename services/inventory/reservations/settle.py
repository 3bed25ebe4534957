"""Decides what becomes of held units: confirmed, released, expired, or held for longer."""

import uuid
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import replace
from types import MappingProxyType

from sqlalchemy.ext.asyncio import AsyncSession

from services.chassis.data.db import Database
from services.chassis.errors import WrongState
from services.chassis.events import outbox
from services.inventory import domain
from services.inventory.domain import Reservation, State
from services.inventory.events import availability_event, expired_events, no_nudge
from services.inventory.reservations import pools, reserve
from services.inventory.reservations.reserve import Outcome
from services.inventory.sql import abandoned_holds, reservations, sale_customers, sales, stock

EXPIRE_MOST = 500


async def confirm(
    db: Database, ids: Sequence[uuid.UUID], *, may_retake: bool = True, nudge: Callable[[], None] = no_nudge
) -> list[Outcome]:
    """Make held units sold ones; one outcome per id, in order. See `ReservationService.BatchConfirm`."""
    async with db.begin() as tx:
        found = await reservations.lock(tx, ids)
        held = [r for r in found.values() if r.state is State.HELD]
        expired = [r for r in found.values() if r.state is State.EXPIRED] if may_retake else []
        retaken, is_sold_out = await _retake(tx, expired, beside=held) if expired else ([], False)
        done = [*held, *retaken]
        # The verdict is final: orders refunds the money, and no later repeat may take units after that.
        await reservations.move(tx, [r for r in expired if r not in retaken], State.RELEASED)
        if done:
            await sales.sell(tx, domain.units_by_pool(line for r in done for line in r.lines))
            await stock.sell(tx, [(r.id, line) for r in done for line in r.lines])
            await reservations.move(tx, done, State.CONFIRMED)
    if is_sold_out:
        nudge()
    confirmed = {r.id for r in done} | {r.id for r in found.values() if r.state is State.CONFIRMED}
    return [_confirmation(id_, found.get(id_), confirmed, may_retake=may_retake) for id_ in ids]


def _confirmation(
    id_: uuid.UUID, reservation: Reservation | None, confirmed: Collection[uuid.UUID], *, may_retake: bool
) -> Outcome:
    if reservation is None:
        return domain.ReservationNotFound(reservationId=id_)
    if id_ in confirmed:
        return replace(reservation, state=State.CONFIRMED)
    if reservation.state is State.EXPIRED and not may_retake:
        return domain.ReservationExpired(reservationId=id_)
    return domain.ReservationLost(reservationId=id_)


async def _retake(
    tx: AsyncSession, expired: Sequence[Reservation], *, beside: Sequence[Reservation]
) -> tuple[list[Reservation], bool]:
    """Hold the units of expired reservations again. Returns those that got them, and whether a sale sold out.

    The pools of `beside` are locked as well, because the caller changes them later.
    """
    await pools.lock(tx, (line for r in (*beside, *expired) for line in r.lines))
    retaken = await reserve.retake(tx, expired)
    await abandoned_holds.take_back(tx, retaken)
    sold_out = await sales.sold_out(tx, {line.sale_id for r in retaken for line in r.lines if line.sale_id})
    await outbox.publish(tx, [availability_event(sale_id, sold_out=True) for sale_id in sold_out])
    return retaken, bool(sold_out)


async def release(
    db: Database,
    ids: Sequence[uuid.UUID],
    *,
    abandoned: Collection[uuid.UUID] = (),
    reholds: Mapping[uuid.UUID, int] = MappingProxyType({}),
    nudge: Callable[[], None] = no_nudge,
) -> list[Outcome]:
    """Give held units back; one outcome per id, in order. See `ReservationService.BatchRelease`.

    `reholds` has how often the caller had them held again. A reservation that was since then is left alone.
    """
    async with db.begin() as tx:
        found = await reservations.lock(tx, ids)
        known = [r for r in found.values() if r.reholds <= reholds.get(r.id, 0)]
        held = {r.id: r for r in known if r.state is State.HELD}
        is_available = await _end_holds(tx, list(held.values()), State.RELEASED, abandoned)
        # For good: a confirmation of the same order that arrives late must not retake the units.
        ended = [r for r in known if r.state is State.EXPIRED]
        await reservations.move(tx, ended, State.RELEASED)
        found |= {r.id: replace(r, state=State.RELEASED) for r in (*held.values(), *ended)}
    if is_available:
        nudge()
    outcomes: list[Outcome] = []
    for id_ in ids:
        r = found.get(id_)
        if r is None:
            outcomes.append(domain.ReservationNotFound(reservationId=id_))
        elif r.state is State.CONFIRMED:
            outcomes.append(WrongState(resource="reservation", state=r.state, wanted=State.RELEASED))
        else:
            outcomes.append(replace(r, repeated=id_ not in held))
    return outcomes


async def extend(db: Database, ids: Sequence[uuid.UUID]) -> list[Outcome]:
    """Hold units for longer, once; one outcome per id, in order. See `ReservationService.BatchExtend`."""
    async with db.begin() as tx:
        found = await reservations.lock(tx, ids)
        # A hold whose time is over keeps its units until expiry finds it, so it can still be extended.
        held = [r.id for r in found.values() if r.state is State.HELD]
        for id_, time in (await reservations.extend(tx, held, seconds_most=domain.EXTENSION_SECONDS_MOST)).items():
            found[id_] = replace(found[id_], expire_time=time)
    return [found.get(id_) or domain.ReservationNotFound(reservationId=id_) for id_ in ids]


async def expire(db: Database) -> list[Reservation]:
    """Give back up to `EXPIRE_MOST` holds whose time and grace are over, publish their expiry, and return them."""
    async with db.begin() as tx:
        expired = await reservations.lock_expired(tx, most=EXPIRE_MOST)
        await _end_holds(tx, expired, State.EXPIRED, {r.id for r in expired})
        await outbox.publish(tx, expired_events(r.id for r in expired))
    return expired


async def _end_holds(
    tx: AsyncSession, held: Sequence[Reservation], state: State, abandoned: Collection[uuid.UUID]
) -> bool:
    """Give the units of holds back. Returns whether a sale that had none has units now."""
    lines = [line for r in held for line in r.lines]
    units = domain.units_by_pool(lines)
    await pools.lock_mixed(tx, lines)
    is_available = await pools.give_back_to_sales(tx, units, counted_as="held")
    await stock.unhold(tx, units)
    await sale_customers.recount(tx, [(r.customer_id, r.lines) for r in held], sign=-1)
    await abandoned_holds.add(tx, [r for r in held if r.id in abandoned])
    await reservations.move(tx, held, state)
    return is_available
