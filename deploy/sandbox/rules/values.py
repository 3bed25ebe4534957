"""The rows of the sandbox: immutable values, so that an event shares the state that it reports.

The journal stores named tuples as arrays. A new field goes at the end and has a default; otherwise, old journals cannot
be read.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, NamedTuple

Json = dict[str, Any]


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


class Event(NamedTuple):
    """A change of `subject`, with the state that it then had."""

    id: str
    type: str
    created: int
    subject: Subject
    request_id: str | None
    idempotency_key: str | None
    pending: bool


Change = Subject | Event


def random_id(prefix: str) -> str:
    """An unguessable id, in the shape of Stripe's ids."""
    return f"{prefix}_3{os.urandom(12).hex()}"


@dataclass(slots=True)
class Work:
    """The changes of one request: rules collect them; afterwards they are written and applied at once.

    Rules never change the store, so a request that raises has changed nothing.
    """

    now: int
    request_id: str | None = None
    idempotency_key: str | None = None
    base_url: str = ""
    wants_webhook: Callable[[str], bool] = lambda _type: False
    new_id: Callable[[str], str] = random_id
    changes: list[Change] = field(default_factory=list)
    effects: set[str] = field(default_factory=set)

    def put(self, subject: Subject, *event_types: str) -> None:
        """Adds the new state of `subject`, and the events that report this state."""
        self.changes.append(subject)
        for event_type in event_types:
            self.changes.append(
                Event(
                    self.new_id("evt"),
                    event_type,
                    self.now,
                    subject,
                    self.request_id,
                    self.idempotency_key,
                    self.wants_webhook(event_type),
                )
            )
