"""What people see of sagas that are under way, and what they can do for those that do not get on."""

import asyncio
import uuid
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from prometheus_client import Gauge
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncSession

from services.chassis.data import idempotency
from services.chassis.data.db import Database
from services.chassis.errors import WrongState
from services.chassis.request_context import RequestKey
from services.orders import journal, rows, store
from services.orders.domain import Mover, SagaNotFound, State
from services.orders.saga import COMPENSATED, Kind, Phase, Progress

_UNSETTLED = Gauge("stampede_sagas_unsettled", "Sagas under way, all processes together.")
_STUCK = Gauge("stampede_sagas_stuck", "Sagas that have not got on for a minute, though they wait for no customer.")
_OLDEST = Gauge(
    "stampede_sagas_oldest_seconds", "For how long the saga has not got on that waits longest, but for no customer."
)
STUCK_SECONDS = 60.0
_MEASURE_SECONDS = 10.0

_STUCK_SINCE = f"""
    NOT coalesce({journal.WAITS_FOR_CUSTOMER}, false)
    AND s.progress_time < clock_timestamp() - make_interval(secs => :stuck)
"""
_SAGAS = f"""
    SELECT s.*, o.customer_id, o.state, coalesce({journal.WAITS_FOR_CUSTOMER}, false) AS for_customer,
        {_STUCK_SINCE} AS stuck
    FROM sagas s JOIN orders o ON o.id = s.order_id
"""  # noqa: S608
_LOG = text("""
    INSERT INTO order_log (order_id, version, state, reason, actor, cause, note, request_id, refunded_minor)
    SELECT id, version, state, state_reason, :actor, :cause, :note, :request, refunded_minor FROM orders WHERE id = :id
""")
_HURRY = text("UPDATE sagas SET attempts = 0, next_time = clock_timestamp() WHERE order_id = :id")
# Whoever has it does not know of the wish, and could have the order paid a moment later.
_TAKE_AWAY = text("""
    UPDATE sagas SET fence = fence + 1, attempts = 0, next_time = clock_timestamp() WHERE order_id = :id
    RETURNING order_id
""")


@dataclass(frozen=True, slots=True, kw_only=True)
class SagaView:
    """A saga as people see it."""

    order_id: uuid.UUID
    customer_id: uuid.UUID
    order_state: State
    progress: Progress
    waits_for_customer: bool
    stuck: bool
    cause: str
    attempts: int
    create_time: datetime
    progress_time: datetime
    next_time: datetime


async def sagas(db: Database, *, stuck: bool, after: tuple[datetime, uuid.UUID] | None, most: int) -> list[SagaView]:
    """Sagas under way, those that have waited longest first; `after` is the (progress time, order id) of one."""
    query = text(f"""
        {_SAGAS} WHERE (NOT :only_stuck OR {_STUCK_SINCE})
            AND (CAST(:id AS uuid) IS NULL OR (progress_time, order_id) > (CAST(:time AS timestamptz), :id))
        ORDER BY progress_time, order_id LIMIT :most
    """)
    time, id_ = after or (None, None)
    arguments = {"only_stuck": stuck, "stuck": STUCK_SECONDS, "time": time, "id": id_, "most": most}
    async with db() as tx:
        return [_view(row) for row in await tx.execute(query, arguments)]


async def get(db: Database, order_id: uuid.UUID) -> SagaView:
    """The saga of one order; raises `OrderNotFound`, `SagaNotFound`."""
    async with db() as tx:
        return await _one(tx, order_id)


async def _one(tx: AsyncSession, order_id: uuid.UUID) -> SagaView:
    query = text(f"{_SAGAS} WHERE order_id = :id")
    row = (await tx.execute(query, {"id": order_id, "stuck": STUCK_SECONDS})).one_or_none()
    if row is None:
        await store.read(tx, order_id)
        raise SagaNotFound(orderId=order_id)
    return _view(row)


def _view(row: Any) -> SagaView:
    return SagaView(
        order_id=row.order_id, customer_id=row.customer_id, order_state=State(row.state),
        progress=rows.progress(row),
        waits_for_customer=row.for_customer, stuck=row.stuck, cause=row.cause, attempts=row.attempts,
        create_time=row.create_time, progress_time=row.progress_time, next_time=row.next_time,
    )  # fmt: skip


async def resume(db: Database, order_id: uuid.UUID, by: Mover, *, key: RequestKey | None = None) -> SagaView:
    """Has whoever has time look after a saga now; raises `OrderNotFound`, `SagaNotFound`."""
    async with db.begin() as tx:
        saga = await _one(tx, order_id)
        if not await idempotency.find_repeat(tx, key, order_id):
            await tx.execute(_HURRY, {"id": order_id})
            await _note(tx, order_id, by, "ResumeSaga")
    return saga


async def compensate(db: Database, order_id: uuid.UUID, by: Mover, *, key: RequestKey | None = None) -> SagaView:
    """Has a saga turn back, whatever it has done; raises `OrderNotFound`, `SagaNotFound`, `WrongState`.

    One that goes back already is only resumed.
    """
    async with db.begin() as tx:
        saga = await _one(tx, order_id)
        if saga.progress.kind is not Kind.PURCHASE:
            raise WrongState(resource="saga", state=saga.progress.kind, wanted=Phase.UNDONE)
        if not await idempotency.find_repeat(tx, key, order_id):
            await journal.ask(tx, [order_id], COMPENSATED, by)
            if not (await tx.execute(_TAKE_AWAY, {"id": order_id})).all():
                raise SagaNotFound(orderId=order_id)  # it has just come to its end
            await _note(tx, order_id, by, "CompensateSaga")
    return saga


async def _note(tx: AsyncSession, order_id: uuid.UUID, by: Mover, cause: str) -> None:
    arguments = {"id": order_id, "actor": by.actor, "note": by.note, "request": by.request_id, "cause": cause}
    await tx.execute(_LOG, arguments)


async def counted(db: Database) -> tuple[int, int, float]:
    """How many sagas are under way, how many are stuck, and for how many seconds one has not got on at most.

    Those that wait for their customer count only as under way.
    """
    query = text(f"""
        SELECT count(*) AS unsettled, count(*) FILTER (WHERE {_STUCK_SINCE}) AS stuck,
            coalesce(extract(epoch FROM clock_timestamp() - min(s.progress_time)
                FILTER (WHERE NOT coalesce({journal.WAITS_FOR_CUSTOMER}, false))), 0)::float AS oldest
        FROM sagas s JOIN orders o ON o.id = s.order_id
    """)  # noqa: S608
    async with db() as tx:
        row = (await tx.execute(query, {"stuck": STUCK_SECONDS})).one()
    return row.unsettled, row.stuck, row.oldest


async def measure(db: Database) -> None:
    """Keeps the metrics of sagas under way up to date. Runs until cancelled."""
    while True:
        unsettled, stuck, oldest = await counted(db)
        _UNSETTLED.set(unsettled)
        _STUCK.set(stuck)
        _OLDEST.set(oldest)
        await asyncio.sleep(_MEASURE_SECONDS)
