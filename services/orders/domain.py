"""The rules of an order. Knows nothing of databases, gRPC or the clock."""

import uuid
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum

from services.chassis.errors import AppError, InvalidFields, WrongState
from services.chassis.money import MINOR_UNITS_MAX, Money

HOLD_SECONDS = 600
WATCHERS_MOST = 5_000


class OrderNotFound(AppError):
    code = "NOT_FOUND"
    template = "There is no order {orderId}."


class ProductNotFound(AppError):
    code = "NOT_FOUND"
    template = "There is no product {productId}."


class ProductNotActive(AppError):
    code = "FAILED_PRECONDITION"
    template = "The product {productId} is not on sale."


class CurrencyMismatch(AppError):
    code = "FAILED_PRECONDITION"
    template = "One order cannot mix {currencies}."


class OrderTooLarge(AppError):
    code = "FAILED_PRECONDITION"
    template = "The order comes to {minorUnits} minor units; a payment can be {most} at most."


class RefundInProgress(AppError):
    code = "FAILED_PRECONDITION"
    template = "Money of the order {orderId} is on its way back; try again when that is settled."


class RefundTooLarge(AppError):
    code = "FAILED_PRECONDITION"
    template = "Only {leftMinorUnits} minor units of the order are left to refund."


class ReturnTooLarge(AppError):
    code = "FAILED_PRECONDITION"
    template = "The order has {quantity} units of the product {productId}."


class SagaNotFound(AppError):
    code = "NOT_FOUND"
    template = "Nothing is under way for the order {orderId}."


class HoldEnded(AppError):
    code = "FAILED_PRECONDITION"
    template = "What request {requestId} held was given back; order again under a new request id."


class State(StrEnum):
    """Where an order stands; see `Order.State` in the contract."""

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
    # What was not paid back is still sent, and arrives: `Order.check_move` looks whether it has been.
    State.PARTIALLY_REFUNDED: {State.SHIPPED, State.DELIVERED, State.REFUNDED, State.PARTIALLY_REFUNDED},
    State.SHIPPED: {State.DELIVERED, State.REFUNDED, State.PARTIALLY_REFUNDED},
    State.DELIVERED: {State.REFUNDED, State.PARTIALLY_REFUNDED},
    State.FAILED: set(),
    State.CANCELLED: set(),
    State.EXPIRED: set(),
    State.REFUNDED: set(),
}
"""Which moves exist. Whatever is not here is `WRONG_STATE`."""


REFUNDABLE = tuple(state for state in State if State.PARTIALLY_REFUNDED in NEXT[state])
"""The states of orders that were paid, and not paid back in full."""


def move(state: State, wanted: State) -> State:
    """Returns `wanted` where the table allows it. The only way a state changes."""
    if wanted not in NEXT[state]:
        raise WrongState(resource="order", state=state, wanted=wanted)
    return wanted


class PaymentState(StrEnum):
    """Where an order's payment stands, as orders knows it."""

    AWAITING_CUSTOMER = "AWAITING_CUSTOMER"
    PROCESSING = "PROCESSING"
    SUCCEEDED = "SUCCEEDED"
    FAILED = "FAILED"
    CANCELLED = "CANCELLED"
    REFUNDED = "REFUNDED"


@dataclass(frozen=True, slots=True)
class Payment:
    """What orders remembers of a payment."""

    id: uuid.UUID
    provider: str
    state: PaymentState
    client_secret: str = ""
    failure_reason: str = ""
    authenticating: bool = False
    """The customer has begun to pay, and answers to their bank."""

    @property
    def in_progress(self) -> bool:
        """Whether money may move at any moment, by what is known."""
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
class Wish:
    """One line as a customer asks for it."""

    product_id: uuid.UUID
    quantity: int
    sale_id: uuid.UUID | None

    @property
    def pool(self) -> uuid.UUID:
        """Of what its units are taken: the flash sale, or the product for ordinary stock."""
        return self.sale_id or self.product_id


@dataclass(frozen=True, slots=True)
class Line:
    """One line as the order keeps it: with the price of the moment it was placed."""

    product_id: uuid.UUID
    sku: str
    name: str
    unit_price: Money
    quantity: int
    sale_id: uuid.UUID | None


@dataclass(frozen=True, slots=True)
class Address:
    """Where an order is sent."""

    name: str
    line1: str
    line2: str
    city: str
    region: str
    postal_code: str
    country_code: str


@dataclass(frozen=True, slots=True)
class Shipment:
    """How an order is sent, once it is."""

    carrier: str
    tracking_number: str
    ship_time: datetime
    deliver_time: datetime | None = None


