"""The privileges of the runtime role: what the statements beside this module need."""

from services.chassis.data import idempotency
from services.chassis.data.grants import Grant, Grants
from services.chassis.events import outbox

GRANTS: Grants = {
    "payments": Grant(
        insert=True,
        update=(
            "state", "payment_method", "provider_reference", "capture_reference", "client_secret", "attempt",
            "attempt_time", "failure_reason", "authenticating", "customer_pays", "refunded_minor", "refunding_minor",
            "cancel_requested", "problem", "checks", "unanswered_time", "answer_time", "sent", "next_check_time",
            "refund_check_time", "version", "update_time", "provider", "order_attempt", "latest_order_attempt", "terms",
            "next_terms", "former_references", "checkout_reference", "checkout_url", "capture", "authorize_time",
        ),
    ),
    "refunds": Grant(
        insert=True,
        update=(
            "state", "reason", "provider_reference", "failure_reason", "problem", "attempt", "attempt_time", "checks",
            "unanswered_time", "answer_time", "settlement", "next_check_time", "update_time",
        ),
    ),
    # The journal is append-only.
    "journal_entries": Grant(insert=True),
    "provider_events": Grant(
        insert=True, update=("attempts", "error", "next_try_time", "processed_time"), delete=True
    ),
    "disputes": Grant(
        insert=True,
        update=(
            "state", "status", "reason", "amount_minor", "withdrawn_minor", "fee_minor", "evidence_due_time",
            "report_time", "update_time",
        ),
    ),
    "dispute_checks": Grant(insert=True, update=("due_time", "attempts"), delete=True),
    "provider_customers": Grant(insert=True, update=("reference",)),
    "saved_methods": Grant(
        insert=True,
        update=("brand", "last4", "expire_month", "expire_year", "remove_time", "detach_time", "update_time"),
    ),
    "event_walks": Grant(insert=True, update=("done_time", "next_time")),
    "provider_reports": Grant(insert=True, update=("next_time", "done_time", "differences")),
    "requests": idempotency.GRANT,
    "outbox": outbox.GRANT,
    "published_events": outbox.GRANT,
}  # fmt: skip
