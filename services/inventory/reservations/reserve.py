"""Holds units for orders: the hot path. A batch is one statement, or one transaction of a dozen statements at most."""

import uuid
from collections import Counter
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from typing import NamedTuple

from sqlalchemy.ext.asyncio import AsyncSession

from services.chassis.data.db import Database
from services.chassis.errors import AppError, RateLimited, RequestIdReused
from services.chassis.events import outbox
from services.inventory import domain
from services.inventory.domain import Grant, Hold, HoldBounds, Line, Pool, Reservation, SaleState
from services.inventory.events import availability_event, no_nudge
from services.inventory.gate.gate import Gate
from services.inventory.sql import abandoned_holds, reservations, reserve_fast, sale_customers, sales, stock

Outcome = Reservation | AppError
"""The outcome of one item of a batch."""
ATTEMPTS_MOST = 5
Write = Callable[[AsyncSession, Sequence[Hold], HoldBounds], Awaitable[dict[uuid.UUID, Reservation]]]
"""Writes holds that got their units, and returns those that their customers' bounds allow, by id."""


class Taken(NamedTuple):
    """The holds that got their units, the refusals of the others, and whether a sale sold out."""

    held: Mapping[uuid.UUID, Reservation]
    refused: Mapping[uuid.UUID, AppError]
    is_sold_out: bool


async def admit(
    db: Database,
    gate: Gate,
    holds: Sequence[Hold],
    bounds: HoldBounds = domain.UNBOUNDED,
    *,
    nudge: Callable[[], None] = no_nudge,
) -> list[Outcome]:
    """`reserve` for the holds that pass the gate; the gate refuses the others without touching PostgreSQL."""
    taken, refused = await gate.take(holds)
    outcomes: dict[uuid.UUID, Outcome] = {**refused}
    admitted = [hold for hold in holds if hold.id not in refused]
    if admitted:
        try:
            decided = await reserve(db, admitted, bounds, nudge=nudge)
        except BaseException:
            # It may have been committed. A counter that is too high does no harm, but a repeat must find its hold.
            await gate.give_back(taken, keep_customers=True)
            raise
        outcomes.update(zip([hold.id for hold in admitted], decided, strict=True))
        held = {o.id for o in decided if isinstance(o, Reservation) and not o.repeated}
        sold_out = {
            uuid.UUID(o.metadata["flashSaleId"])
            for o in decided
            if isinstance(o, domain.SoldOut) and o.metadata["remaining"] == "0"
        }
        await gate.give_back((item for item in taken if item[0].id not in held), sold_out=sold_out)
    return [outcomes[hold.id] for hold in holds]


async def reserve(
    db: Database, holds: Sequence[Hold], bounds: HoldBounds = domain.UNBOUNDED, *, nudge: Callable[[], None] = no_nudge
) -> list[Outcome]:
    """Hold units for orders; one outcome per hold, in order. See `ReservationService.BatchReserve`.

    Calls `nudge` once there is an event to publish.
    """
    if fast := await reserve_fast.reserve(db, holds, bounds):
        held, is_sold_out = fast
        outcomes: dict[uuid.UUID, Outcome] = {reservation.id: reservation for reservation in held}
    else:
        outcomes, is_sold_out = await _reserve_in_transaction(db, holds, bounds)
    if is_sold_out:
        nudge()
    return [outcomes[hold.id] for hold in holds]


async def _reserve_in_transaction(
    db: Database, holds: Sequence[Hold], bounds: HoldBounds
) -> tuple[dict[uuid.UUID, Outcome], bool]:
    for _ in range(ATTEMPTS_MOST):
        with suppress(domain.SlotTaken):
            async with db.begin() as tx:
                return await reserve_slowly(tx, holds, bounds)
    raise RateLimited(what="orders of one customer")


async def reserve_slowly(
    tx: AsyncSession, holds: Sequence[Hold], bounds: HoldBounds = domain.UNBOUNDED
) -> tuple[dict[uuid.UUID, Outcome], bool]:
    """Hold units in every case. Returns the outcomes by id, and whether a sale sold out."""
    taken = await take(tx, holds, bounds, write=reservations.insert, may_repeat=True)
    outcomes: dict[uuid.UUID, Outcome] = dict(taken.held)
    if len(outcomes) < len(holds):  # the rare case: a hold is refused, or repeated
        outcomes.update(await _repeats(tx, [hold for hold in holds if hold.id not in outcomes], taken.refused))
    return outcomes, taken.is_sold_out


