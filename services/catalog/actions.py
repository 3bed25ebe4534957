"""Actions of the catalog. Each function is one transaction."""

import uuid
from collections.abc import Awaitable, Callable, Sequence
from typing import Any

from sqlalchemy.ext.asyncio import AsyncSession

from services.catalog import domain
from services.catalog.domain import Changes, Draft, Filter, SlugTaken, Snapshot
from services.catalog.sql import products
from services.catalog.sql.products import Page
from services.catalog.sql.schema import Product
from services.chassis import ids
from services.chassis.data import idempotency
from services.chassis.data.db import Database, etag
from services.chassis.errors import check_etag
from services.chassis.money import check_currency
from services.chassis.request_context import RequestKey


async def create_product(db: Database, draft: Draft, *, key: RequestKey | None) -> Product:
    """Create a product. A repeat of the request returns the product that the first call created.

    Raises `SkuTaken` or `SlugTaken`.
    """
    async with db.begin() as tx:
        product_id = ids.new()
        if first := await idempotency.find_repeat(tx, key, product_id):
            return await products.get_product(tx, first)
        values = {"id": product_id, **_columns(draft)}
        return await _write(tx, values, lambda values: products.insert_product(tx, values))


async def get_product(db: Database, name: uuid.UUID | str) -> Product:
    """Return the product with this id or slug. Raises `ProductNotFound`."""
    async with db.begin() as tx:
        return await products.get_product(tx, name)


async def update_product(
    db: Database, product_id: uuid.UUID, changes: Changes, *, etag_given: str, key: RequestKey | None
) -> Product:
    """Apply `changes` and return the product. Changes without effect make no new version.

    Raises `ProductNotFound`, `StaleEtag`, `SkuTaken`, `SlugTaken`, or `InvalidFields` for a price in another currency:
    a sale and carts may have prices in that of the product.
    """
    async with db.begin() as tx:
        repeat = await idempotency.find_repeat(tx, key, product_id)
        product = await products.get_product(tx, product_id, lock=True)
        if repeat:
            return product
        check_etag(etag_given, etag(product.version))
        if changes.price:
            check_currency(changes.price, product.currency, "price", whose="the product's price so far")
        values = _columns(changes)
        if changes.slug == "":
            values = {"name": product.name, "sku": product.sku, **values}
        return await _write(tx, values, lambda values: products.update_product(tx, product, values))


async def _write(
    tx: AsyncSession, values: dict[str, Any], write: Callable[[dict[str, Any]], Awaitable[Product]]
) -> Product:
    """Write a product. An empty slug is derived, and gets a part of its own if another product has it."""
    if values.get("slug") != "":
        return await write(values)
    name, sku = values["name"], values["sku"]
    try:
        async with tx.begin_nested():
            return await write({**values, "slug": domain.make_slug(name, sku)})
    except SlugTaken:
        return await write({**values, "slug": domain.make_slug(name, sku, distinct=True)})


async def list_products(db: Database, wanted: Filter, *, position: list[str] | None, size: int) -> Page:
    """Return one page of the active products that match, beginning after `position`."""
    async with db.begin() as tx:
        return await products.list_products(tx, wanted, position=position, size=size)


async def get_snapshots(db: Database, product_ids: Sequence[uuid.UUID]) -> list[Snapshot]:
    """Return snapshots of the products that exist."""
    async with db.begin() as tx:
        return await products.list_snapshots(tx, product_ids)


def _columns(source: Draft | Changes) -> dict[str, Any]:
    """Return the column values that `source` sets."""
    fields = ("sku", "slug", "name", "description", "category", "attributes", "active")
    values = {field: value for field in fields if (value := getattr(source, field)) is not None}
    if source.price is not None:
        values |= {"price_minor": source.price.minor, "currency": source.price.currency}
    return values
