"""The counters of a demo: the rush writes them, the screen and the report read them."""

import math
import time
from array import array
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field

DECLINED = frozenset(
    ("CARD_DECLINED", "INSUFFICIENT_FUNDS", "EXPIRED_CARD", "INCORRECT_CVC", "PROCESSING_ERROR", "DECLINED_BY_BANK")
)


def percentile(ordered: Sequence[float], percent: float) -> float:
    """The smallest of the sorted values that `percent` of them do not exceed; 0 without values."""
    if not ordered:
        return 0.0
    return ordered[max(math.ceil(len(ordered) * percent / 100) - 1, 0)]


@dataclass(slots=True)
class SaleNow:
    """The numbers of the sale, from its event stream."""

    state: str = ""
    remaining: int = 0
    held: int = 0
    sold: int = 0
    messages: int = 0


@dataclass(slots=True)
class Tally:
    """All counters of one demo."""

    phase: str = "starting"
    done: int = 0
    of: int = 0
    unit: str = ""
    sale: SaleNow = field(default_factory=SaleNow)
    began: float = 0.0
    rush_seconds: float = 0.0
    sold_out_seconds: float = 0.0
    """From the opening until as many orders were placed as there are units; 0 if that did not happen."""
    latencies: "array[float]" = field(default_factory=lambda: array("d"))
    order_latencies: "array[float]" = field(default_factory=lambda: array("d"))
    placed: int = 0
    refused: Counter[str] = field(default_factory=Counter)
    paid: Counter[str] = field(default_factory=Counter)
    """Paid orders by customer."""
    ended: Counter[str] = field(default_factory=Counter)
    """Orders that ended without payment, by reason."""
    unanswered: int = 0
    """Attempts that may have bought a unit, because their last answer was missing or a server error."""
    pending: int = 0
    second_chances: int = 0
    second_waves: int = 0
    _recent: tuple[float, float] = (0.0, 0.0)
    _measured: int = 0

    def begin(self, phase: str, of: int = 0, unit: str = "") -> None:
        """Starts a phase with `of` things to do."""
        self.phase, self.done, self.of, self.unit, self.began = phase, 0, of, unit, time.monotonic()
        self._recent, self._measured = (0.0, 0.0), 0

    @property
    def declined(self) -> int:
        return sum(count for reason, count in self.ended.items() if reason in DECLINED)

    @property
    def per_second(self) -> float:
        """The average speed of the phase."""
        seconds = time.monotonic() - self.began
        return self.done / seconds if seconds > 0.01 else 0.0

    def recent(self) -> tuple[float, float]:
        """p50 and p99 so far, in milliseconds; computed again after every tenth more values."""
        if len(self.latencies) > self._measured * 1.1:
            ordered = sorted(self.latencies)
            self._recent = percentile(ordered, 50) * 1000, percentile(ordered, 99) * 1000
            self._measured = len(ordered)
        return self._recent
