"""The table `journal_entries`: every movement of money, as balanced entries. Rows are only added."""

import uuid
from datetime import UTC, datetime
from typing import NamedTuple

import orjson
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncSession

from services.chassis.data.db import Database, run_autocommit
from services.payments.books.chart import CUSTOMER_PAYMENTS, PROVIDER, Entry

_RECORD = "payment_id uuid, kind text, debit text, credit text, amount_minor bigint, reference text"


def insert_with(payments: str) -> str:
    """Return SQL that enters the parameter `:entries` for those payments that `payments` has, with its currencies."""
    return f"""
        INSERT INTO journal_entries (payment_id, kind, debit, credit, amount_minor, currency, reference)
        SELECT e.payment_id, e.kind, e.debit, e.credit, e.amount_minor, p.currency, e.reference
        FROM jsonb_to_recordset(CAST(:entries AS jsonb)) AS e ({_RECORD}) CROSS JOIN LATERAL {payments} AS p
    """  # noqa: S608  # names of our own


def document(entries: list[Entry]) -> str:
    """Return the parameter `:entries` of `insert_with`."""
    return orjson.dumps(entries).decode()  # as it is: `asdict` would cost as much as the row


_ENTER = text(insert_with("(SELECT p.currency FROM payments AS p WHERE p.id = e.payment_id LIMIT 1)"))


async def enter(tx: AsyncSession, entries: list[Entry]) -> None:
    """Enter the movements of a fact, in the transaction that stores it."""
    if entries:
        await tx.execute(_ENTER, {"entries": document(entries)})


class Entered(NamedTuple):
    """An entry of the journal."""

    id: int
    create_time: datetime
    payment_id: uuid.UUID
    kind: str
    debit: str
    credit: str
    amount_minor: int
    currency: str
    reference: str


class Balance(NamedTuple):
    """The sums of one account in one currency."""

    account: str
    currency: str
    debit_minor: int
    credit_minor: int

    @property
    def net(self) -> str:
        """The side on which it has a balance, and the amount; `even` if it has none."""
        more = self.debit_minor - self.credit_minor
        return f"{'debit' if more > 0 else 'credit'} {abs(more):,}" if more else "even"


class Wanted(NamedTuple):
    """The entries to list: of one account and from one time on until before another; None for all."""

    account: str | None = None
    since: datetime | None = None
    until: datetime | None = None


