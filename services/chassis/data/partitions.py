"""Partitions of append-only tables: one for each month, made in advance and dropped when it is old.

    op.execute("CREATE TABLE visits (…, create_time timestamptz NOT NULL) PARTITION BY RANGE (create_time)")
    op.execute(partitions.roll_function("visits", role="shop"))   # in a migration; makes the first partitions too
    process.run_cleanups(partitions.roll("visits", keep_months=12))  # in the service; every hour

Months are UTC's. A primary key of such a table must contain `create_time`.
"""

import re

from services.chassis.data.cleanup import Cleanup

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
