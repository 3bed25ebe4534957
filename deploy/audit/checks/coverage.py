"""The control of each column: the name of the check that finds it wrong, or why it carries no truth.

A test compares the list with the tables of all services. A new column needs its line here: the name of a check in
`all_checks`, with a case in `tests/audit/corruptions.py`; or a sentence that says why nobody needs to know it is wrong.
"""

_TEXT = "text for people; no rule and no amount depends on it"
_CLOCK = "a time for people and for cleanups"
_CLIENT = "as the client sent it; nothing else knows it"
_PACE = "paces retries; a wrong value costs a try or some seconds"
_CACHED = "derived by the database from other columns"

COVERAGE: dict[str, dict[str, str]] = {
    "catalog.products": {
        "id": "order-product", "sku": "product-once", "slug": "product-once", "name": _TEXT, "description": _TEXT,
        "category": _TEXT, "price_minor": "product-terms", "currency": "sale-currency",
        "original_price_minor": "product-terms", "attributes": "product-terms",
        "active": "staff decide whether a product is on sale", "version": "product-terms",
        "create_time": "product-terms", "update_time": "product-terms", "deleted_time": "product-terms",
        "search": _CACHED,
    },
    "identity.users": {
        "id": "order-customer", "email": "user-account", "password_hash": "user-account", "display_name": _TEXT,
        "roles": "user-account", "email_verified": "no right depends on it", "create_time": _CLOCK,
    },
    "identity.sessions": {
        "id": "user-session", "user_id": "user-session", "create_time": "user-session", "expire_time": "user-session",
        "revoke_time": "user-session",
    },
    "identity.refresh_tokens": {
        "hash": "a hash of a random value; a wrong one opens nothing", "session_id": "user-session",
        "create_time": "user-session", "expire_time": "a token never outlives its session",
        "used_time": "user-session",
    },
    "identity.signing_keys": {
        "kid": "signing-keys", "public_jwk": "signing-keys", "sealed_private_key": "signing-keys",
        "create_time": _CLOCK, "sign_from": "signing-keys", "retire_time": "signing-keys",
    },
    "inventory.stock": {
        "product_id": "stock-counters", "on_hand": "stock-counters", "held": "stock-counters", "update_time": _CLOCK,
    },
    "inventory.stock_movements": {
        "id": "the order of the ledger", "product_id": "movement-of-order", "delta": "stock-counters",
        "kind": "movement-kind", "reference_id": "movement-of-order", "reason": _TEXT, "create_time": _CLOCK,
    },
    "inventory.flash_sales": {
        "id": "sale-ledger", "product_id": "sale-ledger", "title": _TEXT, "price_minor": "reservation-lines",
        "currency": "sale-currency", "allocation": "sale-ledger", "per_customer_limit": "customer-limit",
        "start_time": "sale-terms", "end_time": "sale-closed", "hold_seconds": "sale-terms",
        "abandoned_hold_limit": "sale-terms",
        "held": "sale-counters", "sold": "sale-counters", "returned": "sale-closed", "closed_as": "sale-closed",
        "version": "sale-terms", "create_time": _CLOCK, "update_time": _CLOCK,
    },
    "inventory.sale_customers": {
        "sale_id": "sale-customers", "customer_id": "customer-units", "units": "customer-units",
    },
    "inventory.abandoned_holds": {
        "sale_id": "abandoned-holds", "customer_id": "abandoned-holds", "holds": "abandoned-holds",
    },
    "inventory.reservations": {
        "id": "order-reservation", "customer_id": "order-reservation", "state": "order-units",
        "lines": "order-reservation", "sale_id": "reservation-lines", "expire_time": "hold-length",
        "extended": "hold-length", "slot": "hold-slot",
        "units": "reservation-lines", "reholds": "a wrong value costs its customer one more try to pay",
        "create_time": "hold-length", "update_time": "hold-length",
    },
    "inventory.returns": {
        "id": "names the refund at orders; a repeat finds it", "reservation_id": "return-lines",
        "asked": "return-lines", "lines": "movement-of-order", "create_time": _CLOCK,
    },
    "orders.orders": {
        "id": "order-lost", "customer_id": "order-reservation", "request_id": "order-once", "digest": _CLIENT,
        "state": "log-complete", "state_reason": _TEXT, "lines": "order-reservation", "currency": "order-total",
        "total_minor": "order-total", "hold_expire_time": "hold-of-order", "payment": "order-payment-copy",
        "shipping_address": _CLIENT, "note": _CLIENT, "refunded_minor": "order-refunded", "returned": "order-returned",
        "refunding": "saga-of-order",
        "cancel_requested": "cancel-of-order", "secret_wanted": _PACE, "disputed": "order-disputed",
        "payment_page": "where its customer pays; payments tells them again",
        "payment_attempts": "a wrong value gives its customer an attempt more or less",
        "reopened": "a wrong value keeps units held until their time is over",
        "shipment": "order-state", "version": "log-complete",
        "create_time": "order-products", "update_time": "order-state",
    },
    "orders.order_products": {
        "product_id": "order-products", "create_time": "order-products", "order_id": "order-products",
    },
    "orders.sagas": {
        "order_id": "saga-of-order", "phase": "saga-shape", "steps_done": "saga-shape", "payment_method": _CLIENT,
        "next_time": "saga-shape", "reason": _TEXT, "cancel_reason": "cancel-of-order", "paused": "saga-stuck",
        "payment_changed": _PACE, "refunded_minor": "saga-shape", "hold_check_time": _PACE, "kind": "saga-of-order",
        "refund": "saga-shape", "actor": _TEXT, "note": _TEXT, "request_id": _TEXT, "cause": _TEXT,
        "progress_time": "saga-stuck", "provider_bound": _CACHED, "fencing_token": "saga-shape", "attempts": _PACE,
        "holder": _PACE, "terms": _CLIENT, "waits_for_provider": "saga-waits", "create_time": _CLOCK,
    },
    "orders.order_log": {
        "id": "log-moves", "create_time": "orders-partitions", "order_id": "log-complete", "version": "log-moves",
        "state": "log-moves", "reason": _TEXT, "actor": _TEXT, "request_id": _TEXT, "cause": "log-moves",
        "note": _TEXT, "refunded_minor": "log-complete",
    },
    "orders.payment_checks": {"order_id": "payment-check", "due_time": "payment-check", "attempts": _PACE},
    "payments.payments": {
        "id": "provider-charge", "order_id": "order-lost", "customer_id": "payment-amount",
        "amount_minor": "payment-amount", "currency": "payment-amount", "state": "payment-of-paid-order",
        "provider": "order-payment-copy", "customer_pays": "a wrong value costs the customer another try",
        "payment_method": "payment-state", "provider_reference": "provider-charge",
        "capture_reference": "provider-charge", "hold_expire_time": _PACE,
        "sent": _PACE,
        "client_secret": "payment-state", "attempt": "payment-state", "attempt_time": _PACE,
        "failure_reason": _TEXT, "authenticating": "payment-state", "refunded_minor": "order-refunded",
        "refunding_minor": "payment-refunds", "cancel_requested": "payment-open", "checks": _PACE,
        "next_check_time": "payment-unattended", "problem": "money-problem", "unanswered_time": _PACE,
        "answer_time": "saga-waits",
        "refund_check_time": _PACE, "order_attempt": "a wrong value costs the customer another attempt",
        "latest_order_attempt": "a wrong value costs the customer another attempt", "terms": _CLIENT,
        "next_terms": "payment-state", "former_references": "provider-stray", "checkout_reference": "payment-state",
        "checkout_url": "payment-state", "version": "payment-state", "create_time": "payment-state",
        "update_time": "payment-state", "capture": "payment-state", "authorize_time": "payment-state",
    },
    "payments.refunds": {
        "id": "provider-refunds", "payment_id": "refund-row", "provider": "refund-row",
        "amount_minor": "provider-refunds", "reason": _TEXT, "state": "provider-refunds", "stray": "refund-row",
        "charge_reference": "refund-row", "provider_reference": "provider-refunds", "failure_reason": _TEXT,
        "checks": _PACE, "external": "refund-row", "problem": "money-problem", "attempt": _PACE, "attempt_time": _PACE,
        "unanswered_time": _PACE, "answer_time": "saga-waits", "next_check_time": "payment-unattended",
        "settlement": "journal-rows", "received_minor": "journal-rows",
        "create_time": "refund-pending", "update_time": "refund-row",
    },
    "payments.journal_entries": {
        "id": "the order of the entries", "create_time": "journal-entry", "payment_id": "journal-rows",
        "kind": "journal-entry", "debit": "journal-rows", "credit": "journal-rows", "amount_minor": "journal-rows",
        "currency": "journal-rows", "reference": "journal-rows",
    },
    "payments.disputes": {
        "provider": "part of the key", "reference": "the provider's name of the dispute", "payment_id": "dispute-row",
        "state": "provider-dispute", "status": "the provider's word for the state", "reason": _TEXT,
        "amount_minor": "provider-dispute", "currency": "dispute-row", "withdrawn_minor": "journal-rows",
        "fee_minor": "as the provider reported it last", "evidence_due_time": _CLOCK,
        "report_time": _CLOCK, "create_time": _CLOCK, "update_time": _CLOCK,
    },
    "payments.dispute_checks": {
        "provider": "part of the key", "reference": "the provider's name of the dispute",
        "payment_id": "a wrong one is refused when the record is read", "due_time": "dispute-unread",
        "attempts": _PACE,
    },
    "payments.provider_customers": {
        "customer_id": "part of the key", "provider": "part of the key",
        "reference": "the provider's name of the customer; it refuses a card of another one", "create_time": _CLOCK,
    },
    "payments.saved_methods": {
        "id": "the customer's name of the card", "customer_id": "the provider refuses a card of another customer",
        "provider": "part of the key", "reference": "the provider's name of the card", "brand": _TEXT, "last4": _TEXT,
        "expire_month": _TEXT, "expire_year": _TEXT, "remove_time": "each list asks the provider again",
        "detach_time": _PACE, "create_time": _CLOCK, "update_time": _CLOCK,
    },
    "payments.provider_reports": {
        "provider": "part of the key", "next_time": _PACE, "done_time": _CLOCK,
        "differences": "the command `report` counts them again",
    },
    "payments.event_walks": {
        "provider": "part of the key", "done_time": "provider-events-read", "next_time": _PACE,
    },
    "payments.provider_events": {
        "provider": "part of the key", "event_id": "the provider's name of the event",
        "payload": "provider-event-effect", "received_time": "provider-event-waits", "next_try_time": _PACE,
        "processed_time": "provider-event-waits", "attempts": _PACE, "error": "provider-event-parked",
    },
    # The tables of the chassis, in whichever services have them.
    "chassis.requests": {
        "caller": "part of the key", "method": "part of the key", "request_id": "part of the key", "digest": _CLIENT,
        "resource_id": "orders-requests", "create_time": _CLOCK,
    },
    "chassis.outbox": {
        "id": "the order of the events", "event_id": "event-lost", "subject": "event-lost", "key": "event-lost",
        "payload": "a hint: consumers ask the owner", "create_time": "outbox",
    },
    "chassis.published_events": {
        "id": "the order of the events", "event_id": "event-lost", "subject": "event-lost", "key": "event-lost",
        "payload": "a hint: consumers ask the owner", "seq": _PACE, "create_time": _CLOCK,
    },
    "chassis.seen_events": {
        "event_id": "a lost one repeats an effect that changes nothing", "create_time": _CLOCK,
    },
    "chassis.leases": {
        "name": "one row a job", "holder": "renewed every second", "expire_time": "renewed every second",
    },
}  # fmt: skip
"""By table and column; a value with a space is a reason, any other the name of a check."""
