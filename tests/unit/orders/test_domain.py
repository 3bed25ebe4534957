"""Lines, prices and totals: pure rules."""

import uuid
from collections.abc import Sequence
from dataclasses import replace
from datetime import UTC, datetime

import pytest

from services.chassis.errors import InvalidFields
from services.chassis.money import MINOR_UNITS_MAX, Money
from services.orders import clients, domain
from services.orders.domain import DraftOrder, Order, Product, RequestedLine

TEE, CAP = uuid.UUID(int=1), uuid.UUID(int=2)
SALE = uuid.UUID(int=9)
HOLD_EXPIRE_TIME = datetime(2026, 1, 1, tzinfo=UTC)


def products(**changes: Money) -> dict[uuid.UUID, Product]:
    tee, cap = changes.get("tee", Money("USD", 999)), changes.get("cap", Money("USD", 500))
    return {TEE: Product(TEE, "TEE", "A tee", tee, True), CAP: Product(CAP, "CAP", "A cap", cap, False)}


def placed(
    lines: Sequence[RequestedLine], of: dict[uuid.UUID, Product], sale_prices: dict[uuid.UUID, Money] | None = None
) -> Order:
    draft = DraftOrder(
        id=uuid.UUID(int=3), customer_id=uuid.UUID(int=4), request_id=uuid.UUID(int=5), digest=b"d", lines=tuple(lines),
        shipping_address=None, payment_method="pm_card_visa", call_id="a call",
    )  # fmt: skip
    return domain.place(draft, of, sale_prices or {}, hold_expire_time=HOLD_EXPIRE_TIME)


def test_flash_lines_have_the_sale_price_and_the_total_is_the_sum() -> None:
    lines = [RequestedLine(TEE, 3, SALE), RequestedLine(CAP, 2, None)]
    order = placed(lines, products(), {TEE: Money("USD", 100)})
    assert [line.unit_price.minor for line in order.lines] == [100, 500]
    assert order.total == Money("USD", 1300)


def test_order_keeps_all_that_its_draft_asked_for() -> None:
    order = placed([RequestedLine(TEE, 3, SALE)], products())
    assert (order.id.int, order.customer_id.int, order.request_id.int, order.digest) == (3, 4, 5, b"d")
    assert (order.payment_method, order.call_id, order.hold_expire_time) == ("pm_card_visa", "a call", HOLD_EXPIRE_TIME)
    assert [(line.product_id, line.quantity, line.sale_id, line.sku) for line in order.lines] == [(TEE, 3, SALE, "TEE")]
    assert order.pools == (SALE,)


@pytest.mark.parametrize(
    ("sales", "method", "seconds"),
    [
        ([None], "", 300), ([None], "pm_card_visa", 3600), ([SALE], "", 3600), ([SALE, None], "", 300),
        ([SALE, None], "pm_card_visa", 3600),
    ],
)  # fmt: skip
def test_stock_without_a_payment_method_is_held_shorter(
    sales: list[uuid.UUID | None], method: str, seconds: int
) -> None:
    """A sale has its own time for its units."""
    lines = [RequestedLine(TEE, 1, sale) for sale in sales]
    draft = replace(placed(lines, products()), payment_method=method)
    assert clients.hold_seconds(draft, 300) == seconds


def test_free_sale_is_free() -> None:
    assert placed([RequestedLine(TEE, 3, SALE)], products(), {TEE: Money("USD", 0)}).total == Money("USD", 0)


def test_currencies_do_not_mix() -> None:
    with pytest.raises(domain.CurrencyMismatch):
        placed([RequestedLine(TEE, 1, None), RequestedLine(CAP, 1, None)], products(cap=Money("JPY", 500)))


@pytest.mark.parametrize(("units", "fits"), [(1, True), (2, False)])
def test_total_is_at_most_what_a_provider_takes(units: int, fits: bool) -> None:
    dear = products(tee=Money("USD", MINOR_UNITS_MAX))
    if fits:
        assert placed([RequestedLine(TEE, units, None)], dear).total.minor == MINOR_UNITS_MAX
    else:
        with pytest.raises(domain.OrderTooLarge):
            placed([RequestedLine(TEE, units, None)], dear)


def test_products_must_exist_be_on_sale_and_stand_in_one_line() -> None:
    domain.check_products([RequestedLine(TEE, 1, None)], products())
    with pytest.raises(domain.ProductNotFound):
        domain.check_products([RequestedLine(SALE, 1, None)], products())
    with pytest.raises(domain.ProductNotActive):
        domain.check_products([RequestedLine(CAP, 1, None)], products())
    with pytest.raises(InvalidFields):
        domain.check_products([RequestedLine(TEE, 1, SALE), RequestedLine(TEE, 1, None)], products())
