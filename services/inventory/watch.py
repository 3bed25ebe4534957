"""Live views of flash sales."""

import uuid
from collections.abc import AsyncIterator, Sequence
from typing import Any

from services.chassis.db import Database
from services.chassis.watch import Watch
from services.inventory import actions
from services.inventory.domain import WATCHERS_MOST

_LOOK_SECONDS = 0.25
_OVER = ("ENDED", "CANCELLED")


def sale_watch(db: Database) -> Watch[uuid.UUID, Any]:
    """Looks at all watched sales four times a second."""

    async def fetch(sale_ids: Sequence[uuid.UUID]) -> dict[uuid.UUID, Any]:
        return {sale.id: sale for sale in await actions.get_sales(db, sale_ids)}

    return Watch(fetch, seconds=_LOOK_SECONDS, most=WATCHERS_MOST)


async def changes(watch: Watch[uuid.UUID, Any], db: Database, sale_id: uuid.UUID) -> AsyncIterator[Any]:
    """The sale as it is, then at each change, until it is over; raises `FlashSaleNotFound`."""
    with watch.subscribed(sale_id) as looks:
        sale = await actions.get_sale(db, sale_id)
        yield sale
        if sale.state in _OVER:
            return
        async for latest in looks:
            if _shown(latest) != _shown(sale):
                sale = latest
                yield sale
            if sale.state in _OVER:
                return


def _shown(sale: Any) -> tuple[Any, ...]:
    return sale.state, sale.held, sale.sold, sale.remaining, sale.version
