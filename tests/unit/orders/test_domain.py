"""Lines, prices and totals: pure rules."""

import uuid
from collections.abc import Sequence
from dataclasses import replace
from datetime import UTC, datetime

import pytest

from services.chassis.errors import InvalidFields
from services.chassis.money import MINOR_UNITS_MAX, Money
from services.orders import clients, domain
from services.orders.domain import DraftOrder, Order, Product, Refund, RequestedLine, State
from services.orders.placing import pricing

TEE, CAP = uuid.UUID(int=1), uuid.UUID(int=2)
SALE = uuid.UUID(int=9)
HOLD_EXPIRE_TIME = datetime(2026, 1, 1, tzinfo=UTC)


def products(**changes: Money) -> dict[uuid.UUID, Product]:
    tee, cap = changes.get("tee", Money("USD", 999)), changes.get("cap", Money("USD", 500))
    return {TEE: Product(TEE, "TEE", "A tee", tee, True), CAP: Product(CAP, "CAP", "A cap", cap, False)}


def a_draft(lines: Sequence[RequestedLine], expected_total: Money | None = None) -> DraftOrder:
    return DraftOrder(
        id=uuid.UUID(int=3), customer_id=uuid.UUID(int=4), request_id=uuid.UUID(int=5), digest=b"d", lines=tuple(lines),
        shipping_address=None, payment_method="pm_card_visa", call_id="a call", expected_total=expected_total,
    )  # fmt: skip


def placed(
    lines: Sequence[RequestedLine],
    of: dict[uuid.UUID, Product],
    sale_prices: dict[uuid.UUID, Money] | None = None,
    expected_total: Money | None = None,
) -> Order:
    return pricing.price(a_draft(lines, expected_total), of, sale_prices or {}, hold_expire_time=HOLD_EXPIRE_TIME)


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
    with pytest.raises(pricing.CurrencyMismatch):
        placed([RequestedLine(TEE, 1, None), RequestedLine(CAP, 1, None)], products(cap=Money("JPY", 500)))


@pytest.mark.parametrize(("units", "fits"), [(1, True), (2, False)])
def test_total_is_at_most_what_a_provider_takes(units: int, fits: bool) -> None:
    dear = products(tee=Money("USD", MINOR_UNITS_MAX))
    if fits:
        assert placed([RequestedLine(TEE, units, None)], dear).total.minor == MINOR_UNITS_MAX
    else:
        with pytest.raises(pricing.OrderTooLarge):
            placed([RequestedLine(TEE, units, None)], dear)


def test_products_must_exist_be_on_sale_and_stand_in_one_line() -> None:
    pricing.check_products([RequestedLine(TEE, 1, None)], products())
    with pytest.raises(pricing.ProductNotFound):
        pricing.check_products([RequestedLine(SALE, 1, None)], products())
    with pytest.raises(pricing.ProductNotActive):
        pricing.check_products([RequestedLine(CAP, 1, None)], products())
    with pytest.raises(InvalidFields):
        pricing.check_products([RequestedLine(TEE, 1, SALE), RequestedLine(TEE, 1, None)], products())


def test_sale_in_another_currency_than_its_product_sells_nothing() -> None:
    with pytest.raises(pricing.CurrencyMismatch):
        placed([RequestedLine(TEE, 1, SALE)], products(), {TEE: Money("JPY", 999)})


@pytest.mark.parametrize("shown", [Money("USD", 1299), Money("EUR", 1300), Money("USD", 0)])
def test_another_total_than_the_buyer_was_shown_is_refused(shown: Money) -> None:
    lines, sale_prices = [RequestedLine(TEE, 3, SALE), RequestedLine(CAP, 2, None)], {TEE: Money("USD", 100)}
    assert placed(lines, products(), sale_prices, Money("USD", 1300)).total == Money("USD", 1300)
    with pytest.raises(pricing.PriceChanged) as before:
        pricing.check_expected_total(a_draft(lines, shown), products(), sale_prices)
    with pytest.raises(pricing.PriceChanged) as after:
        placed(lines, products(), sale_prices, shown)
    assert before.value.metadata == after.value.metadata == {"currencyCode": "USD", "minorUnits": "1300"}
    pricing.check_expected_total(a_draft(lines, shown), products(), {})  # the sale's price is not known yet


@pytest.mark.parametrize(
    ("amount", "field"), [(Money("EUR", 10), "amount.currencyCode"), (Money("KWD", 15), "amount.minorUnits")]
)
def test_refund_is_an_amount_that_the_provider_can_pay(amount: Money, field: str) -> None:
    order = placed([RequestedLine(TEE, 1, None)], products(tee=Money("KWD", 1000)))
    order.check_refund(a_refund(amount=Money("KWD", 20)))
    with pytest.raises(InvalidFields) as caught:
        order.check_refund(a_refund(amount=amount))
    assert list(caught.value.violations) == [field]


def a_refund(*lines: tuple[uuid.UUID, int], amount: Money | None = None, restock: bool = False) -> Refund:
    return Refund(uuid.UUID(int=7), amount, State.REFUNDED, restock=restock, lines=lines)


def test_units_come_back_once() -> None:
    order = placed([RequestedLine(TEE, 3, None), RequestedLine(CAP, 1, None)], products())
    first = replace(order, returned=order.returned_after(a_refund((TEE, 2))))
    assert first.returned == {TEE: 2}
    for lines, out in [([(TEE, 2)], 1), ([(TEE, 1), (TEE, 1)], 0), ([(CAP, 2)], 1), ([(uuid.UUID(int=8), 1)], 0)]:
        with pytest.raises(domain.ReturnTooLarge) as caught:
            first.check_refund(a_refund(*lines))
        assert caught.value.metadata["quantity"] == str(out)
    first.check_refund(a_refund((TEE, 1), (CAP, 1)))
    assert first.returned_after(a_refund((TEE, 1), (CAP, 1))) == first.returned_after(a_refund(restock=True))
