"""What the catalog can do; each function is one transaction."""

import uuid
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from sqlalchemy import ColumnElement, func, literal, select, tuple_, update
from sqlalchemy.dialects.postgresql import TSVECTOR, insert
from sqlalchemy.exc import IntegrityError
from sqlalchemy.ext.asyncio import AsyncSession

from services.catalog import domain
from services.catalog.domain import Changes, Draft, Filter, ProductNotFound, SkuTaken, SlugTaken
from services.catalog.tables import SKU_KEY, SLUG_KEY, Product
from services.chassis import ids
from services.chassis.data import idempotency
from services.chassis.data.db import Database, etag, violated
from services.chassis.errors import AppError, check_etag
from services.chassis.money import Money
from services.chassis.request_context import RequestKey


async def create_product(db: Database, draft: Draft, *, key: RequestKey | None) -> Product:
    """The new product; for a repeat, the one made the first time. Raises `SkuTaken` or `SlugTaken`."""
    slug = draft.slug or domain.slug_of(draft.name, draft.sku)
    try:
        async with db.begin() as tx:
            product_id = ids.new()
            if first := await idempotency.repeated(tx, key, product_id):
                return await tx.get_one(Product, first)
            return (
                await tx.scalars(
                    insert(Product)
                    .values(
                        id=product_id, sku=draft.sku, slug=slug, name=draft.name, description=draft.description,
                        category=draft.category, price_minor=draft.price.minor, currency=draft.price.currency,
                        attributes=dict(draft.attributes), active=draft.active,
                    )
                    .returning(Product)
                )
            ).one()  # fmt: skip
    except IntegrityError as error:
        raise _taken(error, sku=draft.sku, slug=slug) from error


async def get_product(db: Database, product_id: uuid.UUID) -> Product:
    """Raises `ProductNotFound`."""
    async with db.begin() as tx:
        product = await tx.scalar(select(Product).where(Product.id == product_id, Product.deleted_time.is_(None)))
    if product is None:
        raise ProductNotFound(product=product_id)
    return product


async def get_product_by_slug(db: Database, slug: str) -> Product:
    """Raises `ProductNotFound`."""
    async with db.begin() as tx:
        product = await tx.scalar(select(Product).where(Product.slug == slug, Product.deleted_time.is_(None)))
    if product is None:
        raise ProductNotFound(product=slug)
    return product


async def update_product(
    db: Database, product_id: uuid.UUID, changes: Changes, *, etag_given: str, key: RequestKey | None
) -> Product:
    """The product as it is then. What changes nothing makes no new version.

    Raises `ProductNotFound`, `StaleEtag`, `SkuTaken` or `SlugTaken`.
    """
    values: dict[str, Any] = {}
    try:
        async with db.begin() as tx:
            repeat = await idempotency.repeated(tx, key, product_id)
            product = await _locked(tx, product_id)
            if repeat:
                return product
            check_etag(etag_given, etag(product.version))
            values = _values(product, changes)
            return await _changed(tx, product, values)
    except IntegrityError as error:
        raise _taken(error, sku=values.get("sku"), slug=values.get("slug")) from error


async def set_active(
    db: Database, product_id: uuid.UUID, active: bool, *, etag_given: str, key: RequestKey | None
) -> Product:
    """Puts a product on sale or takes it off. Raises `ProductNotFound` or `StaleEtag`."""
    async with db.begin() as tx:
        repeat = await idempotency.repeated(tx, key, product_id)
        product = await _locked(tx, product_id)
        if repeat:
            return product
        check_etag(etag_given, etag(product.version))
        return await _changed(tx, product, {"active": active})


@dataclass(frozen=True, slots=True)
class Page:
    """Some of the products that match; `next_position` is where the others start, if there are any."""

    products: Sequence[Product]
    next_position: list[str] | None
    total: int


async def list_products(db: Database, wanted: Filter, *, position: list[str] | None, size: int) -> Page:
    """Active products after `position`, the last row of the page before."""
    matching = _conditions(wanted)
    counted = select(literal(1)).select_from(Product).where(*matching).limit(domain.COUNTED_MAX).subquery()
    order = _ORDERS[wanted.order_by]
    rows = select(Product, order.key).where(*matching).limit(size + 1)
    here = tuple_(order.key, Product.id)
    if order.descending:
        rows = rows.order_by(order.key.desc(), Product.id.desc())
    else:
        rows = rows.order_by(order.key, Product.id)
    if position:
        last = tuple_(order.read(position[0]), uuid.UUID(position[1]))
        rows = rows.where(here < last if order.descending else here > last)
    async with db.begin() as tx:
        total = await tx.scalar(select(func.count()).select_from(counted))
        found = (await tx.execute(rows)).all()
    next_position = None
    if len(found) > size:
        product, sort_key = found[size - 1]
        next_position = [order.write(sort_key), str(product.id)]
    return Page([product for product, _ in found[:size]], next_position, total or 0)


