"""Live views of flash sales."""

import asyncio
import uuid
from collections.abc import AsyncIterator, Sequence
from typing import Any

from services.chassis.data.db import Database
from services.chassis.server.watch import Watch
from services.inventory import sales
from services.inventory.domain import WATCHERS_MOST, FlashSaleNotFound, SaleState

_LOOK_SECONDS = 0.25
_OVER = (SaleState.ENDED, SaleState.CANCELLED)


def sale_watch(db: Database) -> Watch[uuid.UUID, Any]:
    """Looks at all watched sales four times a second. What does not exist is None."""

    async def fetch(sale_ids: Sequence[uuid.UUID]) -> dict[uuid.UUID, Any]:
        found = {sale.id: sale for sale in await sales.get_sales(db, sale_ids)}
        return {sale_id: found.get(sale_id) for sale_id in sale_ids}

    return Watch(fetch, interval_seconds=_LOOK_SECONDS, watchers_max=WATCHERS_MOST, compare=_shown)


async def changes(watch: Watch[uuid.UUID, Any], sale_id: uuid.UUID) -> AsyncIterator[Any]:
    """The sale as it is, then as it is after changes, until it is over; raises `FlashSaleNotFound`."""
    with watch.subscribe(sale_id, at_once=True) as looks:
        async for sale in looks:
            if sale is None:
                raise FlashSaleNotFound(flashSaleId=sale_id)
            yield sale
            if sale.state in _OVER:
                return
            # The first look may follow the first message at once; then, too, it is at most four a second.
            await asyncio.sleep(_LOOK_SECONDS)


def _shown(sale: Any) -> object:
    """What a watcher wants to hear of. Neither the clock nor the countdown: they change with every look."""
    return sale and (sale.state, sale.held, sale.sold, sale.remaining, sale.next_hold_expire_time, sale.version)
