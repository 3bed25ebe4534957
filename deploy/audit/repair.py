"""Repairs a finding whose true value follows from other rows, as the owner of the database."""

import psycopg
from psycopg import sql

from deploy.audit.checks.all_checks import BY_NAME, run_statement
from deploy.audit.findings import Check
from deploy.audit.reading.sources import Connection


class NotRepaired(Exception):
    """The finding is there as before; nothing was changed. The message has the reason."""


def repair(name: str, id_: str, url: str) -> None:
    """Runs the statements of a check for one id, in one transaction. Raises `NotRepaired`."""
    check = BY_NAME.get(name)
    if check is None or not check.mend:
        mended = ", ".join(sorted(check.name for check in BY_NAME.values() if check.mend))
        raise NotRepaired(f"{name} has no statements; these have: {mended}")
    try:
        with psycopg.connect(url.replace("+psycopg", "", 1), application_name="stampede-audit-repair") as connection:
            connection.execute("SET lock_timeout = '10s'")
            mend(check, id_, connection)
            if check.query and (left := list(run_statement(check, connection, id_=id_))):
                connection.rollback()
                raise NotRepaired(f"still wrong, so nothing was changed: {left[0].text}")
    except psycopg.Error as error:
        raise NotRepaired(f"{type(error).__name__}: {str(error).splitlines()[0]}") from None


def mend(check: Check, id_: str, connection: Connection) -> None:
    """Runs the statements of a check for one id in the connection's transaction."""
    connection.execute(check.mend.replace(":id", sql.Literal(id_).as_string(connection)))
