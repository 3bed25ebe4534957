"""The rules of products: what may be said of them, and how they are found. Pure."""

import re
import unicodedata
from collections.abc import Mapping
from dataclasses import dataclass

from services.chassis.errors import AppError
from services.chassis.money import Money

SLUG_LENGTH_MAX = 100
COUNTED_MAX = 10_000
"""How far matching products are counted; beyond, nobody reads the number and counting costs."""

MUTABLE = frozenset({"sku", "slug", "name", "description", "category", "price", "attributes"})
"""The fields that `UpdateProduct` can change."""
REQUIRED = frozenset({"sku", "name", "price"})
"""Those of them that cannot be emptied."""
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
    """A product to be created."""

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
    """What an update sets; None leaves a field as it is. An empty slug is made anew from the name and the sku."""

    sku: str | None = None
    slug: str | None = None
    name: str | None = None
    description: str | None = None
    category: str | None = None
    price: Money | None = None
    attributes: Mapping[str, str] | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Filter:
    """Which products a list shows, and in which order. Empty texts and zeros do not restrict."""

    query: str = ""
    category: str = ""
    price_min: int = 0
    price_max: int = 0
    attribute: str = ""
    """Written `name:value`."""
    order_by: str = "newest"


def slug_of(name: str, sku: str) -> str:
    """A slug that reads like the name and is as unique as the sku, which it always holds in full."""
    tail = _ascii_words(sku)
    head = _ascii_words(name)[: SLUG_LENGTH_MAX - len(tail) - 1].strip("-")
    return f"{head}-{tail}" if head else tail


def _ascii_words(text: str) -> str:
    folded = unicodedata.normalize("NFKD", text).encode("ascii", "ignore").decode().lower()
    return re.sub(r"[^a-z0-9]+", "-", folded).strip("-")


def last_word(query: str) -> tuple[str, str]:
    """Splits a search into what stands before, and the word still being typed; the latter is empty if there is none.

    A last word that is quoted or excluded is finished.
    """
    match = _LAST_WORD.search(query)
    return (query[: match.start(1)], match[1]) if match else (query, "")


def discount_percent(price_minor: int, original_price_minor: int | None) -> int | None:
    """By how much a price is reduced, rounded down so that no advertisement claims too much; None if it is not."""
    if original_price_minor is None:
        return None
    return (original_price_minor - price_minor) * 100 // original_price_minor
