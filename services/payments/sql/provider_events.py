"""The tables `provider_events`, the inbox of the webhooks, and `event_walks`: how far the provider's list was read."""

from collections.abc import Sequence
from datetime import datetime
from typing import Any, NamedTuple

import orjson
from sqlalchemy import Row, text
from sqlalchemy.ext.asyncio import AsyncSession

from services.chassis.data.cleanup import Cleanup
from services.chassis.data.db import Database, run_autocommit
from services.payments.dispatch.rules import event_seconds
from services.payments.domain import RefundState
from services.payments.providers.events import Dispute, EventKind, ProviderEvent
from services.payments.providers.results import ChargeStatus, own_id

CLEANUP = Cleanup(
    "provider_events",
    """
    DELETE FROM provider_events WHERE ctid = ANY(ARRAY(
        SELECT ctid FROM provider_events WHERE error IS NULL AND processed_time < now() - interval '30 days'
        ORDER BY processed_time LIMIT :most))
    """,
    overdue="SELECT extract(epoch FROM now() - interval '30 days' - min(processed_time)) FROM provider_events"
    " WHERE error IS NULL",
)
"""Parked events stay until an operator drops them, or until they can be applied."""

_CLAIM_SECONDS = 20.0
"""A process that claimed events has this long to apply them, calls to the provider included."""
_PARKED = "error IS NOT NULL AND processed_time IS NOT NULL"
_UUID = "^[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}$"


class Attempt(NamedTuple):
    """One attempt to apply a waiting event, and its outcome. With an error and not `done`, another attempt follows."""

    provider: str
    id: str
    event: ProviderEvent | None
    """None if the row cannot be read."""
    earlier: int
    error: str | None = None
    done: bool = True


class Counts(NamedTuple):
    """How many events wait and are parked, and the age of the oldest that waits."""

    waiting: int
    parked: int
    oldest_seconds: float


class Parked(NamedTuple):
    """A parked event, as operators see it."""

    id: str
    type: str
    reference: str
    payment_id: str
    attempts: int
    cause: str
    received_time: datetime


# Most successes are known before their event comes, from the provider's answer. Such an event is stored as processed.
# That needs no lock, because a payment that has succeeded never returns to an open state.
_PUT = text("""
    INSERT INTO provider_events (provider, event_id, payload, attempts, processed_time)
    SELECT n.provider, n.id, n.payload, CASE WHEN p.id IS NULL THEN 0 ELSE 1 END,
        CASE WHEN p.id IS NOT NULL OR n.payload->>'kind' = 'UNHANDLED' THEN now() END
    FROM jsonb_to_recordset(CAST(:events AS jsonb)) AS n (provider text, id text, payload jsonb, payment_id uuid)
    -- Row by row: a plan made while the table was small must not read all of it when it is large.
    LEFT JOIN LATERAL (
        SELECT p.id FROM payments AS p WHERE p.id = n.payment_id AND p.state IN ('SUCCEEDED', 'REFUNDED')
            AND n.payload->>'charge_status' = 'SUCCEEDED' AND n.payload->>'reference' = p.provider_reference
            AND n.payload->>'capture_reference' IN ('', p.capture_reference)
            AND n.payload->'amount' = to_jsonb(p.amount_minor) AND upper(n.payload->>'currency') = p.currency LIMIT 1
    ) AS p ON true
    ORDER BY n.provider, n.id
    ON CONFLICT DO NOTHING
    RETURNING payload->>'type' AS type, payload->>'kind' = 'UNHANDLED' AS unhandled, processed_time IS NULL AS waits
""")


class Stored(NamedTuple):
    """The types of new events that are done as soon as they are stored, and how many others wait."""

    applied: list[str]
    unhandled: list[str]
    waiting: int


async def put(db: Database, events: Sequence[ProviderEvent]) -> Stored:
    """Store events, each once."""
    unique = {(event.provider, event.id): event for event in events}.values()
    document = [
        {"provider": e.provider, "id": e.id, "payload": _to_payload(e), "payment_id": e.payment_id} for e in unique
    ]
    stored = await run_autocommit(db, _PUT, {"events": orjson.dumps(document).decode()})
    done = [row for row in stored if not row.waits]
    return Stored(
        applied=[row.type for row in done if not row.unhandled],
        unhandled=[row.type for row in done if row.unhandled],
        waiting=len(stored) - len(done),
    )


