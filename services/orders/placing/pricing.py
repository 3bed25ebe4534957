"""The prices and the total of an order that is being placed: pure."""

import uuid
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import fields
from datetime import datetime

from services.chassis.errors import AppError, InvalidFields
from services.chassis.money import MINOR_UNITS_MAX, Money
from services.orders.domain import (
    DraftOrder,
    Line,
    Order,
    Product,
    RequestedLine,
)

_REQUESTED = tuple(field.name for field in fields(DraftOrder))


class ProductNotFound(AppError):
    code = "NOT_FOUND"
    template = "There is no product {productId}."


class ProductNotActive(AppError):
    code = "FAILED_PRECONDITION"
    template = "The product {productId} is not on sale."


class PriceChanged(AppError):
    """The order would not come to the total that the buyer was shown. The metadata is the total that it comes to."""

    code = "FAILED_PRECONDITION"
    template = "The order comes to {minorUnits} minor units of {currencyCode}."


class CurrencyMismatch(AppError):
    code = "FAILED_PRECONDITION"
    template = "One order cannot mix {currencies}."


class OrderTooLarge(AppError):
    code = "FAILED_PRECONDITION"
    template = "The order's total is {minorUnits} minor units; a payment can be at most {most}."


def check_products(lines: Sequence[RequestedLine], products: Mapping[uuid.UUID, Product]) -> None:
    """Raises unless every product exists, is on sale, stands in one line, and has the currency of the others."""
    if len({line.product_id for line in lines}) < len(lines):
        # The contract's rule compares texts, and one id can be written in several ways.
        raise InvalidFields({"lines": "must not name a product twice"})
    for line in lines:
        product = products.get(line.product_id)
        if product is None:
            raise ProductNotFound(productId=line.product_id)
        if not product.active:
            raise ProductNotActive(productId=line.product_id)
    _check_currencies(products[line.product_id].price for line in lines)


def check_expected_total(
    draft: DraftOrder, products: Mapping[uuid.UUID, Product], sale_prices: Mapping[uuid.UUID, Money]
) -> None:
    """Raises `PriceChanged` if the draft is known to come to another total than the buyer was shown.

    `sale_prices` are by product. The price of a flash line that has none there is not known yet.
    """
    if draft.expected_total and all(line.product_id in sale_prices for line in draft.lines if line.sale_id):
        _check_total(draft, _total(_priced(draft, products, sale_prices)))


def _check_total(draft: DraftOrder, total: Money) -> None:
    if draft.expected_total not in (None, total):
        raise PriceChanged(currencyCode=total.currency, minorUnits=total.minor)


def price(
    draft: DraftOrder,
    products: Mapping[uuid.UUID, Product],
    sale_prices: Mapping[uuid.UUID, Money],
    *,
    hold_expire_time: datetime,
) -> Order:
    """The order that a draft becomes once its stock is held.

    Raises `CurrencyMismatch`, also if a sale has another currency than its product; `OrderTooLarge`, `PriceChanged`.

    `sale_prices` are by product, for flash lines.
    """
    lines = _priced(draft, products, sale_prices)
    _check_currencies([*sale_prices.values(), *(products[line.product_id].price for line in lines)])
    total = _total(lines)
    _check_total(draft, total)
    requested = {name: getattr(draft, name) for name in _REQUESTED}
    return Order(**{**requested, "lines": lines, "total": total, "hold_expire_time": hold_expire_time})


def _priced(
    draft: DraftOrder, products: Mapping[uuid.UUID, Product], sale_prices: Mapping[uuid.UUID, Money]
) -> tuple[Line, ...]:
    return tuple(
        Line(
            line.product_id,
            line.quantity,
            line.sale_id,
            products[line.product_id].sku,
            products[line.product_id].name,
            sale_prices.get(line.product_id, products[line.product_id].price),
        )
        for line in draft.lines
    )


def _check_currencies(prices: Iterable[Money]) -> None:
    currencies = sorted({price.currency for price in prices})
    if len(currencies) > 1:
        raise CurrencyMismatch(currencies=" and ".join(currencies))


def _total(lines: Sequence[Line]) -> Money:
    total = Money(lines[0].unit_price.currency, sum(line.unit_price.minor * line.quantity for line in lines))
    if total.minor > MINOR_UNITS_MAX:
        raise OrderTooLarge(minorUnits=total.minor, most=MINOR_UNITS_MAX)
    return total
