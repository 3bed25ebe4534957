"""Money: whole minor units of one currency, which makes arithmetic exact."""

from dataclasses import dataclass

from services.chassis.errors import InvalidFields

MINOR_UNITS_MAX = 99_999_999
"""The largest amount that payment providers accept; also the bound in money.proto."""

_CODES = """
AED AFN ALL AMD ANG AOA ARS AUD AWG AZN BAM BBD BDT BGN BHD BIF BMD BND BOB BRL BSD BWP BYN BZD CAD CDF CHF
CLP CNY COP CRC CVE CZK DJF DKK DOP DZD EGP ETB EUR FJD FKP GBP GEL GIP GMD GNF GTQ GYD HKD HNL HTG HUF IDR
ILS INR ISK JMD JOD JPY KES KGS KHR KMF KRW KWD KYD KZT LAK LBP LKR LRD LSL MAD MDL MGA MKD MMK MNT MOP MUR
MVR MWK MXN MYR MZN NAD NGN NIO NOK NPR NZD OMR PAB PEN PGK PHP PKR PLN PYG QAR RON RSD RUB RWF SAR SBD SCR
SEK SGD SHP SLE SOS SRD STD SZL THB TJS TND TOP TRY TTD TWD TZS UAH UGX USD UYU UZS VND VUV WST XAF XCD XOF XPF
YER ZAR ZMW
"""
CURRENCIES = frozenset(_CODES.split())
"""The currencies that Stripe charges in, as its page "Supported currencies" lists them (docs.stripe.com/currencies)."""
_STEPS = {"BHD": 10, "JOD": 10, "KWD": 10, "OMR": 10, "TND": 10, "ISK": 100, "UGX": 100}
"""Amounts must be multiples of this, by the same page: three-decimal currencies end in 0, and two former two-decimal
ones in 00. All others are 1, those without decimals included."""


@dataclass(frozen=True, slots=True)
class Money:
    """An amount of `currency`, an ISO 4217 code. `minor` counts as Stripe does: cents for USD, yen for JPY."""

    currency: str
    minor: int

    def __add__(self, other: "Money") -> "Money":
        assert self.currency == other.currency, f"{self.currency} + {other.currency}"
        return Money(self.currency, self.minor + other.minor)

    def __mul__(self, count: int) -> "Money":
        return Money(self.currency, self.minor * count)


def check_chargeable(amount: Money, field: str) -> None:
    """Raises `InvalidFields` unless a provider can charge `amount`; `field` is its name in the request."""
    if amount.currency not in CURRENCIES:
        raise InvalidFields({f"{field}.currencyCode": "is not a currency in which the shop can be paid"})
    step = _STEPS.get(amount.currency, 1)
    if amount.minor % step:
        raise InvalidFields({f"{field}.minorUnits": f"must be a multiple of {step} for {amount.currency}"})


def check_currency(amount: Money, currency: str, field: str, *, whose: str) -> None:
    """Raises `InvalidFields` unless `amount` is in `currency`, which is that of `whose`."""
    if amount.currency != currency:
        raise InvalidFields({f"{field}.currencyCode": f"must be {currency}, as {whose}"})
