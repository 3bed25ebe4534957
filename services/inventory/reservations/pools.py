"""Pools: the sales and ordinary stocks that the lines of several reservations share."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Literal

from sqlalchemy.ext.asyncio import AsyncSession

from services.chassis.events import outbox
from services.inventory.domain import Line, Pool
from services.inventory.events import availability_event
from services.inventory.sql import sales, stock


async def lock(tx: AsyncSession, lines: Iterable[Line]) -> None:
    """Lock all pools of `lines`, in order: for a transaction that then changes them in another order."""
    some = list(lines)
    await sales.lock(tx, {line.sale_id for line in some if line.sale_id})
    await stock.lock(tx, {line.product_id for line in some})


async def lock_mixed(tx: AsyncSession, lines: Sequence[Line]) -> None:
    """Lock all pools of `lines` if they are of sales and of ordinary stock; one statement locks those of one kind."""
    if len({line.sale_id is None for line in lines}) > 1:
        await lock(tx, lines)


async def give_back_to_sales(
    tx: AsyncSession, units: Mapping[Pool, int], *, counted_as: Literal["held", "sold"]
) -> bool:
    """Put the units of flash sales on sale again. Returns whether a sale that had none has units now."""
    available = await sales.give_back(tx, units, counted_as=counted_as)
    await outbox.publish(tx, [availability_event(sale_id, sold_out=False) for sale_id in available])
    return bool(available)
