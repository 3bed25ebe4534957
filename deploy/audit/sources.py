"""Opens what an audit reads: five databases and the provider's ledger. It can change none of them."""

import contextlib
import json
import os
import sqlite3
import tempfile
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import psycopg
from psycopg.rows import TupleRow

from deploy.audit.rows import Capture
from deploy.local.location import Site
from deploy.local.ports import SERVICES

_CONNECT_SECONDS = 5
_LEDGER_SECONDS = 30
_BATCH = 2_000
# The session enforces this, so that no statement can write by mistake.
_OPTIONS = (
    "-c default_transaction_read_only=on -c default_transaction_isolation=repeatable\\ read"
    " -c statement_timeout=10min -c idle_in_transaction_session_timeout=10min"
)

Connection = psycopg.Connection[TupleRow]


class Unreachable(Exception):
    """A database or the provider cannot be read. The message names it and the reason."""


@dataclass(frozen=True)
class Sources:
    """The addresses of the databases and the ledger."""

    databases: Mapping[str, str] = field(repr=False)
    """By service."""
    ledger_url: str | None = None
    """The address of the sandbox. None if the provider has no ledger to read."""

    @classmethod
    def of(cls, site: Site) -> "Sources":
        """The sources of a local mesh."""
        return cls({name: site.database_url(name) for name in SERVICES}, site.sandbox_url)

    @classmethod
    def here(cls, environ: Mapping[str, str] = os.environ) -> "Sources":
        """The sources at `CATALOG_DATABASE_URL` and so on, and `SANDBOX_URL`; those of the local mesh if none is set.

        Raises `Unreachable` if only some are set: the halves of two systems do not add up.
        """
        named = {name: environ.get(f"{name.upper()}_DATABASE_URL", "") for name in SERVICES}
        if not any(named.values()):
            return cls.of(Site.here())
        if lacking := [f"{name.upper()}_DATABASE_URL" for name, url in named.items() if not url]:
            raise Unreachable(f"some databases are set, but not all: set {', '.join(lacking)} too")
        return cls(named, environ.get("SANDBOX_URL") or None)

    @contextlib.contextmanager
    def connections(self) -> Iterator[dict[str, Connection]]:
        """Opens a read-only session for each database, with one snapshot each, taken right after each other."""
        with contextlib.ExitStack() as stack:
            opened = {name: stack.enter_context(_connect(name, url)) for name, url in self.databases.items()}
            # Orders first: rows of an order that is not there yet are recognised as in progress.
            for name in sorted(opened, key=lambda name: name != "orders"):
                opened[name].execute("SELECT 1")
            yield opened


@contextlib.contextmanager
def _connect(name: str, url: str) -> Iterator[Connection]:
    try:
        connection = psycopg.connect(
            url.replace("+psycopg", "", 1),
            connect_timeout=_CONNECT_SECONDS,
            options=_OPTIONS,
            application_name="stampede-audit",
        )
    except psycopg.OperationalError as error:
        raise Unreachable(f"the {name} database cannot be reached: {str(error).splitlines()[0]}") from None
    try:
        yield connection
    except psycopg.OperationalError as error:
        raise Unreachable(f"a connection was lost: {str(error).splitlines()[0]}") from None
    finally:
        connection.close()


@contextlib.contextmanager
def captures(ledger_url: str | None) -> Iterator[Iterator[Capture]]:
    """The provider's successful payments, sorted by order id; none without a ledger.

    The ledger has an order of its own and may be large, so it is sorted on disk.
    """
    if ledger_url is None:
        yield iter(())
        return
    with tempfile.NamedTemporaryFile(prefix="stampede-audit-") as file, contextlib.closing(_sorter(file.name)) as db:
        try:
            with urllib.request.urlopen(  # noqa: S310 - the operator's own address
                f"{ledger_url}/_sandbox/ledger?detail=true", timeout=_LEDGER_SECONDS
            ) as answer:
                _store(db, (json.loads(line) for line in answer))
        except (OSError, urllib.error.URLError, ValueError) as error:
            raise Unreachable(f"the provider's ledger at {ledger_url} cannot be read: {error}") from None
        query = "SELECT id, order_id, payment_id, amount, currency, refunded FROM ledger ORDER BY order_id, id"
        yield (
            Capture(id=a, order_id=b, payment_id=c, amount_minor=d, currency=e, refunded_minor=f)
            for a, b, c, d, e, f in db.execute(query)
        )


def _sorter(path: str) -> sqlite3.Connection:
    db = sqlite3.connect(path)
    db.executescript("""
        PRAGMA journal_mode = OFF; PRAGMA synchronous = OFF;
        CREATE TABLE ledger (id TEXT, order_id TEXT, payment_id TEXT, amount INTEGER, currency TEXT, refunded INTEGER);
    """)
    return db


def _store(db: sqlite3.Connection, entries: Iterator[dict[str, Any]]) -> None:
    insert = "INSERT INTO ledger VALUES (?, ?, ?, ?, ?, ?)"
    batch: list[tuple[Any, ...]] = []
    for entry in entries:
        metadata = entry.get("metadata") or {}
        order_id, payment_id = str(metadata.get("order_id", "")), str(metadata.get("payment_id", ""))
        amounts = entry["amount"], entry["currency"].upper(), entry["amount_refunded"]
        batch.append((entry["id"], order_id, payment_id, *amounts))
        if len(batch) == _BATCH:
            db.executemany(insert, batch)
            batch.clear()
    db.executemany(insert, batch)
    db.commit()