_PERIOD = (
    "(CAST(:since AS timestamptz) IS NULL OR create_time >= :since)"
    " AND (CAST(:until AS timestamptz) IS NULL OR create_time < :until)"
    " AND (CAST(:after AS bigint) IS NULL OR id < :after)"
)
_COLUMNS = ", ".join(Entered._fields)
_ALL = text(f"""
    SELECT {_COLUMNS} FROM journal_entries WHERE {_PERIOD}
        AND (CAST(:account AS text) IS NULL OR debit = :account OR credit = :account) ORDER BY id DESC LIMIT :most
""")  # noqa: S608
# By the two indexes, which lack the entries of ordinary payments: these never touch the account.
_RARE = text(f"""
    SELECT * FROM (
        (SELECT {_COLUMNS} FROM journal_entries WHERE debit = :account AND kind <> 'CAPTURED' AND {_PERIOD}
            ORDER BY id DESC LIMIT :most)
        UNION ALL
        (SELECT {_COLUMNS} FROM journal_entries WHERE credit = :account AND kind <> 'CAPTURED' AND {_PERIOD}
            ORDER BY id DESC LIMIT :most)
    ) AS sides ORDER BY id DESC LIMIT :most
""")  # noqa: S608
_BALANCES = text("""
    SELECT account, currency, CAST(sum(debit) AS bigint) AS debit_minor, CAST(sum(credit) AS bigint) AS credit_minor
    FROM (
        SELECT debit AS account, currency, amount_minor AS debit, 0 AS credit FROM journal_entries
        UNION ALL SELECT credit, currency, 0, amount_minor FROM journal_entries
    ) AS sides GROUP BY account, currency ORDER BY account, currency
""")
# The net amount between each two accounts, as rows of payments and refunds have it, less that of their entries.
_COMPLETE = text("""
    WITH expected AS (
        SELECT id AS payment_id, coalesce(provider_reference, '') AS reference, currency,
            'provider:' || provider AS debit, 'customer_payments' AS credit, amount_minor AS amount
        FROM payments WHERE state IN ('SUCCEEDED', 'REFUNDED') AND update_time >= :since
        UNION ALL
        SELECT id, coalesce(provider_reference, ''), currency, 'authorized', 'uncaptured', amount_minor
        FROM payments WHERE state = 'AUTHORIZED' AND update_time >= :since
        UNION ALL
        SELECT r.payment_id, CAST(r.id AS text), p.currency, m.debit, m.credit, m.amount
        FROM refunds AS r JOIN payments AS p ON p.id = r.payment_id CROSS JOIN LATERAL (VALUES
            ('provider:' || r.provider, 'stray_money', r.received_minor),
            (CASE WHEN r.stray THEN 'stray_money' ELSE 'refunds' END,
                CASE r.settlement WHEN 'PROVIDER' THEN 'provider:' || r.provider WHEN 'BANK' THEN 'disputes_lost'
                    ELSE lower(r.settlement) END,
                CASE r.state WHEN 'SUCCEEDED' THEN r.amount_minor ELSE 0 END)
        ) AS m (debit, credit, amount)
        WHERE p.update_time >= :since
        UNION ALL
        SELECT d.payment_id, d.reference, p.currency, m.debit, m.credit, m.amount
        FROM disputes AS d JOIN payments AS p ON p.id = d.payment_id CROSS JOIN LATERAL (VALUES
            ('disputes', 'provider:' || d.provider, d.withdrawn_minor),
            ('disputes_lost', 'disputes', CASE d.state WHEN 'LOST' THEN d.withdrawn_minor ELSE 0 END)
        ) AS m (debit, credit, amount)
        WHERE p.update_time >= :since
    ), sides AS (
        SELECT payment_id, reference, currency, least(debit, credit) AS one, greatest(debit, credit) AS other,
            CASE WHEN debit < credit THEN amount ELSE -amount END AS net FROM expected
        UNION ALL
        SELECT payment_id, reference, currency, least(debit, credit), greatest(debit, credit),
            CASE WHEN debit < credit THEN -amount_minor ELSE amount_minor END
        FROM journal_entries AS e WHERE 'fees' NOT IN (debit, credit)
            AND EXISTS (SELECT FROM payments AS p WHERE p.id = e.payment_id AND p.update_time >= :since)
    )
    INSERT INTO journal_entries (payment_id, kind, debit, credit, amount_minor, currency, reference)
    SELECT payment_id, 'OPENING', CASE WHEN sum(net) > 0 THEN one ELSE other END,
        CASE WHEN sum(net) > 0 THEN other ELSE one END, abs(sum(net)), currency, reference
    FROM sides GROUP BY payment_id, reference, currency, one, other HAVING sum(net) <> 0
    RETURNING *
""")
_LOCK = text("SELECT pg_advisory_xact_lock(hashtext('journal_entries'))")


async def complete(tx: AsyncSession, *, since: datetime | None = None) -> list[Entered]:
    """Enter what rows stand for and their entries lack: of processes of the release before, or after a restore.

    With `since`, only of payments that have changed from then on. Return the new entries.
    """
    await tx.execute(_LOCK)  # two at once would both enter the difference
    rows = await tx.execute(_COMPLETE, {"since": since or datetime.min.replace(tzinfo=UTC)})
    return [Entered(**row._mapping) for row in rows]


async def page(db: Database, wanted: Wanted, *, after: int | None, most: int) -> list[Entered]:
    """Return entries, the newest first, from the one before the id `after` on."""
    is_common = wanted.account is None or wanted.account == CUSTOMER_PAYMENTS or wanted.account.startswith(PROVIDER)
    rows = await run_autocommit(db, _ALL if is_common else _RARE, {**wanted._asdict(), "after": after, "most": most})
    return [Entered(**row._mapping) for row in rows]


async def balances(db: Database) -> list[Balance]:
    """Return the sums of all accounts."""
    return [Balance(**row._mapping) for row in await run_autocommit(db, _BALANCES, {})]