_CLAIM = text("""
    UPDATE provider_events AS e
    SET attempts = e.attempts + 1, next_try_time = now() + make_interval(secs => :seconds)
    FROM (
        SELECT provider, event_id FROM provider_events WHERE processed_time IS NULL AND next_try_time <= now()
        ORDER BY next_try_time LIMIT :most FOR UPDATE SKIP LOCKED
    ) AS due
    WHERE e.provider = due.provider AND e.event_id = due.event_id
    RETURNING e.provider, e.event_id, e.payload, e.attempts - 1 AS earlier
""")


async def claim_waiting(db: Database, most: int) -> list[Attempt]:
    """Claim the oldest events whose time has come; other processes leave them alone for a while.

    The attempt is counted now, so that an event that kills its process is parked in the end, too.
    """
    rows = await run_autocommit(db, _CLAIM, {"most": most, "seconds": _CLAIM_SECONDS})
    return [Attempt(row.provider, row.event_id, _read(row), row.earlier) for row in rows]


async def mark(tx: AsyncSession, attempts: Sequence[Attempt]) -> None:
    """Mark claimed events as processed, or set the time of their next attempt."""
    await tx.execute(
        text(
            "UPDATE provider_events AS e SET error = n.error, processed_time = CASE WHEN n.done THEN now() END,"
            " next_try_time = now() + make_interval(secs => n.pause * (0.75 + random() / 2))"
            " FROM unnest(CAST(:providers AS text[]), CAST(:ids AS text[]), CAST(:errors AS text[]),"
            " CAST(:done AS boolean[]), CAST(:pauses AS double precision[])) AS n(provider, id, error, done, pause)"
            " WHERE e.provider = n.provider AND e.event_id = n.id"
        ),
        {
            "providers": [a.provider for a in attempts],
            "ids": [a.id for a in attempts],
            "errors": [a.error for a in attempts],
            "done": [a.done for a in attempts],
            "pauses": [event_seconds(a.earlier) for a in attempts],
        },
    )


_TAKE_UP = text(f"""
    UPDATE provider_events AS e SET processed_time = NULL, attempts = 0, next_try_time = now()
    FROM (SELECT provider, event_id, payload, processed_time FROM provider_events WHERE {_PARKED}) AS parked, LATERAL (
        SELECT FROM payments AS p WHERE p.update_time > parked.processed_time
            AND (parked.payload->>'reference' IN (p.provider_reference, p.checkout_reference) OR p.id = CASE
                WHEN parked.payload->>'payment_id' ~ '{_UUID}' THEN CAST(parked.payload->>'payment_id' AS uuid) END)
    ) AS changed
    WHERE e.provider = parked.provider AND e.event_id = parked.event_id
    RETURNING e.event_id
""")  # noqa: S608  # columns of our own
_COUNT = text(f"""
    SELECT count(*) FILTER (WHERE processed_time IS NULL) AS waiting, count(*) FILTER (WHERE {_PARKED}) AS parked,
        coalesce(extract(epoch FROM now() - min(received_time) FILTER (WHERE processed_time IS NULL)), 0) AS oldest
    FROM provider_events WHERE processed_time IS NULL OR ({_PARKED})
""")  # noqa: S608
_LIST_PARKED = text(f"""
    SELECT event_id AS id, coalesce(payload->>'type', '') AS type, coalesce(payload->>'reference', '') AS reference,
        coalesce(payload->>'payment_id', '') AS payment_id, attempts, error AS cause, received_time
    FROM provider_events WHERE {_PARKED} ORDER BY received_time LIMIT :most
""")  # noqa: S608
_RETRY_PARKED = text(f"""
    UPDATE provider_events SET processed_time = NULL, attempts = 0, next_try_time = now()
    WHERE {_PARKED} AND (:every OR event_id = ANY(CAST(:ids AS text[]))) RETURNING event_id
""")  # noqa: S608
_DROP_PARKED = text(f"""
    UPDATE provider_events SET error = NULL WHERE {_PARKED} AND event_id = ANY(CAST(:ids AS text[])) RETURNING event_id
""")  # noqa: S608


async def take_up_parked(db: Database) -> int:
    """Have parked events applied whose payment has changed since; return how many."""
    return len(await run_autocommit(db, _TAKE_UP, {}))


