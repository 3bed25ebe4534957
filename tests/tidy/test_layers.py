"""Which part of the code may see which."""

import ast
import importlib
import re
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

from services.chassis.settings import ServiceSettings
from tests.tidy.source import ROOT, SERVICES, assert_none, calls, holding, imports, modules, name_of, strings, text_of

# The imports of domain.py: values of the standard library, and the chassis's.
_PURE = {
    "collections", "collections.abc", "dataclasses", "datetime", "decimal", "enum", "hashlib", "math", "re", "string",
    "typing", "unicodedata", "urllib.parse", "uuid", "zoneinfo", "services.chassis.errors", "services.chassis.money",
}  # fmt: skip
# A type to annotate an open transaction with; it makes no statement.
_TRANSACTION = "sqlalchemy.ext.asyncio.AsyncSession"
_STATEMENT = re.compile(
    r"\s*(?:WITH\s+(?:RECURSIVE\s+)?\w+\s+(?:\([^)]*\)\s+)?AS\b|SELECT\s|INSERT\s+INTO\s|UPDATE\s+\w+\s|DELETE\s+FROM\s|TRUNCATE\s)"
)
_WRITE = re.compile(r"\b(?:INSERT\s+INTO|UPDATE(?:\s+ONLY)?|DELETE\s+FROM)\s+(\w+)")
_CREATED = re.compile(r"\bCREATE TABLE (?:IF NOT EXISTS )?(\w+)")
_DROPPED = re.compile(r"\bDROP TABLE (\w+)")
# Each package of the chassis with those that it may import; "" holds the modules directly in the chassis.
_CHASSIS = {
    "": {""},
    "telemetry": {"", "telemetry"},
    "data": {"", "telemetry", "data"},
    "server": {"", "telemetry", "server"},
    "client": {"", "server", "client"},
    "events": {"", "telemetry", "data", "server", "events"},
}
# Tables that nothing deletes from, each with its reason.
_KEPT = {
    "products": "the catalog", "users": "accounts", "stock": "one row a product", "flash_sales": "a row a sale",
    "stock_movements": "the ledger", "reservations": "what was sold", "returns": "what came back",
    "sale_customers": "the customer limit counts all orders", "orders": "the books", "order_products": "of orders",
    "payments": "the books", "refunds": "the books", "disputes": "the books",
    "journal_entries": "the books", "event_walks": "one row a provider", "provider_reports": "one row a provider",
    "provider_customers": "one row a customer", "saved_methods": "which cards are whose, also removed ones",
    "leases": "one row a job", "signing_keys": "deleted by the ORM when they retire",
}  # fmt: skip
_COMPOSES_THE_CHASSIS = "services/chassis/process.py"
_CHASSIS_SQL = ("services/chassis/data/", "services/chassis/events/")
_MAPS_DATABASE_ERRORS = "services/chassis/errors.py"
_COMBINED = ("services/inventory/sql/reserve_fast.py", "services/orders/sql/combined.py")
_SDKS = {name: f"services/payments/providers/{name}/" for name in ("stripe", "razorpay")}


def tables(service: str) -> set[str]:
    """The tables that a service's migrations create and do not drop."""
    histories = [text_of(path) for path in modules(f"services/{service}/migrations")]
    created, dropped = ({table for text in histories for table in verb.findall(text)} for verb in (_CREATED, _DROPPED))
    return created - dropped


def settings_of(service: str) -> type[ServiceSettings]:
    kind = importlib.import_module(f"services.{service}.settings").Settings
    assert issubclass(kind, ServiceSettings)
    return kind


def of_services(*, migrations: bool = False) -> Iterator[tuple[str, str, Path]]:
    """Each module of the services without the chassis: service, name in the repository, path."""
    for service in SERVICES:
        for path in modules(f"services/{service}"):
            if migrations or "migrations" not in path.parts:
                yield service, name_of(path), path


def test_imports_are_absolute() -> None:
    assert_none(
        "imports are absolute",
        (
            f"{name_of(path)}:{line}"
            for path in modules("services", "deploy", "gateway", "sandbox", "tests")
            for name, line in imports(path)
            if name.startswith(".")
        ),
    )


def test_a_service_imports_only_itself_and_the_chassis() -> None:
    offenders = []
    for path in modules("services"):
        owner = path.relative_to(ROOT / "services").parts[0]
        for name, line in imports(path):
            parts = name.split(".")
            foreign = parts[0] == "services" and parts[1] not in (owner, "chassis")
            if foreign or parts[0] in ("tests", "deploy", "gateway", "sandbox"):
                offenders.append(f"{name_of(path)}:{line}: imports {name}")
    assert_none("services import only themselves and the chassis", offenders)


