"""Rules of products: their values, their slugs, and how a search query is read. Pure."""

import hashlib
import re
import unicodedata
import uuid
from collections.abc import Mapping
from dataclasses import dataclass

from services.chassis.errors import AppError
from services.chassis.money import Money

SLUG_LENGTH_MAX = 100
COUNTED_MAX = 10_000
"""A list counts at most this many matches: counting costs time, and no client shows a larger number."""

MUTABLE = frozenset({"sku", "slug", "name", "description", "category", "price", "attributes", "active"})
"""The fields that `UpdateProduct` can change."""
REQUIRED = frozenset({"sku", "name", "price", "active"})
"""The fields of `MUTABLE` that cannot be emptied."""
_LAST_WORD = re.compile(r"(?:^|\s)(\w[\w.-]*)$")


class ProductNotFound(AppError):
    code = "NOT_FOUND"
    template = "There is no product {product}."


class SkuTaken(AppError):
    code = "ALREADY_EXISTS"
    template = "Another product has the sku {sku}."


class SlugTaken(AppError):
    code = "ALREADY_EXISTS"
    template = "Another product has the slug {slug}."


@dataclass(frozen=True, slots=True, kw_only=True)
class Draft:
    """A product that is not created yet."""

    sku: str
    slug: str
    name: str
    description: str
    category: str
    price: Money
    attributes: Mapping[str, str]
    active: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Changes:
    """The fields that an update sets; None leaves a field unchanged. An empty slug is derived from name and sku."""

    sku: str | None = None
    slug: str | None = None
    name: str | None = None
    description: str | None = None
    category: str | None = None
    price: Money | None = None
    attributes: Mapping[str, str] | None = None
    active: bool | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Filter:
    """The products that a list contains, and their order. Empty texts and zeros do not restrict."""

    query: str = ""
    category: str = ""
    price_min: int = 0
    price_max: int = 0
    attribute: str = ""
    """`name:value`."""
    order_by: str = "newest"


@dataclass(frozen=True, slots=True)
class Snapshot:
    """The part of a product that an order stores."""

    product_id: uuid.UUID
    sku: str
    name: str
    price: Money
    active: bool


def make_slug(name: str, sku: str, *, distinct: bool = False) -> str:
    """Derive a slug from the name and the sku.

    Different skus may give the same slug (`A.1` and `a-1`). With `distinct` it ends with a hash of the sku.
    """
    tail = _ascii_words(sku)
    if distinct:
        tail = f"{tail}-{hashlib.sha256(sku.encode()).hexdigest()[:12]}"
    head = _ascii_words(name)[: SLUG_LENGTH_MAX - len(tail) - 1].strip("-")
    return f"{head}-{tail}" if head else tail


def _ascii_words(text: str) -> str:
    folded = unicodedata.normalize("NFKD", text).encode("ascii", "ignore").decode().lower()
    return re.sub(r"[^a-z0-9]+", "-", folded).strip("-")


def split_last_word(query: str) -> tuple[str, str]:
    """Split a search query into its head and the word that is still being typed.

    The second part is empty if the last word is complete, that is, quoted or excluded.
    """
    match = _LAST_WORD.search(query)
    return (query[: match.start(1)], match[1]) if match else (query, "")


def discount_percent(price_minor: int, original_price_minor: int | None) -> int | None:
    """Return the discount, rounded down so that no advertisement claims too much; None without an original price."""
    if original_price_minor is None:
        return None
    return (original_price_minor - price_minor) * 100 // original_price_minor
