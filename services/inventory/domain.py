"""The rules of stock, as pure functions and values."""

import uuid
from collections import Counter, defaultdict
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from enum import StrEnum

from services.chassis.errors import AppError
from services.chassis.money import Money

SALE_HOLD_SECONDS_DEFAULT = 600
"""For sales without a `hold_duration`. Orders bounds the length of each hold; the shorter of the two counts."""
STOCK_HOLD_SECONDS_MOST = 600
"""For reservations with ordinary units."""
EXTENSION_SECONDS_MOST = 600
ABANDONED_HOLD_LIMIT_DEFAULT = 10
ON_HAND_MOST = 1_000_000_000
WATCHERS_MOST = 5_000


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
    """Fewer units are left than requested; with some `remaining`, a smaller request can still succeed."""

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


class HoldsAbandoned(CustomerLimit):
    """The customer let too many holds of a sale end unpaid; clients handle it as the other limit of the sale."""

    template = "The customer let {limit} holds of the flash sale {flashSaleId} end unpaid."


HoldsAbandoned.reason = CustomerLimit.reason


class OpenOrdersLimit(AppError):
    code = "FAILED_PRECONDITION"
    template = "One customer may have {orders} unpaid orders and {units} unpaid units at once. Pay or cancel one first."


class SlotTaken(Exception):
    """Another transaction has taken a slot of a customer meanwhile. It has ended, so the next attempt sees its hold."""


GRACE_SECONDS = 30
"""After its end a hold keeps its units for as long again, at most for so long. Meanwhile orders asks the provider
whether it was paid in time, and confirms or releases it."""
RETAKE_SECONDS = 1
"""For how long a retaken hold is asked for. It is confirmed in the transaction that takes it."""


class ReservationLost(AppError):
    code = "FAILED_PRECONDITION"
    template = "The units of reservation {reservationId} went to others."


class ReservationExpired(AppError):
    code = "FAILED_PRECONDITION"
    template = "The hold of reservation {reservationId} has expired."


class ReturnTooLarge(AppError):
    """A return names more units of a product than the order still has; it has none of a product it did not buy."""

    code = "FAILED_PRECONDITION"
    template = "Of reservation {reservationId}, {out} units of product {productId} have not come back."


class State(StrEnum):
    """The state of a reservation. `HELD` becomes exactly one of the others."""

    HELD = "HELD"
    CONFIRMED = "CONFIRMED"
    RELEASED = "RELEASED"
    EXPIRED = "EXPIRED"


class SaleState(StrEnum):
    """The state of a flash sale. Time and units move it between the first three, and on to `ENDED`."""

    SCHEDULED = "SCHEDULED"
    LIVE = "LIVE"
    SOLD_OUT = "SOLD_OUT"
    ENDED = "ENDED"
    CANCELLED = "CANCELLED"


CLOSABLE = {
    SaleState.CANCELLED: frozenset({SaleState.SCHEDULED, SaleState.LIVE, SaleState.SOLD_OUT}),
    SaleState.ENDED: frozenset({SaleState.LIVE, SaleState.SOLD_OUT}),
}
"""The states in which a sale can be closed before its time, by the state that it gets."""

SALE_MUTABLE = frozenset(
    {
        "title",
        "sale_price",
        "allocation",
        "per_customer_limit",
        "start_time",
        "end_time",
        "hold_duration",
        "abandoned_hold_limit",
    }
)
"""The fields that `UpdateFlashSale` can change."""
SALE_REQUIRED = SALE_MUTABLE - {"hold_duration", "abandoned_hold_limit"}
"""The changeable fields without a default. No limit and "at once" are said, not left out."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SaleChanges:
    """New terms of a flash sale; None leaves a term as it is. A `start_time` in the past means at once."""

    title: str | None = None
    price: Money | None = None
    allocation: int | None = None
    per_customer_limit: int | None = None
    start_time: datetime | None = None
    end_time: datetime | None = None
    hold_seconds: int | None = None
    abandoned_hold_limit: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class FlashSale:
    """A flash sale as it is at `server_time`, by the database's clock."""

    id: uuid.UUID
    product_id: uuid.UUID
    title: str
    price: Money
    allocation: int
    per_customer_limit: int
    start_time: datetime
    end_time: datetime
    hold_seconds: int
    abandoned_hold_limit: int
    held: int
    sold: int
    returned: int
    """Units that went back to stock."""
    remaining: int
    state: SaleState
    closed_as: str | None
    """Its final state, once its unsold units went back to stock."""
    next_hold_expire_time: datetime | None
    version: int
    create_time: datetime
    update_time: datetime
    server_time: datetime


