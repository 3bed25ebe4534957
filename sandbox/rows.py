"""The parts that all protocols share: stored rows, events about them, and the work of one request.

Rows are immutable values, so that an event shares the state that it reports. The journal stores named tuples as
arrays. A new field goes at the end and has a default; otherwise, old journals cannot be read.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, NamedTuple, Protocol, TypeVar

Json = dict[str, Any]


class Subject(Protocol):
    """A row of one protocol, such as a payment or a refund: a named tuple. `created` is a second."""

    @property
    def id(self) -> str: ...

    @property
    def created(self) -> int: ...


Row = TypeVar("Row", bound=Subject)


class Event(NamedTuple):
    """A change of `subject`, with the state that it then had. `pending` means that its webhook is still to be sent."""

    id: str
    type: str
    created: int
    subject: Any
    request_id: str | None
    idempotency_key: str | None
    pending: bool


Change = Any
"""A `Subject` or an `Event`."""


class _Random:
    """Unguessable hexadecimal digits. One read from the operating system serves hundreds of ids."""

    def __init__(self) -> None:
        self._digits, self._place = "", 0

    def take(self, number: int) -> str:
        if self._place + number > len(self._digits):
            self._digits, self._place = os.urandom(4096).hex(), 0
        self._place += number
        return self._digits[self._place - number : self._place]


random_hex = _Random().take


def random_id(prefix: str) -> str:
    """An unguessable id, in the shape of Stripe's ids."""
    return f"{prefix}_3{random_hex(24)}"


@dataclass(slots=True)
class Work:
    """The changes of one request: rules collect them; afterwards they are written and applied at once.

    Rules never change the store, so a request that raises has changed nothing.
    """

    now: int
    request_id: str | None = None
    idempotency_key: str | None = None
    base_url: str = ""
    fee_later: Callable[[], bool] = lambda: False
    """Asked once for each charge: whether the provider says later what it cost."""
    wants_webhook: Callable[[str], bool] = lambda _type: False
    new_id: Callable[[str], str] = random_id
    changes: list[Change] = field(default_factory=list)
    effects: set[str] = field(default_factory=set)

    def newest(self, row: Row) -> Row:
        """The state of a stored row that this work has put, or else the stored one."""
        for change in reversed(self.changes):
            if type(change) is type(row) and change.id == row.id:
                newer: Row = change
                return newer
        return row

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
