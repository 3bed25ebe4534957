"""Cleanup jobs: independent of each other, complete, and counted when they fail."""

import asyncio
import uuid
from collections.abc import AsyncIterator

import pytest
from prometheus_client import REGISTRY
from sqlalchemy import text

from services.chassis.data import cleanup, idempotency, partitions
from services.chassis.data.cleanup import Cleanup
from services.chassis.data.db import Database
from services.chassis.process import Process
from services.chassis.settings import ServiceSettings
from tests.support.infra import Infra
from tests.support.waiting import until


@pytest.fixture
async def process(infra: Infra, db: Database) -> AsyncIterator[Process]:
    config = ServiceSettings(
        environment="local", database_url=infra.database_url(str(db.kw["bind"].url.database)),
        nats_url=infra.nats_url, mesh_secret="m" * 32, page_secret="p" * 32,
    )  # type: ignore[arg-type]  # fmt: skip
    async with Process("catalog", config) as process:
        yield process


async def add_requests(db: Database, number: int, *, age: str) -> None:
    async with db.begin() as tx:
        await tx.execute(
            text(f"""
                INSERT INTO requests (caller, method, request_id, digest, resource_id, create_time)
                SELECT '{age}', '/m', gen_random_uuid(), '', gen_random_uuid(), now() - interval '{age}'
                FROM generate_series(1, {number})
            """)
        )


def failures(job: Cleanup) -> float:
    return REGISTRY.get_sample_value("stampede_cleanup_failures_total", {"job": job.name}) or 0


async def scalar(db: Database, query: str) -> object:
    async with db() as tx:
        return await tx.scalar(text(query))


async def test_cleanup_repeats_batches_until_no_old_row_is_left(
    process: Process, db: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cleanup, "_BATCH_ROWS", 10)
    await add_requests(db, 35, age="3 days")
    await add_requests(db, 5, age="1 day")
    process.run_cleanups(idempotency.CLEANUP)
    await until(lambda: scalar(db, "SELECT count(*) = 5 FROM requests"))
    await until(lambda: scalar(db, "SELECT max(create_time) < now() - interval '23 hours' FROM requests"))

    async def measured() -> bool:
        age = REGISTRY.get_sample_value("stampede_cleanup_oldest_seconds", {"job": "requests"})
        return age is not None and 86_000 < age < 90_000

    await until(measured)


@pytest.mark.parametrize("statement", ["DELETE FROM no_such_table", "SELECT pg_sleep(60)"])
async def test_cleanup_that_fails_or_is_slow_delays_no_other(
    process: Process, db: Database, monkeypatch: pytest.MonkeyPatch, statement: str
) -> None:
    monkeypatch.setattr(cleanup, "_STATEMENT_SECONDS", 1)
    broken = Cleanup(str(uuid.uuid4()), statement)
    await add_requests(db, 3, age="3 days")
    async with db.begin() as tx:
        await tx.execute(
            text("CREATE TABLE visits (create_time timestamptz NOT NULL) PARTITION BY RANGE (create_time)")
        )
        await tx.execute(text(partitions.roll_function("visits", role="nobody_there")))
        await tx.execute(text("DO $$ BEGIN EXECUTE format('DROP TABLE visits_%s', to_char(now(), 'YYYY_MM')); END $$"))
    process.run_cleanups(broken, idempotency.CLEANUP, partitions.roll("visits", keep_months=1))
    await until(lambda: scalar(db, "SELECT count(*) = 0 FROM requests"))
    await until(lambda: scalar(db, "SELECT to_regclass('visits_' || to_char(now(), 'YYYY_MM')) IS NOT NULL"))

    async def failed() -> bool:
        return failures(broken) >= 1

    await until(failed)
    assert failures(idempotency.CLEANUP) == 0


async def test_cancelled_cleanup_leaves_its_transaction(db: Database) -> None:
    running = asyncio.create_task(cleanup.run_hourly(db, Cleanup("slow", "SELECT pg_sleep(60)")))
    await until(lambda: scalar(db, "SELECT count(*) > 0 FROM pg_stat_activity WHERE query = 'SELECT pg_sleep(60)'"))
    running.cancel()
    await asyncio.gather(running, return_exceptions=True)
    await until(lambda: scalar(db, "SELECT count(*) = 0 FROM pg_stat_activity WHERE query = 'SELECT pg_sleep(60)'"))
