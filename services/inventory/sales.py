"""Schedules, changes, closes and reads flash sales, for staff and shoppers. Each function is one transaction."""

import uuid
from collections.abc import Sequence
from dataclasses import replace
from datetime import timedelta
from typing import Any

from services.chassis import ids
from services.chassis.data import idempotency
from services.chassis.data.db import Database, etag
from services.chassis.errors import InvalidFields, WrongState, check_etag
from services.chassis.money import check_currency
from services.chassis.request_context import RequestKey
from services.inventory import domain
from services.inventory.domain import FlashSale, NewSale, SaleChanges, SaleState
from services.inventory.sql import sales as sql
from services.inventory.sql import stock

CLOSE_MOST = 100


async def create_sale(db: Database, new: NewSale, *, key: RequestKey | None) -> FlashSale:
    """Schedule a flash sale and take its allocation out of available stock."""
    sale_id = ids.new()
    async with db.begin() as tx:
        if first := await idempotency.find_repeat(tx, key, sale_id):
            return await sql.find_sale(tx, first)
        # The lock on the stock also keeps a product's sales apart.
        await stock.find_stock(tx, new.product_id, lock=True)
        now = await sql.now(tx)
        start_time = max(new.start_time or now, now)
        end_time = max(new.end_time, start_time + timedelta(seconds=1))
        await sql.check_overlap(tx, new.product_id, sale_id, start_time, end_time)
        await stock.allocate(tx, new.product_id, sale_id, new.allocation)
        await sql.insert_sale(tx, sale_id, replace(new, start_time=start_time, end_time=end_time))
        return await sql.find_sale(tx, sale_id)


async def update_sale(
    db: Database, sale_id: uuid.UUID, changes: SaleChanges, *, etag_given: str, key: RequestKey | None
) -> FlashSale:
    """Change the terms of a sale that is still `SCHEDULED`; see `FlashSaleService.UpdateFlashSale` for the refusals.

    A change that changes nothing makes no new version.
    """
    async with db.begin() as tx:
        repeat = await idempotency.find_repeat(tx, key, sale_id)
        sale = await sql.find_sale(tx, sale_id, lock=True)
        if repeat:
            return sale
        check_etag(etag_given, etag(sale.version))
        if sale.state is not SaleState.SCHEDULED:
            raise WrongState(resource="flash sale", state=sale.state, wanted="CHANGED")
        new = _new_terms(sale, changes)
        if not new:
            return sale
        if not new.keys().isdisjoint(("allocation", "start_time", "end_time")):
            await stock.find_stock(tx, sale.product_id, lock=True)
            start_time, end_time = new.get("start_time", sale.start_time), new.get("end_time", sale.end_time)
            await sql.check_overlap(tx, sale.product_id, sale_id, start_time, end_time)
            if more := new.get("allocation", sale.allocation) - sale.allocation:
                await stock.allocate(tx, sale.product_id, sale_id, more)
        await sql.change_sale(tx, sale_id, new)
        return await sql.find_sale(tx, sale_id)


def _new_terms(sale: FlashSale, changes: SaleChanges) -> dict[str, Any]:
    """The terms that `changes` sets and `sale` does not have yet."""
    if changes.price:
        check_currency(changes.price, sale.price.currency, "salePrice", whose="the product's price")
    wanted = {
        "title": changes.title,
        "price": changes.price,
        "allocation": changes.allocation,
        "per_customer_limit": changes.per_customer_limit,
        "start_time": changes.start_time and max(changes.start_time, sale.server_time),
        "end_time": changes.end_time,
        "hold_seconds": changes.hold_seconds,
        "abandoned_hold_limit": changes.abandoned_hold_limit,
    }
    new: dict[str, Any] = {term: value for term, value in wanted.items() if value not in (None, getattr(sale, term))}
    if new.get("end_time", sale.end_time) <= new.get("start_time", sale.start_time):
        field, rule = ("endTime", "after the sale opens") if "end_time" in new else ("startTime", "before it closes")
        raise InvalidFields({field: f"must be in the future, and {rule}"})
    return new


async def close_sale(
    db: Database, sale_id: uuid.UUID, end: SaleState, *, etag_given: str, key: RequestKey | None
) -> FlashSale:
    """Make a sale `CANCELLED`, or `ENDED` before its time, and give its unsold units back to stock.

    Raises `FlashSaleNotFound`, `StaleEtag` or `WrongState`.
    """
    async with db.begin() as tx:
        repeat = await idempotency.find_repeat(tx, key, sale_id)
        sale = await sql.find_sale(tx, sale_id, lock=True)
        if repeat:
            return sale
        check_etag(etag_given, etag(sale.version))
        if sale.state not in domain.CLOSABLE[end]:
            raise WrongState(resource="flash sale", state=sale.state, wanted=end)
        await sql.close_sale(tx, sale_id, end)
        return await sql.find_sale(tx, sale_id)


async def close_ended_sales(db: Database) -> int:
    """Give the unsold units of sales whose time is over back to stock. Returns how many sales were closed."""
    async with db.begin() as tx:
        return await sql.close_ended_sales(tx, most=CLOSE_MOST)


async def get_sale(db: Database, sale_id: uuid.UUID) -> FlashSale:
    """Return a sale. Raises `FlashSaleNotFound`."""
    async with db() as tx:
        return await sql.find_sale(tx, sale_id)


async def get_sales(db: Database, sale_ids: Sequence[uuid.UUID]) -> list[FlashSale]:
    """Return the sales that exist, in one statement."""
    async with db() as tx:
        return await sql.find_sales(tx, sale_ids)


async def list_sales(
    db: Database, *, state: SaleState | None, product_id: uuid.UUID | None, before: uuid.UUID | None, limit: int
) -> list[FlashSale]:
    """Return sales newest first, from the one before id `before` on; None stands for no filter."""
    async with db() as tx:
        return await sql.list_sales(tx, state=state, product_id=product_id, before=before, limit=limit)
