"""The rows of Stripe's protocol. `sandbox/rows.py` says how they are stored."""

from __future__ import annotations

from typing import NamedTuple

from sandbox.rows import Json


class Intent(NamedTuple):
    """A PaymentIntent. `card` is the public name of the test payment method, `payment_method` the id of this use."""

    id: str
    amount: int
    currency: str
    created: int
    status: str
    client_secret: str
    metadata: dict[str, str]
    options: Json
    description: str | None = None
    card: str | None = None
    payment_method: str | None = None
    latest_charge: str | None = None
    amount_received: int = 0
    last_error: Json | None = None
    next_action: Json | None = None
    canceled_at: int | None = None
    cancellation_reason: str | None = None


class Charge(NamedTuple):
    """Money that was taken; with `failure`, an attempt that the bank refused."""

    id: str
    intent: str
    amount: int
    currency: str
    created: int
    card: str
    payment_method: str
    metadata: dict[str, str]
    description: str | None = None
    amount_refunded: int = 0
    failure: Json | None = None
    authenticated: bool = False


class Refund(NamedTuple):
    """Money that was refunded; `succeeded` at once, as for Stripe's test cards, and `failed` if a test decides so."""

    id: str
    charge: str
    intent: str
    amount: int
    currency: str
    created: int
    metadata: dict[str, str]
    reason: str | None = None
    status: str = "succeeded"
    failure_reason: str | None = None


Subject = Intent | Charge | Refund

# The tag of each kind of row in the journal.
TAGS: dict[str, type[Subject]] = {"pi": Intent, "ch": Charge, "re": Refund}
