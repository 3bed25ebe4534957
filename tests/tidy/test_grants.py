"""The grants of a service cover the statements that its modules contain; integration tests check the others."""

import ast
import importlib
import re
from collections.abc import Iterator
from pathlib import Path

from sqlalchemy import TextClause

from services.chassis.data.grants import Grants
from tests.tidy.source import ROOT, SERVICES, assert_none, name_of, parsed

_COMMENT = re.compile(r"--[^\n]*")
_CHANGE = re.compile(
    r"\bINSERT\s+INTO\s+(?P<inserted>\w+)|\bDELETE\s+FROM\s+(?P<deleted>\w+)"
    r"|\bUPDATE\s+(?P<updated>\w+)\s+(?:(?:AS\s+)?(?!SET\b)\w+\s+)?SET\s|\bDO\s+UPDATE\s+SET\s"
)
_END = re.compile(r"(?:WHERE|FROM|RETURNING)\b")
_ASSIGNED = re.compile(r"\s*(\w+)\s*=")


def _texts(path: Path) -> Iterator[str]:
    """Yields the module's statements: composed ones from its globals, the others from its source."""
    module = importlib.import_module(".".join(path.relative_to(ROOT).with_suffix("").parts))
    yield from (str(value) for value in vars(module).values() if isinstance(value, TextClause))
    for function in ast.walk(parsed(path)):
        if isinstance(function, ast.FunctionDef | ast.AsyncFunctionDef):
            for node in ast.walk(function):
                if isinstance(node, ast.JoinedStr):
                    yield "".join(part.value if isinstance(part, ast.Constant) else "?" for part in node.values)  # type: ignore[misc]
                elif isinstance(node, ast.Constant) and isinstance(node.value, str):
                    yield node.value


def _assigned(text: str) -> Iterator[str]:
    """Yields the columns of a SET clause, from its first one on."""
    depth, start = 0, 0
    text = text.replace("DISTINCT FROM", "DISTINCT_")
    for index, character in enumerate(text):
        depth += {"(": 1, ")": -1}.get(character, 0)
        is_end = depth < 0 or (depth == 0 and text[index - 1 : index].isspace() and _END.match(text, index))
        if is_end or (depth == 0 and character == ","):
            if found := _ASSIGNED.match(text, start):
                yield found[1]
            start = index + 1
        if is_end:
            return
    if found := _ASSIGNED.match(text, start):
        yield found[1]


def _missing(text: str, grants: Grants) -> Iterator[str]:
    text = _COMMENT.sub("", text)
    inserted = ""
    for change in _CHANGE.finditer(text):
        table = change["inserted"] or change["deleted"] or change["updated"] or inserted
        inserted = change["inserted"] or inserted
        if table not in grants:
            yield table
        elif change["inserted"] and not grants[table].insert:
            yield f"INSERT of {table}"
        elif change["deleted"] and not grants[table].delete:
            yield f"DELETE of {table}"
        elif not change["inserted"] and not change["deleted"]:
            columns = set(_assigned(text[change.end() :])) - set(grants[table].update)
            yield from (f"UPDATE of {table}.{column}" for column in sorted(columns))


def test_grants_cover_the_statements_of_a_service() -> None:
    offenders = []
    for service in SERVICES:
        grants = importlib.import_module(f"services.{service}.sql.grants").GRANTS
        for path in sorted((ROOT / "services" / service / "sql").glob("*.py")):
            for text in _texts(path):
                offenders += [f"{name_of(path)}: {missing}" for missing in _missing(text, grants)]
        schema = importlib.import_module(f"services.{service}.sql.schema")
        tables = {getattr(kind, "__tablename__", "") for kind in vars(schema).values()} - {""}
        offenders += [f"services/{service}/sql/grants.py: has no {table}" for table in sorted(tables - grants.keys())]
    assert_none("grants cover statements; declare them in sql/grants.py", sorted(set(offenders)))


def test_columns_of_a_statement_are_read() -> None:
    text = "a = f(1, 2), b = CASE WHEN x IS DISTINCT FROM y THEN 1 END, c = (SELECT 1 FROM t) FROM z"
    assert list(_assigned(text)) == ["a", "b", "c"]
