"""The invariants of units hold on good rows, and fail on each tampered one."""

from dataclasses import replace

import pytest

from deploy.audit.checks.units import (
    SALE_COUNTERS,
    Account,
    check_limits,
    check_outboxes,
    check_sales,
    check_stock,
    check_units,
)
from deploy.audit.findings import KEPT_MOST, Finding, Findings, Invariant
from deploy.audit.reading.rows import CustomerUnits, Outbox, Pools, Sale, Stock, Units

SALE = Sale(id="sale", product_id="shoe", allocation=60, held=5, sold=20, returned=10)
# 100 put in, 60 allocated to the sale, 10 returned from it, 7 sold from ordinary stock, 3 of these restocked.
LEDGER = {"ADJUSTED": 100, "ALLOCATED": -60, "RETURNED": 10, "SOLD": -7, "RESTOCKED": 3}
STOCK = Stock(product_id="shoe", on_hand=46, held=4, moved=LEDGER)
POOLS = Pools(
    sales={"sale": Units(held=5, confirmed=22, returned=2)}, stock={"shoe": Units(held=4, confirmed=7, returned=3)}
)
CUSTOMER_UNITS = CustomerUnits(sale_id="sale", customer_id="ann", limit=2, counted=2, reserved=2)


def test_good_rows_add_up() -> None:
    assert [*check_sales([SALE], POOLS), *check_stock([STOCK], POOLS), *check_units([STOCK], [SALE])] == []
    assert list(check_limits([CUSTOMER_UNITS])) == []


@pytest.mark.parametrize(
    "tampered",
    [
        replace(SALE, held=6),
        replace(SALE, sold=19),
        replace(SALE, held=-5),
        replace(SALE, allocation=34),
        replace(SALE, returned=40),
    ],
)
def test_a_tampered_sale_is_found(tampered: Sale) -> None:
    (finding,) = check_sales([tampered], POOLS)
    assert (finding.invariant, finding.ids) == (Invariant.SALES, ("sale",))


def test_reservations_of_a_missing_sale_are_found() -> None:
    (finding,) = check_sales([], POOLS)
    assert finding.ids == ("sale",)


@pytest.mark.parametrize(
    "tampered",
    [
        replace(STOCK, on_hand=47),
        replace(STOCK, held=3),
        replace(STOCK, moved=LEDGER | {"SOLD": -8, "ADJUSTED": 101}),
        replace(STOCK, moved=LEDGER | {"RESTOCKED": 2, "ADJUSTED": 101}),
        replace(STOCK, on_hand=3, moved={"ADJUSTED": 10, "SOLD": -7}),
    ],
)
def test_tampered_stock_is_found(tampered: Stock) -> None:
    (finding,) = check_stock([tampered], POOLS)
    assert (finding.invariant, finding.ids) == (Invariant.STOCK, ("shoe",))


def test_reservations_of_a_product_without_stock_are_found() -> None:
    (finding,) = check_stock([], POOLS)
    assert finding.ids == ("shoe",)


@pytest.mark.parametrize(
    ("stock", "sale"),
    [
        (replace(STOCK, on_hand=45), SALE),
        (replace(STOCK, moved=LEDGER | {"ADJUSTED": 101}), SALE),
        (STOCK, replace(SALE, allocation=61)),
        (STOCK, replace(SALE, returned=9)),
    ],
)
def test_a_lost_or_duplicate_unit_is_found(stock: Stock, sale: Sale) -> None:
    (finding,) = check_units([stock], [sale])
    assert (finding.invariant, finding.ids) == (Invariant.UNITS, ("shoe",))
    assert "is not" in finding.text


def test_an_account_shows_where_the_units_are() -> None:
    assert str(Account.of(STOCK, [SALE])) == "46 on hand + 25 in sales + 5 held + 24 sold = 100 put in"


@pytest.mark.parametrize(
    "tampered", [replace(CUSTOMER_UNITS, counted=1), replace(CUSTOMER_UNITS, counted=3, reserved=3)]
)
def test_a_customer_above_the_limit_or_miscounted_is_found(tampered: CustomerUnits) -> None:
    (finding,) = check_limits([tampered])
    assert (finding.invariant, finding.ids, finding.warning) == (Invariant.LIMITS, ("sale", "ann"), False)


def test_a_late_event_is_a_warning_and_a_stuck_one_an_error() -> None:
    (late,) = check_outboxes([Outbox(service="orders", waiting=2, oldest_seconds=11)])
    (stuck,) = check_outboxes([Outbox(service="orders", waiting=2, oldest_seconds=3600)])
    assert (late.warning, stuck.warning) == (True, False)
    assert list(check_outboxes([Outbox(service="orders", waiting=900, oldest_seconds=0.2)])) == []


def test_findings_beyond_the_bound_are_only_counted() -> None:
    findings = Findings()
    findings.add(Finding(SALE_COUNTERS, (str(n),), "") for n in range(KEPT_MOST + 5))
    assert (len(findings.kept), findings.counts[Invariant.SALES]) == (KEPT_MOST, KEPT_MOST + 5)
