"""How the code is cut into folders, modules and functions."""

import ast
import sys
from collections import defaultdict
from pathlib import Path

from tests.tidy.source import ROOT, SERVICES, assert_none, modules, name_of, nodes, parsed, text_of, tracked

_LINES_PER_FUNCTION = 60
_LINES_PER_MODULE = 400
_ENTRIES_PER_FOLDER = 13
_EVERY_SERVICE_HAS = {
    "__init__.py", "__main__.py", "domain.py", "rpc.py", "settings.py", "migrations", "README.md",
}  # fmt: skip
_UNTIDY = {"utils", "util", "helpers", "common", "constants", "misc", "models"}
_EXPLAINED = ("services", "deploy", "gateway", "sandbox", "tests")


def test_functions_and_modules_stay_short() -> None:
    offenders = []
    for path in modules("services", "deploy", "gateway", "sandbox", "protos"):
        if text_of(path).count("\n") > _LINES_PER_MODULE:
            offenders.append(name_of(path))
        if "migrations" in path.parts:  # one list of statements; cutting it up would hide the schema
            continue
        for node in nodes(path):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                assert node.end_lineno
                if node.end_lineno - node.lineno >= _LINES_PER_FUNCTION:
                    offenders.append(f"{name_of(path)}:{node.lineno}: {node.name}")
    assert_none("short functions and modules", offenders)


def test_endless_loops_of_services_beat() -> None:
    """A background task that hangs is noticed by its missing heartbeat, so a loop that never ends must beat."""
    offenders = [
        f"{name_of(path)}:{loop.lineno}"
        for path in modules("services")
        for function in nodes(path)
        if isinstance(function, ast.AsyncFunctionDef)
        for loop in ast.walk(function)
        if isinstance(loop, ast.While) and isinstance(loop.test, ast.Constant)
        if not any(isinstance(node, ast.Return | ast.Break) for node in ast.walk(loop))
    ]
    assert_none("`while beat():` instead of `while True:`", offenders)


def test_a_folder_holds_few_entries() -> None:
    entries: dict[Path, set[str]] = defaultdict(set)
    for path in tracked():
        inside = path.relative_to(ROOT)
        for folder, entry in zip(list(inside.parents)[:-1], [inside, *inside.parents], strict=False):
            entries[folder].add(entry.name)
    offenders = [
        f"{folder}: {len(names)} entries"
        for folder, found in sorted(entries.items())
        if len(names := found - {"__init__.py", "README.md"}) > _ENTRIES_PER_FOLDER
        and folder.name not in ("migrations", "adr")
    ]
    assert_none("a folder holds few entries", offenders)


def test_a_folder_says_what_belongs_in_it() -> None:
    offenders = []
    for folder in sorted({path.parent for path in modules(*_EXPLAINED)}):
        if folder.name in ("migrations", "alembic"):
            continue
        package = folder / "__init__.py"
        explained = (folder / "README.md").exists() or (package.exists() and ast.get_docstring(parsed(package)))
        if not explained:
            offenders.append(name_of(folder))
    assert_none("a folder says what belongs in it", offenders)


def test_a_module_hides_nothing_and_attracts_nothing() -> None:
    offenders = [
        name_of(path)
        for path in modules("services", "deploy", "gateway", "sandbox", "tests")
        if path.stem in _UNTIDY or path.stem in sys.stdlib_module_names - {"__main__"}
    ]
    assert_none("names of modules", offenders)


def test_services_are_laid_out_alike() -> None:
    offenders = []
    for service in SERVICES:
        folder = ROOT / "services" / service
        missing = _EVERY_SERVICE_HAS - {path.name for path in folder.iterdir()}
        offenders += [f"services/{service}: has no {name}" for name in sorted(missing)]
        if not (folder / "sql").is_dir() and not (folder / "sql.py").is_file():
            offenders.append(f"services/{service}: has no sql")
        if not list(folder.glob("migrations/0001_*.py")):
            offenders.append(f"services/{service}: has no first migration")
    assert_none("services are laid out alike", offenders)
