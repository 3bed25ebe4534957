"""Runtime roles can do what their services need, and nothing else; read from the catalog of a real database."""

import asyncio
import importlib
from typing import Any, LiteralString

import psycopg
import pytest

from deploy.local.ports import SERVICES
from services.chassis.data.grants import Grants
from tests.e2e.shop import Shop

_TABLES: LiteralString = """
    SELECT c.relname, p.name, a.attname FROM pg_class c JOIN pg_namespace n ON n.oid = relnamespace
    CROSS JOIN unnest(ARRAY['SELECT', 'INSERT', 'UPDATE', 'REFERENCES']) AS p (name)
    JOIN pg_attribute a ON a.attrelid = c.oid AND attnum > 0 AND NOT attisdropped
    WHERE nspname NOT IN ('pg_catalog', 'information_schema', 'pg_toast') AND relkind IN ('r', 'p', 'v', 'm')
      AND has_column_privilege(%(role)s, c.oid, attnum, p.name)
    UNION ALL
    SELECT c.relname, p.name, '' FROM pg_class c JOIN pg_namespace n ON n.oid = relnamespace
    CROSS JOIN unnest(ARRAY['DELETE', 'TRUNCATE', 'TRIGGER', 'MAINTAIN']) AS p (name)
    WHERE nspname NOT IN ('pg_catalog', 'information_schema', 'pg_toast') AND relkind IN ('r', 'p', 'v', 'm')
      AND has_table_privilege(%(role)s, c.oid, p.name)
"""
_OTHER_OBJECTS: LiteralString = """
    SELECT 'database ' || datname || ' ' || p.name FROM pg_database
    CROSS JOIN unnest(ARRAY['CONNECT', 'CREATE', 'TEMPORARY']) AS p (name)
    WHERE datallowconn AND has_database_privilege(%(role)s, pg_database.oid, p.name)
    UNION ALL
    SELECT 'create in ' || nspname FROM pg_namespace WHERE has_schema_privilege(%(role)s, oid, 'CREATE')
    UNION ALL
    SELECT 'sequence ' || relname FROM pg_class 
    WHERE CASE relkind WHEN 'S' THEN has_sequence_privilege(%(role)s, oid, 'USAGE') ELSE false END
    UNION ALL
    SELECT 'function ' || proname FROM pg_proc JOIN pg_namespace n ON n.oid = pronamespace
    WHERE (nspname <> ALL(ARRAY['pg_catalog', 'information_schema']) OR proname IN ('lo_creat', 'lo_create',
        'lo_from_bytea', 'lo_import', 'lo_export', 'pg_read_file', 'pg_reload_conf', 'pg_promote'))
      AND has_function_privilege(%(role)s, pg_proc.oid, 'EXECUTE')
    UNION ALL
    SELECT 'member of ' || r.rolname FROM pg_auth_members m JOIN pg_roles r ON r.oid = m.roleid
    WHERE member = to_regrole(%(role)s)
    UNION ALL
    SELECT 'attribute' FROM pg_roles WHERE rolname = %(role)s
      AND (rolsuper OR rolcreaterole OR rolcreatedb OR rolreplication OR rolbypassrls)
    UNION ALL
    SELECT 'owns ' || relname FROM pg_class WHERE relowner = to_regrole(%(role)s)
"""
_NEVER_DELETED = {
    "products", "users", "stock", "stock_movements", "flash_sales", "sale_customers", "reservations", "returns",
    "orders", "order_products", "order_log", "payments", "refunds", "disputes", "alembic_version",
}  # fmt: skip
_FORBIDDEN: dict[str, tuple[LiteralString, ...]] = {
    "catalog": ("DELETE FROM products", "UPDATE products SET id = gen_random_uuid()"),
    "identity": (
        "DELETE FROM users",
        "UPDATE users SET roles = ARRAY['admin']",
        "UPDATE users SET email = 'thief'",
        "UPDATE sessions SET expire_time = 'infinity'",
        "UPDATE sessions SET user_id = gen_random_uuid()",
        "UPDATE refresh_tokens SET session_id = gen_random_uuid()",
        "UPDATE signing_keys SET public_jwk = '{}'",
    ),
    "inventory": (
        "DELETE FROM stock", "DELETE FROM flash_sales", "DELETE FROM reservations", "DELETE FROM sale_customers",
        "DELETE FROM stock_movements", "UPDATE stock_movements SET delta = 1", "DELETE FROM returns",
        "UPDATE returns SET lines = '[]'", "UPDATE reservations SET lines = '[]'",
        "UPDATE reservations SET customer_id = gen_random_uuid()", "UPDATE flash_sales SET product_id = id",
    ),
    "orders": (
        "DELETE FROM orders", "UPDATE orders SET total_minor = 0", "UPDATE orders SET lines = '[]'",
        "UPDATE orders SET customer_id = gen_random_uuid()", "UPDATE orders SET currency = 'USD'",
        "DELETE FROM order_log", "UPDATE order_log SET actor = 'saga'", "DELETE FROM order_products",
        "UPDATE sagas SET order_id = gen_random_uuid()", "SELECT nextval(pg_get_serial_sequence('order_log', 'id'))",
    ),
    "payments": (
        "DELETE FROM payments", "UPDATE payments SET amount_minor = 0", "UPDATE payments SET currency = 'USD'",
        "UPDATE payments SET order_id = gen_random_uuid()", "DELETE FROM refunds",
        "UPDATE refunds SET amount_minor = 1", "UPDATE refunds SET payment_id = id",
        "UPDATE provider_events SET payload = '{}'",
    ),
}  # fmt: skip
_FORBIDDEN_ANYWHERE: tuple[LiteralString, ...] = (
    "UPDATE alembic_version SET version_num = '0000'", "DELETE FROM alembic_version", "TABLE alembic_version",
    "INSERT INTO alembic_version VALUES ('9999')", "CREATE TABLE mine (id integer)", "CREATE SCHEMA mine",
    "CREATE TEMPORARY TABLE mine (id integer)", "CREATE FUNCTION mine() RETURNS int LANGUAGE sql AS 'SELECT 1'",
    "SELECT lo_create(0)", "DROP TABLE requests", "TRUNCATE requests", "ALTER TABLE requests ADD COLUMN mine integer",
    "UPDATE requests SET digest = ''", "CREATE ROLE mine", "SET ROLE postgres",
    "COPY requests TO PROGRAM 'true'", "SELECT pg_read_file('PG_VERSION')",
)  # fmt: skip


