"""The rows of Razorpay's protocol. `sandbox/rows.py` says how they are stored."""

from __future__ import annotations

from typing import NamedTuple

from sandbox.rows import Json


class Order(NamedTuple):
    """Money that a shop asks for. Any number of payments may try to pay it."""

    id: str
    amount: int
    currency: str
    created: int
    status: str
    """`created`, `attempted` or `paid`."""
    receipt: str | None
    notes: dict[str, str]
    captures: str
    """The one who captures authorised payments: the shop if `manual`, Razorpay if `automatic`."""
    attempts: int = 0
    paid_by: str | None = None


class Payment(NamedTuple):
    """One try of a customer to pay an order."""

    id: str
    order: str
    amount: int
    currency: str
    created: int
    status: str
    """`created`, `authorized`, `captured`, `refunded` or `failed`."""
    method: str
    notes: dict[str, str]
    captured: bool = False
    amount_refunded: int = 0
    error: Json | None = None


class Refund(NamedTuple):
    """Money of a payment that goes back. It carries what its events report about the payment."""

    id: str
    payment: str
    amount: int
    currency: str
    created: int
    status: str
    """`pending`, `processed` or `failed`."""
    notes: dict[str, str]
    receipt: str | None
    order: str
    payment_amount: int
    payment_refunded: int
    payment_captured: bool


class Dispute(NamedTuple):
    """Money of a payment that the customer's bank demands back."""

    id: str
    payment: str
    order: str
    amount: int
    currency: str
    created: int
    status: str
    """`open`, `under_review`, `won`, `lost` or `closed`."""
    reason: str
    respond_by: int


Subject = Order | Payment | Refund | Dispute

# The tag of each kind of row in the journal.
TAGS: dict[str, type[Subject]] = {"ro": Order, "rp": Payment, "rr": Refund, "rd": Dispute}
