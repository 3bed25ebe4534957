"""The rules of an order, without databases, gRPC or clock."""

import uuid
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from enum import StrEnum

from services.chassis.errors import AppError, WrongState
from services.chassis.money import Money, check_chargeable, check_currency

HOLD_SECONDS = 3600
"""For how long inventory may hold an order's stock: a sale has its own time, and ordinary stock 10 minutes."""
WATCHERS_MOST = 5_000


class OrderNotFound(AppError):
    code = "NOT_FOUND"
    template = "There is no order {orderId}."


class RefundInProgress(AppError):
    code = "FAILED_PRECONDITION"
    template = "A refund of the order {orderId} is in progress; try again when it is settled."


class RefundTooLarge(AppError):
    code = "FAILED_PRECONDITION"
    template = "Only {leftMinorUnits} minor units of the order are left to refund."


class RefundRefused(AppError):
    code = "FAILED_PRECONDITION"
    template = "The refund was refused: {cause}."


class OrderDisputed(AppError):
    code = "FAILED_PRECONDITION"
    template = "A bank demands the money of the order {orderId} back; it is not shipped meanwhile."


class PaymentNotCaptured(AppError):
    code = "FAILED_PRECONDITION"
    template = "The money of the order {orderId} is only set aside: capture its payment first, or cancel the order."


class ReturnTooLarge(AppError):
    code = "FAILED_PRECONDITION"
    template = "Of the order, {quantity} units of the product {productId} have not come back."


class SagaNotFound(AppError):
    code = "NOT_FOUND"
    template = "No saga is running for the order {orderId}."


class HoldEnded(AppError):
    code = "FAILED_PRECONDITION"
    template = "The hold of request {requestId} has ended; order again under a new request id."


class State(StrEnum):
    """The state of an order; see `Order.State` in the contract."""

    PENDING = "PENDING"
    PAID = "PAID"
    SHIPPED = "SHIPPED"
    DELIVERED = "DELIVERED"
    FAILED = "FAILED"
    CANCELLED = "CANCELLED"
    EXPIRED = "EXPIRED"
    REFUNDED = "REFUNDED"
    PARTIALLY_REFUNDED = "PARTIALLY_REFUNDED"


NEXT = {
    State.PENDING: {State.PAID, State.FAILED, State.CANCELLED, State.EXPIRED},
    State.PAID: {State.SHIPPED, State.CANCELLED, State.REFUNDED, State.PARTIALLY_REFUNDED},
    # The units that were not refunded are still shipped and delivered: `Order.check_move` checks whether they were.
    State.PARTIALLY_REFUNDED: {State.SHIPPED, State.DELIVERED, State.REFUNDED, State.PARTIALLY_REFUNDED},
    State.SHIPPED: {State.DELIVERED, State.REFUNDED, State.PARTIALLY_REFUNDED},
    State.DELIVERED: {State.REFUNDED, State.PARTIALLY_REFUNDED},
    State.FAILED: {State.PENDING},  # its customer pays once more
    State.CANCELLED: set(),
    State.EXPIRED: set(),
    State.REFUNDED: set(),
}
"""The moves that exist. Any other is `WRONG_STATE`."""


REFUNDABLE = tuple(state for state in State if State.PARTIALLY_REFUNDED in NEXT[state])
"""The states of orders that were paid and are not refunded in full."""


def move(state: State, wanted: State) -> State:
    """Returns `wanted` if the table allows it. The only way a state changes."""
    if wanted not in NEXT[state]:
        raise WrongState(resource="order", state=state, wanted=wanted)
    return wanted


class PaymentState(StrEnum):
    """The state of an order's payment, as payments returned it last."""

    AWAITING_CUSTOMER = "AWAITING_CUSTOMER"
    PROCESSING = "PROCESSING"
    AUTHORIZED = "AUTHORIZED"
    """The money is set aside, until staff capture or void the payment. The order counts as paid."""
    SUCCEEDED = "SUCCEEDED"
    FAILED = "FAILED"
    CANCELLED = "CANCELLED"
    REFUNDED = "REFUNDED"


