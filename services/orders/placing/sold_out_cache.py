"""The flash sales in which nobody can buy just now, so that losers cost no second service and no database.

    refusal received                       ->  closed: every request is refused with the same words
    event `sold_out`                       ->  closed half a second later, for repeats that are on their way
    event `available`, or units were held  ->  open: every request asks inventory
    the entry is too old                   ->  one request asks inventory, the others are still refused

Inventory publishes both events, and broadcast delivers them in a few hundredths of a second. An entry is therefore kept
for a second while events arrive, and for a twentieth of a second while they may not.
"""

import asyncio
import time
import uuid
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

from services.chassis.errors import Refused
from stampede.inventory.v1.events_pb2 import SaleAvailabilityChanged

# With a call of inventory that takes one and a half times as long at worst, a returned unit is on sale within 0.2 s.
_SHORT_SECONDS = 0.05
_LIVE_SECONDS = 1.0
# Inventory's gate may be a second behind its database. Its refusals right after the event `available` may be wrong.
_GATE_SECONDS = 1.5
# Until then, a repeat that was sent to two processes at once still finds its hold at inventory.
_REPEATS_SECONDS = 0.5
_SALES_MOST = 10_000


@dataclass(slots=True)
class _Entry:
    """A sale that is closed."""

    refusal: Refused
    since: float
    until: float
    asked_by: object = None
    """The request that asks inventory again, if one does."""


class SoldOutCache:
    """Refuses requests for flash sales that are sold out, over, or not begun yet. It never grants anything.

    Implements `broadcast.Listener`.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        """`clock` returns seconds."""
        self.watched = asyncio.Event()
        self.watched.set()  # events are wanted at all times
        self._clock, self._live = clock, False
        self._closed: dict[uuid.UUID, _Entry] = {}
        self._events: dict[uuid.UUID, int] = {}
        """How many events of a sale were received. An answer to a request sent before the last one is out of date."""
        self._available: dict[uuid.UUID, float] = {}
        """When the last event `available` of a sale was received."""

    @property
    def live(self) -> bool:
        """Whether events arrive."""
        return self._live

    @live.setter
    def live(self, live: bool) -> None:
        """Shortens all entries, because an event that would have opened one may have been missed."""
        self._live = live
        latest = self._clock() + _SHORT_SECONDS
        for entry in self._closed.values():
            entry.until = min(entry.until, latest)

    def receive(self, payload: bytes) -> None:
        """Acts on the event that a sale sold out, or has units again."""
        event = SaleAvailabilityChanged.FromString(payload)
        sale_id = uuid.UUID(event.sale_id)
        if len(self._events) >= _SALES_MOST:
            self._events.clear()
            self._available.clear()
        self._events[sale_id] = self._events.get(sale_id, 0) + 1
        if event.sold_out:
            self._available.pop(sale_id, None)
            if not self.refusal([sale_id]):
                self._close(sale_id, _sold_out(sale_id), after_seconds=_REPEATS_SECONDS)
        else:
            self._available[sale_id] = self._clock()
            self._closed.pop(sale_id, None)

    def refusal(self, sale_ids: Iterable[uuid.UUID]) -> Refused | None:
        """The refusal of a request for these sales; None if it may ask inventory."""
        if not self._closed:
            return None
        now = self._clock()
        for sale_id in sale_ids:
            entry = self._closed.get(sale_id)
            if entry and entry.since <= now < entry.until:
                return entry.refusal.copy()
        return None

    @contextmanager
    def asking(self, sale_ids: Sequence[uuid.UUID]) -> Iterator[None]:
        """Around the call that asks inventory for units; notes its outcome. Raises the refusal of a closed sale.

        If an entry is too old, one request asks; others are refused until it has its answer, or for `_SHORT_SECONDS`.
        A request that ends without an answer about the sale leaves the question to the next at once. Otherwise invalid
        requests, sent again and again, would keep returned units from everybody.
        """
        if refusal := self.refusal(sale_ids):
            raise refusal
        request, asked, events = object(), [], {sale_id: self._events.get(sale_id, 0) for sale_id in sale_ids}
        for sale_id in sale_ids:
            entry = self._closed.get(sale_id)
            if entry and entry.since <= self._clock():
                entry.until, entry.asked_by = self._clock() + _SHORT_SECONDS, request
                asked.append(entry)
        try:
            yield
        except Refused as refused:
            self._note_refusal(refused, events)
            raise
        else:
            for sale_id in sale_ids:
                self._open(sale_id, events)
        finally:
            for entry in asked:
                if entry.asked_by is request:
                    entry.until, entry.asked_by = self._clock(), None

    def _note_refusal(self, refused: Refused, events: dict[uuid.UUID, int]) -> None:
        if "flashSaleId" not in refused.metadata:
            return
        sale_id = uuid.UUID(refused.metadata["flashSaleId"])
        # Closed only by a refusal that everybody would receive: not by that of a request for too many units, or of a
        # customer over the limit. Those show that there are units.
        if refused.reason == "SALE_NOT_LIVE" or (refused.reason == "SOLD_OUT" and refused.metadata["remaining"] == "0"):
            if self._events.get(sale_id, 0) == events.get(sale_id):
                self._close(sale_id, refused)
        elif refused.reason in ("SOLD_OUT", "CUSTOMER_LIMIT"):
            self._open(sale_id, events)

    def _close(self, sale_id: uuid.UUID, refusal: Refused, *, after_seconds: float = 0.0) -> None:
        if len(self._closed) >= _SALES_MOST:
            self._closed.clear()
        since = self._clock() + after_seconds
        in_doubt = since - self._available.get(sale_id, float("-inf")) < _GATE_SECONDS
        # No event announces that a sale begins.
        lasting = self._live and refusal.reason == "SOLD_OUT" and not in_doubt
        self._closed[sale_id] = _Entry(refusal, since, since + (_LIVE_SECONDS if lasting else _SHORT_SECONDS))

    def _open(self, sale_id: uuid.UUID, events: dict[uuid.UUID, int]) -> None:
        if self._events.get(sale_id, 0) == events.get(sale_id):
            self._closed.pop(sale_id, None)


def _sold_out(sale_id: uuid.UUID) -> Refused:
    """Inventory's refusal, in its words."""
    metadata = {"flashSaleId": str(sale_id), "remaining": "0"}
    return Refused(
        code="FAILED_PRECONDITION", reason="SOLD_OUT", domain="inventory.stampede", metadata=metadata,
        message=f"The flash sale {sale_id} has 0 units left.",
    )  # fmt: skip
