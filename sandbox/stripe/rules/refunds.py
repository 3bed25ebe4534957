"""The rules of refunds of a charge."""

from __future__ import annotations

from sandbox.rows import Work
from sandbox.stripe.errors import ApiError
from sandbox.stripe.forms import Params
from sandbox.stripe.rows import Charge, Refund
from sandbox.stripe.rules.currencies import readable
from sandbox.stripe.rules.intents import AMOUNT_MAX

CREATE = frozenset(["payment_intent", "charge", "amount", "reason", "metadata", "expand"])
REASONS = ("duplicate", "fraudulent", "requested_by_customer")


def fail(work: Work, charge: Charge, refund: Refund) -> Refund:
    """Fails a refund that had succeeded: the money is back in the account. A helper, not part of Stripe's API."""
    if refund.status != "succeeded":
        raise ApiError(400, f"This refund ({refund.id}) is {refund.status}.")
    failed = refund._replace(status="failed", failure_reason="lost_or_stolen_card")
    work.put(charge._replace(amount_refunded=charge.amount_refunded - refund.amount))
    work.put(failed, "refund.updated", "charge.refund.updated", "refund.failed")
    return failed


def create(work: Work, charge: Charge, params: Params) -> Refund:
    """Refunds `amount`, or the rest of the charge; never more than was taken."""
    left = charge.amount - charge.amount_refunded
    if charge.failure is not None:
        raise ApiError(400, f"This charge ({charge.id}) failed, so there is nothing to refund.", saved=True)
    reason = params.choice("reason", REASONS)
    metadata = params.metadata()
    requested = params.integer("amount", least=1, most=AMOUNT_MAX)
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
    )
    work.put(refund, "refund.created")
    work.put(charge._replace(amount_refunded=charge.amount_refunded + amount), "charge.refunded")
    work.effects.add("refund")
    return refund
