"""The rules of disputes: the bank takes a payment back, until it decides for the seller."""

from __future__ import annotations

from sandbox.rows import Json, Work
from sandbox.stripe.book import StripeBook
from sandbox.stripe.errors import ApiError
from sandbox.stripe.forms import Params
from sandbox.stripe.rows import Charge, Dispute

ANSWER_S = 9 * 24 * 3600
UPDATE = frozenset(("evidence", "metadata", "submit", "expand"))
OPEN = frozenset(("needs_response", "under_review", "warning_needs_response", "warning_under_review"))
_REASONS_TEXT = (
    "bank_cannot_process credit_not_processed customer_initiated debit_not_authorized duplicate fraudulent "
    "general incorrect_account_details insufficient_funds product_not_received product_unacceptable "
    "subscription_canceled unrecognized"
)
REASONS = frozenset(_REASONS_TEXT.split())
_EVIDENCE_TEXT = (
    "access_activity_log billing_address cancellation_policy cancellation_policy_disclosure cancellation_rebuttal "
    "customer_communication customer_email_address customer_name customer_purchase_ip customer_signature "
    "duplicate_charge_documentation duplicate_charge_explanation duplicate_charge_id product_description receipt "
    "refund_policy refund_policy_disclosure refund_refusal_explanation service_date service_documentation "
    "shipping_address shipping_carrier shipping_date shipping_documentation shipping_tracking_number "
    "uncategorized_file uncategorized_text"
)
EVIDENCE = tuple(_EVIDENCE_TEXT.split())
# As in Stripe's test mode: evidence with one of these texts decides the dispute at once.
_DECIDING = {"winning_evidence": True, "losing_evidence": False}


def open_dispute(work: Work, charge: Charge, reason: str, amount: int, *, inquiry: bool = False) -> Dispute:
    """Opens a dispute of a charge. Except for an inquiry, the money leaves at once."""
    if charge.dispute is not None:
        raise ApiError(400, f"Charge {charge.id} is disputed already.")
    if not 0 < amount <= charge.taken:
        raise ApiError(400, f"Charge {charge.id} has taken {charge.taken}, so {amount} cannot be disputed.")
    dispute = Dispute(
        id=work.new_id("dp"),
        charge=charge.id,
        intent=charge.intent,
        amount=amount,
        currency=charge.currency,
        created=work.now,
        reason=reason,
        status="warning_needs_response" if inquiry else "needs_response",
        due_by=work.now + ANSWER_S,
        metadata={},
        evidence={},
        card=charge.card,
        withdrawn_at=None if inquiry else work.now,
    )
    work.put(charge._replace(dispute=dispute.id))
    events = ("charge.dispute.created",) if inquiry else ("charge.dispute.created", "charge.dispute.funds_withdrawn")
    work.put(dispute, *events)
    return dispute


def update(work: Work, dispute: Dispute, params: Params) -> Dispute:
    """Stores evidence and, unless `submit` is false, sends it to the bank."""
    params.only(UPDATE)
    _only_open(dispute)
    evidence = dict(dispute.evidence)
    if (given := params.nested("evidence")) is not None:
        given.only(EVIDENCE)
        evidence |= {name: text for name in EVIDENCE if (text := given.text(name, longest=20_000)) is not None}
    metadata = {**dispute.metadata, **params.metadata()}
    changed = dispute._replace(evidence=evidence, metadata=metadata)
    if not evidence or params.boolean("submit") is False:
        work.put(changed, "charge.dispute.updated")
        return changed
    status = "warning_under_review" if dispute.withdrawn_at is None else "under_review"
    sent = changed._replace(status=status, submissions=dispute.submissions + 1)
    work.put(sent, "charge.dispute.updated")
    decided = _DECIDING.get(str(evidence.get("uncategorized_text")))
    return sent if decided is None else decide(work, sent, won=decided)


def close(work: Work, dispute: Dispute, params: Params) -> Dispute:
    """Accepts the dispute: the seller has no evidence."""
    params.only(("expand",))
    _only_open(dispute)
    return decide(work, dispute, won=False)


def decide(work: Work, dispute: Dispute, *, won: bool) -> Dispute:
    """Applies the bank's decision. An inquiry only ends."""
    _only_open(dispute)
    if dispute.withdrawn_at is None:
        ended = dispute._replace(status="warning_closed")
        work.put(ended, "charge.dispute.closed")
        return ended
    if not won:
        lost = dispute._replace(status="lost")
        work.put(lost, "charge.dispute.closed")
        return lost
    back = dispute._replace(status="won", reinstated_at=work.now)
    work.put(back, "charge.dispute.closed", "charge.dispute.funds_reinstated")
    return back


def escalate(work: Work, dispute: Dispute) -> Dispute:
    """Makes an inquiry a dispute that takes the money."""
    if dispute.status not in OPEN or dispute.withdrawn_at is not None:
        raise ApiError(400, f"This dispute ({dispute.id}) is no open inquiry.")
    grown = dispute._replace(status="needs_response", withdrawn_at=work.now)
    work.put(grown, "charge.dispute.updated", "charge.dispute.funds_withdrawn")
    return grown


def check_refund(book: StripeBook, charge: Charge) -> None:
    """Refuses a refund of money that a dispute has taken back."""
    if charge.dispute is None:
        return
    dispute = book.disputes.rows[charge.dispute]
    if dispute.withdrawn_at is not None and dispute.status != "won":
        raise ApiError(
            400, f"Charge {charge.id} has been charged back; cannot issue a refund.", code="charge_disputed", saved=True
        )


def close_inquiry(work: Work, book: StripeBook, charge: Charge) -> None:
    """A full refund answers an inquiry."""
    if charge.dispute is not None:
        dispute = book.disputes.rows[charge.dispute]
        if dispute.withdrawn_at is None and dispute.status in OPEN and charge.amount_refunded == charge.taken:
            decide(work, dispute, won=True)


def shown_evidence(dispute: Dispute) -> Json:
    return {**dict.fromkeys(EVIDENCE), "enhanced_evidence": {}, **dispute.evidence}


def _only_open(dispute: Dispute) -> None:
    if dispute.status not in OPEN:
        raise ApiError(400, f"This dispute ({dispute.id}) is already closed, as {dispute.status}.", saved=True)
