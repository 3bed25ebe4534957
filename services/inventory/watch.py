"""Live views of flash sales: one look at the database a quarter of a second, however many watch."""

import asyncio
import uuid
from collections import defaultdict
from collections.abc import AsyncIterator
from contextlib import contextmanager
from typing import Any

from services.chassis.db import Database
from services.chassis.errors import RateLimited
from services.inventory import actions
from services.inventory.domain import WATCHERS_MOST

_LOOK_SECONDS = 0.25
_OVER = ("ENDED", "CANCELLED")
_LASTS_SECONDS = 3600.0


class SaleWatch:
    """Tells watchers when a sale changes. A watcher that reads slowly misses what lies between, never the latest."""

    def __init__(self, db: Database) -> None:
        self._db = db
        self._watchers: dict[uuid.UUID, set[asyncio.Queue[Any]]] = defaultdict(set)

    async def watch(self, sale_id: uuid.UUID) -> AsyncIterator[Any]:
        """Yields the sale as it is, then at each change, until it is over; raises `FlashSaleNotFound`."""
        if sum(map(len, self._watchers.values())) >= WATCHERS_MOST:
            raise RateLimited(what="watchers")
        with self._subscribed(sale_id) as news:
            sale = await actions.get_sale(self._db, sale_id)
            yield sale
            async with asyncio.timeout(_LASTS_SECONDS):
                while sale.state not in _OVER:
                    changed = await news.get()
                    if _shown(changed) != _shown(sale):
                        sale = changed
                        yield sale

    @contextmanager
    def _subscribed(self, sale_id: uuid.UUID) -> Any:
        news: asyncio.Queue[Any] = asyncio.Queue(maxsize=1)
        self._watchers[sale_id].add(news)
        try:
            yield news
        finally:
            self._watchers[sale_id].discard(news)
            if not self._watchers[sale_id]:
                del self._watchers[sale_id]

    async def run(self) -> None:
        """Looks at the watched sales and tells their watchers. Runs until cancelled."""
        while True:
            if self._watchers:
                for sale in await actions.get_sales(self._db, list(self._watchers)):
                    for news in self._watchers.get(sale.id, ()):
                        if news.full():
                            news.get_nowait()
                        news.put_nowait(sale)
            await asyncio.sleep(_LOOK_SECONDS)


def _shown(sale: Any) -> tuple[Any, ...]:
    return sale.state, sale.held, sale.sold, sale.remaining, sale.version
