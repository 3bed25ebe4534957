"""Checks each statement of a service against the privileges of its runtime role, while integration tests run it.

Tests connect as the superuser, because they also arrange rows that no service could write. So a statement of a service
is planned once more as the service's role: a missing grant fails the test that runs the statement first.
"""

import sys
from pathlib import Path
from typing import Any

import greenlet
import psycopg
from psycopg._queries import PostgresQuery
from psycopg.adapt import Transformer

from services.chassis.data import db
from tests.support.infra import Infra

SERVICES = ("catalog", "identity", "inventory", "orders", "payments")
_ROOT = Path(__file__).parents[2]
_OF_SERVICES, _OF_TESTS = str(_ROOT / "services"), str(_ROOT / "tests")
_OF_DATABASE = str(_ROOT / "services/chassis/data/db.py")
_PLANNED = ("SELECT", "INSERT", "UPDATE", "DELETE", "WITH")


class Privileges:
    """The roles of one cluster, and the statements that were found to be permitted."""

    def __init__(self, infra: Infra) -> None:
        self._infra = infra
        self._permitted: set[tuple[str, str]] = set()
        self.missing: list[str] = []
        """The refusals. A service may have answered one as an internal error."""
        self._counted = db._Counted

    def install(self) -> None:
        """Makes the roles, and has every later connection of a service's database check its statements."""
        self._infra.admin(*(f"CREATE ROLE {service} LOGIN" for service in SERVICES))
        check = self._check

        class Checked(self._counted):  # type: ignore[misc, name-defined]
            def execute(self, query: Any, params: Any = None, **options: Any) -> Any:
                check(self.connection, query, params)
                return super().execute(query, params, **options)

        db._Counted = Checked  # type: ignore[misc]

    def remove(self) -> None:
        db._Counted = self._counted  # type: ignore[misc]

    def _check(self, connection: Any, query: Any, params: Any) -> None:
        database = connection.info.dbname
        role = database.removeprefix("test_").partition("_")[0]
        if (role, query) in self._permitted or role not in SERVICES or not _is_by_service():
            return
        self._permitted.add((role, query))
        if not query.lstrip().upper().startswith(_PLANNED):
            return
        converted = PostgresQuery(Transformer(connection))
        converted.convert(query, params)
        with psycopg.connect(
            f"postgresql://postgres@127.0.0.1:{self._infra.postgres_port}/{database}", autocommit=True
        ) as planner:
            # A test may hold the table's lock just now.
            planner.execute(f"SET ROLE {role}; SET lock_timeout = '1s'")  # type: ignore[call-overload]
            try:
                planner.execute(b"EXPLAIN (GENERIC_PLAN) " + converted.query)
            except psycopg.errors.InsufficientPrivilege as refused:
                self._permitted.discard((role, query))
                text = " ".join(query.split())[:300]
                self.missing.append(f"{refused}; declare it in services/{role}/sql/grants.py: {text}")
                raise AssertionError(self.missing[-1]) from None
            except psycopg.Error:
                self._permitted.discard((role, query))


def _is_by_service() -> bool:
    """Whether a service's code sends the statement, and not a test."""
    # SQLAlchemy runs the driver in a greenlet of its own; its parent is suspended in the code that asked for it.
    parent = greenlet.getcurrent().parent
    frame = sys._getframe() if parent is None else parent.gr_frame
    while frame is not None:
        path = frame.f_code.co_filename
        if path.startswith(_OF_SERVICES) and path != _OF_DATABASE:
            return True
        if path.startswith(_OF_TESTS) and not path.endswith("privileges.py"):
            return False
        frame = frame.f_back
    return False
