"""Idempotency: a repeated mutation is recognised by its request id, in the transaction of the mutation."""

import uuid

from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncSession

from services.chassis.data.cleanup import delete_old_rows
from services.chassis.data.grants import Grant
from services.chassis.errors import RequestIdReused
from services.chassis.request_context import RequestKey

TABLE = """
CREATE TABLE requests (
    caller      text NOT NULL,
    method      text NOT NULL,
    request_id  uuid NOT NULL,
    digest      bytea NOT NULL,
    resource_id uuid NOT NULL,
    create_time timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (caller, method, request_id)
);
CREATE INDEX requests_create_time ON requests (create_time);
"""
GRANT = Grant(insert=True, delete=True)
CLEANUP = delete_old_rows("requests", keep="2 days")
"""Two days are twice what the contract promises."""

_RECORD = text("""
    INSERT INTO requests (caller, method, request_id, digest, resource_id)
    VALUES (:caller, :method, :request_id, :digest, :resource_id) ON CONFLICT DO NOTHING RETURNING resource_id
""")
_FIND = text("""
    SELECT digest, resource_id FROM requests WHERE caller = :caller AND method = :method AND request_id = :request_id
""")


_FORGET = text("DELETE FROM requests WHERE caller = :caller AND method = :method AND request_id = :request_id")


async def forget(tx: AsyncSession, key: RequestKey | None) -> None:
    """Forgets a request that was recorded and then came to nothing, so that a repeat tries again."""
    if key is not None:
        await tx.execute(_FORGET, {"caller": key.caller, "method": key.method, "request_id": key.request_id})


async def is_known(tx: AsyncSession, key: RequestKey | None) -> bool:
    """Returns whether a request was recorded. Records nothing, so `find_repeat` decides in the end."""
    if key is None:
        return False
    of_request = {"caller": key.caller, "method": key.method, "request_id": key.request_id}
    return (await tx.execute(_FIND, of_request)).one_or_none() is not None


async def find_repeat(tx: AsyncSession, key: RequestKey | None, resource_id: uuid.UUID) -> uuid.UUID | None:
    """Returns the resource that the first request under `key` made, or None if this is the first one.

    A first request is recorded with `resource_id`, and commits with `tx`. A concurrent repeat waits here until the
    first one has committed. Raises `RequestIdReused` if the content differs.
    """
    if key is None:
        return None
    of_request = {"caller": key.caller, "method": key.method, "request_id": key.request_id}
    if await tx.scalar(_RECORD, {**of_request, "digest": key.digest, "resource_id": resource_id}):
        return None
    first = (await tx.execute(_FIND, of_request)).one()
    if first.digest != key.digest:
        raise RequestIdReused(requestId=key.request_id)
    return first.resource_id  # type: ignore[no-any-return]
