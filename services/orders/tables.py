"""The orders database, as SQLAlchemy sees it."""

import uuid
from datetime import datetime
from typing import Any

from sqlalchemy import (
    CheckConstraint,
    Computed,
    ForeignKey,
    Identity,
    Integer,
    LargeBinary,
    SmallInteger,
    UniqueConstraint,
    func,
)
from sqlalchemy.dialects.postgresql import JSONB
from sqlalchemy.orm import Mapped, mapped_column

from services.chassis.data.db import Base


class OrderRow(Base):
    """A customer's purchase; `domain.Order` is its value."""

    __tablename__ = "orders"
    __table_args__ = (
        # The unique key is what makes a repeated request harmless.
        UniqueConstraint("customer_id", "request_id", name="orders_one_per_request"),
        CheckConstraint("total_minor >= 0", name="orders_total_not_negative"),
        CheckConstraint("refunded_minor >= 0 AND refunded_minor <= total_minor", name="orders_refunded_within_total"),
    )

    id: Mapped[uuid.UUID] = mapped_column(primary_key=True)
    customer_id: Mapped[uuid.UUID]
    request_id: Mapped[uuid.UUID]
    digest: Mapped[bytes] = mapped_column(LargeBinary)
    state: Mapped[str]
    state_reason: Mapped[str] = mapped_column(default="")
    lines: Mapped[list[dict[str, Any]]] = mapped_column(JSONB, kw_only=True)
    currency: Mapped[str] = mapped_column(kw_only=True)
    total_minor: Mapped[int] = mapped_column(kw_only=True)
    hold_expire_time: Mapped[datetime] = mapped_column(kw_only=True)
    payment: Mapped[dict[str, Any] | None] = mapped_column(JSONB, default=None)
    shipping_address: Mapped[dict[str, Any] | None] = mapped_column(JSONB, default=None)
    refunded_minor: Mapped[int] = mapped_column(default=0)
    refunding: Mapped[bool] = mapped_column(default=False)
    shipment: Mapped[dict[str, Any] | None] = mapped_column(JSONB, default=None)
    version: Mapped[int] = mapped_column(Integer, default=1)
    create_time: Mapped[datetime] = mapped_column(server_default=func.now(), init=False)
    update_time: Mapped[datetime] = mapped_column(server_default=func.now(), init=False)


class OrderProduct(Base):
    """That an order has a line with a product, for lists of orders by product."""

    __tablename__ = "order_products"

    product_id: Mapped[uuid.UUID] = mapped_column(primary_key=True)
    create_time: Mapped[datetime] = mapped_column(primary_key=True)
    order_id: Mapped[uuid.UUID] = mapped_column(primary_key=True)


class SagaRow(Base):
    """How far an order that is not settled yet has come. `next_time` is when some process shall look after it.

    `look_time` is when it shall look whether the hold must be extended; none where it need not look any more.
    """

    __tablename__ = "sagas"

    order_id: Mapped[uuid.UUID] = mapped_column(ForeignKey("orders.id"), primary_key=True)
    phase: Mapped[str]
    applied: Mapped[int] = mapped_column(SmallInteger)
    payment_method: Mapped[str]
    next_time: Mapped[datetime]
    reason: Mapped[str] = mapped_column(default="")
    asked: Mapped[str] = mapped_column(default="")
    waiting: Mapped[bool] = mapped_column(default=False)
    woken: Mapped[bool] = mapped_column(default=False)
    refunded_minor: Mapped[int] = mapped_column(default=0)
    look_time: Mapped[datetime | None] = mapped_column(default=None)
    extended: Mapped[bool] = mapped_column(default=False)
    kind: Mapped[str] = mapped_column(default="PURCHASE")
    refund: Mapped[dict[str, Any] | None] = mapped_column(JSONB, default=None)
    actor: Mapped[str] = mapped_column(default="")
    note: Mapped[str] = mapped_column(default="")
    request_id: Mapped[str] = mapped_column(default="")
    cause: Mapped[str] = mapped_column(default="")
    progress_time: Mapped[datetime] = mapped_column(server_default=func.now(), init=False)
    slow: Mapped[bool] = mapped_column(
        Computed(
            "phase = 'FORWARD' AND asked = '' AND NOT woken AND applied = CASE kind WHEN 'PURCHASE' THEN 1 ELSE 0 END"
        ),
        init=False,
    )
    fence: Mapped[int] = mapped_column(Integer, default=1)
    attempts: Mapped[int] = mapped_column(Integer, default=0)
    create_time: Mapped[datetime] = mapped_column(server_default=func.now(), init=False)


class LogEntry(Base):
    """One move of an order: who, what, when, why. Written once, never changed."""

    __tablename__ = "order_log"

    id: Mapped[int] = mapped_column(Identity(), primary_key=True, init=False)
    create_time: Mapped[datetime] = mapped_column(server_default=func.now(), primary_key=True, init=False)
    order_id: Mapped[uuid.UUID]
    version: Mapped[int] = mapped_column(Integer)
    state: Mapped[str]
    reason: Mapped[str]
    actor: Mapped[str]
    request_id: Mapped[str]
    cause: Mapped[str] = mapped_column(default="")
    note: Mapped[str] = mapped_column(default="")
    refunded_minor: Mapped[int] = mapped_column(default=0)
