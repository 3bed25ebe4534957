"""Prices, lines and the latch: pure rules."""

import uuid

import pytest

from services.chassis.errors import InvalidFields
from services.chassis.money import MINOR_UNITS_MAX, Money
from services.orders import domain, latch
from services.orders.domain import Product, Wish
from services.orders.latch import Latch

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


def test_the_latch_closes_for_a_moment(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 100.0
    monkeypatch.setattr(latch.time, "monotonic", lambda: now)
    latched = Latch()
    assert not latched.is_closed(SALE)
    latched.close(SALE)
    now = 100.09
    assert latched.is_closed(SALE)
    assert not latched.is_closed(TEE)
    now = 100.11
    assert not latched.is_closed(SALE)


def test_the_latch_forgets_the_oldest_orders_beyond_its_bound(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(latch, "PLACED_MOST", 3)
    latched = Latch()
    orders = [uuid.UUID(int=n) for n in range(5)]
    latched.placed(orders)
    assert [latched.knows(order) for order in orders] == [False, False, True, True, True]
