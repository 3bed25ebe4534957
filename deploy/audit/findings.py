"""The invariants that an audit checks, the checks behind each, and its findings."""

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from enum import StrEnum

KEPT_MOST = 1_000
"""Findings kept for each invariant; further ones are only counted."""


class Invariant(StrEnum):
    """A condition that must hold; the value is the name in reports. Each has several checks."""

    SALES = "sales"
    STOCK = "stock"
    UNITS = "units"
    RESERVATIONS = "holds"
    ORDERS = "orders"
    LOG = "log"
    MONEY = "money"
    REFUNDS = "refunds"
    LIMITS = "limits"
    SAGAS = "sagas"
    EVENTS = "events"
    REFERENCES = "references"
    PRODUCTS = "products"
    ACCOUNTS = "accounts"
    SCHEMA = "schema"
    GATE = "gate"


MEANING = {
    Invariant.SALES: "held and sold of each sale are its reservations less returns, within its allocation",
    Invariant.STOCK: "on hand is the sum of movements; held, sold and restocked are reservations and returns",
    Invariant.UNITS: "on hand + remaining + held + sold = all units ever put in",
    Invariant.RESERVATIONS: "each reservation is well formed, and its hold ends in time",
    Invariant.ORDERS: "each paid order has one confirmed reservation, and each confirmed reservation an order",
    Invariant.LOG: "the order log has every move of each order, and only moves that exist",
    Invariant.MONEY: "captured - refunded = paid orders - refunds, for each payment and in sum",
    Invariant.REFUNDS: "each refund is counted once at payments, at orders and at the provider, and ends in time",
    Invariant.LIMITS: "no customer has more units of a sale than its limit",
    Invariant.SAGAS: "each open order has one saga, and no saga is stuck",
    Invariant.EVENTS: "events are published within seconds, applied within an hour, and none is lost",
    Invariant.REFERENCES: "every id that a row names belongs to a row",
    Invariant.PRODUCTS: "prices of products and sales are possible, in known currencies",
    Invariant.ACCOUNTS: "accounts, sessions and signing keys are well formed",
    Invariant.SCHEMA: "the constraints behind the invariants exist, and each month has its partition",
    Invariant.GATE: "the gate refuses nobody while units are free",
}


@dataclass(frozen=True, slots=True)
class Check:
    """One comparison of an invariant. A check of one database is the statement `query`; others compare rows in Python.

    `query` returns (id, problem) for each row that breaks the condition.
    """

    name: str
    invariant: Invariant
    means: str
    """The condition, as a sentence."""
    repair: str
    """The command that repairs a finding; `{id}` is the first id of the finding."""
    service: str = ""
    query: str = ""
    mend: str = ""
    """The statements of `python -m deploy.audit repair NAME ID`, with `:id`; empty if another command repairs it."""


@dataclass(frozen=True, slots=True)
class Finding:
    """Something that does not add up. The check and the `ids` identify a finding."""

    check: Check
    ids: tuple[str, ...]
    text: str
    warning: bool = False
    """No unit and no money is lost, but an operator should look."""

    @property
    def invariant(self) -> Invariant:
        return self.check.invariant

    @property
    def key(self) -> tuple[str, tuple[str, ...]]:
        return self.check.name, self.ids

    @property
    def repair(self) -> str:
        """The command that repairs it."""
        return self.check.repair.format(id=self.ids[0], check=self.check.name)


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
