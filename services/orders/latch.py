"""What orders remembers for a moment, so that those who come too late cost no second service and no database."""

import time
import uuid
from collections import OrderedDict
from collections.abc import Iterable

_CLOSED_SECONDS = 0.1
_SALES_MOST = 10_000
PLACED_MOST = 200_000


class Latch:
    """Sales that were sold out a tenth of a second ago.

    It may only refuse, and only those who ask for the first time: a repeat of an order that was placed must find it, so
    the latch knows the ids of the latest orders.
    """

    def __init__(self) -> None:
        self._closed: dict[uuid.UUID, float] = {}
        self._placed: OrderedDict[int, None] = OrderedDict()

    def close(self, sale_id: uuid.UUID) -> None:
        """Says that inventory has just found the sale sold out."""
        if len(self._closed) >= _SALES_MOST:
            self._closed.clear()
        self._closed[sale_id] = time.monotonic() + _CLOSED_SECONDS

    def open(self, sale_id: uuid.UUID) -> None:
        """Says that inventory has units of the sale."""
        self._closed.pop(sale_id, None)

    def is_closed(self, sale_id: uuid.UUID) -> bool:
        """Whether the sale was sold out a moment ago. When the moment is over, one caller is let through to ask again;
        the others hear no until it has its answer, or the next moment is over.
        """
        until = self._closed.get(sale_id)
        if until is None:
            return False
        now = time.monotonic()
        if now < until:
            return True
        self._closed[sale_id] = now + _CLOSED_SECONDS
        return False

    def placed(self, order_ids: Iterable[uuid.UUID]) -> None:
        """Says that these orders exist."""
        for order_id in order_ids:
            self._placed[order_id.int] = None
        while len(self._placed) > PLACED_MOST:
            self._placed.popitem(last=False)

    def knows(self, order_id: uuid.UUID) -> bool:
        """Whether the order exists, as far as this process remembers."""
        return order_id.int in self._placed
