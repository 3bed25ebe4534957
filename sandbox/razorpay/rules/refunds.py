"""The rules of refunds and disputes of captured payments."""

from __future__ import annotations

from sandbox.razorpay.errors import ApiError, invalid
from sandbox.razorpay.parameters import RECEIPT_LENGTH_MAX, Params
from sandbox.razorpay.rows import Dispute, Payment, Refund
from sandbox.rows import Work

SPEEDS = ("normal", "optimum")
REASONS = ("goods_or_services_not_received", "fraudulent", "duplicate", "not_as_described")
OUTCOMES = ("under_review", "action_required", "won", "lost", "closed")
_RESPOND_WITHIN_S = 7 * 86_400


def create(work: Work, payment: Payment, params: Params, *, pending: bool) -> Refund:
    """Refunds `amount`, or the rest of the payment; never more than was taken."""
    left = payment.amount - payment.amount_refunded
    amount = params.integer("amount", least=1, default=left or 1)
    receipt, notes = params.text("receipt", most=RECEIPT_LENGTH_MAX), params.notes()
    if params.text("speed", default="normal") not in SPEEDS:
        raise invalid("The selected speed is invalid.", "speed")
    params.end()
    if not payment.captured:
        raise ApiError(400, "The payment status should be captured for action to be taken", saved=True)
    if left == 0:
        raise ApiError(400, "The payment has been fully refunded already", saved=True)
    if amount > left:
        raise ApiError(400, "The refund amount provided is greater than amount captured", field="amount", saved=True)
    total = payment.amount_refunded + amount
    refund = Refund(
        work.new_id("rfnd"), payment.id, amount, payment.currency, work.now, "pending" if pending else "processed",
        notes, receipt, payment.order, payment.amount, total, True,
    )  # fmt: skip
    whole = total == payment.amount
    work.put(payment._replace(amount_refunded=total, status="refunded" if whole else payment.status))
    work.put(refund, "refund.created", *(() if pending else ("refund.processed",)))
    work.effects.add("refund")
    return refund


def process(work: Work, refund: Refund) -> Refund:
    """Has the bank take a pending refund."""
    if refund.status != "pending":
        raise ApiError(400, f"The refund is {refund.status}.")
    processed = refund._replace(status="processed")
    work.put(processed, "refund.processed")
    return processed


def fail(work: Work, payment: Payment, refund: Refund) -> Refund:
    """Has the bank refuse a refund, perhaps after it was processed: the money is back in the account."""
    if refund.status == "failed":
        raise ApiError(400, "The refund is failed.")
    left = payment.amount_refunded - refund.amount
    work.put(payment._replace(amount_refunded=left, status="captured"))
    failed = refund._replace(status="failed", payment_refunded=left)
    work.put(failed, "refund.failed")
    return failed


def dispute(work: Work, payment: Payment, *, reason: str) -> Dispute:
    """Has the customer's bank demand a captured payment back."""
    if not payment.captured:
        raise ApiError(400, "Only captured payments are disputed.")
    if reason not in REASONS:
        raise invalid(f"The reason must be one of {', '.join(REASONS)}.", "reason")
    opened = Dispute(
        work.new_id("disp"), payment.id, payment.order, payment.amount, payment.currency, work.now, "open", reason,
        work.now + _RESPOND_WITHIN_S,
    )  # fmt: skip
    work.put(opened, "payment.dispute.created")
    return opened


def decide(work: Work, opened: Dispute, *, outcome: str) -> Dispute:
    """Has the bank decide about a dispute, or ask for more."""
    if outcome not in OUTCOMES:
        raise invalid(f"The outcome must be one of {', '.join(OUTCOMES)}.", "outcome")
    if opened.status not in ("open", "under_review"):
        raise ApiError(400, f"The dispute is {opened.status}.")
    decided = opened._replace(status="open" if outcome == "action_required" else outcome)
    work.put(decided, f"payment.dispute.{outcome}")
    return decided