async def count(db: Database) -> Counts:
    """Count the events that are not done."""
    row = (await run_autocommit(db, _COUNT, {}))[0]
    return Counts(row.waiting, row.parked, float(row.oldest))


async def list_parked(db: Database, *, most: int) -> list[Parked]:
    """Return the parked events, oldest first."""
    return [Parked(**row._mapping) for row in await run_autocommit(db, _LIST_PARKED, {"most": most})]


async def retry_parked(db: Database, event_ids: Sequence[str] | None) -> list[str]:
    """Have parked events applied again, all of them for None; return the ids of those that were parked."""
    arguments = {"every": event_ids is None, "ids": list(event_ids or ())}
    return [row.event_id for row in await run_autocommit(db, _RETRY_PARKED, arguments)]


async def drop_parked(db: Database, event_ids: Sequence[str]) -> list[str]:
    """Mark parked events as done without applying them; return the ids of those that were parked."""
    return [row.event_id for row in await run_autocommit(db, _DROP_PARKED, {"ids": list(event_ids)})]


def _to_payload(event: ProviderEvent) -> dict[str, Any]:
    return {
        "type": event.type,
        "kind": event.kind.name,
        "reference": event.reference,
        "capture_reference": event.capture_reference,
        "payment_id": event.payment_id,
        "amount": event.amount_minor,
        "currency": event.currency,
        "charge_status": event.charge_status.name if event.charge_status else None,
        "refunded": event.refunded_minor,
        "refund_reference": event.refund_reference,
        "refund_state": event.refund_state,
        "dispute": event.dispute,
    }


def _read(row: Row[Any]) -> ProviderEvent | None:
    """Return the event of a row; None if it cannot be read, so that it does not keep others from being applied."""
    payload = row.payload
    try:
        # Processes of the release before store no status. Such an event makes the reconciler ask the provider.
        status, refund, dispute = payload.get("charge_status"), payload.get("refund_state"), payload.get("dispute")
        old_kind = "CHARGE" if payload["refunded"] is None else "REFUND"
        return ProviderEvent(
            provider=row.provider,
            id=row.event_id,
            type=str(payload["type"]),
            kind=EventKind[payload.get("kind", old_kind)],
            reference=str(payload["reference"]),
            capture_reference=str(payload.get("capture_reference", "")),
            payment_id=own_id(payload["payment_id"]),
            amount_minor=int(payload["amount"]),
            currency=str(payload["currency"]),
            charge_status=ChargeStatus[status] if status else None,
            refunded_minor=None if payload["refunded"] is None else int(payload["refunded"]),
            refund_reference=str(payload.get("refund_reference", "")),
            refund_state=RefundState(refund) if refund else None,
            dispute=_dispute(dispute) if dispute else None,
        )
    except (AttributeError, KeyError, TypeError, ValueError):
        return None


def _dispute(payload: dict[str, Any]) -> Dispute:
    return Dispute(**payload | {"report_time": datetime.fromisoformat(payload["report_time"])})


# The first walk begins an hour back: what was lost before the first start is of no payment here.
_CLAIM_WALK = text("""
    INSERT INTO event_walks AS w (provider, done_time, next_time)
    VALUES (:provider, now() - interval '1 hour', now() + make_interval(secs => :pause))
    ON CONFLICT (provider) DO UPDATE SET next_time = excluded.next_time WHERE w.next_time <= now()
    RETURNING done_time, now() AS now
""")
_ADVANCE_WALK = text("""
    UPDATE event_walks SET done_time = greatest(done_time, :done) WHERE provider = :provider RETURNING provider
""")


async def claim_walk(db: Database, provider: str, *, pause: float) -> tuple[datetime, datetime] | None:
    """Claim the next walk. Return the time up to which events were read, and now; None if it is not due.

    The next one is due after `pause` seconds, whether this one ends or not.
    """
    rows = await run_autocommit(db, _CLAIM_WALK, {"provider": provider, "pause": pause})
    return (rows[0].done_time, rows[0].now) if rows else None


async def advance_walk(db: Database, provider: str, done: datetime) -> None:
    """Note that the events before `done` were read."""
    await run_autocommit(db, _ADVANCE_WALK, {"provider": provider, "done": done})
