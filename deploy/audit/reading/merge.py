"""Joins several streams of rows by order id. Streams are sorted, so only the rows of one order are in memory."""

from collections.abc import Callable, Iterable, Iterator
from typing import Generic, TypeVar

from deploy.audit.reading.rows import Case, Intent, Order, Payment, Reservation

T = TypeVar("T")


class _Stream(Generic[T]):
    """A sorted stream, read key by key."""

    def __init__(self, name: str, rows: Iterable[T], key: Callable[[T], str]) -> None:
        self._name, self._rows, self._key = name, iter(rows), key
        self.key: str | None = None
        self._row: T | None = None
        self._next()

    def take(self, key: str) -> tuple[T, ...]:
        """Takes the rows with `key`, if the stream has reached it."""
        taken = []
        while self.key == key:
            assert self._row is not None
            taken.append(self._row)
            self._next()
        return tuple(taken)

    def _next(self) -> None:
        before, self._row = self.key, next(self._rows, None)
        self.key = None if self._row is None else self._key(self._row)
        # A row out of order would be missed, so the audit fails instead.
        assert before is None or self.key is None or self.key >= before, f"{self._name} are not sorted"


def cases(
    orders: Iterable[Order],
    reservations: Iterable[Reservation],
    payments: Iterable[Payment],
    intents: Iterable[Intent],
) -> Iterator[Case]:
    """Joins the rows of each order id. Every stream must be sorted by it; payments and intents may share one."""
    o = _Stream("orders", orders, lambda row: row.id)
    r = _Stream("reservations", reservations, lambda row: row.id)
    p = _Stream("payments", payments, lambda row: row.order_id)
    i = _Stream("intents", intents, lambda row: row.order_id)
    while keys := [stream.key for stream in (o, r, p, i) if stream.key is not None]:
        key = min(keys)
        yield Case(id=key, order=_one(o, key), reservation=_one(r, key), payments=p.take(key), intents=i.take(key))


def missing(wanted: Iterable[str], known: Iterable[str]) -> Iterator[str]:
    """The items of `wanted` that `known` lacks; both are sorted."""
    stream = _Stream("known ids", known, lambda row: row)
    for key in wanted:
        while stream.key is not None and stream.key < key:
            stream.take(stream.key)
        if stream.key != key:
            yield key


def _one(stream: _Stream[T], key: str) -> T | None:
    taken = stream.take(key)
    assert len(taken) < 2, f"two rows under {key}"
    return taken[0] if taken else None
