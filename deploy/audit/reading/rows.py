"""The rows that the checks compare, as the databases and the provider have them. Ids are strings."""

from collections.abc import Mapping
from dataclasses import dataclass, field

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


@dataclass(frozen=True, slots=True, kw_only=True)
class PaymentCopy:
    """The payment of an order as orders has stored it."""

    id: str
    provider: str
    state: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Saga:
    """The saga of one order, as far as it excuses that the parts of the order do not agree yet."""

    kind: str
    waits_for_customer: bool = False
    waits_for_provider: bool = False
    """The provider answers that it is moving the money, as of a bank debit."""
    still_seconds: float = 0.0
    """For how long it has made no progress."""
    refund_id: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Order:
    """One order."""

    id: str
    customer_id: str
    state: str
    lines: tuple[LineKey, ...]
    prices: Mapping[str, tuple[int, str]] = field(default_factory=dict)
    """By product: minor units and currency."""
    total_minor: int
    currency: str
    refunded_minor: int = 0
    returned: Mapping[str, int] = field(default_factory=dict)
    """The units that it counts as returned, by product."""
    refunding: bool = False
    disputed: bool = False
    payment: PaymentCopy | None = None
    hold_over_seconds: float = 0.0
    """For how long its hold has been over; negative before its end."""
    saga: Saga | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Reservation:
    """The units set aside for one order; its id is the order's."""

    id: str
    customer_id: str
    state: str
    lines: tuple[LineKey, ...]
    prices: Mapping[str, tuple[int, str]] = field(default_factory=dict)
    """By product, of lines of sales only."""
    returned: tuple[LineKey, ...] = ()
    """The sum of all returns of `lines`."""
    over_seconds: float = 0.0
    """For how long its time has been over; negative before its end."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Refund:
    """A refund of a payment, in the payments database."""

    id: str
    state: str
    amount_minor: int
    stray: bool
    reference: str
    age_seconds: float = 0.0
    by_hand: bool = False
    """An operator has marked it as done: the money went back another way, of which the provider knows nothing."""
    provider: str = "stripe"


@dataclass(frozen=True, slots=True, kw_only=True)
class Dispute:
    """A dispute of a payment, in the payments database."""

    reference: str
    state: str
    amount_minor: int
    withdrawn_minor: int


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
    refunds: tuple[Refund, ...] = ()
    disputes: tuple[Dispute, ...] = ()
    booked_minor: int = 0
    """The money that its provider has of it, by the journal; fees are not taken off."""

    @property
    def pending_minor(self) -> int:
        """The sum of its refunds that the provider has not confirmed."""
        return sum(refund.amount_minor for refund in self.refunds if refund.state == "PENDING" and not refund.stray)

    @property
    def by_hand_minor(self) -> int:
        """The sum of its refunds that went back another way."""
        return sum(refund.amount_minor for refund in self.refunds if refund.by_hand and not refund.stray)


@dataclass(frozen=True, slots=True, kw_only=True)
class ProviderRefund:
    """A refund in the provider's records; `refund_id` is empty if it was made in the provider's dashboard."""

    id: str
    refund_id: str
    amount_minor: int
    state: str = "succeeded"


@dataclass(frozen=True, slots=True, kw_only=True)
class ProviderDispute:
    """A dispute in the provider's records."""

    id: str
    amount_minor: int
    status: str
    age_seconds: float = 0.0

    @property
    def has_money(self) -> bool:
        """Whether the bank has taken money: an inquiry has not, and a dispute that was won gave it back."""
        return self.status != "won" and not self.status.startswith("warning")


@dataclass(frozen=True, slots=True, kw_only=True)
class Intent:
    """One payment in the provider's records, in any status."""

    id: str
    order_id: str
    payment_id: str
    amount_minor: int
    currency: str
    status: str = "succeeded"
    refunded_minor: int = 0
    refunds: tuple[ProviderRefund, ...] = ()
    dispute: ProviderDispute | None = None

    @property
    def withdrawn_minor(self) -> int:
        """The money that a bank has taken because of a dispute, and not given back."""
        return self.dispute.amount_minor if self.dispute and self.dispute.has_money else 0

    @property
    def is_captured(self) -> bool:
        return self.status == "succeeded"

    @property
    def can_be_paid(self) -> bool:
        """Whether it can still take money."""
        return self.status not in ("succeeded", "canceled")


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """All rows of one order id."""

    id: str
    order: Order | None = None
    reservation: Reservation | None = None
    payments: tuple[Payment, ...] = ()
    intents: tuple[Intent, ...] = ()

    @property
    def payment(self) -> Payment | None:
        return self.payments[0] if self.payments else None

    @property
    def captures(self) -> tuple[Intent, ...]:
        return tuple(intent for intent in self.intents if intent.is_captured)


@dataclass(frozen=True, slots=True, kw_only=True)
class Outbox:
    """The events of one service that are not published yet."""

    service: str
    waiting: int
    oldest_seconds: float