def test_the_sandbox_and_production_code_know_nothing_of_each_other() -> None:
    """It stands in for companies, which share no code with Stampede: it is reached at an address in the settings."""
    offenders = [
        f"{name_of(path)}:{line}: imports {name}"
        for folder, foreign in (
            ("sandbox", ("services", "deploy", "gateway", "tests", "stampede")),
            ("deploy", ("sandbox",)),
        )
        for path in modules(folder)
        for name, line in imports(path)
        if name.split(".")[0] in foreign
    ]
    offenders += holding(r"(?i)\bsandbox[/._]|\bpayment sandbox\b", modules("services"))
    assert_none("the sandbox is apart", offenders)


def test_protocols_of_the_sandbox_know_nothing_of_each_other() -> None:
    """They share what stands directly in `sandbox/` and in `sandbox/state/`."""
    protocols = {path.parent.name for path in ROOT.glob("sandbox/*/handler.py")}
    assert "stripe" in protocols
    offenders = []
    for path in modules("sandbox"):
        owner = path.relative_to(ROOT / "sandbox").parts[0]
        foreign = protocols - {owner} if owner in protocols | {"state"} else set()
        offenders += [
            f"{name_of(path)}:{line}: imports {name}"
            for name, line in imports(path)
            if name.startswith("sandbox.") and name.split(".")[1] in foreign
        ]
    assert_none("protocols of the sandbox", offenders)


def test_domain_is_pure() -> None:
    assert_none(
        "domain is pure",
        (
            f"services/{service}/domain.py:{line}: imports {name}"
            for service in SERVICES
            for name, line in imports(ROOT / "services" / service / "domain.py")
            if name not in _PURE and name.rpartition(".")[0] not in _PURE
        ),
    )


def test_only_handlers_and_clients_know_grpc() -> None:
    """Status codes, contexts and metadata belong to the guard, the handlers and the clients of other services."""
    allowed = ("__main__.py", "rpc.py", "clients.py", "cli.py")
    offenders = [
        f"{name}:{line}: imports {imported}"
        for _, name, path in of_services()
        for imported, line in imports(path)
        if imported.split(".")[0] in ("grpc", "grpc_status") and not name.endswith(allowed)
    ]
    assert_none("grpc is for handlers and clients", offenders)


def test_sql_stands_in_sql() -> None:
    """Actions own transactions, so they may name the type of one; statements are written in one place."""
    offenders = []
    for service, name, path in of_services():
        if name.startswith((f"services/{service}/sql/", f"services/{service}/sql.py")):
            continue
        bare = name.endswith(("/rpc.py", "/domain.py")) or "/placing/" in name
        for imported, line in imports(path):
            if imported.split(".")[0] in ("sqlalchemy", "psycopg") and (bare or imported != _TRANSACTION):
                offenders.append(f"{name}:{line}: imports {imported}")
        offenders += [f"{name}:{line}: a statement" for text, line in strings(path) if _STATEMENT.match(text)]
    for path in modules("services/chassis"):
        if name_of(path).startswith(_CHASSIS_SQL):
            continue
        for imported, line in imports(path):
            errors = name_of(path) == _MAPS_DATABASE_ERRORS and imported == "sqlalchemy.exc"
            if imported.split(".")[0] in ("sqlalchemy", "psycopg") and not errors:
                offenders.append(f"{name_of(path)}:{line}: imports {imported}")
    assert_none("SQL stands in sql", offenders)


def test_one_module_writes_a_table() -> None:
    """Beside the modules of statements that write several tables at once, each proven equal to the slow path."""
    writers: dict[str, set[str]] = defaultdict(set)
    for service, name, path in of_services():
        if name in _COMBINED:
            continue
        own = tables(service)
        for text, _ in strings(path):
            for table in _WRITE.findall(text):
                if table in own:
                    writers[f"services/{service}: {table}"].add(name.rpartition("/")[2])
    assert_none(
        "one module writes a table",
        (f"{table} is written by {sorted(found)}" for table, found in sorted(writers.items()) if len(found) > 1),
    )


def test_a_service_names_no_table_of_another() -> None:
    owned = {service: tables(service) for service in SERVICES}
    assert all(owned.values())
    offenders = []
    for service, name, path in of_services(migrations=True):
        foreign = set().union(*owned.values()) - owned[service]
        named = re.compile(
            rf"\b(?:FROM|JOIN|INTO|UPDATE|TABLE|ONLY|REFERENCES|TRUNCATE)\s+(?:{'|'.join(sorted(foreign))})\b"
        )
        offenders += [f"{name}:{line}" for text, line in strings(path) if named.search(text)]
    assert_none("no table of another service", offenders)


