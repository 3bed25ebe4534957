"""All rows in memory. Each protocol has a book: its tables, with an index for each kind of query."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from itertools import islice
from typing import Any, Generic, Protocol, TypeVar

from sandbox.rows import Change, Event, Subject

# Stripe keeps events for 30 days; the sandbox keeps so many, so that its memory is bounded.
EVENTS_KEPT = 200_000
PAYMENTS_KEPT = 250_000
"""Of each protocol, and as many Checkout Sessions. Beyond, the oldest ended ones leave memory; the journal has them."""

Row = TypeVar("Row", bound=Subject)


class Table(Generic[Row]):
    """Rows by id, and their ids in order of creation."""

    def __init__(self, kept: int | None = None) -> None:
        self.rows: dict[str, Row] = {}
        self._order: list[str] = []
        self._kept = kept
        self._after_drop = 0

    def put(self, row: Row) -> Row | None:
        """Stores `row`; returns the row that it replaces."""
        before = self.rows.get(row.id)
        self.rows[row.id] = row
        if before is None:
            self._order.append(row.id)
            # Deleting a tenth of the rows at once spreads the cost of shifting the list.
            if self._kept is not None and len(self._order) > self._kept * 1.1:
                surplus = len(self._order) - self._kept
                for old in self._order[:surplus]:
                    del self.rows[old]
                del self._order[:surplus]
        return before

    def __len__(self) -> int:
        return len(self.rows)

    def surplus(self, has_ended: Callable[[Row], bool]) -> list[str]:
        """The ids of the oldest ended rows beyond `PAYMENTS_KEPT`, once the table has grown by a tenth.

        A scan costs as much as the table is long, so it is rare, also while few rows have ended.
        """
        if len(self.rows) <= max(PAYMENTS_KEPT, self._after_drop) * 1.1:
            return []
        ended = (row.id for row in self.oldest_first() if has_ended(row))
        found = list(islice(ended, len(self.rows) - PAYMENTS_KEPT))
        self._after_drop = len(self.rows) - len(found)
        return found

    def drop(self, ids: Collection[str]) -> None:
        """Forgets rows. It costs as much as a copy of the order, so drop many at once."""
        for identifier in ids:
            del self.rows[identifier]
        self._order = [key for key in self._order if key in self.rows]

    def newest_first(self, *, after: str | None = None, until: int | None = None) -> Iterator[Row]:
        """Rows created before `after`, and not later than the second `until`, newest first.

        Ids are in order of creation, so binary search finds the start.
        """
        if after is not None:
            until = self.rows[after].created
        end = len(self._order)
        if until is not None:
            end = bisect_right(self._order, until, key=lambda key: self.rows[key].created)
        waiting = after is not None
        for position in range(end - 1, -1, -1):
            row = self.rows[self._order[position]]
            if not waiting:
                yield row
            elif row.id == after:
                waiting = False

    def oldest_first(self) -> Iterator[Row]:
        return (self.rows[key] for key in list(self._order) if key in self.rows)


class Book(Protocol):
    """The tables of one protocol."""

    name: str

    @property
    def tags(self) -> Mapping[str, type[Any]]:
        """The kinds of rows by the tags that they have in the journal. No other book has any of them."""

    @property
    def events(self) -> Table[Event]: ...

    def apply(self, subject: Any) -> None:
        """Stores a row of one of these kinds."""

    def current(self) -> Iterator[Subject]:
        """Yields every row but the events, as it is now."""

    def drop_surplus(self) -> None:
        """Drops the payments beyond the most that memory may hold.

        Not called while the journal is read: a later line may change a payment that would be dropped at an earlier one.
        """


class Store:
    """The books of all protocols."""

    def __init__(self, *books: Book) -> None:
        self._owner: dict[type[Any], Book] = {kind: book for book in books for kind in book.tags.values()}
        self.books = books
        self.kinds: dict[str, type[Any]] = {tag: kind for book in books for tag, kind in book.tags.items()}
        self.newest: int = 0

    def apply(self, changes: Iterable[Change]) -> None:
        """Applies the changes of a request, after the journal has them."""
        for change in changes:
            self.newest = max(self.newest, change.created)
            if isinstance(change, Event):
                self._owner[type(change.subject)].events.put(change)
            else:
                self._owner[type(change)].apply(change)

    def drop_surplus(self) -> None:
        """Drops rows beyond the most that memory may hold."""
        for book in self.books:
            book.drop_surplus()

    def book_of(self, subject: Subject) -> Book:
        return self._owner[type(subject)]

    def settle(self, event_id: str) -> None:
        """Marks an event as delivered, if it is still kept."""
        for book in self.books:
            event = book.events.rows.get(event_id)
            if event is not None:
                book.events.rows[event_id] = event._replace(pending=False)

    def current(self) -> dict[str, Subject]:
        return {row.id: row for book in self.books for row in book.current()}

    def event_ids(self) -> set[str]:
        return {event_id for book in self.books for event_id in book.events.rows}
