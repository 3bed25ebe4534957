"""Money: whole minor units of one currency, which makes arithmetic exact."""

from dataclasses import dataclass

MINOR_UNITS_MAX = 99_999_999
"""The largest amount that payment providers accept; also the bound in money.proto."""


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