@dataclass(frozen=True, slots=True)
class Snapshot:
    """A product as an order remembers it."""

    product_id: uuid.UUID
    sku: str
    name: str
    price: Money
    active: bool


async def get_snapshots(db: Database, product_ids: Sequence[uuid.UUID]) -> list[Snapshot]:
    """Those that exist, in one statement however many are asked for."""
    async with db.begin() as tx:
        rows = await tx.execute(
            select(Product.id, Product.sku, Product.name, Product.currency, Product.price_minor, Product.active).where(
                Product.id == func.any(list(product_ids)), Product.deleted_time.is_(None)
            )
        )
        return [Snapshot(row.id, row.sku, row.name, Money(row.currency, row.price_minor), row.active) for row in rows]


@dataclass(frozen=True, slots=True)
class _Order:
    """A way to sort products. Rows that tie on `key` are told apart by their id."""

    key: ColumnElement[Any]
    descending: bool
    write: Callable[[Any], str]
    read: Callable[[str], Any]


_ORDERS = {
    "newest": _Order(Product.create_time.expression, True, datetime.isoformat, datetime.fromisoformat),
    "price": _Order(Product.price_minor.expression, False, str, int),
    "-price": _Order(Product.price_minor.expression, True, str, int),
    "name": _Order(func.lower(Product.name), False, str, str),
}


def _conditions(wanted: Filter) -> list[ColumnElement[bool]]:
    conditions: list[ColumnElement[bool]] = [Product.active.is_(True), Product.deleted_time.is_(None)]
    if query := wanted.query.strip():
        conditions.append(Product.search.bool_op("@@")(_tsquery(query)))
    if wanted.category:
        conditions.append(Product.category == wanted.category)
    if wanted.price_min:
        conditions.append(Product.price_minor >= wanted.price_min)
    if wanted.price_max:
        conditions.append(Product.price_minor <= wanted.price_max)
    if wanted.attribute:
        name, _, value = wanted.attribute.partition(":")
        conditions.append(Product.attributes.contains({name: value}))
    return conditions


def _tsquery(query: str) -> ColumnElement[Any]:
    """Whole words as typed, or the last one as the beginning of a word."""
    whole = func.websearch_to_tsquery("simple", query)
    head, last = domain.last_word(query)
    if not last:
        return whole
    # The pattern of a last word holds neither quotes nor backslashes, so it can stand between quotes as it is.
    prefix: ColumnElement[Any] = func.to_tsquery("simple", f"'{last}':*")
    if head:
        prefix = func.websearch_to_tsquery("simple", head).op("&&", return_type=TSVECTOR())(prefix)
    return whole.op("||")(prefix)


async def _locked(tx: AsyncSession, product_id: uuid.UUID) -> Product:
    product = await tx.scalar(
        select(Product).where(Product.id == product_id, Product.deleted_time.is_(None)).with_for_update()
    )
    if product is None:
        raise ProductNotFound(product=product_id)
    return product


def _values(product: Product, changes: Changes) -> dict[str, Any]:
    """What `changes` asks for, by column."""
    texts = {field: getattr(changes, field) for field in ("sku", "slug", "name", "description", "category")}
    values = {field: text for field, text in texts.items() if text is not None}
    if changes.slug == "":
        values["slug"] = domain.slug_of(values.get("name", product.name), values.get("sku", product.sku))
    if changes.attributes is not None:
        values["attributes"] = dict(changes.attributes)
    if changes.price is not None:
        values |= {"price_minor": changes.price.minor, "currency": changes.price.currency}
    return values


async def _changed(tx: AsyncSession, product: Product, values: dict[str, Any]) -> Product:
    """Writes `values` to the locked product as a new version, unless it has them already."""
    new = {column: value for column, value in values.items() if getattr(product, column) != value}
    if not new:
        return product
    if not {"price_minor", "currency"}.isdisjoint(new):
        # A price that is set by hand is the plain price; a discount from an earlier one would be a false claim.
        new["original_price_minor"] = None
    return (
        await tx.scalars(
            update(Product)
            .where(Product.id == product.id)
            .values(**new, version=Product.version + 1, update_time=func.now())
            .returning(Product)
            .execution_options(populate_existing=True, synchronize_session=False)
        )
    ).one()


def _taken(error: IntegrityError, *, sku: str | None, slug: str | None) -> AppError | IntegrityError:
    match violated(error):
        case name if name == SKU_KEY:
            return SkuTaken(sku=sku)
        case name if name == SLUG_KEY:
            return SlugTaken(slug=slug)
        case _:
            return error
