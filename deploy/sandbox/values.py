"""What the sandbox keeps: immutable values, so that an event can hold the state it reports for free.

Named tuples are written to the journal as arrays. New fields go at the end, with a default, or old
journals can no longer be read.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, NamedTuple

Json = dict[str, Any]


class Intent(NamedTuple):
    """One attempt to be paid; `card` is the test method's public name, `payment_method` its own id."""

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
    """Money taken, or, with `failure` set, the attempt to take it that a bank refused."""

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
    """Money given back; always `succeeded`, as refunds to test cards are."""

    id: str
    charge: str
    intent: str
    amount: int
    currency: str
    created: int
    metadata: dict[str, str]
    reason: str | None = None


Subject = Intent | Charge | Refund


class Event(NamedTuple):
    """A thing that happened to `subject`, in the state it had then."""

    id: str
    type: str
    created: int
    subject: Subject
    request_id: str | None
    idempotency_key: str | None
    pending: bool


Change = Subject | Event


def random_id(prefix: str) -> str:
    """An id nobody can guess, in the shape of Stripe's."""
    return f"{prefix}_3{os.urandom(12).hex()}"


@dataclass(slots=True)
class Work:
    """What one request does: filled by the rules, journalled and applied in one go afterwards.

    Rules never touch the store, so a request that raises half-way has changed nothing.
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
        """Records the new state of `subject`, and the events that report exactly this state."""
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
