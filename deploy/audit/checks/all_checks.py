"""The list of all checks, by name, and the run of those that are statements."""

from collections.abc import Iterator, Mapping

from deploy.audit import books
from deploy.audit.checks import (
    accounts,
    across,
    events,
    inventory,
    journal,
    orders,
    payments,
    references,
    schema,
    units,
)
from deploy.audit.findings import KEPT_MOST, Check, Finding
from deploy.audit.reading.sources import Connection

CHECKS = (
    *across.CHECKS, *units.CHECKS, *orders.CHECKS, *inventory.CHECKS, *payments.CHECKS, *journal.CHECKS,
    *accounts.CHECKS, *schema.CHECKS, *events.CHECKS, *references.CHECKS, books.BALANCE, books.JOURNAL,
)  # fmt: skip
BY_NAME = {check.name: check for check in CHECKS}


def run_statements(connections: Mapping[str, Connection]) -> Iterator[Finding]:
    """Runs the checks that are statements. Each returns only rows that break its condition."""
    for check in CHECKS:
        if check.query:
            yield from run_statement(check, connections[check.service])


def run_statement(check: Check, connection: Connection, *, id_: str | None = None) -> Iterator[Finding]:
    """Runs one of them; with `id_`, for that id alone."""
    query = f"SELECT id::text, problem FROM ({check.query}) AS found (id, problem)"
    where, most = (" WHERE id::text = %s", [id_]) if id_ else ("", [])
    for found, problem in connection.execute(query.replace("%", "%%") + where + f" LIMIT {KEPT_MOST + 1}", most):
        yield Finding(check, (found,), f"{noun(check)} {found}: {problem}")


def noun(check: Check) -> str:
    """The kind of thing that the id of a finding names."""
    return _NOUNS.get(check.name, _NOUNS_OF_SERVICES.get(check.service, "order"))


_NOUNS = {
    **dict.fromkeys(("sale-ledger", "sale-closed", "sale-overlap", "sale-terms", "sale-customers",
        "abandoned-holds"), "sale"),
    **dict.fromkeys(("movement-kind", "product-terms", "product-once"), "product"),
    **dict.fromkeys(("provider-event-waits", "provider-event-parked"), "event"), "provider-events-read": "provider",
    "dispute-unread": "dispute",
    "money-problem": "payment",
    "user-account": "user", "user-session": "session", "signing-keys": "key",
    **{check.name: "resource" if "requests" in check.name else "database" for check in schema.CHECKS},
}  # fmt: skip
_NOUNS_OF_SERVICES = {"orders": "order", "inventory": "order", "payments": "order"}
