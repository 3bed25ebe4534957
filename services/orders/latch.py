"""What orders remembers for a moment, so that those who come too late, or too early, cost no second service and no
database.
"""

import time
import uuid
from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager

from services.chassis.errors import Refused

# With the way to inventory and back, one and a half times at worst, a returned unit must be on sale within 0.2 s.
_CLOSED_SECONDS = 0.05
_SALES_MOST = 10_000
PLACED_MOST = 200_000


class Latch:
    """Sales in which nobody could buy a twentieth of a second ago: sold out, over, or not begun yet.

    It may only refuse, and only those who ask for the first time: a repeat of an order that was placed must find it, so
    the latch knows the ids of the latest orders.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        """`clock` tells seconds."""
        self._clock = clock
        self._closed: dict[uuid.UUID, tuple[float, Refused]] = {}
        self._asking: dict[uuid.UUID, object] = {}
        self._placed: OrderedDict[int, None] = OrderedDict()

    def close(self, sale_id: uuid.UUID, refusal: Refused) -> None:
        """Says with which words inventory has just turned somebody away, as it would everybody."""
        if len(self._closed) >= _SALES_MOST:
            self._closed.clear()
        self._closed[sale_id] = self._clock() + _CLOSED_SECONDS, refusal
        self._asking.pop(sale_id, None)

    def open(self, sale_id: uuid.UUID) -> None:
        """Says that inventory has units of the sale."""
        self._closed.pop(sale_id, None)
        self._asking.pop(sale_id, None)

    def closed(self, sale_ids: Iterable[uuid.UUID]) -> Refused | None:
        """What whoever wants to buy in these sales hears, to be raised `again`; None where they may ask."""
        if not self._closed:
            return None
        now = self._clock()
        for sale_id in sale_ids:
            until, refusal = self._closed.get(sale_id, (now, None))
            if refusal and until > now:
                return refusal
        return None

    @contextmanager
    def asking(self, sale_ids: Sequence[uuid.UUID]) -> Iterator[Refused | None]:
        """Around the question to inventory whether there are units; yields what `closed` says.

        When a sale's moment is over, one caller is let through to ask again; the others hear no until it has its
        answer, or the next moment is over. A caller who ends without one leaves the question to the next at once: else
        those who ask in vain, again and again, would keep units that came back from everybody.
        """
        shut = self.closed(sale_ids)
        me, mine = object(), []
        if shut is None and self._closed:
            mine = [sale_id for sale_id in sale_ids if sale_id in self._closed]
            for sale_id in mine:
                self._closed[sale_id] = self._clock() + _CLOSED_SECONDS, self._closed[sale_id][1]
                self._asking[sale_id] = me
        try:
            yield shut
        finally:
            for sale_id in mine:
                if self._asking.get(sale_id) is me:
                    del self._asking[sale_id]
                    self._closed[sale_id] = self._clock(), self._closed[sale_id][1]

    def placed(self, order_ids: Iterable[uuid.UUID]) -> None:
        """Says that these orders exist."""
        for order_id in order_ids:
            self._placed[order_id.int] = None
        while len(self._placed) > PLACED_MOST:
            self._placed.popitem(last=False)

    def knows(self, order_id: uuid.UUID) -> bool:
        """Whether the order exists, as far as this process remembers."""
        return order_id.int in self._placed
