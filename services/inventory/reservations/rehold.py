"""Holds the units of released reservations again, because their customers pay once more after a decline."""

import uuid
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from typing import NamedTuple

from sqlalchemy.ext.asyncio import AsyncSession

from services.chassis.data.db import Database
from services.chassis.errors import RateLimited, WrongState
from services.inventory import domain
from services.inventory.domain import Hold, HoldBounds, Reservation, State
from services.inventory.events import no_nudge
from services.inventory.reservations import pools, reserve
from services.inventory.reservations.reserve import Outcome
from services.inventory.sql import reservations


class Rehold(NamedTuple):
    """A request to hold the units of a released reservation again, until its first end."""

    id: uuid.UUID
    number: int
    """How often it will have been held again after this."""


async def rehold(
    db: Database,
    reholds: Sequence[Rehold],
    bounds: HoldBounds = domain.UNBOUNDED,
    *,
    nudge: Callable[[], None] = no_nudge,
) -> list[Outcome]:
    """Hold released units again; one outcome per item, in order. See `ReservationService.BatchRehold`."""
    for _ in range(reserve.ATTEMPTS_MOST):
        with suppress(domain.SlotTaken):
            async with db.begin() as tx:
                outcomes, is_sold_out = await _rehold(tx, {item.id: item.number for item in reholds}, bounds)
            if is_sold_out:
                nudge()
            return [outcomes[item.id] for item in reholds]
    raise RateLimited(what="orders of one customer")


async def _rehold(
    tx: AsyncSession, numbers: Mapping[uuid.UUID, int], bounds: HoldBounds
) -> tuple[dict[uuid.UUID, Outcome], bool]:
    found = await reservations.lock(tx, list(numbers))
    in_time = await reservations.in_time(tx, list(found))
    outcomes: dict[uuid.UUID, Outcome] = {}
    wanted: list[Reservation] = []
    for id_, number in numbers.items():
        known = found.get(id_)
        if known is None:
            outcomes[id_] = domain.ReservationNotFound(reservationId=id_)
        elif known.state is State.CONFIRMED or known.reholds >= number:
            outcomes[id_] = replace(known, repeated=True)
        elif id_ not in in_time or known.state is State.EXPIRED:
            outcomes[id_] = domain.ReservationExpired(reservationId=id_)
        elif known.state is State.HELD:  # its release has not arrived yet, and would give the units back
            outcomes[id_] = WrongState(resource="reservation", state=known.state, wanted=State.HELD)
        else:
            wanted.append(known)
    if not wanted:
        return outcomes, False

    async def write(tx: AsyncSession, holds: Sequence[Hold], bounds: HoldBounds) -> dict[uuid.UUID, Reservation]:
        held = await reservations.rehold(tx, holds, bounds, numbers)
        return {id_: replace(found[id_], state=State.HELD, reholds=numbers[id_]) for id_ in held}

    await pools.lock(tx, (line for reservation in wanted for line in reservation.lines))
    holds = [Hold(r.id, r.customer_id, r.lines, domain.RETAKE_SECONDS) for r in wanted]
    taken = await reserve.take(tx, holds, bounds, write=write, may_repeat=False)
    return outcomes | dict(taken.held) | dict(taken.refused), taken.is_sold_out
