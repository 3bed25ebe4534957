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
    State.PAID: {State.REFUNDED, State.PARTIALLY_REFUNDED},
    State.PARTIALLY_REFUNDED: {State.REFUNDED, State.PARTIALLY_REFUNDED},
    State.SHIPPED: {State.REFUNDED, State.PARTIALLY_REFUNDED},
    State.DELIVERED: {State.REFUNDED, State.PARTIALLY_REFUNDED},
    State.FAILED: set(),
    State.CANCELLED: set(),
    State.EXPIRED: set(),
    State.REFUNDED: set(),
}
"""Which moves exist. Whatever is not here is `WRONG_STATE`."""


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
    version: int
    create_time: datetime
    update_time: datetime


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