@dataclass(frozen=True, slots=True)
class Payment:
    """An order's payment, as payments returned it last."""

    id: uuid.UUID
    provider: str
    state: PaymentState
    client_secret: str = ""
    failure_reason: str = ""
    authenticating: bool = False
    """The customer has begun to pay and is at their bank's authentication."""
    refunded_minor: int = 0
    """The minor units refunded in total; 0 in the payment of an order that was read, which has its own sum."""
    refunding_minor: int = 0
    """The minor units of refunds that the provider has not confirmed; 0 in the payment of an order that was read."""
    in_process: bool = False
    """The provider has answered that it is moving the money, which can take days; False in an order that was read."""
    disputed: bool = False
    """A bank demands the money back, or has taken it; False in the payment of an order that was read."""
    attempt: int = 0
    """The attempt that this is about; 0 in the payment of an order that was read."""
    latest_attempt: int = 0
    """The latest one that payments knows of; above `attempt` if that was not made."""
    checkout_url: str = ""
    """The provider's page on which the customer pays."""
    provider_order_id: str = ""
    """The provider's id that its script pays in the customer's browser, if not with the secret: Razorpay's."""

    @property
    def in_progress(self) -> bool:
        """Whether money may move at any moment, as far as is known."""
        return self.state is PaymentState.PROCESSING or self.authenticating


@dataclass(frozen=True, slots=True)
class Product:
    """A product as catalog describes it at the moment of ordering."""

    id: uuid.UUID
    sku: str
    name: str
    price: Money
    active: bool


@dataclass(frozen=True, slots=True)
class RequestedLine:
    """One line as a customer asks for it."""

    product_id: uuid.UUID
    quantity: int
    sale_id: uuid.UUID | None

    @property
    def pool(self) -> uuid.UUID:
        """The pool that its units are taken from: the flash sale, or the product for ordinary stock."""
        return self.sale_id or self.product_id


@dataclass(frozen=True, slots=True)
class Line(RequestedLine):
    """One line as the order keeps it, with the price of the moment it was placed."""

    sku: str
    name: str
    unit_price: Money


@dataclass(frozen=True, slots=True)
class Address:
    """The address that an order is sent to."""

    name: str
    line1: str
    line2: str
    city: str
    region: str
    postal_code: str
    country_code: str


@dataclass(frozen=True, slots=True)
class Shipment:
    """The shipment of an order."""

    carrier: str
    tracking_number: str
    ship_time: datetime
    deliver_time: datetime | None = None


@dataclass(frozen=True, slots=True)
class Refund:
    """Money of a paid order that goes back because staff decided so, and units that come back."""

    id: uuid.UUID
    """Names the refund to payments and inventory, so that a repeat changes nothing."""
    amount: Money | None
    """None for all that is left."""
    wanted: State
    """`CANCELLED`, or `REFUNDED` for a refund in full or in part."""
    restock: bool = False
    """Whether all units come back that have not yet."""
    lines: tuple[tuple[uuid.UUID, int], ...] = ()
    """Otherwise the units that come back: products and quantities."""

    @property
    def method(self) -> str:
        """The call that began it."""
        return "CancelOrder" if self.wanted is State.CANCELLED else "RefundOrder"


@dataclass(frozen=True, slots=True)
class Actor:
    """The actor that moves an order, for its log."""

    name: str
    """`customer`, `staff:<user>`, `operator:<name>`, or the part of Stampede."""
    call_id: str = ""
    """The `x-request-id` of the call."""
    note: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class LogEntry:
    """One move of an order, or something that was tried on it."""

    id: int
    version: int
    state: State
    state_reason: str
    actor: str
    """As `Actor.name`."""
    cause: str
    note: str
    call_id: str
    refunded: Money
    create_time: datetime


@dataclass(frozen=True, slots=True)
class OrderFilter:
    """The orders to list; None for any. Times are create times: from `since` on, and before `until`."""

    customer_id: uuid.UUID | None = None
    state: State | None = None
    product_id: uuid.UUID | None = None
    since: datetime | None = None
    until: datetime | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class DraftOrder:
    """An order before its stock is held: what the customer asked for. It has no row."""

    id: uuid.UUID
    customer_id: uuid.UUID
    request_id: uuid.UUID
    digest: bytes
    """Over the request's content, to distinguish a repeat from another order under the same request id."""
    lines: tuple[RequestedLine, ...]
    shipping_address: Address | None
    payment_method: str = ""
    """Kept by the order's saga; empty in an order that was read."""
    note: str = ""
    """The customer's note for the shop."""
    expected_total: Money | None = None
    """The total that the buyer was shown; None in an order that was read."""
    call_id: str = ""
    """The `x-request-id` of the call that places it. Kept by the saga and the log; empty in an order that was read."""
    secret_wanted: bool = False
    """Whether somebody has asked how to pay it. Without a card, the provider hears of the order only then."""

    @property
    def pools(self) -> tuple[uuid.UUID, ...]:
        """The pools that its units are taken from."""
        return tuple(line.pool for line in self.lines)

    @property
    def sale_ids(self) -> list[uuid.UUID]:
        """The flash sales among them."""
        return [line.sale_id for line in self.lines if line.sale_id]


