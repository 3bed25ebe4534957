"""Cleanup jobs: independent of each other, complete, and counted when they fail."""

import asyncio
import uuid
from collections.abc import AsyncIterator

import pytest
from prometheus_client import REGISTRY
from sqlalchemy import text
from structlog.testing import capture_logs

from services.chassis.data import cleanup, idempotency, partitions
from services.chassis.data.cleanup import Cleanup
from services.chassis.data.db import Database
from services.chassis.process import Process
from services.chassis.settings import ServiceSettings
from tests.support.infra import Infra
from tests.support.waiting import eventually, until


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
        return REGISTRY.get_sample_value("stampede_cleanup_overdue_seconds", {"job": "requests"}) == 0

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


async def test_rows_beyond_their_retention_show_while_their_cleanup_fails(process: Process, db: Database) -> None:
    """That is when they pile up; a gauge that only a good run sets would be silent."""
    await add_requests(db, 3, age="5 days")
    broken = Cleanup(str(uuid.uuid4()), "DELETE FROM no_such_table", overdue=idempotency.CLEANUP.overdue)
    process.run_cleanups(broken)

    async def overdue() -> float:
        return REGISTRY.get_sample_value("stampede_cleanup_overdue_seconds", {"job": broken.name}) or 0

    await eventually(overdue, lambda seconds: 3 * 86_400 <= seconds < 3.1 * 86_400)


async def test_batch_that_takes_too_long_is_retried_smaller(
    process: Process, db: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Otherwise a slow batch would be repeated for ever, and the table grow."""
    monkeypatch.setattr(cleanup, "_BATCH_ROWS", 120)
    monkeypatch.setattr(cleanup, "_RETRY_SECONDS", 0.01)
    monkeypatch.setattr(cleanup, "_STATEMENT_SECONDS", 1)
    await add_requests(db, 120, age="3 days")
    # A row takes 10 ms: 120 rows exceed the time limit, 60 do not.
    statement = idempotency.CLEANUP.statement + " AND pg_sleep(0.01) IS NOT NULL"
    process.run_cleanups(Cleanup(str(uuid.uuid4()), statement))
    await until(lambda: scalar(db, "SELECT count(*) = 0 FROM requests"))


async def test_partitions_are_made_although_an_old_one_cannot_be_dropped(process: Process, db: Database) -> None:
    async with db.begin() as tx:
        for statement in (
            "CREATE TABLE visits (create_time timestamptz NOT NULL) PARTITION BY RANGE (create_time)",
            partitions.roll_function("visits", role="nobody_there"),
            "CREATE TABLE visits_2020_01 PARTITION OF visits FOR VALUES FROM ('2020-01-01+00') TO ('2020-02-01+00')",
            "CREATE VIEW of_2020 AS TABLE visits_2020_01",
            "DO $$ BEGIN EXECUTE format('DROP TABLE visits_%s',"
            " to_char(now() AT TIME ZONE 'UTC' + interval '2 months', 'YYYY_MM')); END $$",
        ):
            await tx.execute(text(statement))
    roll = partitions.roll("visits", keep_months=1)
    before = failures(roll)
    process.run_cleanups(roll)

    async def failed() -> bool:
        return failures(roll) > before

    await until(failed)
    process.make_partitions("visits")

    async def ahead() -> float | None:
        return REGISTRY.get_sample_value("stampede_partitions_ahead", {"table": "visits"})

    await eventually(ahead, lambda number: number == 2)


async def test_missing_partitions_raise_an_alarm(process: Process, db: Database) -> None:
    async with db.begin() as tx:
        await tx.execute(text("CREATE TABLE calls (create_time timestamptz NOT NULL) PARTITION BY RANGE (create_time)"))
    with capture_logs() as logs:
        process.make_partitions("calls")

        async def alarms() -> list[object]:
            return [line["ahead"] for line in logs if line["event"] == "partitions are missing"]

        assert await eventually(alarms, bool) == [0]
    assert REGISTRY.get_sample_value("stampede_partitions_ahead", {"table": "calls"}) == 0


async def test_cancelled_cleanup_leaves_its_transaction(db: Database) -> None:
    running = asyncio.create_task(cleanup.run_hourly(db, Cleanup("slow", "SELECT pg_sleep(60)")))
    await until(lambda: scalar(db, "SELECT count(*) > 0 FROM pg_stat_activity WHERE query = 'SELECT pg_sleep(60)'"))
    running.cancel()
    await asyncio.gather(running, return_exceptions=True)
    await until(lambda: scalar(db, "SELECT count(*) = 0 FROM pg_stat_activity WHERE query = 'SELECT pg_sleep(60)'"))
