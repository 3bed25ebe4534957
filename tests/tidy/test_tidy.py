"""Style that no linter knows: how the code is cut up, what may see what, and what is promised beside it."""

import ast
import importlib
import re
import subprocess
import tomllib
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

from services.chassis.settings import ServiceSettings

ROOT = Path(__file__).parents[2]
SERVICES = sorted(path.parent.name for path in ROOT.glob("services/*/__main__.py"))
LINES_PER_FUNCTION = 60
LINES_PER_MODULE = 400
EVERY_SERVICE_HAS = {
    "__init__.py",
    "__main__.py",
    "actions.py",
    "domain.py",
    "rpc.py",
    "settings.py",
    "README.md",
}
# What domain.py may import: values of the standard library, and the chassis's.
PURE = {
    "collections", "collections.abc", "dataclasses", "datetime", "decimal", "enum", "hashlib", "math", "re", "string",
    "typing", "unicodedata", "urllib.parse", "uuid", "zoneinfo", "services.chassis.errors", "services.chassis.money",
}  # fmt: skip
UNTIDY_NAMES = {"utils.py", "util.py", "helpers.py", "common.py", "constants.py", "types.py", "misc.py", "models.py"}
# Tests wait for events, not for time. Each exception polls something that cannot tell, or is no test of timing.
MAY_SLEEP = {
    "tests/support/infra.py": "polls a port until a server that just started listens on it",
    "tests/support/waiting.py": "polls databases and processes, which tell nobody",
    "tests/integration/inventory/replicas.py": "has buyers come again and again, with a rest in between",
    "tests/integration/catalog/test_products.py": "polls pg_locks until a statement waits; Postgres tells nobody",
    "tests/integration/payments/conftest.py": "polls the sandbox until a payment is settled",
    "tests/integration/orders/conftest.py": "polls the database until a saga has got somewhere",
    "tests/unit/local/test_supervisor.py": "shows that a supervisor does nothing, which has no event",
    "tests/bench/mesh.py": "polls E's gateway until it answers",
    "tests/bench/rivals/celery_chain.py": "polls the results of chains, all that are under way at once",
    "tests/bench/shop.py": "polls the database until no saga is left",
    "tests/bench/measure/statements.py": "measures what is done in a time in which nothing is asked for",
    "tests/e2e/shop.py": "polls the mesh through its gateway, which tells nobody",
}


def parsed(path: Path) -> ast.Module:
    return _parsed(path, path.stat().st_mtime_ns)


@cache
def _parsed(path: Path, _changed: int) -> ast.Module:
    return ast.parse(path.read_text())


def modules(*folders: str) -> list[Path]:
    return sorted(path for folder in folders for path in (ROOT / folder).rglob("*.py"))


def name_of(path: Path) -> str:
    return str(path.relative_to(ROOT))


def imports(path: Path) -> Iterator[str]:
    for node in ast.walk(parsed(path)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}:{node.lineno}: imports are absolute"
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def calls(path: Path) -> Iterator[tuple[str, ast.Call]]:
    for node in ast.walk(parsed(path)):
        if isinstance(node, ast.Call):
            yield ast.unparse(node.func), node


def repository_files() -> list[Path]:
    """What git tracks, and what it would track after `git add`."""
    listing = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    names = subprocess.run(listing, cwd=ROOT, capture_output=True, check=True, text=True).stdout.split("\0")
    return [ROOT / name for name in sorted(set(names)) if name and (ROOT / name).is_file()]


TEXTS = {
    path: text
    for path in repository_files()
    if b"\0" not in (content := path.read_bytes()) and (text := content.decode(errors="replace"))
}

each_service = pytest.mark.parametrize("service", SERVICES)
each_service_module = pytest.mark.parametrize("path", modules("services"), ids=name_of)
each_test_module = pytest.mark.parametrize("path", modules("tests"), ids=name_of)


# How the code is cut up


@pytest.mark.parametrize(
    "path", [p for p in modules("services", "deploy", "gateway", "protos") if "gen" not in p.parts], ids=name_of
)
def test_functions_and_modules_stay_short(path: Path) -> None:
    assert path.read_text().count("\n") <= LINES_PER_MODULE
    for node in ast.walk(parsed(path)):
        # A migration is one list of statements; to cut it up would hide the schema.
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and "migrations" not in path.parts:
            assert node.end_lineno
            assert node.end_lineno - node.lineno < LINES_PER_FUNCTION, node.name


@each_service_module
def test_no_module_attracts_anything_whatever(path: Path) -> None:
    assert path.name not in UNTIDY_NAMES


@each_service
def test_services_are_laid_out_alike(service: str) -> None:
    folder = ROOT / "services" / service
    assert {path.name for path in folder.iterdir()} >= EVERY_SERVICE_HAS
    assert list(folder.glob("migrations/0001_*.py"))


# What may see what


@each_service_module
def test_a_service_knows_only_itself_and_the_chassis(path: Path) -> None:
    owner = path.relative_to(ROOT).parts[1]
    for module in imports(path):
        parts = module.split(".")
        assert parts[0] not in {"tests", "deploy", "gateway"}, f"imports {module}"
        if parts[0] == "services":
            assert parts[1] in {owner, "chassis"}, f"imports {module}"


@each_service
def test_domain_is_pure(service: str) -> None:
    imported = set(imports(ROOT / "services" / service / "domain.py"))
    assert not {name for name in imported if name not in PURE and name.rpartition(".")[0] not in PURE}


@each_service
def test_actions_and_rules_know_nothing_of_grpc(service: str) -> None:
    """Status codes, contexts and metadata are the guard's and the handlers'."""
    for name in ("actions.py", "domain.py"):
        assert not [m for m in imports(ROOT / "services" / service / name) if m.split(".")[0] == "grpc"], name


