"""The tables of inventory, as SQLAlchemy maps them."""

import uuid
from datetime import datetime
from typing import Any

from sqlalchemy import CheckConstraint, ForeignKey, Identity, Integer, func
from sqlalchemy.dialects.postgresql import JSONB
from sqlalchemy.orm import Mapped, mapped_column

from services.chassis.data.db import Base
from services.inventory.domain import ABANDONED_HOLD_LIMIT_DEFAULT

SLOT_KEY = "reservations_slot"
"""The unique index by which a customer's open holds have different slots."""


class Stock(Base):
    """Ordinary units of one product. A flash sale counts its allocation itself until it ends."""

    __tablename__ = "stock"
    __table_args__ = (
        CheckConstraint("on_hand >= 0", name="stock_on_hand_not_negative"),
        CheckConstraint("held >= 0 AND held <= on_hand", name="stock_held_within_on_hand"),
    )

    product_id: Mapped[uuid.UUID] = mapped_column(primary_key=True)
    on_hand: Mapped[int] = mapped_column(Integer)
    held: Mapped[int] = mapped_column(Integer, default=0)
    update_time: Mapped[datetime] = mapped_column(server_default=func.now(), init=False)


class Movement(Base):
    """One change of `Stock.on_hand`. Their sum is the stock."""

    __tablename__ = "stock_movements"
    __table_args__ = (CheckConstraint("delta <> 0", name="stock_movements_move"),)

    id: Mapped[int] = mapped_column(Identity(), primary_key=True, init=False)
    product_id: Mapped[uuid.UUID] = mapped_column(ForeignKey("stock.product_id"))
    delta: Mapped[int] = mapped_column(Integer)
    kind: Mapped[str]
    reference_id: Mapped[uuid.UUID]
    reason: Mapped[str] = mapped_column(default="")
    create_time: Mapped[datetime] = mapped_column(server_default=func.now(), init=False)


class FlashSaleRow(Base):
    """Units of one product at a sale price. Units that are neither held, sold nor returned can be bought."""

    __tablename__ = "flash_sales"
    __table_args__ = (
        CheckConstraint("price_minor >= 0", name="flash_sales_price_not_negative"),
        CheckConstraint(
            "held >= 0 AND sold >= 0 AND returned >= 0 AND held + sold + returned <= allocation",
            name="flash_sales_never_oversold",
        ),
        CheckConstraint("end_time > start_time", name="flash_sales_end_after_start"),
        CheckConstraint("abandoned_hold_limit >= 0", name="flash_sales_abandoned_hold_limit"),
    )

    id: Mapped[uuid.UUID] = mapped_column(primary_key=True)
    product_id: Mapped[uuid.UUID] = mapped_column(ForeignKey("stock.product_id"))
    title: Mapped[str]
    price_minor: Mapped[int]
    currency: Mapped[str]
    allocation: Mapped[int] = mapped_column(Integer)
    per_customer_limit: Mapped[int] = mapped_column(Integer)
    start_time: Mapped[datetime]
    end_time: Mapped[datetime]
    hold_seconds: Mapped[int] = mapped_column(Integer)
    abandoned_hold_limit: Mapped[int] = mapped_column(Integer, default=ABANDONED_HOLD_LIMIT_DEFAULT)
    held: Mapped[int] = mapped_column(Integer, default=0)
    sold: Mapped[int] = mapped_column(Integer, default=0)
    returned: Mapped[int] = mapped_column(Integer, default=0)
    closed_as: Mapped[str | None] = mapped_column(default=None)
    version: Mapped[int] = mapped_column(Integer, default=1)
    create_time: Mapped[datetime] = mapped_column(server_default=func.now(), init=False)
    update_time: Mapped[datetime] = mapped_column(server_default=func.now(), init=False)


class SaleCustomer(Base):
    """How many units one customer holds or has bought in one sale."""

    __tablename__ = "sale_customers"
    __table_args__ = (CheckConstraint("units >= 0", name="sale_customers_units_not_negative"),)

    sale_id: Mapped[uuid.UUID] = mapped_column(ForeignKey("flash_sales.id"), primary_key=True)
    customer_id: Mapped[uuid.UUID] = mapped_column(primary_key=True)
    units: Mapped[int] = mapped_column(Integer)


class AbandonedHolds(Base):
    """How many holds of one customer of one sale have ended unpaid."""

    __tablename__ = "abandoned_holds"
    __table_args__ = (CheckConstraint("holds >= 0", name="abandoned_holds_not_negative"),)

    sale_id: Mapped[uuid.UUID] = mapped_column(ForeignKey("flash_sales.id"), primary_key=True)
    customer_id: Mapped[uuid.UUID] = mapped_column(primary_key=True)
    holds: Mapped[int] = mapped_column(Integer)


class ReservationRow(Base):
    """Units set aside for one order. `lines` lists `domain.Line` values; `sale_id` is the first sale in it."""

    __tablename__ = "reservations"

    id: Mapped[uuid.UUID] = mapped_column(primary_key=True)
    customer_id: Mapped[uuid.UUID]
    state: Mapped[str]
    lines: Mapped[list[dict[str, Any]]] = mapped_column(JSONB)
    sale_id: Mapped[uuid.UUID | None]
    expire_time: Mapped[datetime]
    extended: Mapped[bool] = mapped_column(default=False)
    slot: Mapped[int | None] = mapped_column(Integer, default=None)
    """Its number among the open holds of its customer; see `sql/hold_slots.py`."""
    units: Mapped[int | None] = mapped_column(Integer, default=None)
    reholds: Mapped[int] = mapped_column(Integer, default=0)
    """How often it was held again after a release."""
    create_time: Mapped[datetime] = mapped_column(server_default=func.now(), init=False)
    update_time: Mapped[datetime] = mapped_column(server_default=func.now(), init=False)


class ReturnRow(Base):
    """Sold units that came back: the units requested under the id, by product, and the lines that came back."""

    __tablename__ = "returns"

    id: Mapped[uuid.UUID] = mapped_column(primary_key=True)
    reservation_id: Mapped[uuid.UUID] = mapped_column(ForeignKey("reservations.id"))
    asked: Mapped[dict[str, int]] = mapped_column(JSONB)
    lines: Mapped[list[dict[str, Any]]] = mapped_column(JSONB)
    create_time: Mapped[datetime] = mapped_column(server_default=func.now(), init=False)