@dataclass(frozen=True, slots=True, kw_only=True)
class NewSale:
    """The terms of a flash sale to schedule. `start_time` None means at once."""

    product_id: uuid.UUID
    title: str
    price: Money
    allocation: int
    per_customer_limit: int
    start_time: datetime | None
    end_time: datetime
    hold_seconds: int
    abandoned_hold_limit: int = ABANDONED_HOLD_LIMIT_DEFAULT


Pool = tuple[uuid.UUID, uuid.UUID | None]
"""A product's ordinary stock, or one of its flash sales. It has both ids, so a sale never serves another product."""


@dataclass(frozen=True, slots=True)
class Line:
    """Units of one product, from a flash sale or, where `sale_id` is None, from ordinary stock."""

    product_id: uuid.UUID
    sale_id: uuid.UUID | None
    quantity: int
    sale_price: Money | None = None

    @property
    def pool(self) -> Pool:
        """The source of the units."""
        return self.product_id, self.sale_id


@dataclass(frozen=True, slots=True)
class HoldBounds:
    """The most that one customer may hold at once, in orders and in units; 0 for no bound."""

    orders: int = 0
    units: int = 0


UNBOUNDED = HoldBounds()


@dataclass(frozen=True, slots=True)
class Hold:
    """A request to hold units for one order. All lines are held, or none."""

    id: uuid.UUID
    customer_id: uuid.UUID
    lines: tuple[Line, ...]
    seconds: int

    @property
    def units(self) -> int:
        """Its units, over all lines."""
        return sum(line.quantity for line in self.lines)


@dataclass(frozen=True, slots=True)
class Reservation:
    """Units set aside for one order."""

    id: uuid.UUID
    customer_id: uuid.UUID
    state: State
    lines: tuple[Line, ...]
    expire_time: datetime
    repeated: bool = False
    """Whether the call found it, and changed nothing."""
    reholds: int = 0
    """How often it was held again after a release."""

    def is_for(self, hold: Hold) -> bool:
        """Whether this is the reservation that `hold` requests, and therefore the answer to its repeat."""
        requested = tuple(replace(line, sale_price=None) for line in self.lines)
        return self.customer_id == hold.customer_id and requested == hold.lines


@dataclass(frozen=True, slots=True)
class Return:
    """A request to take sold units back: so many of each product, or all that have not come back if none is named."""

    id: uuid.UUID
    reservation_id: uuid.UUID
    quantities: Mapping[uuid.UUID, int]


@dataclass(frozen=True, slots=True)
class Returned:
    """The units that came back under a return's id."""

    request: Return
    lines: tuple[Line, ...]


@dataclass(frozen=True, slots=True)
class Grant:
    """The units that one pool gave to a batch, in one statement."""

    units: int
    price: Money | None = None
    hold_seconds: int | None = None
    per_customer_limit: int = 0
    remaining: int = 0
    """Units that the pool has left after it."""
    abandoned_hold_limit: int = 0


@dataclass(frozen=True)
class Allotment:
    """How the units granted to a batch are divided."""

    held: tuple[Hold, ...]
    short: tuple[tuple[Hold, Line], ...]
    """Refused holds, each with the first line that there were too few units for."""
    over: tuple[tuple[Hold, Line], ...]
    """Holds above the customer limit, each with the first line that is above it."""
    unpaid: tuple[tuple[Hold, Line], ...]
    """Holds of customers whose holds of the sale ended unpaid too often."""
    leftover: Mapping[Pool, int]
    """Units to give back to their pools."""


