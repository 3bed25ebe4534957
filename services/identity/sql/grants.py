"""The privileges of the runtime role: what the statements beside this module need."""

from services.chassis.data import idempotency
from services.chassis.data.grants import Grant, Grants

GRANTS: Grants = {
    "users": Grant(insert=True, update=("password_hash",)),
    "sessions": Grant(insert=True, update=("revoke_time",), delete=True),
    "refresh_tokens": Grant(insert=True, update=("used_time",), delete=True),
    "signing_keys": Grant(insert=True, update=("retire_time",), delete=True),
    "requests": idempotency.GRANT,
}
