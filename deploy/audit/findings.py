"""What an audit says."""

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from enum import StrEnum

KEPT_MOST = 1_000
"""Findings kept for each invariant; the rest is only counted."""


class Invariant(StrEnum):
    """What must hold. The value is the name people read."""

    SALES = "sales"
    STOCK = "stock"
    UNITS = "units"
    ORDERS = "orders"
    MONEY = "money"
    LIMITS = "limits"
    SAGAS = "sagas"
    OUTBOX = "outbox"
    KNOWN = "known"


MEANING = {
    Invariant.SALES: "each sale's held and sold are its reservations less returns, within its allocation",
    Invariant.STOCK: "on hand is the sum of the ledger; held, sold and restocked are reservations and returns",
    Invariant.UNITS: "on hand + remaining + held + sold = units ever put in",
    Invariant.ORDERS: "each paid order has its confirmed reservation, and each of these its order",
    Invariant.MONEY: "captured - refunded = paid orders - refunds, payment by payment",
    Invariant.LIMITS: "no customer holds or has bought more than a sale allows",
    Invariant.SAGAS: "no order is stuck",
    Invariant.OUTBOX: "events are on their way",
    Invariant.KNOWN: "orders name products and customers that exist",
}


@dataclass(frozen=True, slots=True)
class Finding:
    """Something that does not add up. `ids` say where, and with the invariant tell one finding from another."""

    invariant: Invariant
    ids: tuple[str, ...]
    text: str
    warning: bool = False
    """Worth a look, but nothing is lost."""

    @property
    def key(self) -> tuple[Invariant, tuple[str, ...]]:
        return self.invariant, self.ids


@dataclass
class Findings:
    """All findings of one pass, in bounded memory."""

    kept: list[Finding] = field(default_factory=list)
    counts: Counter[Invariant] = field(default_factory=Counter)

    def add(self, findings: Iterable[Finding]) -> None:
        """Keeps findings while there is room, and counts all of them."""
        for finding in findings:
            self.counts[finding.invariant] += 1
            if self.counts[finding.invariant] <= KEPT_MOST:
                self.kept.append(finding)