def units_by_pool(lines: Iterable[Line]) -> Counter[Pool]:
    """Count the units of lines by pool."""
    units: Counter[Pool] = Counter()
    for line in lines:
        units[line.pool] += line.quantity
    return units


def allot(
    holds: Sequence[Hold],
    grants: Mapping[Pool, Grant],
    *,
    counted: Mapping[tuple[uuid.UUID, uuid.UUID], int],
    abandoned: Collection[tuple[uuid.UUID, uuid.UUID]] = (),
    known: Collection[uuid.UUID],
) -> Allotment:
    """Divide granted units, first come first served; each hold gets all of its lines or nothing.

    `counted` has the units that customers have already, by sale and customer; `abandoned` has the customers whom a sale
    refuses, because their holds ended unpaid too often. Holds whose ids are `known`, from before or from earlier in the
    batch, get nothing, because they are answered with their reservation. So a hold that must not
    have units takes none from a later one.
    """
    left = {pool: grant.units for pool, grant in grants.items()}
    counts = defaultdict(int, counted)
    skipped = set(known)
    held, short, over, unpaid = [], [], [], []
    for hold in holds:
        if hold.id in skipped:
            continue
        skipped.add(hold.id)
        if (lacking := next((line for line in hold.lines if left.get(line.pool, 0) < line.quantity), None)) is not None:
            short.append((hold, lacking))
        elif (spent := next((s for s in hold.lines if (s.sale_id, hold.customer_id) in abandoned), None)) is not None:
            unpaid.append((hold, spent))
        elif (above := next((line for line in hold.lines if _above(line, hold, grants, counts)), None)) is not None:
            over.append((hold, above))
        else:
            for line in hold.lines:
                left[line.pool] -= line.quantity
                if line.sale_id:
                    counts[line.sale_id, hold.customer_id] += line.quantity
            held.append(_priced(hold, grants))
    leftover = {pool: units for pool, units in left.items() if units}
    return Allotment(tuple(held), tuple(short), tuple(over), tuple(unpaid), leftover)


def _above(
    line: Line, hold: Hold, grants: Mapping[Pool, Grant], counts: Mapping[tuple[uuid.UUID, uuid.UUID], int]
) -> bool:
    """Whether the line would bring the customer above the limit of its sale."""
    limit = grants[line.pool].per_customer_limit
    return bool(line.sale_id and limit and counts[line.sale_id, hold.customer_id] + line.quantity > limit)


def _priced(hold: Hold, grants: Mapping[Pool, Grant]) -> Hold:
    """`hold` with the sales' prices, and at most as long as the shortest hold time of its pools."""
    seconds = [grants[line.pool].hold_seconds for line in hold.lines]
    return replace(
        hold,
        lines=tuple(replace(line, sale_price=grants[line.pool].price) for line in hold.lines),
        seconds=min([hold.seconds, *(STOCK_HOLD_SECONDS_MOST if s is None else s for s in seconds)]),
    )


def returned_lines(
    request: Return, reservation: Reservation, before: Mapping[Pool, int]
) -> tuple[Line, ...] | ReturnTooLarge:
    """The units of `reservation` that `request` takes back; `before` counts the units that have come back already."""
    wanted, lines = dict(request.quantities), []
    outs: dict[uuid.UUID, int] = defaultdict(int)
    for line in reservation.lines:
        out = line.quantity - before.get(line.pool, 0)
        outs[line.product_id] += out
        units = min(out, wanted.get(line.product_id, 0)) if request.quantities else out
        if units:
            wanted[line.product_id] = wanted.get(line.product_id, units) - units
            lines.append(replace(line, quantity=units))
    for product_id, units in wanted.items():
        if units:
            return ReturnTooLarge(reservationId=reservation.id, productId=product_id, out=outs[product_id])
    return tuple(lines)
