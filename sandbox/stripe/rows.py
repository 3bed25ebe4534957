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
    amount_capturable: int = 0

    @property
    def customer(self) -> str | None:
        customer: str | None = self.options.get("customer")
        return customer

    @property
    def checkout(self) -> str | None:
        """The id of the Checkout Session that made it, if one did."""
        session: str | None = self.options.get("checkout")
        return session


class Charge(NamedTuple):
    """Money that was taken, or authorised until it is captured; with `failure`, an attempt that the bank refused."""

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
    captured_at: int | None = 0
    """The second of the capture; 0 if it was taken at once; None while it is only authorised."""
    released: int = 0
    """The part of an authorisation that was never captured. Stripe reports it as refunded."""
    customer: str | None = None
    dispute: str | None = None
    fee_known: bool = True

    @property
    def taken(self) -> int:
        """The money that moved from the buyer, before refunds."""
        return 0 if self.failure is not None or self.captured_at is None else self.amount - self.released


class Refund(NamedTuple):
    """Money that was refunded: `succeeded` at once for most cards, `pending` for one, `failed` if a test decides so."""

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


class Customer(NamedTuple):
    """A buyer who comes back. A deleted one stays, as Stripe shows it."""

    id: str
    created: int
    metadata: dict[str, str]
    email: str | None = None
    name: str | None = None
    phone: str | None = None
    description: str | None = None
    deleted: bool = False


class Method(NamedTuple):
    """A saved PaymentMethod. Methods that were used once have no row: their id stands in the intent."""

    id: str
    created: int
    card: str
    metadata: dict[str, str]
    customer: str | None = None
    set_up: bool = False
    """Whether the buyer has authenticated its use while they are away."""


class Session(NamedTuple):
    """A Checkout Session: a page on which a buyer pays."""

    id: str
    created: int
    amount: int
    currency: str
    items: list[Json]
    expires_at: int
    metadata: dict[str, str]
    options: Json
    """Parameters that are shown as they were given."""
    payment: Json
    """Parameters of the intent that the page makes."""
    status: str = "open"
    paid: bool = False
    intent: str | None = None
    customer: str | None = None
    email: str | None = None


class Dispute(NamedTuple):
    """Money that the buyer's bank demands back. An inquiry only asks: `withdrawn_at` stays None."""

    id: str
    charge: str
    intent: str
    amount: int
    currency: str
    created: int
    reason: str
    status: str
    due_by: int
    metadata: dict[str, str]
    evidence: Json
    card: str
    submissions: int = 0
    withdrawn_at: int | None = None
    reinstated_at: int | None = None


Subject = Intent | Charge | Refund | Customer | Method | Session | Dispute

# The tag of each kind of row in the journal.
TAGS: dict[str, type[Subject]] = {
    "pi": Intent, "ch": Charge, "re": Refund, "cus": Customer, "pm": Method, "cs": Session, "dp": Dispute,
}  # fmt: skip