_NOT_WRITTEN = datetime.min.replace(tzinfo=UTC)


@dataclass(frozen=True, slots=True, kw_only=True)
class Order(DraftOrder):
    """A purchase whose stock is held."""

    lines: tuple[Line, ...]
    total: Money
    hold_expire_time: datetime
    state: State = State.PENDING
    state_reason: str = ""
    payment: Payment | None = None
    refunded_minor: int = 0
    returned: Mapping[uuid.UUID, int] = field(default_factory=dict)
    """The units that came back with refunds, by product."""
    refunding: bool = False
    """Whether a refund is in progress."""
    shipment: Shipment | None = None
    cancel_requested: bool = False
    """Whether a cancellation was accepted and is not carried out yet."""
    disputed: bool = False
    """Whether a bank demands its money back, or has taken it."""
    payment_attempts: int = 0
    """How many further attempts to pay it its customer has asked for."""
    reopened: int = 0
    """How often it was paid once more after it had failed, and its units were held again."""
    version: int = 1
    create_time: datetime = _NOT_WRITTEN
    """The database's clock sets it."""
    update_time: datetime = _NOT_WRITTEN

    @property
    def settled(self) -> bool:
        """Whether no saga is running for it."""
        return self.state is not State.PENDING and not self.refunding

    @property
    def is_uncaptured(self) -> bool:
        """Whether its money is only set aside, as far as is known."""
        return self.payment is not None and self.payment.state is PaymentState.AUTHORIZED

    @property
    def is_cancelled(self) -> bool:
        """Whether it is cancelled, or will be: a `PENDING` order by its saga, a paid one once it is refunded."""
        return self.state is State.CANCELLED or self.cancel_requested

    def check_move(self, wanted: State) -> None:
        """Raises unless the order may become `wanted` now.

        `WrongState`, `RefundInProgress`, `OrderDisputed`, `PaymentNotCaptured`.
        """
        move(self.state, wanted)
        if self.refunding:
            raise RefundInProgress(orderId=self.id)
        sent = self.shipment is not None
        arrived = self.shipment is not None and self.shipment.deliver_time is not None
        if (wanted is State.SHIPPED and sent) or (wanted is State.DELIVERED and (not sent or arrived)):
            raise WrongState(resource="order", state=self.state, wanted=wanted)
        if wanted is State.SHIPPED and self.disputed:
            raise OrderDisputed(orderId=self.id)
        if self.is_uncaptured and wanted is not State.CANCELLED:
            raise PaymentNotCaptured(orderId=self.id)

    def check_refund(self, refund: Refund) -> None:
        """Raises unless enough money is left to refund, and enough units are still out."""
        left = self.total.minor - self.refunded_minor
        if refund.amount is not None:
            check_currency(refund.amount, self.total.currency, "amount", whose="the order's total")
            check_chargeable(refund.amount, "amount")
            if refund.amount.minor > left:
                raise RefundTooLarge(leftMinorUnits=left)
        out = {line.product_id: line.quantity - self.returned.get(line.product_id, 0) for line in self.lines}
        for product_id, quantity in refund.lines:
            out[product_id] = out.get(product_id, 0) - quantity
            if out[product_id] < 0:
                raise ReturnTooLarge(productId=product_id, quantity=out[product_id] + quantity)

    def returned_after(self, refund: Refund) -> Mapping[uuid.UUID, int]:
        """The units that have come back, by product, once those of `refund` have too."""
        if refund.restock:
            return {line.product_id: line.quantity for line in self.lines}
        return Counter(self.returned) + Counter(dict(refund.lines))

    def state_after_refund(self, refunded_minor: int) -> State:
        """The state once `refunded_minor` has been refunded in total."""
        return State.REFUNDED if refunded_minor >= self.total.minor else State.PARTIALLY_REFUNDED
