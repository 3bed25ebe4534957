"""Razorpay's objects: the fields that are used, each with its own type."""

from typing import Any

from services.payments.providers.typed import Currency, Id, Minor, Seconds, Typed

Notes = dict[str, Any] | list[Any]
"""An object; an empty one is written as an empty list."""


class Order(Typed):
    """Money that was asked for. Any number of payments may try to pay it."""

    id: Id
    amount: Minor
    currency: Currency
    status: Id
    receipt: str | None = None
    created_at: Seconds = 0


class RazorpayPayment(Typed):
    """One try of a customer to pay an order: Razorpay calls it a payment."""

    id: Id
    amount: Minor
    currency: Currency
    status: Id
    order_id: Id | None = None
    captured: bool | None = None
    error_reason: str | None = None
    amount_refunded: Minor = 0
    created_at: Seconds = 0

    @property
    def is_paid(self) -> bool:
        """Whether its money was taken, perhaps refunded since. One that was never captured goes back by itself."""
        return self.status == "captured" or (self.status == "refunded" and self.captured is True)

    @property
    def is_returned(self) -> bool:
        """Whether its money was only authorised, and has gone back by itself."""
        return self.status in ("refunded", "failed") and not self.is_paid


class RazorpayRefund(Typed):
    """Money of a payment that goes back."""

    id: Id
    amount: Minor
    status: Id
    payment_id: Id
    notes: Notes | None = None
    created_at: Seconds = 0

    def note(self, name: str) -> object:
        """Return what our call has noted; None for a refund that people made."""
        return self.notes.get(name) if isinstance(self.notes, dict) else None


class RazorpayDispute(Typed):
    """Money of a payment that the customer's bank demands back."""

    id: Id
    payment_id: Id
    amount: Minor
    currency: Currency
    status: Id
    reason_code: Id
    amount_deducted: Minor = 0
    respond_by: Seconds | None = None
    phase: Id | None = None
    created_at: Seconds = 0


class Collection(Typed):
    """A page of a list."""

    items: list[dict[str, Any]]
