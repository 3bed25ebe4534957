"""Checks that every database needs: request ids, the constraints behind the invariants, and the next partitions."""

import importlib
from collections.abc import Iterable

from sqlalchemy import CheckConstraint, MetaData, UniqueConstraint

from deploy.audit import repairs
from deploy.audit.findings import Check, Invariant
from deploy.local.ports import SERVICES
from services.chassis.data.db import Base

# The resource of a request id, and the requests that have none.
_RESOURCES = {
    "catalog": ("SELECT id FROM products", ""),
    "identity": ("SELECT id FROM users", ""),
    "inventory": ("SELECT id FROM flash_sales UNION ALL SELECT product_id FROM stock", "SetStock"),
    "orders": ("SELECT id FROM orders", ""),
    "payments": ("SELECT id FROM refunds UNION ALL SELECT id FROM payments", ""),
}

# Each partitioned table has a function that makes its partitions; so many months are kept that it drops none.
_ROLL = """
    DO $$ DECLARE root text; BEGIN
        FOR root IN SELECT partrelid::regclass::text FROM pg_partitioned_table LOOP
            EXECUTE format('SELECT roll_%s(1200)', root);
        END LOOP;
    END $$
"""


def tables_of(service: str) -> MetaData:
    """The mapped tables of a service."""
    metadata = MetaData()
    module = importlib.import_module(f"services.{service}.sql.schema")
    for mapped in vars(module).values():
        if isinstance(mapped, type) and issubclass(mapped, Base) and mapped is not Base:
            mapped.metadata.tables[mapped.__tablename__].to_metadata(metadata)
    return metadata


def _requests(service: str) -> Check:
    resources, without = _RESOURCES[service]
    query = f"""
        SELECT resource_id, format('request %s of %s under %s points to it, but it does not exist', request_id, caller,
            method)
        FROM requests LEFT JOIN ({resources}) r (id) ON r.id = resource_id
        WHERE r.id IS NULL AND NOT ('{without}' <> '' AND strpos(method, '{without}') > 0)
    """
    mend = "DELETE FROM requests WHERE resource_id = CAST(:id AS uuid)"
    means = f"each request id of {service} points to what it made"
    return Check(f"{service}-requests", Invariant.REFERENCES, means, repairs.MEND, service, query, mend)


def _guards(service: str) -> Check:
    metadata = tables_of(service)
    names = sorted(
        str(constraint.name)
        for table in metadata.tables.values()
        for constraint in table.constraints
        if isinstance(constraint, CheckConstraint | UniqueConstraint) and constraint.name
    )
    query = f"""
        SELECT '{service}', format('the constraint %s is missing or not valid', name) FROM unnest({_array(names)}) name
        WHERE NOT EXISTS (SELECT FROM pg_constraint WHERE conname = name AND convalidated)
        UNION ALL
        SELECT '{service}', format('the table %s has no primary key', name) FROM unnest({_array(metadata.tables)}) name
        WHERE NOT EXISTS (SELECT FROM pg_constraint WHERE conrelid = to_regclass(name) AND contype = 'p')
        UNION ALL
        SELECT '{service}', format('the index %s is not valid', indexrelid::regclass) FROM pg_index
        WHERE NOT indisvalid AND (SELECT relkind FROM pg_class WHERE oid = indexrelid) = 'i'
    """
    means = f"the constraints of {service} that the invariants rest on exist"
    return Check(f"{service}-constraints", Invariant.SCHEMA, means, repairs.LOOK, service, query)


def _partitions(service: str) -> Check:
    query = f"""
        SELECT '{service}', format('%s has no partition for %s', root, wanted) FROM (
            SELECT partrelid::regclass::text AS root FROM pg_partitioned_table
        ) t CROSS JOIN LATERAL (
            SELECT root || to_char(now() AT TIME ZONE 'UTC' + make_interval(months => n), '_YYYY_MM') AS wanted
            FROM generate_series(0, 1) n
        ) w WHERE to_regclass('public.' || wanted) IS NULL
    """
    means = f"partitions of {service} exist for this month and the next"
    return Check(f"{service}-partitions", Invariant.SCHEMA, means, repairs.MEND, service, query, _ROLL)


def _array(names: Iterable[str]) -> str:
    return "ARRAY[" + ", ".join(f"'{name}'" for name in names) + "]::text[]"


CHECKS = tuple(check(service) for service in SERVICES for check in (_requests, _guards, _partitions))
