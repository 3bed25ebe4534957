"""Cleanup: jobs that keep tables from growing without end, every hour.

Each job is a task of its own with a time limit for each statement. So one that fails or is slow delays no other.
"""

import asyncio
from dataclasses import dataclass

import structlog
from prometheus_client import Counter, Gauge
from sqlalchemy import CursorResult, text

from services.chassis.data.db import Database
from services.chassis.telemetry.heartbeats import beat

log = structlog.get_logger()

_FAILURES = Counter("stampede_cleanup_failures_total", "Runs of a cleanup job that failed.", ["job"])
_OLDEST_AGE = Gauge("stampede_cleanup_oldest_seconds", "Age of a table's oldest row after its last cleanup.", ["job"])
_PAUSE_SECONDS = 3600.0
_RETRY_SECONDS = 60.0
_STATEMENT_SECONDS = 30
_BATCH_ROWS = 1000
_DELETE = """
    DELETE FROM {table} WHERE ctid = ANY(ARRAY(
        SELECT ctid FROM {table} WHERE create_time < now() - interval '{keep}' ORDER BY create_time LIMIT :most))
"""
_OLDEST = "SELECT extract(epoch FROM now() - min(create_time)) FROM {table}"


@dataclass(frozen=True)
class Cleanup:
    """A job. It repeats `statement`, each time in its own transaction, until that affects fewer than `:most` rows."""

    name: str
    statement: str
    oldest: str = ""
    """A query for the age of the oldest row in seconds, where the database can answer it from an index."""


def delete_old_rows(table: str, *, keep: str) -> Cleanup:
    """Deletes the rows of `table` that are older than the interval `keep`. Their `create_time` needs an index."""
    return Cleanup(table, _DELETE.format(table=table, keep=keep), _OLDEST.format(table=table))


async def run_hourly(db: Database, job: Cleanup) -> None:
    """Runs `job` every hour until cancelled; a minute later if it failed."""
    while beat():
        try:
            await _run(db, job)
            pause = _PAUSE_SECONDS
        except Exception as error:
            _FAILURES.labels(job.name).inc()
            log.warning("cleanup failed", job=job.name, cause=error)
            pause = _RETRY_SECONDS
        beat(rest=pause)
        await asyncio.sleep(pause)


async def _run(db: Database, job: Cleanup) -> None:
    affected = _BATCH_ROWS
    while beat() and affected == _BATCH_ROWS:
        async with db.begin() as tx:
            await tx.execute(text(f"SET LOCAL statement_timeout = '{_STATEMENT_SECONDS}s'"))
            result = await tx.execute(text(job.statement), {"most": _BATCH_ROWS})
            assert isinstance(result, CursorResult)
            affected = result.rowcount
    if job.oldest:
        async with db() as tx:
            _OLDEST_AGE.labels(job.name).set(await tx.scalar(text(job.oldest)) or 0)
