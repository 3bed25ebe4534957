"""The invariants that an audit checks, and its findings."""

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from enum import StrEnum

KEPT_MOST = 1_000
"""Findings kept for each invariant; further ones are only counted."""


class Invariant(StrEnum):
    """A condition that must hold; the value is the name in reports."""

    SALES = "sales"
    STOCK = "stock"
    UNITS = "units"
    ORDERS = "orders"
    MONEY = "money"
    LIMITS = "limits"
    SAGAS = "sagas"
    OUTBOX = "outbox"
    REFERENCES = "references"


MEANING = {
    Invariant.SALES: "held and sold of each sale are its reservations less returns, within its allocation",
    Invariant.STOCK: "on hand is the sum of movements; held, sold and restocked are reservations and returns",
    Invariant.UNITS: "on hand + remaining + held + sold = all units ever put in",
    Invariant.ORDERS: "each paid order has one confirmed reservation, and each confirmed reservation an order",
    Invariant.MONEY: "captured - refunded = paid orders - refunds, for each payment and in sum",
    Invariant.LIMITS: "no customer has more units of a sale than its limit",
    Invariant.SAGAS: "no saga is stuck",
    Invariant.OUTBOX: "events are published within seconds",
    Invariant.REFERENCES: "products and customers of orders exist",
}


@dataclass(frozen=True, slots=True)
class Finding:
    """Something that does not add up. The invariant and the `ids` identify a finding."""

    invariant: Invariant
    ids: tuple[str, ...]
    text: str
    warning: bool = False
    """No unit and no money is lost, but an operator should look."""

    @property
    def key(self) -> tuple[Invariant, tuple[str, ...]]:
        return self.invariant, self.ids


@dataclass
class Findings:
    """The findings of one reading, in bounded memory."""

    kept: list[Finding] = field(default_factory=list)
    counts: Counter[Invariant] = field(default_factory=Counter)

    def add(self, findings: Iterable[Finding]) -> None:
        """Counts all findings, and keeps up to `KEPT_MOST` of each invariant."""
        for finding in findings:
            self.counts[finding.invariant] += 1
            if self.counts[finding.invariant] <= KEPT_MOST:
                self.kept.append(finding)