@each_service
def test_handlers_know_nothing_of_sql(service: str) -> None:
    imported = set(imports(ROOT / "services" / service / "rpc.py"))
    assert not {name for name in imported if name.startswith("sqlalchemy")}


def test_the_chassis_names_no_service() -> None:
    """It serves all of them; the one thing it may know is where the keys come from."""
    for path in modules("services/chassis"):
        known = {name.split(".")[1] for name in imports(path) if name.startswith("stampede.")}
        assert known <= {"access", "type"} | ({"identity"} if path.name == "process.py" else set()), path.name


def owned_tables(service: str) -> set[str]:
    folder = ROOT / "services" / service
    text = next(path for path in (folder / "sql/schema.py", folder / "tables.py") if path.exists()).read_text()
    return set(re.findall(r'__tablename__ = "(\w+)"', text))


@each_service
def test_no_service_names_anothers_table(service: str) -> None:
    foreign = set().union(*(owned_tables(other) for other in SERVICES if other != service)) - owned_tables(service)
    named = re.compile(
        rf"\b(?:FROM|JOIN|INTO|UPDATE|TABLE|ONLY|REFERENCES|TRUNCATE)\s+(?:{'|'.join(sorted(foreign))})\b"
    )
    for path in modules(f"services/{service}"):
        for node in ast.walk(parsed(path)):
            if isinstance(node, ast.Constant) and isinstance(node.value, str):
                assert not named.search(node.value), f"{name_of(path)}:{node.lineno}"


@each_service
def test_no_service_is_told_of_anothers_database(service: str) -> None:
    databases = {name for name in settings_of(service).model_fields if "database" in name and name.endswith("url")}
    assert databases == {"database_url", "migration_database_url"}
    for path in modules(f"services/{service}"):
        assert "create_async_engine" not in path.read_text(), "the chassis opens the one database"


# Time, chance and output are passed in


@each_service_module
def test_time_and_chance_are_passed_in(path: Path) -> None:
    if path.name == "__main__.py":
        return
    for called, node in calls(path):
        where = f"{name_of(path)}:{node.lineno}: {called}"
        assert called != "print", where
        assert not called.endswith(("datetime.now", "datetime.utcnow", "date.today")), where
        assert not called.startswith(("random.", "uuid.uuid1")), where


@each_service_module
def test_nothing_blocks_the_event_loop(path: Path) -> None:
    assert "time.sleep" not in {called for called, _ in calls(path)}


@each_test_module
def test_tests_wait_for_events_not_for_time(path: Path) -> None:
    slept = [
        node.lineno
        for called, node in calls(path)
        if called in ("time.sleep", "asyncio.sleep") and ast.unparse(node.args[0]) != "0"  # which only yields
    ]
    assert bool(slept) <= (name_of(path) in MAY_SLEEP), f"sleeps in lines {slept}"


def test_only_what_sleeps_is_excused() -> None:
    assert not [name for name in MAY_SLEEP if not (ROOT / name).exists() or "sleep(" not in (ROOT / name).read_text()]


# What is promised beside the code


def settings_of(service: str) -> type[ServiceSettings]:
    kind = importlib.import_module(f"services.{service}.settings").Settings
    assert issubclass(kind, ServiceSettings)
    return kind


@each_service
def test_a_readme_names_files_that_exist(service: str) -> None:
    folder = ROOT / "services" / service
    for name in re.findall(r"`((?:[\w-]+/)*\w+\.(?:py|md|proto|yaml|sql))`", (folder / "README.md").read_text()):
        assert (folder / name).exists() or (ROOT / name).exists(), name


@each_service
def test_a_readme_names_every_variable_of_its_service(service: str) -> None:
    readme = (ROOT / "services" / service / "README.md").read_text()
    own = set(settings_of(service).model_fields) - set(ServiceSettings.model_fields)
    assert not [name.upper() for name in sorted(own) if not re.search(rf"\b{name.upper()}\b", readme)]


@each_service
def test_a_readme_names_every_table_of_its_service(service: str) -> None:
    readme = (ROOT / "services" / service / "README.md").read_text()
    assert not [table for table in sorted(owned_tables(service)) if f"`{table}`" not in readme]


def test_the_licence_is_said_where_tools_and_people_look() -> None:
    assert tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["license"] == "Apache-2.0"
    assert "Apache License" in (ROOT / "LICENSE").read_text()
    assert re.search(r"Apache[- ](?:License,? )?(?:Version )?2\.0", (ROOT / "README.md").read_text())


# What no file may hold


def holding(pattern: str) -> list[str]:
    """Where in the repository a pattern occurs."""
    expression = re.compile(pattern)
    return [
        f"{name_of(path)}:{number}"
        for path, text in TEXTS.items()
        if path != Path(__file__)
        for number, line in enumerate(text.splitlines(), 1)
        if expression.search(line)
    ]


def test_nothing_is_left_for_later() -> None:
    assert not holding(r"\b(?:TODO|FIXME|XXX|HACK)\b")


def test_no_file_knows_the_machine_it_was_written_on() -> None:
    assert not holding(
        rf"{re.escape(str(ROOT))}|(?<![\w.}}])/(?:work|root|Users)/\w|(?<![\w.}}])/home/(?!app|nonroot)\w"
    )


def test_no_file_names_a_package_index() -> None:
    assert not holding(r"--(?:extra-)?index-url|--find-links|--trusted-host|pythonhosted\.org|pypi\.org/simple")


def test_no_secret_is_stored() -> None:
    assert not holding(r"-----BEGIN [A-Z ]*PRIVATE KEY-----|\b(?:sk|rk)_live_\w{8,}|\bAKIA[0-9A-Z]{16}\b|\bghp_\w{30,}")