def _grants(service: str) -> Grants:
    found: Grants = importlib.import_module(f"services.{service}.sql.grants").GRANTS
    return found


def _connect(shop: Shop, service: str, role: str, database: str = "") -> "psycopg.Connection[tuple[Any, ...]]":
    url = shop.mesh.site.database_url(service, role).replace("+psycopg", "").rsplit("/", 1)[0]
    return psycopg.connect(f"{url}/{database or service}", autocommit=True)


def _held(shop: Shop, service: str) -> tuple[set[tuple[str, str, str]], set[str], dict[str, list[str]]]:
    """Returns the role's privileges on tables, its other ones, and the columns of its tables."""
    with _connect(shop, service, "postgres") as catalog:
        tables = set(catalog.execute(_TABLES, {"role": service}).fetchall())
        others = {row[0] for row in catalog.execute(_OTHER_OBJECTS, {"role": service})}
        columns = catalog.execute(
            "SELECT table_name::text, array_agg(column_name::text) FROM information_schema.columns"
            " WHERE table_schema = 'public' GROUP BY table_name"
        ).fetchall()
    return tables, others, dict(columns)  # type: ignore[arg-type]


@pytest.mark.parametrize("service", SERVICES)
async def test_a_runtime_role_holds_the_declared_privileges_only(shop: Shop, service: str) -> None:
    tables, others, columns = await asyncio.to_thread(_held, shop, service)
    declared = {
        (table, privilege, column)
        for table, grant in _grants(service).items()
        for privilege, names in (
            ("SELECT", columns[table]),
            ("INSERT", columns[table] if grant.insert else ()),
            ("UPDATE", grant.update),
            ("DELETE", [""] if grant.delete else ()),
        )
        for column in names
    }
    assert tables == declared
    assert not {table for table, privilege, _ in tables if privilege == "DELETE"} & _NEVER_DELETED
    functions = {"function roll_order_log"} if service == "orders" else set()
    assert others == {f"database {service} CONNECT"} | functions


@pytest.mark.parametrize("service", SERVICES)
async def test_a_runtime_role_is_refused_what_its_service_never_does(shop: Shop, service: str) -> None:
    def permitted() -> list[str]:
        found: list[str] = []
        with _connect(shop, service, service) as connection:
            for statement in (*_FORBIDDEN[service], *_FORBIDDEN_ANYWHERE):
                try:
                    connection.execute("BEGIN")
                    connection.execute(statement)
                    found.append(statement)
                except psycopg.errors.InsufficientPrivilege:
                    pass
                finally:
                    connection.execute("ROLLBACK")
        return found

    assert not await asyncio.to_thread(permitted)


@pytest.mark.parametrize("role", [role for service in SERVICES for role in (service, f"{service}_owner")])
async def test_a_role_opens_no_database_but_its_own(shop: Shop, role: str) -> None:
    own = role.removesuffix("_owner")

    def opened() -> list[str]:
        found = []
        for database in {*SERVICES, "postgres", "template1", "template0"} - {own}:
            try:
                _connect(shop, own, role, database).close()
                found.append(database)
            except psycopg.OperationalError:
                pass
        return found

    assert not await asyncio.to_thread(opened)
