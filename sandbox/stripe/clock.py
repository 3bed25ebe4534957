"""Changes that time makes: sessions and authorisations expire, and the refunds of one test card fail."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from heapq import heappop

from sandbox.rows import Work
from sandbox.stripe.book import StripeBook
from sandbox.stripe.rules import charging, checkout, refunds

Change = Callable[[Work], object]


def due(book: StripeBook, now: int) -> Iterator[Change]:
    """Yields the changes that are due. Apply each before the next is taken."""
    while book.due and book.due[0][0] <= now:
        _, identifier = heappop(book.due)
        change = _change(book, identifier)
        if change is not None:
            yield change


def _change(book: StripeBook, identifier: str) -> Change | None:
    """The change of an object, unless something else has happened to it."""
    if (session := book.sessions.rows.get(identifier)) is not None and session.status == "open":
        return lambda work: checkout.expire(work, book, session)
    if (intent := book.intents.rows.get(identifier)) is not None and intent.status == "requires_capture":
        return lambda work: charging.release(work, book, intent, "automatic", "charge.expired")
    if (refund := book.refunds.rows.get(identifier)) is not None and refund.status == "succeeded":
        return lambda work: refunds.fail(work, book.charges.rows[refund.charge], refund)
    return None
