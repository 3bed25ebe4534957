"""Live views of flash sales."""

import asyncio
import uuid
from collections.abc import AsyncIterator, Sequence

from services.chassis.data.db import Database
from services.chassis.server.watch import Watch
from services.inventory import sales
from services.inventory.domain import WATCHERS_MOST, FlashSale, FlashSaleNotFound, SaleState

SaleWatch = Watch[uuid.UUID, FlashSale | None]
_FETCH_SECONDS = 0.25
_OVER = (SaleState.ENDED, SaleState.CANCELLED)


def sale_watch(db: Database, *, watchers_per_address: int = 0) -> SaleWatch:
    """Read all watched sales four times a second. A sale that does not exist is None."""

    async def fetch(sale_ids: Sequence[uuid.UUID]) -> dict[uuid.UUID, FlashSale | None]:
        found = {sale.id: sale for sale in await sales.get_sales(db, sale_ids)}
        return {sale_id: found.get(sale_id) for sale_id in sale_ids}

    return Watch(
        fetch,
        interval_seconds=_FETCH_SECONDS,
        watchers_max=WATCHERS_MOST,
        watchers_each_max=watchers_per_address,
        compare=_shown,
    )


async def changes(watch: SaleWatch, sale_id: uuid.UUID) -> AsyncIterator[FlashSale]:
    """Yield the sale, then again after each change, until it is over. Raises `FlashSaleNotFound`."""
    with watch.subscribe(sale_id, at_once=True) as values:
        async for sale in values:
            if sale is None:
                raise FlashSaleNotFound(flashSaleId=sale_id)
            yield sale
            if sale.state in _OVER:
                return
            # The next fetch can follow the first message at once; with this pause, messages are at most four a second.
            await asyncio.sleep(_FETCH_SECONDS)


def _shown(sale: FlashSale | None) -> object:
    """The fields whose change is worth a message: neither the clock nor the countdowns, which change in every fetch."""
    return sale and (sale.state, sale.held, sale.sold, sale.remaining, sale.next_hold_expire_time, sale.version)
