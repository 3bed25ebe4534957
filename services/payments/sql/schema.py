"""The tables of payments, as mapped classes: their columns are used in queries."""

import enum
import uuid
from collections.abc import Iterable
from datetime import datetime

from sqlalchemy import (
    CheckConstraint,
    ForeignKey,
    Identity,
    Index,
    Integer,
    Text,
    UniqueConstraint,
    func,
    text,
)  # fmt: skip
from sqlalchemy.dialects.postgresql import ARRAY
from sqlalchemy.orm import Mapped, mapped_column

from services.chassis.data.db import Base
from services.payments.domain import Capture, DisputeState, RefundState, Settlement, State


def _one_of(column: str, values: Iterable[enum.StrEnum]) -> str:
    return f"{column} IN ({', '.join(repr(str(value)) for value in values)})"


HAS_FORMER = "payments.former_references <> '{}'"
"""Literal, so that the planner finds the partial index."""


class Payment(Base):
    """The money of one order."""

    __tablename__ = "payments"
    __table_args__ = (
        UniqueConstraint("order_id", name="payments_order_id_key"),
        UniqueConstraint("provider_reference", name="payments_provider_reference_key"),
        CheckConstraint(_one_of("state", State), name="payments_state_known"),
        CheckConstraint(_one_of("capture", Capture), name="payments_capture_known"),
        CheckConstraint("amount_minor >= 0", name="payments_amount_not_negative"),
        CheckConstraint(
            "refunded_minor >= 0 AND refunding_minor >= 0 AND refunded_minor + refunding_minor <= amount_minor",
            name="payments_refunds_within_amount",
        ),
        Index(
            "payments_checkout_reference",
            "checkout_reference",
            unique=True,
            postgresql_where=text("checkout_reference IS NOT NULL"),
        ),
        Index(
            "payments_former_references", "former_references", postgresql_using="gin", postgresql_where=text(HAS_FORMER)
        ),
        Index("payments_next_check_time", "next_check_time", postgresql_where=text("next_check_time IS NOT NULL")),
        Index(
            "payments_refund_check_time", "refund_check_time", postgresql_where=text("refund_check_time IS NOT NULL")
        ),
        Index("payments_problem", "update_time", postgresql_where=text("problem <> ''")),
        Index("payments_authorize_time", "authorize_time", postgresql_where=text("state = 'AUTHORIZED'")),
    )

    id: Mapped[uuid.UUID] = mapped_column(primary_key=True)
    order_id: Mapped[uuid.UUID]
    customer_id: Mapped[uuid.UUID]
    amount_minor: Mapped[int]
    currency: Mapped[str]
    state: Mapped[str]
    provider: Mapped[str]
    customer_pays: Mapped[bool]
    payment_method: Mapped[str | None]
    provider_reference: Mapped[str | None]
    capture_reference: Mapped[str | None]
    client_secret: Mapped[str | None]
    attempt: Mapped[int]
    attempt_time: Mapped[datetime]
    failure_reason: Mapped[str]
    authenticating: Mapped[bool]
    refunded_minor: Mapped[int]
    refunding_minor: Mapped[int]
    cancel_requested: Mapped[bool]
    problem: Mapped[str]
    unanswered_time: Mapped[datetime | None]
    """When the last call began that may have an effect and got no answer; NULL if each one was answered."""
    answer_time: Mapped[datetime | None]
    """When the provider answered about it last."""
    sent: Mapped[bool] = mapped_column(server_default=text("true"), init=False)
    """False if no call was ever sent to the provider, because its circuit was open."""
    hold_expire_time: Mapped[datetime | None]
    """When the units of the order are given up, as the first charge said."""
    refund_check_time: Mapped[datetime | None]
    """When the provider's list of its refunds is read next; NULL if nothing new is known about them."""
    checks: Mapped[int]
    next_check_time: Mapped[datetime | None]
    version: Mapped[int]
    order_attempt: Mapped[int] = mapped_column(Integer, default=0)
    """The attempt in progress, by the number that orders gave it."""
    latest_order_attempt: Mapped[int] = mapped_column(Integer, default=0)
    """The latest attempt that orders asked for."""
    terms: Mapped[dict | None] = mapped_column(default=None)  # type: ignore[type-arg]  # Base maps the bare type to jsonb
    """How the customer pays that attempt; NULL for the one that the order came with."""
    next_terms: Mapped[dict | None] = mapped_column(default=None)  # type: ignore[type-arg]
    """The attempt that begins as soon as the charge of the present one is voided, with its card's token."""
    former_references: Mapped[list[str]] = mapped_column(ARRAY(Text), default_factory=list)
    """The charges and pages of earlier attempts."""
    checkout_reference: Mapped[str | None] = mapped_column(default=None)
    """The provider's id of the page on which the customer pays."""
    checkout_url: Mapped[str | None] = mapped_column(default=None)
    capture: Mapped[str] = mapped_column(server_default="AUTOMATIC", init=False)
    """The fate of its money once it is authorised."""
    authorize_time: Mapped[datetime | None] = mapped_column(default=None)
    """When its money was set aside, if that waits for staff."""
    create_time: Mapped[datetime] = mapped_column(server_default=func.now(), init=False)
    update_time: Mapped[datetime] = mapped_column(server_default=func.now(), init=False)


