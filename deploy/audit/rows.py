"""The rows that the checks compare, as the databases and the provider have them. Ids are strings."""

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
    """The ordinary stock of one product, and the sums of its movements by kind."""

    product_id: str
    on_hand: int
    held: int
    moved: Mapping[str, int]


@dataclass(frozen=True, slots=True)
class Units:
    """Units of reservations that are `HELD` or `CONFIRMED`, and of the latter those that were returned."""

    held: int = 0
    confirmed: int = 0
    returned: int = 0


@dataclass(frozen=True, slots=True)
class Pools:
    """The units that reservations take, by sale, or by product for ordinary stock."""

    sales: Mapping[str, Units]
    stock: Mapping[str, Units]


@dataclass(frozen=True, slots=True, kw_only=True)
class CustomerUnits:
    """The units of one customer in one sale with a limit: as the sale counts them, and as reservations do."""

    sale_id: str
    customer_id: str
    limit: int
    counted: int
    reserved: int
    terms_changed: bool
    paid_late: bool
    """They paid after their hold had ended, and the units were retaken, which ignores the limit."""


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
    """The sum of all returns of `lines`."""
    overdue: bool
    """It is past its expiry by more than a minute."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Payment:
    """The payment of one order, in the payments database."""

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
    """One successful payment in the provider's ledger."""

    id: str
    order_id: str
    payment_id: str
    amount_minor: int
    currency: str
    refunded_minor: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """All rows of one order id."""

    id: str
    order: Order | None = None
    reservation: Reservation | None = None
    payment: Payment | None = None
    captures: tuple[Capture, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Saga:
    """A saga that looks stuck."""

    order_id: str
    phase: str
    attempts: int
    age_seconds: float
    waits_for_customer: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Outbox:
    """The events of one service that are not published yet."""

    service: str
    waiting: int
    oldest_seconds: float
