"""Prices and lines: pure rules."""

import uuid

import pytest

from services.chassis.errors import InvalidFields
from services.chassis.money import MINOR_UNITS_MAX, Money
from services.orders import domain
from services.orders.domain import Product, Wish

TEE, CAP = uuid.UUID(int=1), uuid.UUID(int=2)
SALE = uuid.UUID(int=9)


def products(**changes: Money) -> dict[uuid.UUID, Product]:
    tee, cap = changes.get("tee", Money("USD", 999)), changes.get("cap", Money("USD", 500))
    return {TEE: Product(TEE, "TEE", "A tee", tee, True), CAP: Product(CAP, "CAP", "A cap", cap, False)}


def test_a_flash_line_costs_the_sales_price_and_the_total_is_the_sum() -> None:
    lines, total = domain.priced([Wish(TEE, 3, SALE), Wish(CAP, 2, None)], products(), {TEE: Money("USD", 100)})
    assert [line.unit_price.minor for line in lines] == [100, 500]
    assert total == Money("USD", 1300)


def test_a_free_sale_is_free() -> None:
    _, total = domain.priced([Wish(TEE, 3, SALE)], products(), {TEE: Money("USD", 0)})
    assert total == Money("USD", 0)


def test_currencies_do_not_mix() -> None:
    with pytest.raises(domain.CurrencyMismatch):
        domain.priced([Wish(TEE, 1, None), Wish(CAP, 1, None)], products(cap=Money("JPY", 500)), {})


@pytest.mark.parametrize(("units", "fits"), [(1, True), (2, False)])
def test_the_total_is_at_most_what_a_provider_takes(units: int, fits: bool) -> None:
    dear = products(tee=Money("USD", MINOR_UNITS_MAX))
    if fits:
        assert domain.priced([Wish(TEE, units, None)], dear, {})[1].minor == MINOR_UNITS_MAX
    else:
        with pytest.raises(domain.OrderTooLarge):
            domain.priced([Wish(TEE, units, None)], dear, {})


def test_products_must_be_known_on_sale_and_in_one_line() -> None:
    domain.check_products([Wish(TEE, 1, None)], products())
    with pytest.raises(domain.ProductNotFound):
        domain.check_products([Wish(SALE, 1, None)], products())
    with pytest.raises(domain.ProductNotActive):
        domain.check_products([Wish(CAP, 1, None)], products())
    with pytest.raises(InvalidFields):
        domain.check_products([Wish(TEE, 1, SALE), Wish(TEE, 1, None)], products())
