"""Each column of each service has a control in the audit, or a reason to have none."""

import re
from pathlib import Path

import pytest

from deploy.audit.checks.all_checks import BY_NAME, CHECKS
from deploy.audit.checks.coverage import COVERAGE
from deploy.audit.checks.schema import tables_of
from deploy.local.ports import SERVICES
from services.chassis.data import idempotency, lease
from services.chassis.events import outbox, subscriber

_CHASSIS = (idempotency.TABLE, lease.TABLE, outbox.TABLE, subscriber.TABLE)
_TABLE = re.compile(r"CREATE TABLE (?:IF NOT EXISTS )?(\w+) \((.*?)\n\)", re.DOTALL)
_COLUMN = re.compile(r"^    ([a-z_]+) +[a-z]", re.MULTILINE)


def columns() -> dict[str, set[str]]:
    """The columns of all tables, of the services and of the chassis."""
    mapped = {
        f"{service}.{name}": {column.name for column in table.columns}
        for service in SERVICES
        for name, table in tables_of(service).tables.items()
    }
    for name, body in _TABLE.findall("".join(_CHASSIS)):
        mapped[f"chassis.{name}"] = set(_COLUMN.findall(body))
    return mapped


def test_every_column_has_a_control_or_a_reason() -> None:
    """Add a new column to `deploy/audit/checks/coverage.py`: the check that finds it wrong, or why it needs none."""
    declared = {f"{table}.{column}" for table, names in COVERAGE.items() for column in names}
    existing = {f"{table}.{column}" for table, names in columns().items() for column in names}
    assert sorted(existing - declared) == [], "deploy/audit/checks/coverage.py lacks these columns"
    assert sorted(declared - existing) == [], "deploy/audit/checks/coverage.py has these, the services do not"


@pytest.mark.parametrize("table", COVERAGE)
def test_a_control_is_a_check_that_exists(table: str) -> None:
    for column, control in COVERAGE[table].items():
        assert " " in control or control in BY_NAME, f"{table}.{column}: {control}"


def test_checks_have_names_of_their_own() -> None:
    assert len(BY_NAME) == len(CHECKS)
    assert all(check.means and check.repair for check in CHECKS)


def test_the_documented_invariants_have_checks() -> None:
    """`docs/architecture.md` says which check stands behind each invariant."""
    text = (Path(__file__).parents[3] / "docs/architecture.md").read_text()
    table = text.split("## Invariants and their guards")[1].split("##")[0]
    rows = [line.split("|")[1:-1] for line in table.splitlines() if line.startswith("| ")][1:]
    assert len(rows) >= 10
    for invariant, _guard, checks in rows:
        named = re.findall(r"`([a-z-]+)`", checks)
        assert named or checks.strip() == "none: it leaves no trace in rows", invariant
        assert set(named) <= BY_NAME.keys(), invariant