@dataclass(frozen=True, slots=True)
class Refund:
    """Money of a paid order that goes back, and units that come back."""

    id: uuid.UUID
    """Names it to payments and to inventory, so that a repeat changes nothing."""
    amount: Money | None
    """None for all that is left."""
    wanted: State
    """`CANCELLED`, or `REFUNDED` for a refund in full or in part."""
    restock: bool = False
    """Whether all units come back that have not yet."""
    lines: tuple[tuple[uuid.UUID, int], ...] = ()
    """Or which: products and how many units."""


@dataclass(frozen=True, slots=True)
class Mover:
    """Who moves an order, for its log."""

    actor: str
    """`customer`, `staff:<user>`, `operator:<name>`, or the part of Stampede that does it."""
    request_id: str = ""
    note: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class LogEntry:
    """One move of an order, or something that was tried on it."""

    id: int
    version: int
    state: State
    state_reason: str
    actor: str
    """As in `Mover`."""
    cause: str
    note: str
    request_id: str
    refunded: Money
    create_time: datetime


@dataclass(frozen=True, slots=True, kw_only=True)
class Order:
    """A customer's purchase."""

    id: uuid.UUID
    customer_id: uuid.UUID
    request_id: uuid.UUID
    digest: bytes
    """Over what the request asked for, to tell a repeat from another order under the same request id."""
    state: State
    state_reason: str
    lines: tuple[Line, ...]
    total: Money
    hold_expire_time: datetime
    payment: Payment | None
    shipping_address: Address | None
    refunded_minor: int = 0
    refunding: bool = False
    """Money is on its way back."""
    shipment: Shipment | None = None
    version: int
    create_time: datetime
    update_time: datetime

    @property
    def settled(self) -> bool:
        """Whether nothing is under way for it."""
        return self.state is not State.PENDING and not self.refunding

    def check_move(self, wanted: State) -> None:
        """Raises unless the order may become `wanted` now: `WrongState`, `RefundInProgress`."""
        move(self.state, wanted)
        if self.refunding:
            raise RefundInProgress(orderId=self.id)
        sent = self.shipment is not None
        arrived = self.shipment is not None and self.shipment.deliver_time is not None
        if (wanted is State.SHIPPED and sent) or (wanted is State.DELIVERED and (not sent or arrived)):
            raise WrongState(resource="order", state=self.state, wanted=wanted)

    def check_refund(self, refund: Refund) -> None:
        """Raises unless so much was paid, and so much bought."""
        left = self.total.minor - self.refunded_minor
        if refund.amount is not None:
            if refund.amount.currency != self.total.currency:
                raise InvalidFields({"amount.currencyCode": f"must be {self.total.currency}, the order's"})
            if refund.amount.minor > left:
                raise RefundTooLarge(leftMinorUnits=left)
        bought = {line.product_id: line.quantity for line in self.lines}
        for product_id, quantity in refund.lines:
            if quantity > bought.get(product_id, 0):
                raise ReturnTooLarge(productId=product_id, quantity=bought.get(product_id, 0))

    def state_after_refund(self, refunded_minor: int) -> State:
        """The state once `refunded_minor` of what was paid has gone back in all."""
        return State.REFUNDED if refunded_minor >= self.total.minor else State.PARTIALLY_REFUNDED


def check_products(wishes: Sequence[Wish], products: dict[uuid.UUID, Product]) -> None:
    """Raises unless every product is known and on sale, and stands in one line."""
    if len({wish.product_id for wish in wishes}) < len(wishes):
        # The contract's rule compares texts, and one id can be written in several ways.
        raise InvalidFields({"lines": "must not name a product twice"})
    for wish in wishes:
        product = products.get(wish.product_id)
        if product is None:
            raise ProductNotFound(productId=wish.product_id)
        if not product.active:
            raise ProductNotActive(productId=wish.product_id)


def priced(
    wishes: Sequence[Wish], products: dict[uuid.UUID, Product], sale_prices: dict[uuid.UUID, Money]
) -> tuple[tuple[Line, ...], Money]:
    """The lines of an order with their prices, and its total. `sale_prices` are by product, for flash lines."""
    lines = tuple(
        Line(
            wish.product_id,
            products[wish.product_id].sku,
            products[wish.product_id].name,
            sale_prices.get(wish.product_id, products[wish.product_id].price),
            wish.quantity,
            wish.sale_id,
        )
        for wish in wishes
    )
    currencies = sorted({line.unit_price.currency for line in lines})
    if len(currencies) > 1:
        raise CurrencyMismatch(currencies=" and ".join(currencies))
    total = Money(currencies[0], sum(line.unit_price.minor * line.quantity for line in lines))
    if total.minor > MINOR_UNITS_MAX:
        raise OrderTooLarge(minorUnits=total.minor, most=MINOR_UNITS_MAX)
    return lines, total