async def take(tx: AsyncSession, holds: Sequence[Hold], bounds: HoldBounds, *, write: Write, may_repeat: bool) -> Taken:
    """Take the units of holds by the rules of a new order, each all or nothing, and `write` those that got them.

    With `may_repeat`, holds whose ids are known get nothing.
    """
    grants, allotment = await _grant(tx, holds, may_repeat=may_repeat, is_paid=False)
    held = await write(tx, allotment.held, bounds)
    await sale_customers.count(tx, [hold for hold in allotment.held if hold.id in held], grants)
    back = Counter(allotment.leftover)
    back.update(domain.units_by_pool(line for hold in allotment.held if hold.id not in held for line in hold.lines))
    await _undo(tx, back)
    empty = [pool[1] for pool, grant in grants.items() if pool[1] and grant.remaining + back[pool] == 0]
    await outbox.publish(tx, [availability_event(sale_id, sold_out=True) for sale_id in empty])
    refused: dict[uuid.UUID, AppError] = {}
    if len(held) < len(holds):
        for hold, line in allotment.over:
            refused[hold.id] = domain.CustomerLimit(
                flashSaleId=line.sale_id, limit=grants[line.pool].per_customer_limit
            )
        for hold, line in allotment.unpaid:
            refused[hold.id] = domain.HoldsAbandoned(
                flashSaleId=line.sale_id, limit=grants[line.pool].abandoned_hold_limit
            )
        refused.update(await _why_short(tx, allotment.short, grants))
        # Units were granted, so unless it is a repeat, the customer has too much open.
        above = domain.OpenOrdersLimit(orders=bounds.orders, units=bounds.units)
        refused.update({hold.id: above for hold in allotment.held if hold.id not in held})
    return Taken(held, refused, bool(empty))


async def retake(tx: AsyncSession, expired: Sequence[Reservation]) -> list[Reservation]:
    """Hold the units of expired reservations again, each all or nothing; return those.

    Late money buys by the rules of a new order: what the sale's state, its units and the customer limit allow now. The
    pools of all lines must be locked.
    """
    holds = [Hold(r.id, r.customer_id, r.lines, domain.RETAKE_SECONDS) for r in expired]
    grants, allotment = await _grant(tx, holds, may_repeat=False, is_paid=True)
    await sale_customers.count(tx, allotment.held, grants)
    await _undo(tx, allotment.leftover)
    retaken = {hold.id for hold in allotment.held}
    return [reservation for reservation in expired if reservation.id in retaken]


async def _grant(
    tx: AsyncSession, holds: Sequence[Hold], *, may_repeat: bool, is_paid: bool
) -> tuple[Mapping[Pool, Grant], domain.Allotment]:
    """Take the units that are left, and divide them. Beside `reserve_fast`, the only door to the units of a pool."""
    wanted = domain.units_by_pool(line for hold in holds for line in hold.lines)
    grants = await sales.hold(tx, wanted) | await stock.hold(tx, wanted)
    # The pools are locked from here on: the counts of their customers stay as they are read now.
    counted = await sale_customers.counted(tx, holds, grants)
    enough = all(pool in grants and grants[pool].units == units for pool, units in wanted.items())
    # With enough units for all, a repeat takes no unit from another hold, and the insert finds it.
    known = await reservations.find(tx, [hold.id for hold in holds]) if may_repeat and not enough else {}
    # An expired hold that is paid late was not abandoned.
    abandoned = () if is_paid else await abandoned_holds.at_limit(tx, holds)
    return grants, domain.allot(holds, grants, counted=counted, abandoned=abandoned, known=known)


async def _undo(tx: AsyncSession, units: Mapping[Pool, int]) -> None:
    """Give back units that `_grant` took in this transaction and no hold keeps."""
    await sales.undo_hold(tx, units)
    await stock.unhold(tx, units)


async def _why_short(
    tx: AsyncSession, short: Sequence[tuple[Hold, Line]], grants: Mapping[Pool, Grant]
) -> dict[uuid.UUID, AppError]:
    if not short:
        return {}
    found = await sales.availability(tx, {line.sale_id for _, line in short if line.sale_id})
    products = [line.product_id for _, line in short if not line.sale_id]
    stocked = await stock.stocked(tx, products) if products else set()
    why: dict[uuid.UUID, AppError] = {}
    for hold, line in short:
        if line.sale_id is None:
            kind = domain.OutOfStock if line.product_id in stocked else domain.StockNotFound
            why[hold.id] = kind(productId=line.product_id)
            continue
        sale = found.get(line.sale_id)
        if sale is None or sale.product_id != line.product_id:
            why[hold.id] = domain.FlashSaleNotFound(flashSaleId=line.sale_id)
        elif sale.state is not SaleState.LIVE:
            why[hold.id] = domain.SaleNotLive(flashSaleId=line.sale_id, state=sale.state)
        elif sale.remaining > 0 and line.pool not in grants:  # it has opened since it gave nothing
            why[hold.id] = domain.SaleNotLive(flashSaleId=line.sale_id, state=SaleState.SCHEDULED)
        else:
            why[hold.id] = domain.SoldOut(flashSaleId=line.sale_id, remaining=sale.remaining)
    return why


async def _repeats(
    tx: AsyncSession, holds: Sequence[Hold], refused: Mapping[uuid.UUID, AppError]
) -> dict[uuid.UUID, Outcome]:
    """Answer holds that got nothing new: with their reservation if there is one, otherwise with the refusal."""
    found = await reservations.find(tx, [hold.id for hold in holds])
    outcomes: dict[uuid.UUID, Outcome] = {}
    for hold in holds:
        reservation = found.get(hold.id)
        if reservation is None:
            outcomes[hold.id] = refused[hold.id]
        elif reservation.is_for(hold):
            outcomes[hold.id] = replace(reservation, repeated=True)
        else:
            outcomes[hold.id] = RequestIdReused(requestId=hold.id)
    return outcomes
