"""The privileges of the runtime role: what the statements beside this module need."""

from services.chassis.data import idempotency
from services.chassis.data.grants import Grant, Grants

GRANTS: Grants = {
    "products": Grant(
        insert=True,
        update=(
            "sku", "slug", "name", "description", "category", "price_minor", "currency", "original_price_minor",
            "attributes", "active", "version", "update_time", "deleted_time",
        ),
    ),
    "requests": idempotency.GRANT,
}  # fmt: skip
