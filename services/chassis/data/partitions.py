"""Partitions of append-only tables: one for each month, made in advance and dropped when it is old.

    op.execute("CREATE TABLE visits (…, create_time timestamptz NOT NULL) PARTITION BY RANGE (create_time)")
    op.execute(partitions.roll_function("visits", role="shop"))   # in a migration; makes the first partitions too
    process.make_partitions("visits")                                # in the service; every hour
    process.run_cleanups(partitions.roll("visits", keep_months=12))

Months are UTC's. A primary key of such a table must contain `create_time`.
"""

import asyncio
import re

import structlog
from prometheus_client import Gauge
from sqlalchemy import text

from services.chassis.data.cleanup import Cleanup
from services.chassis.data.db import Database
from services.chassis.telemetry.heartbeats import beat

log = structlog.get_logger()

_AHEAD = Gauge("stampede_partitions_ahead", "Months ahead that have a partition; alarm below 2.", ["table"])
_AHEAD_MIN = 2
_PAUSE_SECONDS, _RETRY_SECONDS = 3600.0, 60.0
_STATEMENT_SECONDS = 30
# Drops nothing: making the next partition must not depend on the end of an old one.
_KEEP_ALL_MONTHS = 12_000
_COUNT_AHEAD = """
    SELECT count(*) FROM pg_inherits JOIN pg_class AS child ON child.oid = inhrelid
    WHERE inhparent = 'public.{table}'::regclass
      AND right(child.relname, 7) > to_char(now() AT TIME ZONE 'UTC', 'YYYY_MM')
"""
_NAME = re.compile(r"[a-z][a-z0-9_]{0,50}")

_FUNCTION = """
CREATE FUNCTION roll_{table}(keep_months integer) RETURNS void
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp SET timezone = 'UTC' SET lock_timeout = '200ms'
AS $roll$
DECLARE
    this_month date := date_trunc('month', now());
    month date;
    partition text;
BEGIN
    IF keep_months IS NULL OR keep_months < 1 THEN
        RAISE EXCEPTION 'keep_months must be at least 1' USING ERRCODE = 'invalid_parameter_value';
    END IF;
    -- All replicas call it; one call does the work.
    IF NOT pg_try_advisory_xact_lock(hashtext('roll_{table}')) THEN
        RETURN;
    END IF;
    -- Two months ahead, so that each row has a partition; and the last month, in case the clock is set back.
    FOR n IN -1..2 LOOP
        month := this_month + make_interval(months => n);
        partition := '{table}_' || to_char(month, 'YYYY_MM');
        CONTINUE WHEN to_regclass('public.' || partition) IS NOT NULL;
        BEGIN
            -- CREATE TABLE … PARTITION OF would lock writers out; ATTACH does not.
            EXECUTE format('CREATE TABLE public.%I (LIKE public.{table} INCLUDING DEFAULTS INCLUDING CONSTRAINTS'
                ' INCLUDING GENERATED INCLUDING INDEXES INCLUDING STORAGE)', partition);
            EXECUTE format('ALTER TABLE public.{table} ATTACH PARTITION public.%I FOR VALUES FROM (%L) TO (%L)',
                partition, month::timestamptz, (month + interval '1 month')::timestamptz);
            -- The role uses the parent table only. Default privileges would let it change rows of the partition.
            IF EXISTS (SELECT FROM pg_roles WHERE rolname = '{role}') THEN
                EXECUTE format('REVOKE ALL ON public.%I FROM {role}', partition);
            END IF;
        EXCEPTION WHEN lock_not_available THEN
            RAISE NOTICE '% is not made yet: the table is locked', partition;
        END;
    END LOOP;
    -- One a call, so that a clock that is wrong for a while does little harm. DROP locks the table for a moment;
    -- if it cannot within lock_timeout, the next call tries again.
    SELECT child.relname INTO partition FROM pg_inherits
    JOIN pg_class AS child ON child.oid = inhrelid
    WHERE inhparent = 'public.{table}'::regclass AND child.relname ~ '^{table}_[0-9]{{4}}_[0-9]{{2}}$'
      AND to_date(right(child.relname, 7), 'YYYY_MM') <= now() - make_interval(months => keep_months + 1)
    ORDER BY child.relname LIMIT 1;
    IF partition IS NOT NULL THEN
        BEGIN
            EXECUTE format('DROP TABLE public.%I', partition);
        EXCEPTION WHEN lock_not_available THEN
            RAISE NOTICE '% is not dropped yet: it is in use', partition;
        END;
    END IF;
END
$roll$;
REVOKE EXECUTE ON FUNCTION roll_{table} FROM PUBLIC;
DO $$ BEGIN
    IF EXISTS (SELECT FROM pg_roles WHERE rolname = '{role}') THEN
        GRANT EXECUTE ON FUNCTION roll_{table} TO {role};
    END IF;
END $$;
SELECT roll_{table}(1200);
"""


def roll_function(table: str, *, role: str) -> str:
    """DDL for a migration: a function that makes and drops the partitions of `table`, and the first partitions.

    `role` may call it, and needs no other right for that. Asserts that both are plain lower-case names.
    """
    assert _NAME.fullmatch(table)
    assert _NAME.fullmatch(role)
    return _FUNCTION.format(table=table, role=role)


def roll(table: str, *, keep_months: int) -> Cleanup:
    """The hourly job. It drops a month when all of it is older than `keep_months`, at least 1."""
    assert _NAME.fullmatch(table)
    assert keep_months >= 1
    return Cleanup(f"partitions of {table}", f"SELECT roll_{table}({keep_months})")


async def keep_made(db: Database, table: str) -> None:
    """Makes the partitions of `table` two months ahead, every hour until cancelled; each minute while one is missing.

    Without a partition every insert fails. So this is a job of its own, which no failing cleanup delays.
    """
    assert _NAME.fullmatch(table)
    while beat():
        try:
            async with db.begin() as tx:
                await tx.execute(text(f"SET LOCAL statement_timeout = '{_STATEMENT_SECONDS}s'"))
                await tx.execute(text(f"SELECT roll_{table}({_KEEP_ALL_MONTHS})"))
        except Exception as error:
            log.warning("partitions were not made", table=table, cause=error)
        async with db() as tx:
            ahead = int(await tx.scalar(text(_COUNT_AHEAD.format(table=table))) or 0)
        _AHEAD.labels(table).set(ahead)
        if ahead < _AHEAD_MIN:
            log.error("partitions are missing", table=table, ahead=ahead, wanted=_AHEAD_MIN)
        pause = _PAUSE_SECONDS if ahead >= _AHEAD_MIN else _RETRY_SECONDS
        beat(rest=pause)
        await asyncio.sleep(pause)
