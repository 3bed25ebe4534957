"""How a Checkout Session follows the intent that its page made."""

from __future__ import annotations

from sandbox.rows import Work
from sandbox.stripe.book import StripeBook
from sandbox.stripe.rows import Intent


def follow(work: Work, book: StripeBook, intent: Intent) -> None:
    """Completes the intent's session, or reports what became of a bank debit after that."""
    if intent.checkout is None:
        return
    stored = book.sessions.rows.get(intent.checkout)
    if stored is None:  # it ended long ago, and was dropped
        return
    session = work.newest(stored)
    paid = intent.status == "succeeded"
    if session.status == "open" and intent.status in ("succeeded", "requires_capture", "processing"):
        work.put(session._replace(status="complete", paid=paid), "checkout.session.completed")
        return
    if session.status != "complete":
        return
    before = book.intents.rows[intent.id].status
    changed = session._replace(paid=paid)
    if before == "processing":
        work.put(changed, f"checkout.session.async_payment_{'succeeded' if paid else 'failed'}")
    elif changed != session:
        work.put(changed)
