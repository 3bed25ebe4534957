"""The mapped class of the catalog's table. `migrations/` creates the table; a test compares the two."""

import uuid
from datetime import datetime

from sqlalchemy import CheckConstraint, Computed, UniqueConstraint, func
from sqlalchemy.dialects.postgresql import JSONB, TSVECTOR
from sqlalchemy.orm import Mapped, mapped_column

from services.chassis.data.db import Base
from services.chassis.money import MINOR_UNITS_MAX

SKU_KEY = "products_sku_key"
SLUG_KEY = "products_slug_key"
# The sku is indexed whole and in parts, so that the query 42 finds MUG-42.
_SEARCH = "to_tsvector('simple', name || ' ' || sku || ' ' || translate(sku, '._-', '   ') || ' ' || description)"


class Product(Base):
    """A product of the shop."""

    __tablename__ = "products"
    __table_args__ = (
        UniqueConstraint("sku", name=SKU_KEY),
        UniqueConstraint("slug", name=SLUG_KEY),
        CheckConstraint(f"price_minor BETWEEN 0 AND {MINOR_UNITS_MAX}", name="products_price"),
        CheckConstraint(
            f"original_price_minor > price_minor AND original_price_minor <= {MINOR_UNITS_MAX}",
            name="products_original_price",
        ),
        CheckConstraint("currency ~ '^[A-Z]{3}$'", name="products_currency"),
        CheckConstraint("slug ~ '^[a-z0-9]+(-[a-z0-9]+)*$' AND length(slug) <= 100", name="products_slug"),
        CheckConstraint("jsonb_typeof(attributes) = 'object'", name="products_attributes"),
    )

    id: Mapped[uuid.UUID] = mapped_column(primary_key=True)
    sku: Mapped[str]
    slug: Mapped[str]
    name: Mapped[str]
    description: Mapped[str]
    category: Mapped[str]
    price_minor: Mapped[int]
    currency: Mapped[str]
    original_price_minor: Mapped[int | None] = mapped_column(default=None, init=False)
    attributes: Mapped[dict[str, str]] = mapped_column(JSONB)
    active: Mapped[bool]
    version: Mapped[int] = mapped_column(server_default="1", init=False)
    create_time: Mapped[datetime] = mapped_column(server_default=func.now(), init=False)
    update_time: Mapped[datetime] = mapped_column(server_default=func.now(), init=False)
    deleted_time: Mapped[datetime | None] = mapped_column(init=False)
    search: Mapped[str] = mapped_column(TSVECTOR, Computed(_SEARCH), deferred=True, init=False)
