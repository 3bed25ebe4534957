"""What has happened so far: written by the rush, read by the screen and the report."""

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
    """The smallest of the sorted values that `percent` of them do not exceed; 0 where there are none."""
    if not ordered:
        return 0.0
    return ordered[max(math.ceil(len(ordered) * percent / 100) - 1, 0)]


@dataclass(slots=True)
class SaleNow:
    """The sale's numbers, as its watchers see them."""

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
    """From the opening until as many orders were placed as there are units; 0: never."""
    latencies: "array[float]" = field(default_factory=lambda: array("d"))
    order_latencies: "array[float]" = field(default_factory=lambda: array("d"))
    placed: int = 0
    refused: Counter[str] = field(default_factory=Counter)
    paid: Counter[str] = field(default_factory=Counter)
    """Paid orders by customer."""
    ended: Counter[str] = field(default_factory=Counter)
    """Orders that were not paid in the end, by reason."""
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
    def unanswered(self) -> int:
        return self.refused["NO_ANSWER"] + sum(n for reason, n in self.refused.items() if reason.startswith("HTTP_5"))

    @property
    def per_second(self) -> float:
        """How fast the phase goes, on the whole."""
        seconds = time.monotonic() - self.began
        return self.done / seconds if seconds > 0.01 else 0.0

    def recent(self) -> tuple[float, float]:
        """p50 and p99 so far, in milliseconds; counted anew once there are noticeably more values."""
        if len(self.latencies) > self._measured * 1.1:
            ordered = sorted(self.latencies)
            self._recent = percentile(ordered, 50) * 1000, percentile(ordered, 99) * 1000
            self._measured = len(ordered)
        return self._recent
