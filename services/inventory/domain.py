"""The rules of stock. Knows nothing of databases, gRPC or the clock."""

import uuid
from collections import defaultdict
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from enum import StrEnum

from services.chassis.errors import AppError
from services.chassis.money import Money

HOLD_SECONDS_DEFAULT = 600
EXTENSION_SECONDS_MOST = 600
ON_HAND_MOST = 1_000_000_000
WATCHERS_MOST = 5_000
TICKETS_DEFAULT = 100


class StockNotFound(AppError):
    code = "NOT_FOUND"
    template = "There is no stock of product {productId}."


class FlashSaleNotFound(AppError):
    code = "NOT_FOUND"
    template = "There is no flash sale {flashSaleId} of this product."


class ReservationNotFound(AppError):
    code = "NOT_FOUND"
    template = "There is no reservation {reservationId}."


class OutOfStock(AppError):
    code = "FAILED_PRECONDITION"
    template = "There are not enough units of product {productId}."


class SoldOut(AppError):
    """Fewer units are left than were asked for; `remaining` says whether others may still get some."""

    code = "FAILED_PRECONDITION"
    template = "The flash sale {flashSaleId} has {remaining} units left."


class SaleNotLive(AppError):
    code = "FAILED_PRECONDITION"
    template = "The flash sale {flashSaleId} is {state}."


class SaleOverlaps(AppError):
    code = "FAILED_PRECONDITION"
    template = "The flash sale {flashSaleId} of this product runs at the same time."


class CustomerLimit(AppError):
    code = "FAILED_PRECONDITION"
    template = "One customer may buy {limit} units in the flash sale {flashSaleId}."


class ReservationLost(AppError):
    code = "FAILED_PRECONDITION"
    template = "The units of reservation {reservationId} went to others."


class ReturnTooLarge(AppError):
    """More units of one product are to come back than are still out; none are out of a product that was not sold."""

    code = "FAILED_PRECONDITION"
    template = "Of reservation {reservationId}, {out} units of product {productId} are still out."


class State(StrEnum):
    """Where a reservation stands. `HELD` becomes exactly one of the others."""

    HELD = "HELD"
    CONFIRMED = "CONFIRMED"
    RELEASED = "RELEASED"
    EXPIRED = "EXPIRED"


class SaleState(StrEnum):
    """Where a flash sale stands. Time and units move it between the first three, and on to `ENDED`."""

    SCHEDULED = "SCHEDULED"
    LIVE = "LIVE"
    SOLD_OUT = "SOLD_OUT"
    ENDED = "ENDED"
    CANCELLED = "CANCELLED"


CLOSABLE = {
    SaleState.CANCELLED: frozenset({SaleState.SCHEDULED, SaleState.LIVE, SaleState.SOLD_OUT}),
    SaleState.ENDED: frozenset({SaleState.LIVE, SaleState.SOLD_OUT}),
}
"""By how a sale is closed before its time: the states in which it can be."""

