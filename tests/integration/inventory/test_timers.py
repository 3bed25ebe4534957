"""Timers: sales end and holds expire once, also while two processes lead for a moment."""

import asyncio
import contextlib
from collections.abc import AsyncIterator
from typing import Any

import pytest
from prometheus_client import REGISTRY

from services.chassis.data.db import Database
from services.chassis.events.outbox import Relay
from services.inventory import sales
from services.inventory.background import leader
from services.inventory.gate.gate import Gate
from services.inventory.reservations import reserve
from services.inventory.sql import reservations
from tests.integration.inventory.conftest import (
    a_hold,
    a_sale,
    books,
    hold_ended,
    holding,
    left,
    of_sale,
    rows_of,
    sale_ended,
)
from tests.support.waiting import until


@contextlib.asynccontextmanager
async def leading(db: Database, gate: Gate, *, leaders: int = 1) -> AsyncIterator[None]:
    tasks = [asyncio.create_task(leader.lead(db, gate, nudge=Relay(db).nudge)) for _ in range(leaders)]
    try:
        yield
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


def counted(name: str) -> float:
    return REGISTRY.get_sample_value(name) or 0.0


async def test_two_leaders_at_once_end_each_hold_and_close_each_sale_once(db: Database, gate: Gate) -> None:
    sale, over = await a_sale(db, units=600), [await a_sale(db, units=2, stock=3) for _ in range(110)]
    held = await reserve.reserve(db, [a_hold(of_sale(sale)) for _ in range(600)])
    await hold_ended(db, *(outcome.id for outcome in held))  # type: ignore[union-attr]
    await sale_ended(db, *(each.id for each in over))
    expired = counted("stampede_holds_expired_total")

    async def done() -> bool:
        return await rows_of(db, "SELECT FROM flash_sales WHERE closed_as IS NULL OR held > 0") == [()]

    async with leading(db, gate, leaders=2):
        await until(done)
        await until(lambda: is_left(gate, sale, 600))

    assert counted("stampede_holds_expired_total") == expired + 600
    assert await rows_of(db, "SELECT count(*), count(DISTINCT payload) FROM outbox WHERE subject LIKE '%expired'") == [
        (600, 600)
    ]
    returned = "SELECT count(*), sum(delta) FROM stock_movements WHERE kind = 'RETURNED'"
    assert await rows_of(db, returned) == [(110, 220)]
    assert await books(db) == []


async def is_left(gate: Gate, sale: Any, units: int) -> bool:
    return await left(gate, sale) == units


async def test_a_timer_that_fails_is_tried_again_and_stops_no_other(
    db: Database, gate: Gate, monkeypatch: pytest.MonkeyPatch
) -> None:
    sale, failed = await a_sale(db, units=3), 0
    close = sales.close_ended_sales

    async def fails_twice(db: Database) -> int:
        nonlocal failed
        failed += 1
        if failed <= 2:
            raise OSError("a bad day")
        return await close(db)

    monkeypatch.setattr(sales, "close_ended_sales", fails_twice)
    await hold_ended(db, (await holding(db, of_sale(sale, 3))).id)
    async with leading(db, gate):
        await until(lambda: is_left(gate, sale, 3))
        await sale_ended(db, sale.id)
        await until(lambda: rows_of(db, "SELECT FROM flash_sales WHERE closed_as = 'ENDED'"))
    assert failed > 2


async def test_how_late_the_oldest_hold_is_can_be_seen(db: Database) -> None:
    sale = await a_sale(db, units=3)
    first, *_ = [await holding(db, of_sale(sale)) for _ in range(3)]
    assert await reservations.overdue_seconds(db) == 0

    await hold_ended(db, first.id)

    assert 1 <= await reservations.overdue_seconds(db) < 60
    measuring = asyncio.create_task(leader.measure(db))

    async def seen() -> bool:
        return counted("stampede_holds_overdue_seconds") >= 1

    await until(seen)
    measuring.cancel()
    await asyncio.gather(measuring, return_exceptions=True)
