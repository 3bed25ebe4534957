"""Grants: the privileges of a service's runtime role, table by table, and nothing else.

`sql/grants.py` of a service declares them; every migration applies them in its transaction. So a table that nobody
declared cannot be read, and the tables of the migrations themselves cannot be changed. While a release is rolled out,
processes of the old one run beside it: take a privilege away one release after its last use.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Grant:
    """The privileges of a role on a table, besides reading it. `SELECT … FOR UPDATE` needs a column to update."""

    insert: bool = False
    update: tuple[str, ...] = ()
    """The columns that may change after the insert."""
    delete: bool = False


Grants = Mapping[str, Grant]
"""The grants of one role, by table."""


def statement(role: str, grants: Grants) -> str:
    """Returns SQL that gives `role` exactly `grants`, if the role exists."""
    body = "\n".join(f"        {line};" for line in _lines(role, grants))
    return (
        f"DO $$ BEGIN\n    IF EXISTS (SELECT FROM pg_roles WHERE rolname = '{role}') THEN\n{body}\n    END IF;\nEND $$"
    )


def _lines(role: str, grants: Grants) -> Iterator[str]:
    # Databases of earlier releases have default privileges, which would let the role change each new table.
    yield f"ALTER DEFAULT PRIVILEGES REVOKE ALL ON TABLES FROM {role}"
    yield f"ALTER DEFAULT PRIVILEGES REVOKE ALL ON SEQUENCES FROM {role}"
    yield f"REVOKE ALL ON ALL TABLES IN SCHEMA public FROM {role}"
    yield f"REVOKE ALL ON ALL SEQUENCES IN SCHEMA public FROM {role}"
    for table, grant in grants.items():
        privileges = ["SELECT"]
        if grant.insert:
            privileges.append("INSERT")
        if grant.update:
            privileges.append(f"UPDATE ({', '.join(grant.update)})")
        if grant.delete:
            privileges.append("DELETE")
        yield f"GRANT {', '.join(privileges)} ON {table} TO {role}"
