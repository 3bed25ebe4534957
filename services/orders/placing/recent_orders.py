"""The ids of the latest orders."""

import uuid
from collections import OrderedDict
from collections.abc import Iterable

RECENT_MOST = 200_000


class RecentOrders:
    """Remembers the ids of the latest orders, so that a repeat finds its order although its sale has sold out.

    It is a hint: a repeat of an older order, or of one that another process placed, finds its order at inventory.
    """

    def __init__(self, size_max: int = RECENT_MOST) -> None:
        self._size_max = size_max
        self._ids: OrderedDict[int, None] = OrderedDict()

    def add(self, order_ids: Iterable[uuid.UUID]) -> None:
        """Remembers orders, and forgets the oldest beyond the bound."""
        for order_id in order_ids:
            self._ids[order_id.int] = None
        while len(self._ids) > self._size_max:
            self._ids.popitem(last=False)

    def discard(self, order_id: uuid.UUID) -> None:
        """Forgets an order."""
        self._ids.pop(order_id.int, None)

    def __contains__(self, order_id: uuid.UUID) -> bool:
        return order_id.int in self._ids