def test_a_service_is_given_one_database() -> None:
    offenders = []
    for service in SERVICES:
        fields = {name for name in settings_of(service).model_fields if "database" in name and name.endswith("url")}
        if fields != {"database_url", "migration_database_url"}:
            offenders.append(f"services/{service}/settings.py: {sorted(fields)}")
    offenders += [
        f"{name}: opens a database itself" for _, name, path in of_services() if "create_async_engine" in text_of(path)
    ]
    assert_none("one database a service", offenders)


def test_every_engine_keeps_data_out_of_its_errors() -> None:
    offenders = []
    for path in modules("services", "deploy"):
        engines = text_of(path).count("create_engine(") + text_of(path).count("create_async_engine(")
        guarded = min(
            text_of(path).count("hide_parameters=True"), text_of(path).count("keep_data_out_of_errors(engine")
        )
        if guarded < engines:
            offenders.append(name_of(path))
    assert_none("errors without data", offenders)


def test_chassis_packages_import_in_one_direction() -> None:
    offenders = []
    for path in modules("services/chassis"):
        name = name_of(path)
        if name == _COMPOSES_THE_CHASSIS:
            continue
        inside = path.relative_to(ROOT / "services/chassis").parts
        package = inside[0] if len(inside) > 1 else ""
        for imported, line in imports(path):
            if imported.startswith("services.chassis."):
                other = imported.split(".")[2]
                other = other if other in _CHASSIS else ""
                if other not in _CHASSIS.get(package, set()):
                    offenders.append(f"{name}:{line}: imports {imported}")
    assert_none("chassis packages", offenders)


def test_services_whose_events_have_a_consumer_keep_them() -> None:
    """The broker may lose its data. An event that a consumer acts on must then be published again."""
    consumed, forgetful = set(), set()
    for service, _, path in of_services():
        for called, node in calls(path):
            said = {word.arg: ast.unparse(word.value) for word in node.keywords}
            if called.endswith("Consumer") and "stream" in said:
                consumed.add(said["stream"].strip("'"))
            if called.endswith(".exchange_events") and said.get("keep") == "False":
                forgetful.add(service)
    assert "payments" in consumed
    assert_none("services that keep published events", sorted(consumed & forgetful))


def test_each_table_that_grows_has_something_that_deletes_its_rows() -> None:
    """A table that is kept for good says why."""
    deleting: dict[str, set[str]] = {}
    for service in (*SERVICES, "chassis"):
        found = deleting.setdefault(service, set())
        for path in modules(f"services/{service}"):
            if "migrations" not in path.parts:
                found |= {table for text, _ in strings(path) for table in re.findall(r"DELETE FROM (\w+)", text)}
                found |= {
                    ast.unparse(node.args[0]).strip("'")
                    for called, node in calls(path)
                    if called == "delete_old_rows" or called.endswith(".make_partitions")
                }
    offenders = [
        f"{service}: {table}"
        for service in SERVICES
        for table in sorted(tables(service) - deleting[service] - deleting["chassis"] - _KEPT.keys())
    ]
    assert_none("tables that grow without an end", offenders)


def test_the_chassis_names_no_service() -> None:
    """It serves all of them; the only exception is where it fetches the public keys."""
    offenders = []
    for path in modules("services/chassis"):
        allowed = {"access", "type"} | ({"identity"} if name_of(path) == _COMPOSES_THE_CHASSIS else set())
        for imported, line in imports(path):
            if imported.startswith("stampede.") and imported.split(".")[1] not in allowed:
                offenders.append(f"{name_of(path)}:{line}: imports {imported}")
    assert_none("the chassis names no service", offenders)


def test_only_an_adapter_imports_the_sdk_of_its_provider() -> None:
    assert_none(
        "the SDKs of providers",
        (
            f"{name_of(path)}:{line}: imports {imported}"
            for path in modules("services")
            for imported, line in imports(path)
            if (sdk := imported.split(".")[0]) in _SDKS and not name_of(path).startswith(_SDKS[sdk])
        ),
    )


def test_time_chance_and_output_are_passed_in() -> None:
    forbidden = re.compile(
        r"print|(?:.*\.)?(?:datetime\.now|datetime\.utcnow|date\.today)|random\..*|uuid\.uuid1|time\.sleep"
    )
    offenders = []
    for path in modules("services"):
        for called, node in calls(path):
            composes = path.name == "__main__.py" and called != "time.sleep"
            if forbidden.fullmatch(called) and not composes:
                offenders.append(f"{name_of(path)}:{node.lineno}: {called}")
    assert_none("time and chance are passed in", offenders)
