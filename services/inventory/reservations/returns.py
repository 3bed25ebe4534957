"""Takes sold units back after a refund. A whole batch is one transaction, of nine statements at most."""

import uuid
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence

from sqlalchemy.ext.asyncio import AsyncSession

from services.chassis.data.db import Database
from services.chassis.errors import AppError, RequestIdReused, WrongState
from services.inventory import domain
from services.inventory.domain import Line, Pool, Reservation, Return, Returned, State
from services.inventory.events import no_nudge
from services.inventory.reservations import pools
from services.inventory.sql import reservations, sale_customers, stock

ReturnOutcome = Returned | AppError
"""The outcome of one item of a batch."""


async def take_back(
    db: Database, requests: Sequence[Return], *, nudge: Callable[[], None] = no_nudge
) -> list[ReturnOutcome]:
    """Take sold units back; one outcome per request, in order. See `ReservationService.BatchCreateReturns`."""
    reservation_ids = list({request.reservation_id for request in requests})
    async with db.begin() as tx:
        # The lock on the reservation decides how many units have not come back; the next transaction reads the rest.
        found = await reservations.lock(tx, reservation_ids)
        before = await reservations.find_returns(tx, [request.id for request in requests], reservation_ids)
        outcomes, new = _judge(requests, found, before)
        written = await reservations.insert_returns(tx, new)
        is_available = await _move(
            tx, [(found[r.request.reservation_id], r.lines) for r in new if r.request.id in written]
        )
    if is_available:
        nudge()
    # A concurrent batch can use an id for another reservation; then nothing came back under it here.
    lost = {r.request.id for r in new} - written
    return [
        RequestIdReused(requestId=request.id) if request.id in lost else outcome
        for request, outcome in zip(requests, outcomes, strict=True)
    ]


def _judge(
    requests: Sequence[Return], found: Mapping[uuid.UUID, Reservation], before: Iterable[Returned]
) -> tuple[list[ReturnOutcome], list[Returned]]:
    """An outcome for each of `requests`, and those that are new."""
    known: dict[uuid.UUID, Returned] = {}
    back: dict[uuid.UUID, Counter[Pool]] = defaultdict(Counter)

    def note(returned: Returned) -> None:
        known[returned.request.id] = returned
        back[returned.request.reservation_id].update({line.pool: line.quantity for line in returned.lines})

    for returned in before:
        note(returned)
    outcomes: list[ReturnOutcome] = []
    new: list[Returned] = []
    for request in requests:
        reservation = found.get(request.reservation_id)
        if request.id in known:
            same = known[request.id].request == request
            outcomes.append(known[request.id] if same else RequestIdReused(requestId=request.id))
        elif reservation is None:
            outcomes.append(domain.ReservationNotFound(reservationId=request.reservation_id))
        elif reservation.state is not State.CONFIRMED:
            outcomes.append(WrongState(resource="reservation", state=reservation.state, wanted="RETURNED"))
        elif isinstance(lines := domain.returned_lines(request, reservation, back[reservation.id]), AppError):
            outcomes.append(lines)
        else:
            note(Returned(request, lines))
            new.append(known[request.id])
            outcomes.append(known[request.id])
    return outcomes, new


async def _move(tx: AsyncSession, returned: Sequence[tuple[Reservation, tuple[Line, ...]]]) -> bool:
    """Give units back to their pools, and customers their allowance. Returns whether a sale has units again."""
    lines = [(reservation.id, line) for reservation, lines in returned for line in lines]
    await pools.lock_mixed(tx, [line for _, line in lines])
    units = domain.units_by_pool(line for _, line in lines)
    is_available = await pools.give_back_to_sales(tx, units, counted_as="sold")
    await stock.restock(tx, lines)
    await sale_customers.recount(tx, [(reservation.customer_id, lines) for reservation, lines in returned], sign=-1)
    return is_available
