"""The mapped classes of the tables. Statements take their lists of columns from here; `migrations/` creates the tables.

A test compares the two.
"""

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
    note: Mapped[str] = mapped_column(default="")
    refunded_minor: Mapped[int] = mapped_column(default=0)
    returned: Mapped[dict[str, int]] = mapped_column(JSONB, default_factory=dict)
    """The units that came back with refunds, by product."""
    refunding: Mapped[bool] = mapped_column(default=False)
    secret_wanted: Mapped[bool] = mapped_column(default=True)
    """Whether a payment may be begun at the provider; false until somebody asks how to pay."""
    cancel_requested: Mapped[bool] = mapped_column(default=False)
    disputed: Mapped[bool] = mapped_column(default=False)
    shipment: Mapped[dict[str, Any] | None] = mapped_column(JSONB, default=None)
    payment_page: Mapped[dict[str, Any] | None] = mapped_column(JSONB, default=None)
    """The page on which its customer pays, if there is no secret. Earlier releases cannot read it in `payment`."""
    payment_attempts: Mapped[int] = mapped_column(Integer, default=0)
    """How many further attempts to pay it its customer has asked for."""
    reopened: Mapped[int] = mapped_column(Integer, default=0)
    """How often it was paid once more after it had failed."""
    version: Mapped[int] = mapped_column(Integer, default=1)
    create_time: Mapped[datetime] = mapped_column(server_default=func.now(), init=False)
    update_time: Mapped[datetime] = mapped_column(server_default=func.now(), init=False)


class OrderProductRow(Base):
    """A product of an order, for lists of orders by product."""

    __tablename__ = "order_products"

    product_id: Mapped[uuid.UUID] = mapped_column(primary_key=True)
    create_time: Mapped[datetime] = mapped_column(primary_key=True)
    order_id: Mapped[uuid.UUID] = mapped_column(primary_key=True)


class SagaRow(Base):
    """The progress of an order that is not settled."""

    __tablename__ = "sagas"

    order_id: Mapped[uuid.UUID] = mapped_column(ForeignKey("orders.id"), primary_key=True)
    phase: Mapped[str]
    steps_done: Mapped[int] = mapped_column(SmallInteger)
    payment_method: Mapped[str]
    next_time: Mapped[datetime]
    """When a process shall claim it. While one holds its lease: when the lease expires."""
    reason: Mapped[str] = mapped_column(default="")
    cancel_reason: Mapped[str] = mapped_column(default="")
    paused: Mapped[bool] = mapped_column(default=False)
    """Whether an event about its payment shall wake it before `next_time`."""
    payment_changed: Mapped[bool] = mapped_column(default=False)
    """Whether an event about its payment came since the last claim."""
    refunded_minor: Mapped[int] = mapped_column(default=0)
    hold_check_time: Mapped[datetime | None] = mapped_column(default=None)
    """When to check whether the hold must be extended; None if no check is needed any more."""
    kind: Mapped[str] = mapped_column(default="PURCHASE")
    refund: Mapped[dict[str, Any] | None] = mapped_column(JSONB, default=None)
    actor: Mapped[str] = mapped_column(default="")
    note: Mapped[str] = mapped_column(default="")
    request_id: Mapped[str] = mapped_column(default="")
    cause: Mapped[str] = mapped_column(default="")
    waits_for_provider: Mapped[bool] = mapped_column(default=False)
    """Whether it paused because the provider answered that it is still moving the money."""
    progress_time: Mapped[datetime] = mapped_column(server_default=func.now(), init=False)
    provider_bound: Mapped[bool] = mapped_column(
        Computed(
            "phase = 'FORWARD' AND cancel_reason = '' AND NOT payment_changed"
            " AND steps_done = CASE kind WHEN 'PURCHASE' THEN 1 ELSE 0 END"
        ),
        init=False,
    )
    terms: Mapped[dict[str, Any] | None] = mapped_column(JSONB, default=None)
    """How its customer wants to pay in the latest attempt that they asked for."""
    holder: Mapped[str] = mapped_column(default="")
    """The process that claimed it last, by its stable name. It has the lease, unless the saga is paused or due."""
    fencing_token: Mapped[int] = mapped_column(Integer, default=1)
    attempts: Mapped[int] = mapped_column(Integer, default=0)
    create_time: Mapped[datetime] = mapped_column(server_default=func.now(), init=False)


class PaymentCheckRow(Base):
    """An order to be compared with payments."""

    __tablename__ = "payment_checks"

    order_id: Mapped[uuid.UUID] = mapped_column(primary_key=True)
    due_time: Mapped[datetime] = mapped_column(server_default=func.now(), init=False)
    attempts: Mapped[int] = mapped_column(Integer, default=0)


class OrderLogRow(Base):
    """One move of an order: actor, state, time, cause. Written once, never changed."""

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


def columns(row: type[Base], table: str = "") -> str:
    """The list of all columns of a mapped class, for a SELECT; of `table` if it must be named."""
    prefix = f"{table}." if table else ""
    return ", ".join(f"{prefix}{name}" for name in row.__table__.columns.keys())  # noqa: SIM118