class Refund(Base):
    """Money that goes back to a customer. The row is committed before the provider is called."""

    __tablename__ = "refunds"
    __table_args__ = (
        CheckConstraint(_one_of("state", RefundState), name="refunds_state_known"),
        CheckConstraint("amount_minor > 0", name="refunds_amount_positive"),
        CheckConstraint(_one_of("settlement", Settlement), name="refunds_settlement_known"),
        CheckConstraint("received_minor BETWEEN 0 AND amount_minor", name="refunds_received_within_amount"),
        Index("refunds_payment_id", "payment_id"),
        Index("refunds_next_check_time", "next_check_time", postgresql_where=text("next_check_time IS NOT NULL")),
        Index("refunds_provider_reference", "provider_reference"),
        Index("refunds_problem", "update_time", postgresql_where=text("problem <> ''")),
    )

    id: Mapped[uuid.UUID] = mapped_column(primary_key=True)
    payment_id: Mapped[uuid.UUID] = mapped_column(ForeignKey("payments.id", name="refunds_payment_id_fkey"))
    provider: Mapped[str]
    amount_minor: Mapped[int]
    reason: Mapped[str]
    state: Mapped[str]
    stray: Mapped[bool]
    external: Mapped[bool]
    charge_reference: Mapped[str]
    provider_reference: Mapped[str | None]
    failure_reason: Mapped[str]
    problem: Mapped[str]
    attempt: Mapped[int]
    attempt_time: Mapped[datetime]
    unanswered_time: Mapped[datetime | None]
    """As in `payments`."""
    answer_time: Mapped[datetime | None]
    """As in `payments`."""
    checks: Mapped[int]
    settlement: Mapped[str] = mapped_column(server_default="PROVIDER", init=False)
    received_minor: Mapped[int] = mapped_column(server_default="0", init=False)
    next_check_time: Mapped[datetime | None]
    create_time: Mapped[datetime] = mapped_column(server_default=func.now(), init=False)
    update_time: Mapped[datetime] = mapped_column(server_default=func.now(), init=False)


class JournalEntry(Base):
    """One movement of money between two accounts. Rows are only added.

    It has no foreign key: checking one costs as much as the row, and the audit compares all entries with their rows.
    """

    __tablename__ = "journal_entries"
    __table_args__ = (
        CheckConstraint("amount_minor > 0", name="journal_entries_amount_positive"),
        CheckConstraint("debit <> credit", name="journal_entries_two_accounts"),
        Index("journal_entries_payment_id", "payment_id"),
        # Accounts that ordinary payments never touch are found by an index, which these then do not cost.
        Index("journal_entries_debit", "debit", "id", postgresql_where=text("kind <> 'CAPTURED'")),
        Index("journal_entries_credit", "credit", "id", postgresql_where=text("kind <> 'CAPTURED'")),
    )

    id: Mapped[int] = mapped_column(Identity(always=True), primary_key=True, init=False)
    create_time: Mapped[datetime] = mapped_column(server_default=func.now(), init=False)
    payment_id: Mapped[uuid.UUID]
    kind: Mapped[str]
    debit: Mapped[str]
    credit: Mapped[str]
    amount_minor: Mapped[int]
    currency: Mapped[str]
    reference: Mapped[str]


class ProviderCustomer(Base):
    """A customer's id at a provider."""

    __tablename__ = "provider_customers"

    customer_id: Mapped[uuid.UUID] = mapped_column(primary_key=True)
    provider: Mapped[str] = mapped_column(primary_key=True)
    reference: Mapped[str]
    create_time: Mapped[datetime] = mapped_column(server_default=func.now(), init=False)


