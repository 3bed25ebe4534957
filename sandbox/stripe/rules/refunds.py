"""The rules of refunds of a charge."""

from __future__ import annotations

from sandbox.rows import Work
from sandbox.stripe.book import StripeBook
from sandbox.stripe.errors import ApiError
from sandbox.stripe.forms import Params
from sandbox.stripe.rows import Charge, Refund
from sandbox.stripe.rules import disputes
from sandbox.stripe.rules.cards import CARDS
from sandbox.stripe.rules.currencies import AMOUNT_MAX, readable

CREATE = frozenset(["payment_intent", "charge", "amount", "reason", "metadata", "expand"])
REASONS = ("duplicate", "fraudulent", "requested_by_customer")


def fail(work: Work, charge: Charge, refund: Refund) -> Refund:
    """Fails a refund: the money is back in the account. A helper, not part of Stripe's API."""
    if refund.status not in ("succeeded", "pending"):
        raise ApiError(400, f"This refund ({refund.id}) is {refund.status}.")
    failed = refund._replace(status="failed", failure_reason="lost_or_stolen_card")
    work.put(charge._replace(amount_refunded=charge.amount_refunded - refund.amount))
    work.put(failed, "refund.updated", "charge.refund.updated", "refund.failed")
    return failed


def settle(work: Work, refund: Refund) -> Refund:
    """Lets a pending refund succeed. A helper, not part of Stripe's API."""
    if refund.status != "pending":
        raise ApiError(400, f"This refund ({refund.id}) is {refund.status}.")
    done = refund._replace(status="succeeded")
    work.put(done, "refund.updated", "charge.refund.updated")
    return done


def create(work: Work, book: StripeBook, charge: Charge, params: Params) -> Refund:
    """Refunds `amount`, or the rest of the charge; never more than was taken."""
    if charge.failure is not None:
        raise ApiError(400, f"This charge ({charge.id}) failed, so there is nothing to refund.", saved=True)
    left = charge.taken - charge.amount_refunded
    reason = params.choice("reason", REASONS)
    metadata = params.metadata()
    requested = params.integer("amount", least=1, most=AMOUNT_MAX)
    disputes.check_refund(book, charge)
    if left == 0:
        raise ApiError(
            400,
            f"Charge {charge.id} has already been refunded.",
            code="charge_already_refunded",
            saved=True,
        )
    amount = left if requested is None else requested
    if amount > left:
        whole = "charge amount" if left == charge.amount else "unrefunded amount on charge"
        raise ApiError(
            400,
            f"Refund amount ({readable(amount, charge.currency)}) is greater than {whole} "
            f"({readable(left, charge.currency)})",
            param="amount",
            saved=True,
        )
    refund = Refund(
        id=work.new_id("re"),
        charge=charge.id,
        intent=charge.intent,
        amount=amount,
        currency=charge.currency,
        created=work.now,
        metadata=metadata,
        reason=reason,
        status=CARDS[charge.card].refunds,
    )
    less = charge._replace(amount_refunded=charge.amount_refunded + amount)
    work.put(refund, "refund.created")
    work.put(less, "charge.refunded")
    work.effects.add("refund")
    disputes.close_inquiry(work, book, less)
    return refund
