"""Idempotency: a repeated mutation is recognised by its request id, in the transaction of the mutation."""

import uuid
from datetime import datetime

from sqlalchemy import LargeBinary, func, select
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.ext.asyncio import AsyncSession
from sqlalchemy.orm import Mapped, mapped_column

from services.chassis.data.cleanup import delete_old_rows
from services.chassis.data.db import Base
from services.chassis.errors import RequestIdReused
from services.chassis.request_context import RequestKey


class Request(Base):
    """A mutation that committed under a client's request id."""

    __tablename__ = "requests"

    caller: Mapped[str] = mapped_column(primary_key=True)
    method: Mapped[str] = mapped_column(primary_key=True)
    request_id: Mapped[uuid.UUID] = mapped_column(primary_key=True)
    digest: Mapped[bytes] = mapped_column(LargeBinary)
    resource_id: Mapped[uuid.UUID]
    create_time: Mapped[datetime] = mapped_column(server_default=func.now(), init=False)


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


CLEANUP = delete_old_rows("requests", keep="2 days")
"""Two days are twice what the contract promises."""


async def find_repeat(tx: AsyncSession, key: RequestKey | None, resource_id: uuid.UUID) -> uuid.UUID | None:
    """Returns the resource that the first request under `key` made, or None if this is the first one.

    A first request is recorded with `resource_id`, and commits with `tx`. A concurrent repeat waits here until the
    first one has committed. Raises `RequestIdReused` if the content differs.
    """
    if key is None:
        return None
    first = await tx.scalar(
        insert(Request)
        .values(
            caller=key.caller,
            method=key.method,
            request_id=key.request_id,
            digest=key.digest,
            resource_id=resource_id,
        )
        .on_conflict_do_nothing()
        .returning(Request.resource_id)
    )
    if first is not None:
        return None
    known = (
        await tx.execute(
            select(Request.digest, Request.resource_id).where(
                Request.caller == key.caller,
                Request.method == key.method,
                Request.request_id == key.request_id,
            )
        )
    ).one()
    if known.digest != key.digest:
        raise RequestIdReused(requestId=key.request_id)
    resource: uuid.UUID = known.resource_id
    return resource
