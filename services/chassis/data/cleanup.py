"""Cleanup: jobs that keep tables from growing without end, every hour.

Each job is a task of its own with a time limit for each statement. So one that fails or is slow delays no other.
"""

import asyncio
import contextlib
from dataclasses import dataclass

import structlog
from prometheus_client import Counter, Gauge
from sqlalchemy import CursorResult, text

from services.chassis.data.db import Database
from services.chassis.telemetry.heartbeats import beat

log = structlog.get_logger()

_FAILURES = Counter("stampede_cleanup_failures_total", "Runs of a cleanup job that failed.", ["job"])
_OVERDUE = Gauge("stampede_cleanup_overdue_seconds", "How long a table's oldest row should have been deleted.", ["job"])
_PAUSE_SECONDS = 3600.0
_RETRY_SECONDS = 60.0
_STATEMENT_SECONDS = 30
_BATCH_ROWS = 1000
_BATCH_ROWS_MIN = 10
_DELETE = """
    DELETE FROM {table} WHERE ctid = ANY(ARRAY(
        SELECT ctid FROM {table} WHERE create_time < now() - interval '{keep}' ORDER BY create_time LIMIT :most))
"""
_OVERDUE_BY = "SELECT extract(epoch FROM now() - interval '{keep}' - min(create_time)) FROM {table}"


@dataclass(frozen=True)
class Cleanup:
    """A job. It repeats `statement`, each time in its own transaction, until that affects fewer than `:most` rows."""

    name: str
    statement: str
    overdue: str = ""
    """A query for the seconds since the oldest row became old, where the database can answer it from an index."""


def delete_old_rows(table: str, *, keep: str) -> Cleanup:
    """Deletes the rows of `table` that are older than the interval `keep`. Their `create_time` needs an index."""
    return Cleanup(table, _DELETE.format(table=table, keep=keep), _OVERDUE_BY.format(table=table, keep=keep))


async def run_hourly(db: Database, job: Cleanup) -> None:
    """Runs `job` every hour until cancelled; a minute later and in smaller batches if it failed."""
    rows = _BATCH_ROWS
    while beat():
        try:
            await _run(db, job, rows)
            rows, pause = _BATCH_ROWS, _PAUSE_SECONDS
        except Exception as error:
            _FAILURES.labels(job.name).inc()
            log.warning("cleanup failed", job=job.name, cause=error)
            rows, pause = max(rows // 2, _BATCH_ROWS_MIN), _RETRY_SECONDS
        with contextlib.suppress(Exception):  # the gauge keeps its value; the cleanup itself reports the failure
            await _measure(db, job)
        beat(rest=pause)
        await asyncio.sleep(pause)


async def _run(db: Database, job: Cleanup, rows: int) -> None:
    affected = rows
    while beat() and affected == rows:
        async with db.begin() as tx:
            await tx.execute(text(f"SET LOCAL statement_timeout = '{_STATEMENT_SECONDS}s'"))
            result = await tx.execute(text(job.statement), {"most": rows})
            assert isinstance(result, CursorResult)
            affected = result.rowcount


async def _measure(db: Database, job: Cleanup) -> None:
    """Also after a run that failed: that is when the rows pile up."""
    if job.overdue:
        async with db.begin() as tx:
            await tx.execute(text(f"SET LOCAL statement_timeout = '{_STATEMENT_SECONDS}s'"))
            _OVERDUE.labels(job.name).set(max(await tx.scalar(text(job.overdue)) or 0, 0))
