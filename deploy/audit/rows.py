"""What the checks look at: plain rows, as the databases and the provider have them. Ids are strings."""

from collections.abc import Mapping
from dataclasses import dataclass

LineKey = tuple[str, str, int]
"""Product, sale or an empty string, quantity."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Sale:
    """The counters of one flash sale."""

    id: str
    product_id: str
    allocation: int
    held: int
    sold: int
    returned: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Stock:
    """The ordinary stock of one product, and the sums of its ledger by kind of movement."""

    product_id: str
    on_hand: int
    held: int
    moved: Mapping[str, int]


@dataclass(frozen=True, slots=True)
class Units:
    """Units in reservations that are `HELD`, and that are `CONFIRMED`; and those of the latter that came back."""

    held: int = 0
    confirmed: int = 0
    returned: int = 0


@dataclass(frozen=True, slots=True)
class Pools:
    """What all reservations take, by sale, and by product where it is ordinary stock."""

    sales: Mapping[str, Units]
    stock: Mapping[str, Units]


@dataclass(frozen=True, slots=True, kw_only=True)
class Allowance:
    """What one customer has of one sale with a limit: as counted by the sale, and as their reservations say,
    less what came back of them."""

    sale_id: str
    customer_id: str
    limit: int
    counted: int
    reserved: int
    terms_changed: bool
    paid_late: bool
    """They paid after their hold had ended, and were given units again; the limit is not asked then."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Order:
    """One order."""

    id: str
    customer_id: str
    state: str
    lines: tuple[LineKey, ...]
    total_minor: int
    currency: str
    has_saga: bool
    waits_for_customer: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Reservation:
    """The units set aside for one order; its id is the order's."""

    id: str
    customer_id: str
    state: str
    lines: tuple[LineKey, ...]
    returned: tuple[LineKey, ...] = ()
    """What came back of `lines`, after a refund; all returns together."""
    overdue: bool
    """It should have expired a while ago."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Payment:
    """One order's payment, as the payments service knows it."""

    id: str
    order_id: str
    customer_id: str
    state: str
    provider: str
    reference: str
    amount_minor: int
    currency: str
    refunded_minor: int
    refunds_pending: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Capture:
    """One payment that succeeded, as the provider knows it."""

    id: str
    order_id: str
    payment_id: str
    amount_minor: int
    currency: str
    refunded_minor: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """All that is known of one order id, from everywhere."""

    id: str
    order: Order | None = None
    reservation: Reservation | None = None
    payment: Payment | None = None
    captures: tuple[Capture, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Saga:
    """An order on its way."""

    order_id: str
    phase: str
    attempts: int
    age_seconds: float
    waits_for_customer: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Outbox:
    """Events of one service that nobody was told of yet."""

    service: str
    waiting: int
    oldest_seconds: float


@dataclass(frozen=True, slots=True)
class Tickets:
    """Orders that were accepted with their hold, and that nobody has written yet."""

    kept: int = 0
    oldest_seconds: float = 0.0
