"""The privileges of the runtime role: what the statements beside this module need."""

from services.chassis.data import idempotency, lease
from services.chassis.data.grants import Grant, Grants
from services.chassis.events import outbox

GRANTS: Grants = {
    "stock": Grant(insert=True, update=("on_hand", "held", "update_time")),
    # The ledger and the returns are append-only.
    "stock_movements": Grant(insert=True),
    "returns": Grant(insert=True),
    "flash_sales": Grant(
        insert=True,
        update=(
            "title", "price_minor", "currency", "allocation", "per_customer_limit", "start_time", "end_time",
            "hold_seconds", "abandoned_hold_limit", "held", "sold", "returned", "closed_as", "version", "update_time",
        ),
    ),
    "sale_customers": Grant(insert=True, update=("units",)),
    "abandoned_holds": Grant(insert=True, update=("holds",), delete=True),
    "reservations": Grant(
        insert=True, update=("state", "expire_time", "extended", "slot", "units", "reholds", "update_time")
    ),
    "leases": lease.GRANT,
    "requests": idempotency.GRANT,
    "outbox": outbox.GRANT,
    "published_events": outbox.GRANT,
}  # fmt: skip
