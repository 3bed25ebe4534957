"""Running sagas as operators see them, and the help for stuck ones."""

import asyncio
import uuid
from collections.abc import Callable
from datetime import datetime

from prometheus_client import Gauge
from sqlalchemy.ext.asyncio import AsyncSession

from services.chassis.data import idempotency
from services.chassis.data.db import Database
from services.chassis.errors import WrongState
from services.chassis.request_context import RequestKey
from services.chassis.telemetry.heartbeats import beat
from services.orders.domain import Actor, SagaNotFound
from services.orders.saga.plan import COMPENSATED, Kind, Phase, SagaView
from services.orders.sql import combined, order_log, orders, sagas

_UNSETTLED = Gauge("stampede_sagas_unsettled", "Running sagas, all processes together.")
_STUCK = Gauge(
    "stampede_sagas_stuck", "Sagas without progress for a minute that wait neither for their customer nor the provider."
)
_MOVING = Gauge("stampede_sagas_moving_money", "Sagas that wait while the provider moves money, for days at most.")
_OLDEST = Gauge("stampede_sagas_oldest_seconds", "The longest time without progress of a saga that could be stuck.")
_MEASURE_SECONDS = 10.0


async def list_sagas(
    db: Database, *, stuck: bool, after: tuple[datetime, uuid.UUID] | None, most: int
) -> list[SagaView]:
    """Running sagas, the longest without progress first; `after` is the (progress time, order id) of one."""
    return await sagas.list_views(db, only_stuck=stuck, after=after, most=most)


async def get(db: Database, order_id: uuid.UUID) -> SagaView:
    """The saga of one order; raises `OrderNotFound`, `SagaNotFound`."""
    async with db() as tx:
        return await _read(tx, order_id)


async def _read(tx: AsyncSession, order_id: uuid.UUID) -> SagaView:
    saga = await sagas.view(tx, order_id)
    if saga is None:
        await orders.read(tx, order_id)
        raise SagaNotFound(orderId=order_id)
    return saga


async def resume(db: Database, order_id: uuid.UUID, by: Actor, *, key: RequestKey | None = None) -> SagaView:
    """Has any process take a saga's next step now; raises `OrderNotFound`, `SagaNotFound`."""
    async with db.begin() as tx:
        saga = await _read(tx, order_id)
        if not await idempotency.find_repeat(tx, key, order_id):
            await sagas.make_due(tx, order_id)
            await order_log.append(tx, order_id, by, cause="ResumeSaga")
    return saga


async def compensate(
    db: Database,
    order_id: uuid.UUID,
    by: Actor,
    *,
    key: RequestKey | None = None,
    withdraw: Callable[[uuid.UUID], None] = lambda _: None,
) -> SagaView:
    """Has a saga turn back, whatever it has done; raises `OrderNotFound`, `SagaNotFound`, `WrongState`.

    A saga that was compensated already is only resumed. Calls `withdraw` before the commit, as `Worker.withdraw`.
    """
    async with db.begin() as tx:
        saga = await _read(tx, order_id)
        if saga.progress.kind is not Kind.PURCHASE:
            raise WrongState(resource="saga", state=saga.progress.kind, wanted=Phase.UNDONE)
        if not await idempotency.find_repeat(tx, key, order_id):
            new = await combined.request_cancel(tx, order_id, COMPENSATED, by, cause="CompensateSaga begun")
            # A process that has its lease does not have the reason yet, and could have the order paid.
            if not await sagas.make_due(tx, order_id, revoke=True):
                raise SagaNotFound(orderId=order_id)  # it has just finished
            if not new:
                await order_log.append(tx, order_id, by, cause="CompensateSaga begun")
            withdraw(order_id)
    return saga


async def measure(db: Database) -> None:
    """Keeps the metrics of running sagas up to date. Runs until cancelled."""
    while beat():
        counts = await sagas.count(db)
        _UNSETTLED.set(counts.running)
        _STUCK.set(counts.stuck)
        _MOVING.set(counts.moving)
        _OLDEST.set(counts.oldest_seconds)
        await asyncio.sleep(_MEASURE_SECONDS)
