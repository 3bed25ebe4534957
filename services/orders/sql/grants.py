"""The privileges of the runtime role: what the statements beside this module need."""

from services.chassis.data import idempotency
from services.chassis.data.grants import Grant, Grants
from services.chassis.events import outbox, subscriber

GRANTS: Grants = {
    "orders": Grant(
        insert=True,
        update=(
            "state", "state_reason", "payment", "hold_expire_time", "cancel_requested", "refunding", "refunded_minor",
            "returned", "secret_wanted", "disputed", "shipment", "payment_page", "payment_attempts", "reopened",
            "version", "update_time",
        ),
    ),
    "order_products": Grant(insert=True),
    # The log is append-only. Its partitions are made and dropped by a function of the owner's.
    "order_log": Grant(insert=True),
    "sagas": Grant(
        insert=True,
        update=(
            "phase", "steps_done", "reason", "cancel_reason", "paused", "payment_changed", "payment_method", "terms",
            "refunded_minor", "holder", "fencing_token", "attempts", "cause", "actor", "note", "request_id",
            "progress_time", "next_time", "hold_check_time", "waits_for_provider",
        ),
        delete=True,
    ),
    "payment_checks": Grant(insert=True, update=("due_time", "attempts"), delete=True),
    "requests": idempotency.GRANT,
    "outbox": outbox.GRANT,
    "published_events": outbox.GRANT,
    "seen_events": subscriber.GRANT,
}  # fmt: skip
