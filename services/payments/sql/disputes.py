"""The tables `disputes` and `dispute_checks`: money that customers' banks demand back, and what to read about it."""

import dataclasses
import uuid
from collections.abc import Iterable, Sequence
from datetime import datetime
from typing import Any, NamedTuple

from sqlalchemy import select, text
from sqlalchemy.ext.asyncio import AsyncSession

from services.chassis.data.db import Database, run_autocommit
from services.payments.domain import DISPUTE_ENDS, Dispute, DisputeState
from services.payments.sql import schema

_NAMES = tuple(field.name for field in dataclasses.fields(Dispute))
_COLUMNS = tuple(getattr(schema.Dispute, name) for name in _NAMES)

_REQUEST = text("""
    INSERT INTO dispute_checks (provider, reference, payment_id)
    SELECT * FROM unnest(CAST(:providers AS text[]), CAST(:references AS text[]), CAST(:payments AS uuid[]))
    ORDER BY 1, 2
    ON CONFLICT (provider, reference) DO UPDATE SET due_time = clock_timestamp(), attempts = 0
""")
# A claimed check is due again later, and later each time: the provider may not answer, or the process may die.
_CLAIM = text("""
    WITH due AS (
        SELECT provider, reference FROM dispute_checks WHERE due_time <= now() ORDER BY due_time LIMIT :most
        FOR UPDATE SKIP LOCKED
    )
    UPDATE dispute_checks AS c SET attempts = c.attempts + 1,
        due_time = clock_timestamp() + least(interval '15 seconds' * 2 ^ least(c.attempts, 8), interval '1 hour')
    FROM due WHERE c.provider = due.provider AND c.reference = due.reference
    RETURNING c.provider, c.reference, c.payment_id, c.attempts
""")
# Unless it was requested again meanwhile.
_FINISH = text("""
    DELETE FROM dispute_checks WHERE provider = :provider AND reference = :reference AND attempts = :attempts
""")
_STORE = text(f"""
    INSERT INTO disputes AS d ({", ".join(_NAMES)}, report_time)
    VALUES ({", ".join(f":{name}" for name in _NAMES)}, now())
    ON CONFLICT (provider, reference) DO UPDATE SET state = excluded.state, status = excluded.status,
        reason = excluded.reason, amount_minor = excluded.amount_minor, withdrawn_minor = excluded.withdrawn_minor,
        fee_minor = excluded.fee_minor, evidence_due_time = excluded.evidence_due_time, report_time = now(),
        update_time = now()
""")  # noqa: S608  # columns of our own
_COUNT_OPEN = text("""
    SELECT state, count(*) AS number FROM disputes GROUP BY state
""")
_PAGE = text(f"""
    SELECT {", ".join(f"d.{name}" for name in _NAMES)}, p.order_id, d.create_time, d.update_time
    FROM disputes AS d JOIN payments AS p ON p.id = d.payment_id
    WHERE (CAST(:state AS text) IS NULL OR d.state = :state) AND (CAST(:time AS timestamptz) IS NULL
        OR (d.create_time, d.reference) < (CAST(:time AS timestamptz), CAST(:reference AS text)))
    ORDER BY d.create_time DESC, d.reference DESC LIMIT :most
""")  # noqa: S608
_DISPUTED = text("""
    SELECT payment_id, bool_or(withdrawn_minor > 0) AS withdrawn FROM disputes
    WHERE payment_id = ANY(CAST(:ids AS uuid[])) AND state NOT IN ('WON', 'CLOSED') GROUP BY payment_id
""")


class DisputeCheck(NamedTuple):
    """A dispute whose record is to be read, and how often that was claimed."""

    provider: str
    reference: str
    payment_id: uuid.UUID
    attempts: int


class ListedDispute(NamedTuple):
    """A dispute with its order, as staff see it."""

    dispute: Dispute
    order_id: uuid.UUID
    create_time: datetime
    update_time: datetime


class Position(NamedTuple):
    """The position of a dispute in lists."""

    create_time: datetime
    reference: str


async def request_checks(tx: AsyncSession, reports: Iterable[tuple[str, str, uuid.UUID]]) -> None:
    """Have the records of disputes read: of each its provider, its reference and its payment."""
    if found := sorted(set(reports)):
        providers, references, payments = zip(*found, strict=True)
        await tx.execute(
            _REQUEST, {"providers": list(providers), "references": list(references), "payments": list(payments)}
        )


async def claim_checks(db: Database, *, most: int) -> list[DisputeCheck]:
    """Claim the checks that are due. One that is not finished is due again later."""
    return [DisputeCheck(**row._mapping) for row in await run_autocommit(db, _CLAIM, {"most": most})]


async def finish_check(tx: AsyncSession, check: DisputeCheck) -> None:
    """Remove a check that was carried out."""
    arguments = {"provider": check.provider, "reference": check.reference, "attempts": check.attempts}
    await tx.execute(_FINISH, arguments)


async def read(tx: AsyncSession, provider: str, reference: str) -> Dispute | None:
    """Return a dispute; the caller has locked its payment."""
    table = schema.Dispute
    wanted = select(*_COLUMNS).where(table.provider == provider, table.reference == reference)
    found = (await tx.execute(wanted)).one_or_none()
    return None if found is None else _from_row(found)


async def store(tx: AsyncSession, dispute: Dispute) -> None:
    """Write a dispute as the provider's record has it; the caller has locked its payment."""
    await tx.execute(_STORE, dataclasses.asdict(dispute) | {"state": str(dispute.state)})


async def read_disputed(tx: AsyncSession, payment_ids: Sequence[uuid.UUID]) -> set[uuid.UUID]:
    """Return those payments whose money a bank may take, or has taken."""
    return {row.payment_id for row in await tx.execute(_DISPUTED, {"ids": list(payment_ids)})}


async def read_withdrawn(tx: AsyncSession, payment_ids: Sequence[uuid.UUID]) -> set[uuid.UUID]:
    """Return those payments of whose money a bank has taken some: the provider refunds none of it meanwhile."""
    if not payment_ids:
        return set()
    return {row.payment_id for row in await tx.execute(_DISPUTED, {"ids": list(payment_ids)}) if row.withdrawn}


async def page(db: Database, *, state: DisputeState | None, after: Position | None, most: int) -> list[ListedDispute]:
    """Return disputes, the newest first, from the one after a position on."""
    time, reference = after or (None, None)
    arguments = {"state": state and str(state), "time": time, "reference": reference, "most": most}
    rows = await run_autocommit(db, _PAGE, arguments)
    return [ListedDispute(_from_row(row[: len(_NAMES)]), *row[len(_NAMES) :]) for row in rows]


def _from_row(row: Sequence[Any]) -> Dispute:
    values = dict(zip(_NAMES, row, strict=True))
    values["state"] = DisputeState(values["state"])
    return Dispute(**values)


async def count_open(db: Database) -> dict[str, int]:
    """Return how many disputes are in each state that has not ended."""
    counted = {row.state: row.number for row in await run_autocommit(db, _COUNT_OPEN, {})}
    return {state: counted.get(state, 0) for state in DisputeState if state not in DISPUTE_ENDS}
