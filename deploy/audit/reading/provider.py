"""The provider's records, sorted by order id. They have an order of their own and may be large: sorted on disk."""

import contextlib
import json
import sqlite3
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterable, Iterator
from typing import Any

from deploy.audit.reading.rows import Intent, ProviderDispute, ProviderRefund
from deploy.audit.reading.unreachable import Unreachable

_SECONDS = 30
_BATCH = 2_000


@contextlib.contextmanager
def intents(ledger_url: str) -> Iterator[Iterator[Intent]]:
    """All payments that the provider knows, in any status, sorted by order id."""
    with tempfile.NamedTemporaryFile(prefix="stampede-audit-") as file, contextlib.closing(_sorter(file.name)) as db:
        try:
            with urllib.request.urlopen(  # noqa: S310 - the operator's own address
                f"{ledger_url}/_sandbox/ledger?detail=records", timeout=_SECONDS
            ) as answer:
                _store(db, answer)
        except (OSError, urllib.error.URLError, ValueError) as error:
            raise Unreachable(f"the provider's records at {ledger_url} cannot be read: {error}") from None
        yield (
            intent_of(json.loads(entry)) for (entry,) in db.execute("SELECT entry FROM ledger ORDER BY order_id, id")
        )


def intent_of(entry: dict[str, Any]) -> Intent:
    """A line of the provider's records."""
    return Intent(
        id=entry["id"],
        order_id=_named(entry, "order_id"),
        payment_id=_named(entry, "payment_id"),
        amount_minor=entry["amount"],
        currency=entry["currency"].upper(),
        status=entry["status"],
        refunded_minor=entry["amount_refunded"],
        dispute=_dispute(entry.get("dispute")),
        refunds=tuple(
            ProviderRefund(
                id=refund["id"], refund_id=_named(refund, "refund_id"), amount_minor=refund["amount"],
                state=refund.get("status", "succeeded"),
            )
            for refund in entry["refunds"]
        ),
    )  # fmt: skip


def _dispute(entry: dict[str, Any] | None) -> ProviderDispute | None:
    if entry is None:
        return None
    return ProviderDispute(
        id=entry["id"], amount_minor=entry["amount"], status=entry["status"],
        age_seconds=time.time() - entry["created"],
    )  # fmt: skip


def _named(entry: dict[str, Any], key: str) -> str:
    return str((entry.get("metadata") or {}).get(key, ""))


def _sorter(path: str) -> sqlite3.Connection:
    db = sqlite3.connect(path)
    db.executescript("""
        PRAGMA journal_mode = OFF; PRAGMA synchronous = OFF;
        CREATE TABLE ledger (id TEXT, order_id TEXT, entry BLOB);
    """)
    return db


def _store(db: sqlite3.Connection, lines: Iterable[bytes]) -> None:
    batch: list[tuple[str, str, bytes]] = []
    for line in lines:
        entry = json.loads(line)
        batch.append((entry["id"], _named(entry, "order_id"), line))
        if len(batch) == _BATCH:
            db.executemany("INSERT INTO ledger VALUES (?, ?, ?)", batch)
            batch.clear()
    db.executemany("INSERT INTO ledger VALUES (?, ?, ?)", batch)
    db.commit()