class SavedMethodRow(Base):
    """A card that a customer has agreed to save, by what they recognise it. The provider keeps it."""

    __tablename__ = "saved_methods"
    __table_args__ = (
        UniqueConstraint("provider", "reference", name="saved_methods_reference_key"),
        Index("saved_methods_customer_id", "customer_id", "id"),
        Index(
            "saved_methods_pending", "remove_time",
            postgresql_where=text("remove_time IS NOT NULL AND detach_time IS NULL"),
        ),
    )  # fmt: skip

    id: Mapped[uuid.UUID] = mapped_column(primary_key=True)
    customer_id: Mapped[uuid.UUID]
    provider: Mapped[str]
    reference: Mapped[str]
    brand: Mapped[str]
    last4: Mapped[str]
    expire_month: Mapped[int] = mapped_column(Integer)
    expire_year: Mapped[int] = mapped_column(Integer)
    remove_time: Mapped[datetime | None]
    """When its customer removed it."""
    detach_time: Mapped[datetime | None]
    """When the provider had removed it."""
    create_time: Mapped[datetime] = mapped_column(server_default=func.now(), init=False)
    update_time: Mapped[datetime] = mapped_column(server_default=func.now(), init=False)


class Dispute(Base):
    """Money that a customer's bank demands back, as the provider's record had it last."""

    __tablename__ = "disputes"
    __table_args__ = (
        CheckConstraint("amount_minor >= 0", name="disputes_amount_not_negative"),
        CheckConstraint("withdrawn_minor >= 0 AND fee_minor >= 0", name="disputes_money_not_negative"),
        CheckConstraint(_one_of("state", DisputeState), name="disputes_state_known"),
        Index("disputes_payment_id", "payment_id"),
        Index("disputes_create_time", "create_time", "reference"),
    )

    provider: Mapped[str] = mapped_column(primary_key=True)
    reference: Mapped[str] = mapped_column(primary_key=True)
    payment_id: Mapped[uuid.UUID] = mapped_column(ForeignKey("payments.id", name="disputes_payment_id_fkey"))
    state: Mapped[str] = mapped_column(server_default="NEEDS_RESPONSE", init=False)
    status: Mapped[str]
    reason: Mapped[str]
    amount_minor: Mapped[int]
    currency: Mapped[str]
    withdrawn_minor: Mapped[int] = mapped_column(server_default="0", init=False)
    fee_minor: Mapped[int] = mapped_column(server_default="0", init=False)
    evidence_due_time: Mapped[datetime | None]
    report_time: Mapped[datetime]
    create_time: Mapped[datetime] = mapped_column(server_default=func.now(), init=False)
    update_time: Mapped[datetime] = mapped_column(server_default=func.now(), init=False)


class DisputeCheck(Base):
    """A dispute whose record at the provider is to be read, because an event or a report has named it."""

    __tablename__ = "dispute_checks"
    __table_args__ = (Index("dispute_checks_due_time", "due_time"),)

    provider: Mapped[str] = mapped_column(primary_key=True)
    reference: Mapped[str] = mapped_column(primary_key=True)
    payment_id: Mapped[uuid.UUID]
    due_time: Mapped[datetime] = mapped_column(server_default=func.now(), init=False)
    attempts: Mapped[int] = mapped_column(server_default="0", init=False)


class EventWalk(Base):
    """How far the events that a provider lists were read, and when they are read next."""

    __tablename__ = "event_walks"

    provider: Mapped[str] = mapped_column(primary_key=True)
    done_time: Mapped[datetime]
    next_time: Mapped[datetime]


class ProviderReport(Base):
    """The last daily comparison of a provider's charges with ours, and when the next one is due."""

    __tablename__ = "provider_reports"

    provider: Mapped[str] = mapped_column(primary_key=True)
    next_time: Mapped[datetime]
    done_time: Mapped[datetime | None]
    differences: Mapped[int] = mapped_column(server_default="0", init=False)


class ProviderEvent(Base):
    """A signed event of a provider, reduced to what is used: no secrets, no card data.

    It waits until `processed_time`; with an `error` it is parked from then on.
    """

    __tablename__ = "provider_events"
    __table_args__ = (
        Index("provider_events_next_try_time", "next_try_time", postgresql_where=text("processed_time IS NULL")),
        Index("provider_events_processed_time", "processed_time"),
        Index(
            "provider_events_parked",
            "received_time",
            postgresql_where=text("error IS NOT NULL AND processed_time IS NOT NULL"),
        ),
    )

    provider: Mapped[str] = mapped_column(primary_key=True)
    event_id: Mapped[str] = mapped_column(primary_key=True)
    payload: Mapped[dict]  # type: ignore[type-arg]  # Base maps the bare type to jsonb
    received_time: Mapped[datetime] = mapped_column(server_default=func.now(), init=False)
    next_try_time: Mapped[datetime] = mapped_column(server_default=func.now(), init=False)
    processed_time: Mapped[datetime | None]
    attempts: Mapped[int]
    error: Mapped[str | None]