SALE_MUTABLE = frozenset(
    {"title", "sale_price", "allocation", "per_customer_limit", "start_time", "end_time", "hold_duration"}
)
"""The fields that `UpdateFlashSale` can change."""
SALE_REQUIRED = frozenset({"title", "sale_price", "allocation", "end_time"})
"""Those of them that have no default."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SaleChanges:
    """What an update of a flash sale sets; None leaves a term as it is. A `start_time` in the past means at once."""

    title: str | None = None
    price: Money | None = None
    allocation: int | None = None
    per_customer_limit: int | None = None
    start_time: datetime | None = None
    end_time: datetime | None = None
    hold_seconds: int | None = None


Pool = tuple[uuid.UUID, uuid.UUID | None]
"""A product's ordinary stock, or one of its flash sales. Both ids, so that a sale is never another product's."""


@dataclass(frozen=True, slots=True)
class Line:
    """Units of one product, from a flash sale or, where `sale_id` is None, from ordinary stock."""

    product_id: uuid.UUID
    sale_id: uuid.UUID | None
    quantity: int
    sale_price: Money | None = None

    @property
    def pool(self) -> Pool:
        """What the units are taken from."""
        return self.product_id, self.sale_id


@dataclass(frozen=True, slots=True)
class Hold:
    """A wish: units for one order. All lines are held, or none."""

    id: uuid.UUID
    customer_id: uuid.UUID
    lines: tuple[Line, ...]
    seconds: int
    ticket: bytes = b""
    """What orders needs to write the order later; sealed. Empty where it needs nothing."""


@dataclass(frozen=True, slots=True)
class Reservation:
    """Units set aside for one order."""

    id: uuid.UUID
    customer_id: uuid.UUID
    state: State
    lines: tuple[Line, ...]
    expire_time: datetime
    repeated: bool = False
    """Whether it was there before it was asked for."""
    ticket: bytes = b""
    """What is still kept for it, where a repeat found it."""

    def is_for(self, hold: Hold) -> bool:
        """Whether this is what `hold` asks for, and thus its answer when it is repeated."""
        mine = [(line.product_id, line.sale_id, line.quantity) for line in self.lines]
        return self.customer_id == hold.customer_id and mine == [
            (line.product_id, line.sale_id, line.quantity) for line in hold.lines
        ]


@dataclass(frozen=True, slots=True)
class UnitsBack:
    """A wish to take sold units back: so many of each product, or, where none is named, all that are still out."""

    id: uuid.UUID
    reservation_id: uuid.UUID
    quantities: Mapping[uuid.UUID, int]


@dataclass(frozen=True, slots=True)
class Returned:
    """What came back under the id of a wish."""

    wish: UnitsBack
    lines: tuple[Line, ...]


@dataclass(frozen=True, slots=True)
class Grant:
    """What one pool gave to a batch, in one statement."""

    units: int
    price: Money | None = None
    hold_seconds: int | None = None
    per_customer_limit: int = 0


@dataclass(frozen=True)
class Allotment:
    """Who gets what of the units granted to a batch."""

    held: tuple[Hold, ...]
    short: tuple[tuple[Hold, Line], ...]
    """Holds that go away empty, each with the first line that there were too few units for."""
    over: tuple[tuple[Hold, Line], ...]
    """Holds of customers who would have more than they may, each with the first line that is too much."""
    leftover: Mapping[Pool, int]
    """Units to give back to their pools."""


def demand(holds: Sequence[Hold]) -> dict[Pool, int]:
    """How many units a batch wants of each pool."""
    wanted: dict[Pool, int] = defaultdict(int)
    for hold in holds:
        for line in hold.lines:
            wanted[line.pool] += line.quantity
    return wanted


def allot(
    holds: Sequence[Hold],
    grants: Mapping[Pool, Grant],
    *,
    counted: Mapping[tuple[uuid.UUID, uuid.UUID], int],
    known: Collection[uuid.UUID],
) -> Allotment:
    """Deals granted units out, first come first served; each hold gets all of its lines or nothing.

    `counted` says how many units customers have had, by sale and customer. Holds whose ids are `known`, from before or
    from earlier in the batch, get nothing: they have their answer. So nobody takes units that he may not have away from
    somebody who is later.
    """
    left = {pool: grant.units for pool, grant in grants.items()}
    counts = defaultdict(int, counted)
    passed_by = set(known)
    held, short, over = [], [], []
    for hold in holds:
        if hold.id in passed_by:
            continue
        passed_by.add(hold.id)
        if (lacking := next((line for line in hold.lines if left.get(line.pool, 0) < line.quantity), None)) is not None:
            short.append((hold, lacking))
        elif (above := next((line for line in hold.lines if _above(line, hold, grants, counts)), None)) is not None:
            over.append((hold, above))
        else:
            for line in hold.lines:
                left[line.pool] -= line.quantity
                if line.sale_id:
                    counts[line.sale_id, hold.customer_id] += line.quantity
            held.append(_priced(hold, grants))
    return Allotment(tuple(held), tuple(short), tuple(over), {pool: units for pool, units in left.items() if units})


def _above(
    line: Line, hold: Hold, grants: Mapping[Pool, Grant], counts: Mapping[tuple[uuid.UUID, uuid.UUID], int]
) -> bool:
    """Whether the customer would have more units than the line's sale lets one have."""
    limit = grants[line.pool].per_customer_limit
    return bool(line.sale_id and limit and counts[line.sale_id, hold.customer_id] + line.quantity > limit)


def _priced(hold: Hold, grants: Mapping[Pool, Grant]) -> Hold:
    """`hold` with the sales' prices, and no longer than the shortest of the sales' own times."""
    seconds = [grants[line.pool].hold_seconds for line in hold.lines]
    return replace(
        hold,
        lines=tuple(replace(line, sale_price=grants[line.pool].price) for line in hold.lines),
        seconds=min([hold.seconds, *(s for s in seconds if s is not None)]),
    )


def coming_back(
    wish: UnitsBack, reservation: Reservation, before: Mapping[Pool, int]
) -> tuple[Line, ...] | ReturnTooLarge:
    """The units of `reservation` that `wish` takes back, where `before` says how many have come back already."""
    wanted, lines = dict(wish.quantities), []
    outs: dict[uuid.UUID, int] = defaultdict(int)
    for line in reservation.lines:
        out = line.quantity - before.get(line.pool, 0)
        outs[line.product_id] += out
        units = min(out, wanted.get(line.product_id, 0)) if wish.quantities else out
        if units:
            wanted[line.product_id] = wanted.get(line.product_id, units) - units
            lines.append(replace(line, quantity=units))
    for product_id, units in wanted.items():
        if units:
            return ReturnTooLarge(reservationId=reservation.id, productId=product_id, out=outs[product_id])
    return tuple(lines)
