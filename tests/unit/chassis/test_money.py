"""Amounts that a provider can charge."""

import pytest

from services.chassis.errors import InvalidFields
from services.chassis.money import CURRENCIES, Money, check_chargeable


@pytest.mark.parametrize(
    ("currency", "minor"), [("USD", 1), ("JPY", 999), ("KWD", 12340), ("TND", 0), ("ISK", 500), ("HUF", 101)]
)
def test_amount_that_can_be_charged_passes(currency: str, minor: int) -> None:
    check_chargeable(Money(currency, minor), "price")


@pytest.mark.parametrize(
    ("currency", "minor", "field"),
    [
        ("ZZZ", 100, "price.currencyCode"), ("XAU", 100, "price.currencyCode"), ("usd", 100, "price.currencyCode"),
        ("KWD", 12345, "price.minorUnits"), ("BHD", 1, "price.minorUnits"), ("UGX", 150, "price.minorUnits"),
    ],
)  # fmt: skip
def test_amount_that_no_provider_charges_is_refused(currency: str, minor: int, field: str) -> None:
    with pytest.raises(InvalidFields) as caught:
        check_chargeable(Money(currency, minor), "price")
    assert list(caught.value.violations) == [field]


def test_currencies_are_codes_that_stand_once() -> None:
    assert len(CURRENCIES) > 130
    assert all(len(code) == 3 and code.isupper() for code in CURRENCIES)
