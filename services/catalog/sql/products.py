"""The table `products`."""

import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from sqlalchemy import ColumnElement, func, literal, select, tuple_, update
from sqlalchemy.dialects.postgresql import TSVECTOR, insert
from sqlalchemy.exc import IntegrityError
from sqlalchemy.ext.asyncio import AsyncSession

from services.catalog import domain
from services.catalog.domain import Filter, ProductNotFound, SkuTaken, SlugTaken, Snapshot
from services.catalog.sql.schema import SKU_KEY, SLUG_KEY, Product
from services.chassis.data.db import violated_constraint
from services.chassis.money import Money


@dataclass(frozen=True, slots=True)
class Page:
    """One page of a list, and the position of each product: the sort keys after which a next page starts."""

    products: Sequence[Product]
    positions: Sequence[list[str]]
    is_last: bool
    total: int


@dataclass(frozen=True, slots=True)
class _Order:
    """A sort order of products. The id breaks ties of `key`."""

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


async def insert_product(tx: AsyncSession, values: Mapping[str, Any]) -> Product:
    """Insert a row. Raises `SkuTaken` or `SlugTaken`."""
    with _unique(values):
        return (await tx.scalars(insert(Product).values(**values).returning(Product))).one()


async def get_product(tx: AsyncSession, name: uuid.UUID | str, *, lock: bool = False) -> Product:
    """Return the product with this id or slug; with `lock`, lock its row. Raises `ProductNotFound`."""
    column = Product.slug if isinstance(name, str) else Product.id
    query = select(Product).where(column == name, Product.deleted_time.is_(None))
    if product := await tx.scalar(query.with_for_update() if lock else query):
        return product
    raise ProductNotFound(product=name)


async def update_product(tx: AsyncSession, product: Product, values: Mapping[str, Any]) -> Product:
    """Write `values` to a locked product as a new version. A row that has them already stays as it is.

    Raises `SkuTaken` or `SlugTaken`.
    """
    new = {column: value for column, value in values.items() if getattr(product, column) != value}
    if not new:
        return product
    if not {"price_minor", "currency"}.isdisjoint(new):
        # The discount was computed from the old price, so it ends with that price.
        new["original_price_minor"] = None
    with _unique(new):
        return (
            await tx.scalars(
                update(Product)
                .where(Product.id == product.id)
                .values(**new, version=Product.version + 1, update_time=func.now())
                .returning(Product)
                .execution_options(populate_existing=True, synchronize_session=False)
            )
        ).one()


async def list_products(tx: AsyncSession, wanted: Filter, *, position: list[str] | None, size: int) -> Page:
    """Return the active products after `position`, which is one of `Page.positions`."""
    matching = _conditions(wanted)
    counted = select(literal(1)).select_from(Product).where(*matching).limit(domain.COUNTED_MAX).subquery()
    order = _ORDERS[wanted.order_by]
    rows = select(Product, order.key).where(*matching).limit(size + 1)
    if order.descending:
        rows = rows.order_by(order.key.desc(), Product.id.desc())
    else:
        rows = rows.order_by(order.key, Product.id)
    if position:
        here, last = tuple_(order.key, Product.id), tuple_(order.read(position[0]), uuid.UUID(position[1]))
        rows = rows.where(here < last if order.descending else here > last)
    total = await tx.scalar(select(func.count()).select_from(counted))
    found = (await tx.execute(rows)).all()
    positions = [[order.write(sort_key), str(product.id)] for product, sort_key in found[:size]]
    return Page([product for product, _ in found[:size]], positions, len(found) <= size, total or 0)


async def list_snapshots(tx: AsyncSession, product_ids: Sequence[uuid.UUID]) -> list[Snapshot]:
    """Return the products that exist, in one statement for any number of ids."""
    rows = await tx.execute(
        select(Product.id, Product.sku, Product.name, Product.currency, Product.price_minor, Product.active).where(
            Product.id == func.any(list(product_ids)), Product.deleted_time.is_(None)
        )
    )
    return [Snapshot(row.id, row.sku, row.name, Money(row.currency, row.price_minor), row.active) for row in rows]


def _conditions(wanted: Filter) -> list[ColumnElement[bool]]:
    conditions: list[ColumnElement[bool]] = [Product.active.is_(True), Product.deleted_time.is_(None)]
    if query := wanted.query.strip():
        conditions.append(Product.search.bool_op("@@")(_search_query(query)))
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


def _search_query(query: str) -> ColumnElement[Any]:
    """Match all words of `query`; the last one also as the beginning of a word."""
    whole = func.websearch_to_tsquery("simple", query)
    head, last = domain.split_last_word(query)
    if not last:
        return whole
    # `last` contains no quotes and no backslashes (domain._LAST_WORD), so it needs no escaping inside quotes.
    prefix: ColumnElement[Any] = func.to_tsquery("simple", f"'{last}':*")
    if head:
        prefix = func.websearch_to_tsquery("simple", head).op("&&", return_type=TSVECTOR())(prefix)
    return whole.op("||")(prefix)


@contextmanager
def _unique(values: Mapping[str, Any]) -> Iterator[None]:
    """Translate a violated unique constraint into the refusal of its field."""
    try:
        yield
    except IntegrityError as error:
        constraint = violated_constraint(error)
        if constraint == SKU_KEY:
            raise SkuTaken(sku=values["sku"]) from error
        if constraint == SLUG_KEY:
            raise SlugTaken(slug=values["slug"]) from error
        raise
